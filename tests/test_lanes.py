"""Continuous batching: the samples, steps and statuses of one solve at a time, in fewer evaluations."""

from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import Counter

import jflow as jf
from jflow._engine.pool import takes_lanes
from jflow._validate import streams

KEY = jr.key(5)
N, LANES = 70, 16  # not a multiple
SHAPE = jax.ShapeDtypeStruct((2,), "float64")
TIGHT = jf.AdaptiveSteps(rtol=1e-6, atol=1e-6)


class Swing(eqx.Module):
    """A velocity that swings: its rate, the condition, sets the number of steps."""

    traces: ClassVar[int] = 0

    def __call__(self, t, x, rate):
        type(self).traces += 1
        return jnp.cos(rate * t) * x


class Sixth(jf.AbstractSource):
    """Normals of which one in six is not a number."""

    coupled = False

    def sample(self, key, like, args=None):
        x = jr.normal(key, (2,), jnp.float64)
        return jnp.where(x[0] > 1, jnp.nan, x)


def world():
    """Three narrow modes: some samples take twice the mean number of steps."""
    means = jnp.asarray([[-2.0, 0.5], [1.0, 1.0], [0.5, -1.5]])
    return jf.distributions.GaussianMixture(means, stds=jnp.asarray([0.05, 0.08, 0.06]))


def alone(field, sampler, n=N, rates=None):
    """Every sample by `diffrax.diffeqsolve`, in the key of its own."""

    def one(i, rate):
        return jf.sample(field, jr.fold_in(KEY, i), SHAPE, sampler, args=rate)

    return jax.jit(jax.vmap(one, (0, None if rates is None else 0)))(jnp.arange(n), rates)


def agree(got, expected, atol=1e-8):
    np.testing.assert_array_equal(got.status, expected.status)
    np.testing.assert_array_equal(got.nfe, expected.nfe)
    np.testing.assert_allclose(got.t, expected.t, rtol=1e-8)
    np.testing.assert_allclose(got.x, expected.x, rtol=0, atol=atol)


@pytest.mark.slow
def test_samples_steps_and_statuses_are_those_of_one_solve_at_a_time(x64):
    """With conditions, starts and right-hand sides that are not numbers, and samples out of steps."""
    rates = np.linspace(0, 40, N)
    rates[[3, 17, 18, 69]] = 120.0, np.nan, 120.0, 120.0
    field = jf.Field(Swing(), jf.CondOT(source=Sixth()), "velocity")
    sampler = jf.AdaptiveSteps(max_steps=70, rtol=1e-6, atol=1e-6)

    def run(key=KEY, n=N, sampler=sampler):
        return jf.generate(field, key, n, SHAPE, sampler, args=rates[:n], args_in_axes=0, batch_size=LANES)

    got, expected = run(), alone(field, sampler, rates=jnp.asarray(rates))
    agree(got, expected)
    keys = jax.vmap(lambda i: streams(jr.fold_in(KEY, i), "sample", 2)[0])(jnp.arange(N))
    starts = jax.vmap(lambda key: Sixth().sample(key, None))(keys)
    bad = np.isnan(starts).any(1) | np.isnan(rates)
    assert 5 < bad.sum() < N // 2
    np.testing.assert_array_equal(got.status, np.where(bad, 1, np.where(rates == 120, 2, 0)))
    np.testing.assert_array_equal(got.t == 0, bad)
    assert got.nfe[got.status == 0].max() > 2 * got.nfe[got.status == 0].min()

    traces = []
    for tolerance, stop in ((1e-4, 0.9), (1e-5, 0.8)):
        other = jf.AdaptiveSteps(max_steps=70, rtol=tolerance, atol=1e-5, t1=stop)
        assert run(jr.key(9), 66, other).x.shape == (66, 2)
        traces.append(Swing.traces)
    agree(run(), got, 0)
    assert set(traces) == {Swing.traces}


@pytest.mark.slow
def test_fewer_samples_than_lanes(x64):
    field = world().field(jf.CondOT())
    agree(jf.generate(field, KEY, 3, SHAPE, jf.AdaptiveSteps(), batch_size=LANES), alone(field, jf.AdaptiveSteps(), 3))


CASES = {
    "carried stage": (jf.CondOT(), TIGHT),
    "another clock, no carried stage": (
        jf.VP(),
        jf.AdaptiveSteps(dfx.Heun(), clock=jf.RatioClock(), dt0=0.05, rtol=1e-6, atol=1e-6),
    ),
    "PI control between bounds": (
        jf.CondOT(),
        jf.AdaptiveSteps(dfx.Bosh3(), dfx.PIDController(1e-5, 1e-5, pcoeff=0.3, icoeff=0.4, dtmax=0.1)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_clock_solver_and_control(case, x64):
    path, sampler = CASES[case]
    field = world().field(path)
    agree(jf.generate(field, KEY, N, SHAPE, sampler, batch_size=LANES), alone(field, sampler))


@pytest.mark.slow
def test_each_device_has_a_queue_of_its_own(x64):
    field, mesh = world().field(jf.CondOT()), jax.make_mesh((8,), ("data",))
    agree(jf.generate(field, KEY, N, SHAPE, TIGHT, batch_size=LANES, mesh=mesh), alone(field, TIGHT))


@pytest.mark.slow
def test_evaluations_follow_the_mean_number_of_steps():
    """Less than 0.65 of what chunks of as many evaluate, where the slowest samples take twice the mean."""
    n, lanes = 256, 32
    net, rates = Counter(Swing()), np.where(np.arange(n) % 10 == 3, 30.0, 3.0)
    got = jf.generate(
        jf.Field(net, jf.CondOT(), "velocity"), KEY, n, (2,), jf.AdaptiveSteps(), args=rates, args_in_axes=0,
        batch_size=lanes,
    )  # fmt: skip
    steps = (got.nfe - 1) // 6
    assert steps.max() > 2 * steps.mean()
    chunks = sum(1 + 6 * part.max() for part in np.split(steps, n // lanes)) * lanes
    assert got.nfe.sum() <= net.take() <= 0.65 * chunks


@pytest.mark.slow
def test_what_lanes_do_not_take_goes_in_chunks(x64):
    """A solve of which more than the end is asked for goes in chunks too, and gives the same samples."""
    for sampler in (
        jf.AdaptiveSteps(),
        jf.AdaptiveSteps(dfx.Dopri5(), dfx.PIDController(1e-6, 1e-6), clock=jf.RatioClock(), t0=0.1, t1=0.9),
    ):
        assert takes_lanes(sampler)
    for sampler in (
        jf.UniformGrid(3),
        jf.FixedSteps(jf.UniformGrid(3)),
        jf.AdaptiveSteps(t0=1.0, t1=0.5),
        jf.AdaptiveSteps(eta=1.0),
        jf.AdaptiveSteps(diffusion=lambda t: 1.0),
        jf.AdaptiveSteps(adjoint=dfx.DirectAdjoint()),
        jf.AdaptiveSteps(dfx.Kvaerno3()),
        jf.AdaptiveSteps(dfx.Euler(), dfx.ConstantStepSize(), dt0=0.1),
        jf.AdaptiveSteps(controller=dfx.StepTo(jnp.linspace(0, 1, 5))),
        jf.AdaptiveSteps(max_steps=None),
    ):
        assert not takes_lanes(sampler), sampler
    field = jf.Field(Swing(), jf.CondOT(), "velocity")
    rates, save = np.linspace(0.0, 4.0, 5), dfx.SaveAt(t1=True)
    lanes, chunks = (
        jf.generate(field, KEY, 5, SHAPE, jf.AdaptiveSteps(), args=rates, args_in_axes=0, batch_size=2, saveat=saves)
        for saves in (None, save)
    )
    np.testing.assert_array_equal(lanes.nfe, chunks.nfe)
    np.testing.assert_allclose(lanes.x, chunks.x, rtol=1e-5)
    np.testing.assert_array_equal(chunks.xs[:, 0], chunks.x)
