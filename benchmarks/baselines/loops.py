"""Hand-written loops over a grid, for one example: what one would write with JAX alone. Nothing here is jflow's.

`f(t, x)` is the velocity. The caller maps a loop over a batch, and compiles it.
"""

import jax
import jax.numpy as jnp
import jax.random as jr


def slices(times):
    return times[:-1], times[1:] - times[:-1]


def ode(step):
    """The scan of an ODE's step."""

    def loop(f, x0, times):
        return jax.lax.scan(lambda x, slice: (step(f, *slice, x), None), x0, slices(times))[0]

    return loop


@ode
def euler(f, t, h, x):
    return x + h * f(t, x)


@ode
def midpoint(f, t, h, x):
    return x + h * f(t + h / 2, x + h / 2 * f(t, x))


@ode
def heun(f, t, h, x):
    k = f(t, x)
    return x + h / 2 * (k + f(t + h, x + h * k))


@ode
def dopri5(f, t, h, x):
    """Dormand & Prince's fifth order, without the stage of the error estimate."""
    k1 = f(t, x)
    k2 = f(t + h / 5, x + h * (k1 / 5))
    k3 = f(t + 3 / 10 * h, x + h * (3 / 40 * k1 + 9 / 40 * k2))
    k4 = f(t + 4 / 5 * h, x + h * (44 / 45 * k1 - 56 / 15 * k2 + 32 / 9 * k3))
    k5 = f(t + 8 / 9 * h, x + h * (19372 / 6561 * k1 - 25360 / 2187 * k2 + 64448 / 6561 * k3 - 212 / 729 * k4))
    last = 9017 / 3168 * k1 - 355 / 33 * k2 + 46732 / 5247 * k3 + 49 / 176 * k4 - 5103 / 18656 * k5
    k6 = f(t + h, x + h * last)
    return x + h * (35 / 384 * k1 + 500 / 1113 * k3 + 125 / 192 * k4 - 2187 / 6784 * k5 + 11 / 84 * k6)


def batched_sde(f, x0, times, key):
    """Euler-Maruyama with unit diffusion for a whole batch: one key and one draw a step."""
    t, h = slices(times)

    def step(x, slice):
        t, h, key = slice
        return x + h * f(t, x) + jnp.sqrt(h) * jr.normal(key, x.shape), None

    return jax.lax.scan(step, x0, (t, h, jr.split(key, len(h))))[0]


def normal_log_prob(x):
    return -0.5 * jnp.sum(x**2) - 0.5 * x.size * jnp.log(2 * jnp.pi)


def backward(divergence):
    """The log-density of `x` by Euler steps back along the grid, with `divergence(f, x) -> (f(x), div f(x))`."""

    def loop(f, x, times, *probe):
        def step(carry, slice):
            (x, total), (t, h) = carry, slice
            y, div = divergence(lambda x: f(t, x), x, *probe)
            return (x + h * y, total + h * div), None

        x, total = jax.lax.scan(step, (x, jnp.zeros(())), slices(times[::-1]))[0]
        return normal_log_prob(x) + total  # h is negative: minus the integral from noise to data

    return loop


@backward
def exact_log_prob(f, x):
    """The exact divergence by `jax.linearize`."""
    y, push = jax.linearize(f, x)
    return y, jnp.trace(jax.vmap(push)(jnp.eye(x.size)))


@backward
def hutchinson_log_prob(f, x, probe):
    """Hutchinson's estimate by `jax.vjp`, with one probe for the whole solve."""
    y, pull = jax.vjp(f, x)
    return y, jnp.vdot(pull(probe)[0], probe)
