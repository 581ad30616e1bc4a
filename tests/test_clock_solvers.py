"""What clocks and solvers keep together: orders, exact spreads, counts of calls, finite numbers at both ends."""

from functools import partial
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import CLOCKS, MIX1, Counter, gaussian, mixture, schedule, tiers
from scipy.integrate import solve_ivp

import jflow as jf

SOLVERS = {  # steps of the coarser grid for the order, and calls a step where no last stage is skipped
    "Euler": (dfx.Euler(), 200, 1),
    "Midpoint": (dfx.Midpoint(), 100, 2),
    "Heun": (dfx.Heun(), 100, 2),
    "Ralston": (dfx.Ralston(), 100, 2),
    "Bosh3": (dfx.Bosh3(), 60, 3),
    "Tsit5": (dfx.Tsit5(), 16, 6),
    "Dopri5": (dfx.Dopri5(), 16, 6),
}


# ------------------------------------------------------------------------------------------------------------ orders

ENDS = 0.15, 0.85
STARTS = np.linspace(-2.0, 2.0, 5)


def predictions(t, x):
    """Data and noise of MIX1 along the cosine path, in numpy."""
    weights, means, stds = MIX1[0], MIX1[1][:, 0], MIX1[2]
    alpha, sigma, *_ = schedule("Cosine", t)
    variance = (alpha * stds) ** 2 + sigma**2
    gap = x[..., None] - alpha * means
    logits = np.log(weights) - gap**2 / (2 * variance) - np.log(variance) / 2
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    data = (share * (means + alpha * stds**2 / variance * gap)).sum(-1)
    return data, (x - alpha * data) / sigma


def velocity(t, x):
    _, _, *dots = schedule("Cosine", t)
    return sum(dot * part for dot, part in zip(dots, predictions(t, x), strict=True))


def angle(tau):
    return 2 / np.pi * tau


TEXTBOOK = {  # clock: time of (alpha, sigma), path time, u / x, weights of data and noise in the right-hand side
    "path": (lambda a, s: 2 / np.pi * np.arctan2(a, s), lambda tau: tau, lambda a, s: 1.0, None),
    "sigma": (lambda a, s: -s / a, lambda tau: angle(np.arctan(-1 / tau)), lambda a, s: 1 / a, lambda a, s: (0, -1)),
    "theta": (lambda a, s: a / s, lambda tau: angle(np.arctan(tau)), lambda a, s: 1 / s, lambda a, s: (1, 0)),
    "ratio": (
        lambda a, s: a / (a + s),
        lambda tau: angle(np.arctan(tau / (1 - tau))),
        lambda a, s: 1 / (a + s),
        lambda a, s: (1, -1),
    ),
    "angle": (np.arctan2, angle, lambda a, s: 1.0, lambda a, s: (s, -a)),
}


def runge_kutta(tableau, clock, times, x):
    """The steps of a Butcher tableau in a clock, in numpy."""
    time, back, scale, row = TEXTBOOK[clock]
    inner = [] if tableau is None else [np.asarray(a) for a in tableau.a_lower]
    nodes, weights = ([0.0], [1.0]) if tableau is None else (np.append(0.0, tableau.c), np.asarray(tableau.b_sol))

    def rate(tau, u):
        t = back(tau)
        alpha, sigma, *dots = schedule("Cosine", t)
        x = u / scale(alpha, sigma)
        return sum(w * q for w, q in zip(dots if row is None else row(alpha, sigma), predictions(t, x), strict=True))

    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        (a0, s0, *_), (a1, s1, *_) = schedule("Cosine", t0), schedule("Cosine", t1)
        tau, h, u, slopes = time(a0, s0), time(a1, s1) - time(a0, s0), x * scale(a0, s0), []
        for k, c in enumerate(nodes):
            ahead = sum((a * slope for a, slope in zip(inner[k - 1], slopes, strict=True)), 0.0) if k else 0.0
            slopes.append(rate(tau + c * h, u + h * ahead))
        x = (u + h * sum(b * slope for b, slope in zip(weights, slopes, strict=True))) / scale(a1, s1)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(SOLVERS, ["Heun"]))
def test_a_solver_is_itself_and_keeps_its_order_in_every_clock(name, x64):
    """The finer grid is the coarser program, twice: on its first and on its second half. In the sigma and theta clocks
    the fifth-order methods have no slope of 5 above rounding; there the steps are compared alone.
    """
    solver, n, _ = SOLVERS[name]
    clocks = {"ratio": CLOCKS["ratio"]} if name == "Dopri5" else CLOCKS
    field = mixture(jf.Cosine(), *MIX1)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def run(x, times):
        samplers = {key: jf.FixedSteps(times, solver, clock=clock, end="stop") for key, clock in clocks.items()}
        return {key: jf.decode(field, x[key], sampler).x for key, sampler in samplers.items()}

    exact = solve_ivp(velocity, ENDS, STARTS, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    fine = np.linspace(*ENDS, 2 * n + 1)
    start = {key: jnp.asarray(STARTS)[:, None] for key in clocks}
    coarse = run(start, jnp.asarray(fine[::2]))
    halves = run(run(start, jnp.asarray(fine[: n + 1])), jnp.asarray(fine[n:]))
    for key in clocks:
        tableau = solver.tableau if isinstance(solver, dfx.AbstractERK) else None
        truth = runge_kutta(tableau, key, fine[::2], STARTS)
        np.testing.assert_allclose(coarse[key][:, 0], truth, rtol=1e-12, atol=1e-12, err_msg=key)
        if solver.order(None) < 5 or key == "ratio":
            errors = [np.abs(x[key][:, 0] - exact).max() for x in (coarse, halves)]
            assert min(errors) > 1e-11, (key, errors)
            assert abs(np.log2(errors[0] / errors[1]) - solver.order(None)) < 0.1, (key, errors)


# ----------------------------------------------------------------------------------------------------------- spreads

SPREADS = {  # relative error of the standard deviation at n = 16 and 64, where that is printed
    "Euler in sigma": (jf.SigmaClock(), dfx.Euler(), {16: "+1.0e-01", 64: "+2.4e-02"}),
    "ancestral": (jf.ThetaClock(), dfx.Euler(), {16: "-1.6e-01", 64: "-4.5e-02"}),
    "Heun": (jf.ThetaClock(), dfx.Heun(), {16: "-4.8e-02", 64: "-3.9e-03"}),
}
SIMULATED = {  # at n = 16 and 32, with a standard error of 1e-3
    "SEA": (dfx.SEA(), {16: 3.2e-2, 32: 8.5e-3}),
    "SRA1": (dfx.SRA1(), {16: -3.2e-2, 32: -8.2e-3}),
    "ShARK": (dfx.ShARK(), {16: -3.1e-2, 32: -8.9e-3}),
}


def spread_error(n, clock, solver, kinds=1):
    """`N(0, 0.25)`, `alpha = 1`, sigma from 20 to 0.05, equal steps in log-SNR, `eta = 1`: the map is linear in start
    and normals, `kinds` of them a step, and its columns add up to the variance.
    """
    path, times = jf.VE(0.05, 20.0), jf.UniformGrid(n).times()
    field = gaussian(path, mean=0.0, predicts="data")
    sampler = jf.FixedSteps(times, solver, clock=clock, eta=1.0, end="stop")
    taus = jax.vmap(lambda t: clock.noise_time(path, t, 1.0))(times)

    @jax.jit
    @jax.vmap
    def run(x0, z):
        noise = jf.Recorded(z[:, 0]) if kinds == 1 else Areas(taus[0], taus[-1], taus, z)
        return jf.decode(field, x0, sampler, brownian=noise).x

    rows = 1 + kinds * n
    starts = jnp.eye(rows, 1) * jnp.sqrt(0.25 + 20.0**2)
    columns = run(starts, jnp.eye(rows, kinds * n, -1).reshape(rows, n, kinds, 1))
    return float(jnp.sqrt((columns**2).sum() / (0.25 + 0.05**2)) - 1)


class Areas(dfx.AbstractBrownianPath):
    """Increments and space-time Lévy areas of a grid's steps, from their normals."""

    t0: Any
    t1: Any
    times: Any
    normals: Any
    levy_area: Any = eqx.field(static=True, default=dfx.SpaceTimeLevyArea)

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        z, std = self.normals[jnp.argmin(jnp.abs(self.times - t0))], jnp.sqrt(t1 - t0)
        area = dfx.SpaceTimeLevyArea(dt=t1 - t0, W=std * z[0], H=std / np.sqrt(12) * z[1])
        return area if use_levy else area.W


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(SPREADS, ["Heun"]))
def test_the_spread_on_gaussian_data_is_the_printed_one(name, x64):
    clock, solver, printed = SPREADS[name]
    for n in printed:
        assert f"{spread_error(n, clock, solver):+.1e}" == printed[n]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATED)
def test_stochastic_runge_kutta_has_the_simulated_spread(name, x64):
    """In the theta clock at `eta = 1`, where noise is additive; the exact figure within 3 standard errors."""
    solver, simulated = SIMULATED[name]
    for n in simulated:
        assert abs(spread_error(n, jf.ThetaClock(), solver, kinds=2) - simulated[n]) < 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("solver", [dfx.SRA1(), dfx.SPaRK()], ids=["SRA1", "SPaRK"])
def test_stochastic_runge_kutta_starts_where_there_is_no_signal(solver):
    """From t = 0, where the scale of the theta clock is zero, to the marginal at t = 0.95."""
    n, path, world = 4000, jf.CondOT(), jf.distributions.GaussianMixture([[-2.0], [1.0]], stds=[0.5, 0.8])
    field, sampler = world.field(path), jf.FixedSteps(jf.UniformGrid(32, t1=0.95), solver, eta=1.0)
    run = jax.jit(jax.vmap(lambda key: jf.sample(field, key, (1,), sampler).x))
    x = run(jr.split(jr.key(0), n))
    variance = 0.95**2 * (1.5**2 + (0.5**2 + 0.8**2) / 2) + 0.05**2
    assert abs(x.mean() + 0.95 / 2) < 4 * np.sqrt(variance / n)
    assert x.std() == pytest.approx(np.sqrt(variance), rel=0.03)


# ------------------------------------------------------------------------------------------------------------- calls

OURS = {
    "DPMpp": (jf.DPMpp(3), 1),
    "singlestep 2": (jf.DPMppSinglestep(2), 2),
    "singlestep 3": (jf.DPMppSinglestep(3), 3),
    "Adams": (jf.Adams(3), 1),
    "Dopri8": (dfx.Dopri8(), 13),
}
CALLS = {name: (solver, calls) for name, (solver, _, calls) in SOLVERS.items()} | OURS


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(CALLS, ["Heun", "singlestep 2"]))
def test_calls_are_reported_counted_and_advertised(name):
    """For both ends, and for a guided field, whose calls count twice."""
    solver, calls = CALLS[name]
    net = Counter(lambda t, x, args: args - x)
    field = jf.Field(net, jf.CondOT(), "velocity")
    guided = jf.Guided(field, null=0.0)
    x, grid = jnp.ones(2), jf.UniformGrid(5, 0.1, 0.9)
    stop, denoise = (jf.FixedSteps(grid, solver, end=end) for end in ("stop", "denoise"))

    @jax.jit
    def run(x):
        plain = [jf.decode(field, x, sampler, args=1.0) for sampler in (stop, denoise)]
        weighted = [jf.decode(guided, x, stop, args=args) for args in (jf.Args(1.0, scale=2.0), 1.0)]
        return [out.nfe for out in plain + weighted]

    whole = 5 * calls
    got = [int(nfe) for nfe in run(x)]
    assert got == [whole, 4 * calls + 1, 2 * whole, whole]
    assert net.take() == sum(got)


# ------------------------------------------------------------------------------------------------------------ finite


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.slow)])
def test_every_clock_and_kind_of_solver_is_finite_for_a_network_in_bfloat16(n):
    """From t = 0, or close to it, to t = 1, in float32."""
    field = jf.Field(lambda t, x, args: (jnp.sin(3 * x) - x * t).astype(jnp.bfloat16), jf.CondOT(), "velocity")
    whole, tail = jf.UniformGrid(n), jf.UniformGrid(n, t0=1e-3)
    samplers = {
        f"{solver} {clock}": jf.FixedSteps(tail if clock == "sigma" else whole, SOLVERS[solver][0], clock=CLOCKS[clock])
        for solver in ("Euler", "Heun", "Tsit5")
        for clock in CLOCKS
    }
    samplers |= {name: jf.FixedSteps(whole, solver) for name, (solver, _) in OURS.items()}
    samplers |= {f"eta {eta}": jf.FixedSteps(whole, eta=eta) for eta in (0.0, 0.5, 1.0)}
    samplers["SDE singlestep"] = jf.FixedSteps(whole, OURS["singlestep 2"][0], eta=1.0)
    samplers["churn"] = jf.FixedSteps(tail, jf.EDMChurn(20.0))

    @jax.jit
    def run(key):
        return {name: jf.sample(field, key, (3,), sampler) for name, sampler in samplers.items()}

    for name, out in run(jax.random.key(0)).items():
        assert out.status == 0 and out.x.dtype == jnp.float32 and jnp.isfinite(out.x).all(), name
