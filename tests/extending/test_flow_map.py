"""A flow map: its identity loss is zero at the exact map, its jumps push N(0, I) exactly, their density is exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


def identity_loss(flow_map, key, x1, args=None):
    """`|u - (v + (t - s) D_s u)|^2`, `D_s u` the derivative of the average velocity `u(s, t, x)` along the flow."""
    key_times, key_source = jr.split(key)
    s, t = jnp.sort(jr.uniform(key_times, (2,), x1.dtype))
    x = flow_map.path.interpolate(s, flow_map.path.source.sample(key_source, x1), x1)
    v = flow_map.velocity(s, x, args)
    moving = (jnp.ones_like(s), jnp.zeros_like(t), v)
    u, rate = jax.jvp(lambda s, t, x: flow_map.average(s, t, x, args), (s, t, x), moving)
    target = jax.tree.map(lambda a, b: a + (t - s) * b, v, rate)
    return jnp.mean((u - jax.lax.stop_gradient(target)) ** 2)


def density_of_jumps(flow_map, sampler, x, args=None):
    """The sample that the jumps make of a draw `x` of the source, and its log-density."""
    st = jf.stepper(flow_map, sampler)
    log_prob = flow_map.path.start_log_prob(st.times[0], x, args)
    for i in range(st.steps):
        log_prob = log_prob - st.log_det(st.row(i), x, args)
        x, _ = st.step(st.row(i), x, None, args=args)
    return x, log_prob


# The law -------------------------------------------------------------------------------------------------------------

MEAN, STD = np.array([1.0, -2.0]), np.array([0.5, 1.5])


class GaussianMap(eqx.Module):
    """The exact average velocity along CondOT to `N(mean, std^2)`, and `off` times another one.

    `X_{s,t}(x) = t m + T_t/T_s (x - s m)` with `T_t^2 = t^2 std^2 + (1-t)^2`.
    """

    off: jax.Array

    def __call__(self, s, t, x, args):
        def width(t):
            return jnp.sqrt(t**2 * STD**2 + (1 - t) ** 2)

        # (T_t - T_s) / (t - s), from the difference of the squares: finite at t = s
        slope = ((t + s) * STD**2 - (2 - t - s)) / (width(t) + width(s))
        return MEAN + slope * (x - s * MEAN) / width(s) + self.off * jnp.sin(x)


def exact(off=0.0):
    return jf.FlowMap(GaussianMap(jnp.asarray(off)), jf.CondOT())


@pytest.mark.slow
def test_the_identity_loss_is_zero_at_the_exact_map_alone(x64):
    keys, x1 = jr.split(jr.key(0), 100), MEAN[None] + STD[None] * jr.normal(jr.key(1), (100, 2))
    losses = jax.jit(jax.vmap(identity_loss, (None, 0, 0)))
    assert losses(exact(), keys, x1).max() < 1e-24
    assert losses(exact(0.1), keys, x1).mean() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_jumps_push_the_normal_exactly(x64, n):
    """Jumps are affine here: at the end `mean + std x0`, whatever their number."""
    x0, sampler = jr.normal(jr.key(2), (2,)), jf.FixedSteps(jf.UniformGrid(n), jf.Jump())
    sol = jf.decode(exact(), x0, sampler)
    np.testing.assert_allclose(sol.x, MEAN + STD * x0, atol=1e-12)
    assert sol.nfe == n
    assert jf.recommended(exact(), 2) == jf.FixedSteps(jf.UniformGrid(2), jf.Jump(), end="stop")


@pytest.mark.slow
def test_the_density_of_jumps_is_exact(x64):
    x0, sampler = jr.normal(jr.key(3), (2,)), jf.FixedSteps(jf.UniformGrid(3), jf.Jump())
    x, log_prob = jax.jit(lambda x: density_of_jumps(exact(), sampler, x))(x0)
    world = jf.distributions.Gaussian(MEAN, std=STD)
    np.testing.assert_allclose(log_prob, world.log_prob(x), atol=1e-12)


@pytest.mark.slow
def test_the_density_of_wrong_jumps_is_that_of_what_they_sample(x64):
    """In one dimension the histogram of the samples is the density, of a map that is not the exact one too."""
    sampler = jf.FixedSteps(jf.UniformGrid(2), jf.Jump())
    x0 = jnp.linspace(-3, 3, 601)
    pairs = jnp.stack([x0, jnp.zeros_like(x0)], axis=1)
    x, log_prob = jax.jit(jax.vmap(lambda x: density_of_jumps(exact(0.3), sampler, x)))(pairs)
    first = np.asarray(x[:, 0])
    assert (np.diff(first) > 0).all()
    # the mass between two neighbours is that of the source, and the second component is the same in all pairs
    other = np.exp(log_prob - jax.scipy.stats.norm.logpdf(x0)) * np.gradient(first, x0)
    np.testing.assert_allclose(other / other[300], 1, atol=2e-3)
