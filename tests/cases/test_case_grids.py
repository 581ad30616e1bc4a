"""Grids of fixed steps at their limits: times that coincide, that lie past the end, and types that are too narrow."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

MEAN, STD = jnp.asarray([1.0, -0.5]), 0.5
FIELD = jf.distributions.Gaussian(MEAN, std=STD).field(jf.CondOT())
NEAR = np.sort(np.append(np.linspace(0, 1, 21), 0.5 + 1e-9))  # two times that are one in float32


def drawn(times, n=500, *, dtype=None, field=FIELD, **parts):
    """Mean, standard deviation and status of `n` samples, the sampler made inside `jax.jit`; `None` where it raises."""

    def one(key):
        return jf.sample(field, key, (2,), jf.FixedSteps(times, **parts), dtype=dtype)

    try:
        out = jax.jit(jax.vmap(one))(jr.split(jr.key(0), n))
    except ValueError:
        return None
    x = np.asarray(out.x.astype(jnp.float32))
    return x.mean(0), x.std(0), np.asarray(out.status)


@pytest.mark.slow
@pytest.mark.parametrize("order", [3, 4])
def test_multistep_with_noise(order):
    """A multistep solver with noise gives the data's spread, or raises, in the clock that a sampler takes by itself."""
    out = drawn(jf.UniformGrid(20), solver=jf.Adams(order), eta=1.0)
    if out is not None:
        _, std, status = out
        assert (status == 0).all()
        np.testing.assert_allclose(std, STD, rtol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [jf.UniformGrid(20), jf.UniformGrid(20, 0.05, 0.95)], ids=["whole", "inner"])
@pytest.mark.parametrize("parts", [{"eta": 0.3}, {"eta": 1.0}, {"clock": jf.ThetaClock()}], ids=str)
def test_adams_in_a_clock_of_growing_steps(grid, parts):
    """It raises before anything is traced, and what it advises works."""
    solver = jf.Adams(4, corrector=True)
    with pytest.raises(ValueError, match=r"finite at the data.*Got ThetaClock\(\).*jflow.DPMpp\(\)"):
        jf.sample(FIELD, jr.key(0), (2,), jf.FixedSteps(grid, solver, **parts))
    sampler = jf.FixedSteps(grid, jf.DPMpp(), eta=parts.get("eta"))
    assert jf.sample(FIELD, jr.key(0), (2,), sampler).status == 0


def test_grid_of_float64_for_a_state_of_float32(x64):
    """Two times that are one in the type of the state raise; a state of float64 tells them apart."""
    with pytest.raises(ValueError, match="must differ in the type of the state, float32"):
        jf.sample(FIELD, jr.key(0), (2,), jf.FixedSteps(NEAR, jf.Adams(3)))
    sol = jf.decode(FIELD, jnp.ones(2, jnp.float64), jf.FixedSteps(NEAR, jf.Adams(3)))
    assert sol.status == 0 and jnp.isfinite(sol.x).all()


RULES = [
    jf.LogSNRGrid(20, -20.0, 40.0),
    jf.KarrasGrid(18, 1e-8, 80.0),
    jf.ShiftedGrid(jf.UniformGrid(10), 1e-9),
    jf.UniformGrid(10),
]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_levels_that_round_to_the_data(rule):
    """A level of noise that is given is not zero: no two times are one, and only a grid that ends at 1 holds it."""
    times = np.asarray(jf.stepper(FIELD, rule).times)
    assert (np.diff(times) > 0).all() and (times[-1] == 1) == rule.ends_at_one
    plain = np.asarray(rule.times(FIELD.path))
    np.testing.assert_allclose(times, plain, atol=len(times) * 2.0**-24)
    near = plain > 1 - len(times) * 2.0**-24
    assert (times[~near] == plain[~near]).all()


def test_grid_in_the_type_it_runs_in():
    """A grid is checked in the type in which it runs: times that coincide there raise, or give the right samples."""
    out = drawn(NEAR, solver=jf.Adams(3))
    if out is not None:
        _, std, status = out
        assert (status == 0).all()
        np.testing.assert_allclose(std, STD, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{}, {"eta": 1.0}, {"solver": jf.DPMpp(2)}], ids=["Euler", "eta", "DPMpp"])
def test_thousand_steps_in_half_precision(parts):
    """A grid of more times than half precision tells apart gives the right samples with `dtype=bfloat16`."""
    _, std, status = drawn(jf.UniformGrid(1000), dtype=jnp.bfloat16, **parts)
    assert (status == 0).all()
    np.testing.assert_allclose(std, STD, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [None, 1.0])
def test_network_in_half_precision(eta):
    """Rounding does not add up over steps: a network in bfloat16 gives mean and spread at 1,000 steps."""
    exact = jf.distributions.Gaussian([3.0, -1.0], std=0.5).field(jf.CondOT())

    def net(t, x, args):
        assert x.dtype == jnp.bfloat16
        return exact.velocity(t.astype(jnp.float32), x.astype(jnp.float32)).astype(x.dtype)

    field = jf.Field(net, jf.CondOT(), predicts="velocity")
    mean, std, status = drawn(jf.UniformGrid(1000), dtype=jnp.bfloat16, field=field, eta=eta)
    assert (status == 0).all()
    # half precision rounds a value by one part in 256
    np.testing.assert_allclose(mean, [3.0, -1.0], atol=0.1)
    np.testing.assert_allclose(std, 0.5, atol=0.1)


def test_time_rounded_past_one():
    """A last time that rounding carries past 1 is taken as 1, or raises with a message that shows the time itself."""
    field = jf.Field(lambda t, x, args: -x, jf.CondOT(), predicts="velocity")
    times = jnp.cumsum(jnp.concatenate([jnp.zeros(1), jnp.full(10, 0.1)]))
    assert times[-1] > 1
    try:
        sol = jf.sample(field, jr.key(0), (2,), times)
    except ValueError as error:
        assert "1.0000001" in str(error)
    else:
        assert sol.status == 0


LAST_TWICE = [
    pytest.param(np.asarray([0, 0.5, 1, 1], np.float32), id="array"),
    pytest.param(jf.KarrasGrid(18, 1e-8, 80.0), id="karras"),
]
PARTS = {"eta": {"eta": 1.0}, "DPMpp": {"solver": jf.DPMpp(2)}, "UniPC": {"solver": jf.UniPC()}}


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("times", LAST_TWICE)
def test_last_point_twice(times, parts):
    """A grid that comes to t = 1 twice gives finite samples, or raises."""
    out = drawn(times, 4, **parts)
    if out is not None:
        mean, _, status = out
        assert (status == 0).all() and np.isfinite(mean).all()


@pytest.mark.slow
def test_scalings_stay_wide_around_a_network_in_half_precision():
    """Rounding behind the scalings of a preconditioned field does not add up over 1,000 noisy steps."""

    def net(t, x, args):
        return (jnp.tanh(1.3 * x.astype(jnp.bfloat16).astype(jnp.float32)) * (1 - 0.3 * t)).astype(jnp.bfloat16)

    field, sampler = jf.Preconditioned(net, jf.CondOT(), 0.5), jf.FixedSteps(jf.UniformGrid(1000), eta=1.0)
    half, full = (
        jax.jit(jax.vmap(lambda key, d=dtype: jf.sample(field, key, (2,), sampler, dtype=d).x))(jr.split(jr.key(0), 64))
        for dtype in (jnp.bfloat16, None)
    )
    place = 2.0 ** (np.floor(np.log2(np.abs(full))) - 7)  # a unit in the last place
    assert (np.abs(half.astype(jnp.float32) - full) <= 1.0 * place).all()
