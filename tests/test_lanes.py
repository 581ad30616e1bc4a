"""Continuous batching: the samples, steps and statuses of one solve at a time, in fewer evaluations."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import Counter

import jflow as jf
from jflow._lanes import takes_lanes

KEY = jr.key(5)
N, LANES = 70, 16  # not a multiple
ENDS = {"t0": 0.0, "t1": 1.0}
CONTROL = dfx.PIDController(1e-6, 1e-6)


class Swing:
    """A velocity that swings: its rate, the condition, sets the number of steps."""

    traces = 0

    def __call__(self, t, x, rate):
        self.traces += 1
        return jnp.cos(rate * t) * x


class Base(eqx.Module):
    """Normals of which one in six is not a number."""

    def sample(self, key):
        x = jr.normal(key, (2,), jnp.float64)
        return jnp.where(x[0] > 1, jnp.nan, x)


def world():
    """Three narrow modes: some samples take twice the mean number of steps."""
    means = jnp.asarray([[-2.0, 0.5], [1.0, 1.0], [0.5, -1.5]])
    return jf.distributions.GaussianMixture(means, stds=jnp.asarray([0.05, 0.08, 0.06]))


def alone(field, n=N, rates=None, **options):
    """Every sample by `diffrax.diffeqsolve`, in the key of its own."""

    def one(i, rate):
        return jf.sample(field, jr.fold_in(KEY, i), (2,), args=rate, **options)

    return jax.jit(jax.vmap(one, (0, None if rates is None else 0)))(jnp.arange(n), rates)


def agree(got, expected, atol=1e-8):
    np.testing.assert_array_equal(got.status, expected.status)
    np.testing.assert_array_equal(got.nfe, expected.nfe)
    np.testing.assert_allclose(got.t, expected.t, rtol=1e-8)
    np.testing.assert_allclose(got.x, expected.x, rtol=0, atol=atol)


def test_samples_steps_and_statuses_are_those_of_one_solve_at_a_time(x64):
    """With conditions, starts and right-hand sides that are not numbers, and samples out of steps."""
    rates = np.linspace(0, 40, N)
    rates[[3, 17, 18, 69]] = 300.0, np.nan, 300.0, 300.0
    field = jf.Field(Swing(), jf.CondOT(), "velocity")
    options = ENDS | {"base": Base(), "dtype": jnp.float64, "max_steps": 60, "stepsize_controller": CONTROL}

    def run(key=KEY, n=N, **more):
        given = {"args": rates[:n], "args_in_axes": 0, "batch_size": LANES}
        return jf.generate(field, key, n, (2,), **given, **(options | more))

    got, expected = run(), alone(field, rates=jnp.asarray(rates), **options)
    agree(got, expected)
    starts = jax.vmap(lambda i: Base().sample(jr.split(jr.fold_in(KEY, i))[0]))(jnp.arange(N))
    bad = np.isnan(starts).any(1) | np.isnan(rates)
    assert 5 < bad.sum() < N // 2
    np.testing.assert_array_equal(got.status, np.where(bad, 1, np.where(rates == 300, 2, 0)))
    np.testing.assert_array_equal(got.t == 0, bad)
    assert got.nfe[got.status == 0].max() > 2 * got.nfe[got.status == 0].min()

    traces = field.net.traces
    other = run(jr.key(9), 66, stepsize_controller=dfx.PIDController(1e-4, 1e-5), t1=0.9)
    assert other.x.shape == (66, 2) and field.net.traces == traces
    agree(run(), got, 0)


@pytest.mark.slow
def test_fewer_samples_than_lanes(x64):
    field, options = world().field(jf.CondOT()), ENDS | {"dtype": jnp.float64}
    agree(jf.generate(field, KEY, 3, (2,), batch_size=LANES, **options), alone(field, 3, **options))


CASES = {
    "carried stage": (jf.CondOT(), {}),
    "another clock, no carried stage": (jf.VP(), {"clock": jf.RatioClock(), "solver": dfx.Heun(), "dt0": 0.05}),
    "PI control between bounds": (
        jf.CondOT(),
        {
            "solver": dfx.Bosh3(),
            "stepsize_controller": dfx.PIDController(1e-5, 1e-5, pcoeff=0.3, icoeff=0.4, dtmax=0.1),
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_clock_solver_and_control(case, x64):
    path, options = CASES[case]
    field = world().field(path)
    options = ENDS | {"dtype": jnp.float64, "stepsize_controller": CONTROL} | options
    agree(jf.generate(field, KEY, N, (2,), batch_size=LANES, **options), alone(field, **options))


@pytest.mark.slow
def test_each_device_has_a_queue_of_its_own(x64):
    field, mesh = world().field(jf.CondOT()), jax.make_mesh((8,), ("data",))
    options = ENDS | {"dtype": jnp.float64, "stepsize_controller": CONTROL}
    agree(jf.generate(field, KEY, N, (2,), batch_size=LANES, mesh=mesh, **options), alone(field, **options))


@pytest.mark.slow
def test_evaluations_follow_the_mean_number_of_steps():
    """Less than 0.65 of what chunks of as many evaluate, where the slowest samples take twice the mean."""
    n, lanes = 256, 32
    net, rates = Counter(Swing()), np.where(np.arange(n) % 10 == 3, 30.0, 3.0)
    got = jf.generate(
        jf.Field(net, jf.CondOT(), "velocity"), KEY, n, (2,), args=rates, args_in_axes=0, batch_size=lanes, **ENDS
    )  # fmt: skip
    steps = (got.nfe - 1) // 6
    assert steps.max() > 2 * steps.mean()
    chunks = sum(1 + 6 * part.max() for part in np.split(steps, n // lanes)) * lanes
    assert got.nfe.sum() <= net.take() <= 0.65 * chunks


def test_what_lanes_do_not_take_goes_in_chunks():
    assert takes_lanes(**ENDS)
    assert takes_lanes(**ENDS, solver=dfx.Dopri5(), clock=jf.RatioClock(), stepsize_controller=CONTROL, log_prob=False)
    for options in (
        {"times": jf.uniform_times(3), "t0": None},
        {"t1": None},
        {"t0": 1.0, "t1": 0.5},
        {"eta": 1.0},
        {"diffusion": lambda t, x, args: 1.0},
        {"log_prob": True},
        {"saveat": dfx.SaveAt(steps=True)},
        {"event": dfx.Event(lambda *a, **k: False)},
        {"adjoint": dfx.DirectAdjoint()},
        {"solver": dfx.Kvaerno3()},
        {"solver": dfx.Euler()},
        {"stepsize_controller": dfx.StepTo(jnp.linspace(0, 1, 5))},
        {"step": 3},
    ):
        assert not takes_lanes(**(ENDS | options)), options
