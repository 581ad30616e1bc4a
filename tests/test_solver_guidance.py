"""Guidance that needs the step: CFG++."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from references import Counter, refuses

import jflow as jf

GRID = np.array([0.0, 0.05, 0.11, 0.2, 0.33, 0.41, 0.52, 0.66, 0.74, 0.85, 0.93, 0.97])
PATH = jf.CondOT()
START = np.array([0.3, -1.2, 0.8])


def net(t, x, y):
    return jnp.tanh(x * (1 + t) + y) + y * t


def prediction(t, x, y):
    return np.tanh(x * (1 + t) + y) + y * t


FIELD = jf.Field(net, PATH, "data")


@eqx.filter_jit
def carry(field, scale, times, dtype):
    sampler = jf.FixedSteps(times, jf.CFGpp(), end="stop")
    return jf.decode(field, jnp.asarray(START, dtype), sampler, args=jf.Args(0.8, scale=scale))


def cfgpp(mu, grid=GRID):
    x = START
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        c, u = prediction(t, x, 0.8), prediction(t, x, -0.5)
        noise = (x - t * u) / (1 - t)
        x = s * (u + mu * (c - u)) + (1 - s) * noise
    return x


def weighted(mu):
    """DDIM, guided with the scale `mu/(1 - e^(-h))`."""
    x = START
    for t, s in zip(GRID[:-1], GRID[1:], strict=True):
        c, u = prediction(t, x, 0.8), prediction(t, x, -0.5)
        shrink = t * (1 - s) / ((1 - t) * s)  # e^(-h)
        d = u + mu / (1 - shrink) * (c - u)
        x = (1 - s) / (1 - t) * x + s * (1 - shrink) * d
    return x


def test_cfgpp_is_the_recursion_of_the_paper_and_a_scale_that_depends_on_the_step(x64):
    field = jf.Guided(FIELD, -0.5)
    for mu in (0.0, 0.6, 1.0):
        np.testing.assert_allclose(weighted(mu), cfgpp(mu), rtol=1e-12)
        for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
            out = carry(field, jnp.asarray(mu), jnp.asarray(GRID), dtype)
            assert out.x.dtype == dtype and out.nfe == 2 * (len(GRID) - 1)
            np.testing.assert_allclose(out.x, cfgpp(mu), rtol=tolerance, atol=tolerance)
    full = np.append(GRID, 1.0)  # the last step is the data prediction, D_u + mu (D_c - D_u)
    out = jf.decode(field, START, jf.FixedSteps(full, jf.CFGpp()), args=jf.Args(0.8, scale=0.6))
    np.testing.assert_allclose(out.x, cfgpp(0.6, full), rtol=1e-12)
    named = jf.Guided(FIELD, -0.5, scale="mu", negative="other")
    same = jf.decode(named, START, jf.FixedSteps(full, jf.CFGpp("mu")), args=jf.Args(0.8, mu=0.6))
    np.testing.assert_array_equal(same.x, out.x)


def test_scales_are_swept_by_one_compilation():
    counter = Counter(net)
    field = jf.Guided(jf.Field(counter, PATH, "data"), -0.5, rule=jf.APG())

    @eqx.filter_jit
    def run(scale, times):
        sampler = jf.FixedSteps(times, jf.CFGpp(), end="denoise")
        return jf.sample(field, jax.random.key(0), (3,), sampler, args=jf.Args(0.8, scale=scale))

    run(jnp.asarray(2.0), jf.UniformGrid(4).times())
    traces = counter.traces
    counter.take()
    out = run(jnp.asarray(5.0), jnp.linspace(0.0, 0.9, 5))
    assert counter.traces == traces and out.nfe == counter.take() == 8 and jnp.isfinite(out.x).all()


def test_what_does_not_fit_raises():
    x, grid, args, key = jnp.ones(3), jf.UniformGrid(3), jf.Args(0.8, scale=2.0), jax.random.key(0)
    linear = jf.Guided(FIELD, -0.5)
    for field, options, fragment in (
        (linear, {"eta": 1.0, "key": key}, "leave out eta="),
        (linear, {"args": 0.8}, r"args=jflow.Args\(condition, scale=mu\)"),
        (FIELD, {"args": 0.8}, r"args=jflow.Args\(condition, scale=mu\)"),
        (FIELD, {}, "Got scale, which no guide"),
        (linear, {"clock": jf.SigmaClock()}, "brings along"),
    ):
        parts = {name: options.pop(name) for name in ("eta", "clock") if name in options}
        sampler = jf.FixedSteps(grid, jf.CFGpp(), **parts)
        refuses(lambda f=field, s=sampler, o=options: jf.decode(f, x, s, **({"args": args} | o)), fragment)
