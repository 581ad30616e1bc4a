"""DPM-Solver++ within a step: the textbook recursions, orders, exact spreads, adaptive steps, and what raises."""

from functools import partial
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import MIX1, Counter, gaussian, unchecked
from scipy.integrate import solve_ivp

import jflow as jf
from jflow._engine.noise import step_path

SOLVERS = {2: jf.DPMppSinglestep(2), 3: jf.DPMppSinglestep(3)}
GRID = np.array([0.02, 0.05, 0.11, 0.2, 0.33, 0.41, 0.52, 0.66, 0.74, 0.85, 0.93, 0.97])
START = np.array([0.7])
NET = jf.Field(lambda t, x, args: -args * jnp.tanh(x) * (1 + t), jf.CondOT(), "velocity")


def mixture(path):
    weights, means, stds = (jnp.asarray(v) for v in MIX1)
    return jf.distributions.GaussianMixture(means, stds=stds, weights=weights).field(path)


def data_prediction(alpha, sigma, x):
    """`E[x1 | x]` of the same mixture, in numpy."""
    weights, means, stds = MIX1[0], MIX1[1][:, 0], MIX1[2]
    variance = (alpha * stds) ** 2 + sigma**2
    gap = np.asarray(x)[..., None] - alpha * means
    logits = np.log(weights) - gap**2 / (2 * variance) - np.log(variance) / 2
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return (share * (means + alpha * stds**2 / variance * gap)).sum(-1)


def textbook(order, times, x, schedule, at):
    """The recursions of the docstring; `schedule(t)` is `alpha, sigma`, `at(half log-SNR)` is its inverse."""
    fractions = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}[order]
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        (a0, s0), (a1, s1) = schedule(t0), schedule(t1)
        half, h = np.log(a0 / s0), np.log(a1 / s1) - np.log(a0 / s0)
        (b1, c1), *rest = [schedule(at(half + r * h)) for r in fractions]
        d0, r1 = data_prediction(a0, s0, x), fractions[0]
        d1 = data_prediction(b1, c1, c1 / s0 * x - b1 * np.expm1(-r1 * h) * d0)
        ahead = s1 / s0 * x - a1 * np.expm1(-h) * d0
        if order == 2:
            x = ahead - a1 * np.expm1(-h) * (d1 - d0) / (2 * r1)
        else:
            r2, (b2, c2) = fractions[1], rest[0]
            u2 = c2 / s0 * x - b2 * np.expm1(-r2 * h) * d0
            u2 = u2 + r2 / r1 * b2 * (np.expm1(-r2 * h) / (r2 * h) + 1) * (d1 - d0)
            x = ahead + a1 / r2 * (np.expm1(-h) / h + 1) * (data_prediction(b2, c2, u2) - d0)
    return x


def cond_ot(t):
    return t, 1 - t


def linear_vp(t):
    return t, np.sqrt((1 - t) * (1 + t))


SCHEDULES = {
    "CondOT": (jf.CondOT(), cond_ot, lambda half: 1 / (1 + np.exp(-half))),
    "LinearVP": (jf.LinearVP(), linear_vp, lambda half: np.sqrt(1 / (1 + np.exp(-2 * half)))),
}


@pytest.mark.slow
@pytest.mark.parametrize("order", SOLVERS)
def test_the_steps_are_those_of_the_papers(order, x64):
    @eqx.filter_jit
    def every(x0, times):
        sampler = jf.FixedSteps(times, SOLVERS[order], end="stop")
        return {name: jf.decode(mixture(path), x0, sampler).x for name, (path, *_) in SCHEDULES.items()}

    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        for name, x in every(jnp.asarray(START, dtype), jnp.asarray(GRID)).items():
            want = textbook(order, GRID, START, *SCHEDULES[name][1:])
            assert x.dtype == dtype
            np.testing.assert_allclose(x, want, rtol=tolerance, atol=tolerance, err_msg=f"{name} {dtype}")


def rate(tau, u):
    """`du/dtau` of the ODE along CondOT, in numpy."""
    return data_prediction(tau / (1 + tau), 1 / (1 + tau), u / (1 + tau))


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_order_is_the_advertised_one(order, x64):
    """Steps of the solver itself in `tau`, against the flow; one from `tau = 0`, where log-SNR is infinite, too."""
    solver, field = SOLVERS[order], mixture(jf.CondOT())

    def rhs(tau, u, args):
        return jax.vmap(lambda v: field.data(tau / (1 + tau), v[None] / (1 + tau))[0])(u)

    step = jax.jit(lambda t0, t1, u: solver.step(dfx.ODETerm(rhs), t0, t1, u, None, None, False)[:2])
    starts = np.linspace(-2.0, 2.0, 9)

    def flow(first, last):
        return solve_ivp(rate, (first, last), starts, "DOP853", rtol=1e-13, atol=1e-13).y[:, -1]

    def carry(taus):
        u = jnp.asarray(starts)
        for t0, t1 in zip(taus[:-1], taus[1:], strict=True):
            u, error = step(jnp.asarray(t0), jnp.asarray(t1), u)
        return u, error

    def slope(errors):
        assert min(errors) > 1e-11
        return np.log2(errors[0] / errors[1])

    exact = flow(0.3, 6.0)
    far = [np.abs(carry(np.geomspace(0.3, 6.0, n + 1))[0] - exact).max() for n in (40, 80)]
    assert abs(slope(far) - solver.order(None)) < 0.1, far
    near, estimates = [], []
    for tau in (0.05, 0.025):
        u, estimate = carry([0.0, tau])
        near.append(np.abs(u - flow(0.0, tau)).max())
        estimates.append(np.abs(estimate).max())
    assert abs(slope(near) - solver.order(None) - 1) < 0.15, near
    assert abs(slope(estimates) - solver.order(None)) < 0.15, estimates


class Normalised(dfx.AbstractBrownianPath):
    """A Brownian motion in a time of its own, as noise in another time: increments scaled to the variances there.

    With `-sigma/alpha` for its own time it is the noise of k-diffusion's `sample_dpmpp_sde`.
    """

    t0: Any
    t1: Any
    times: Any  # at which it is known
    own: Any  # its own time there
    values: Any
    levy_area: Any = eqx.field(static=True, default=dfx.BrownianIncrement)

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        i, j = (jnp.argmin(jnp.abs(self.times - t)) for t in (t0, t1))
        factor = jnp.sqrt((self.times[j] - self.times[i]) / (self.own[j] - self.own[i]))
        return factor * (self.values[j] - self.values[i])


def spread(levels, share):
    """Relative error of the standard deviation of DPM++ SDE at `alpha = 1`, on `N(0, 0.25)`: the recursion of the
    variance, with `share(s, m, e)` the squared correlation of the noise to the middle and that of the step.
    """
    variance = 0.25 + levels[0] ** 2
    for s, e in zip(levels[:-1], levels[1:], strict=True):
        m = np.sqrt(s * e)
        shrink = lambda x, y: (y / x) ** 2 + (1 - (y / x) ** 2) * 0.25 / (0.25 + x**2)  # noqa: E731
        pull = (1 - (e / s) ** 2) * 0.25 / (0.25 + m**2)
        by_x = (e / s) ** 2 + pull * shrink(s, m)
        by_middle, by_step = pull * m * np.sqrt(1 - (m / s) ** 2), e * np.sqrt(1 - (e / s) ** 2)
        both = 2 * np.sqrt(share(s, m, e)) * by_middle * by_step
        variance = by_x**2 * variance + by_middle**2 + by_step**2 + both
    return np.sqrt(variance / (0.25 + levels[-1] ** 2)) - 1


PRINTED = {16: "-1.3e-02", 64: "-6.7e-04"}


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_the_spread_of_the_sde_on_gaussian_data_is_the_printed_one(n, x64):
    """`N(0, 0.25)`, `alpha = 1`, sigma from 20 to 0.05, equal steps in log-SNR: a linear map of start and normals.

    The printed figures are k-diffusion's, whose noise is a Brownian motion in sigma.
    """
    path, clock = jf.VE(0.05, 20.0), jf.ThetaClock()
    field, sampler = (
        gaussian(path, mean=0.0, predicts="data"),
        jf.FixedSteps(jf.UniformGrid(n), SOLVERS[2], eta=1.0, end="stop"),
    )
    halves = jnp.linspace(0.0, 1.0, 2 * n + 1)
    taus, sigmas = (jax.vmap(f)(halves) for f in (lambda t: clock.noise_time(path, t, 1.0), path.sigma))

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None))
    def run(x0, z, own):
        values = jnp.concatenate([jnp.zeros((1, 1)), jnp.cumsum(jnp.sqrt(jnp.diff(own))[:, None] * z, 0)])
        noise = Normalised(taus[0], taus[-1], taus, own, values)
        return jf.decode(field, x0, sampler, brownian=noise).x

    def error(own):
        starts = jnp.eye(2 * n + 1, 1) * jnp.sqrt(0.25 + 20.0**2)
        columns = run(starts, jnp.eye(2 * n + 1, 2 * n, -1)[..., None], own)
        return float(jnp.sqrt((columns**2).sum() / (0.25 + 0.05**2)) - 1)

    levels = np.asarray(sigmas[::2])
    assert f"{error(-sigmas):+.1e}" == f"{spread(levels, lambda s, m, e: (s - m) / (s - e)):+.1e}" == PRINTED[n]
    exact = spread(levels, lambda s, m, e: (m**-2 - s**-2) / (e**-2 - s**-2))
    np.testing.assert_allclose(error(taus), exact, rtol=1e-7)  # along the clock's own path: -2.9e-2, -2.1e-3


def test_the_noise_inside_a_step_belongs_to_that_of_the_step(x64):
    """Without a drift: the covariance of the noise up to the intermediate point with that over the step."""
    for eta in (0.5, 1.0):
        power, tau0, tau1 = 2 * eta**2 / (1 + eta**2), jnp.asarray(0.5), jnp.asarray(2.0)
        variance, inner = tau1**power - tau0**power, 1.0 - tau0**power

        def pair(z, h, tau0=tau0, tau1=tau1, variance=variance, power=power):
            seen = step_path(tau0, tau1, variance, (z, h), lambda tau: (tau**power - tau0**power) / variance)
            return jnp.stack([seen.evaluate(tau0, jnp.asarray(1.0)), seen.evaluate(tau0, tau1)])

        jacobian = jnp.stack(jax.jacfwd(pair, (0, 1))(0.0, 0.0), axis=1)
        np.testing.assert_allclose(jacobian @ jacobian.T, [[inner, inner], [inner, variance]], rtol=1e-12)


@pytest.mark.slow
def test_calls_and_one_compilation():
    net = Counter(NET.net)
    field = jf.Field(net, jf.CondOT(), "velocity")

    @eqx.filter_jit
    def run(key, times, args, order, eta):
        return jf.sample(field, key, (2,), jf.FixedSteps(times, SOLVERS[order], eta=eta, end="denoise"), args=args)

    for order, eta in ((2, None), (2, jnp.asarray(0.7)), (3, None)):
        out = run(jax.random.key(0), jf.UniformGrid(6).times(), jnp.asarray(1.0), order, eta)
        assert out.nfe == 5 * order + 1 == net.take() and out.status == 0 and jnp.isfinite(out.x).all()
        traces = net.traces
        eta = None if eta is None else jnp.asarray(2.0)
        out = run(jax.random.key(1), jnp.linspace(0.1, 0.9, 7), jnp.asarray(0.2), order, eta)
        assert net.traces == traces and out.status == 0
        net.take()


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_steps_are_counted_and_meet_their_tolerance(order, x64):
    """From `tau = 0`; each lane takes its own steps, and two evaluations for the length of the first."""
    field = mixture(jf.CondOT())
    net = Counter(lambda t, x, args: field.data(t, x))
    counted = jf.Field(net, jf.CondOT(), "data")

    @jax.jit
    @jax.vmap
    def run(x0, tolerance):
        return jf.decode(counted, x0, jf.AdaptiveSteps(SOLVERS[order], t1=0.9, rtol=tolerance, atol=tolerance))

    starts, tolerances = jnp.asarray([[-1.0], [0.4], [0.4]]), jnp.asarray([1e-4, 1e-4, 1e-6])
    out = run(starts.astype("float64"), tolerances)
    assert (out.status == 0).all() and ((out.nfe - 2) % order == 0).all()
    exact = solve_ivp(rate, (0.0, 9.0), [-1.0, 0.4, 0.4], "DOP853", rtol=1e-13, atol=1e-13).y[:, -1] / 10
    error = np.abs(out.x[:, 0] - exact)
    assert (error < [3e-4, 3e-4, 3e-6]).all(), error
    assert out.nfe[2] > out.nfe[1]
    net.take()
    alone = run(starts[2:].astype("float64"), tolerances[2:])
    assert alone.nfe[0] == net.take() == out.nfe[2]


@pytest.mark.slow
def test_the_sde_takes_adaptive_steps_along_one_path(x64):
    """On a tree, whose path is known at every time: nearer to many small steps of it the smaller the tolerance."""
    field, x0, ends = mixture(jf.CondOT()), jnp.asarray([0.3]), (0.05, 0.9)
    tree = dfx.VirtualBrownianTree(0.0, 100.0, 1e-4, (1,), jax.random.key(0))
    lo, hi = (float(2 * np.log(t / (1 - t))) for t in ends)

    @jax.jit
    def run(tolerance):
        steps = {"t0": ends[0], "t1": ends[1], "rtol": tolerance, "atol": tolerance}
        return jf.decode(field, x0, jf.AdaptiveSteps(SOLVERS[2], eta=1.0, **steps), brownian=tree)

    many = jf.FixedSteps(jf.LogSNRGrid(3000, lo, hi), eta=1.0, end="stop")
    fine = jf.decode(field, x0, many, brownian=tree).x
    rough, close = run(jnp.asarray(3e-2)), run(jnp.asarray(1e-3))
    assert rough.status == close.status == 0 and rough.nfe % 2 == close.nfe % 2 == 0 and close.nfe > 2 * rough.nfe
    np.testing.assert_allclose(close.x, fine, atol=0.02)


@pytest.mark.slow
def test_the_way_back_reaches_the_noise(x64):
    field, x1 = mixture(jf.CondOT()), jnp.array([0.9])
    times = jnp.concatenate([jnp.zeros(1), jf.LogSNRGrid(60, -8.0, 6.0).times(jf.CondOT())])
    for order in SOLVERS:
        sampler = jf.FixedSteps(times, SOLVERS[order])
        noise = jf.encode(field, x1, sampler)
        back = jf.decode(field, noise.x, sampler)
        assert noise.t == 0 and noise.nfe == 61 * order
        np.testing.assert_allclose(back.x, x1, atol=2e-3 if order == 2 else 1e-4)


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences(x64):
    """In the start and the grid, which starts at t = 0."""

    @jax.jit
    def total(x0, times):
        return jnp.sum(jnp.sin(jf.decode(NET, x0, jf.FixedSteps(times, SOLVERS[3], end="stop"), args=1.3).x))

    point = (jnp.array([0.3, -0.5]), jnp.array([0.0, 0.1, 0.3, 0.6, 0.9]))
    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(*point)
    assert all(jnp.isfinite(s).all() for s in slopes)
    way = (jnp.array([1.0, 0.5]), jnp.array([0.0, 1.0, -0.5, 0.3, 0.2]))
    moved = [total(*(p + sign * 1e-5 * w for p, w in zip(point, way, strict=True))) for sign in (1, -1)]
    along = sum(jnp.sum(s * w) for s, w in zip(slopes, way, strict=True))
    np.testing.assert_allclose(along, (moved[0] - moved[1]) / 2e-5, rtol=1e-6)


def test_what_does_not_fit_raises():
    for bad in (1, 4):
        with pytest.raises(ValueError, match=r"order 2 or 3. Got order=.*: order 1 is jflow.DPMpp\(order=1\)"):
            jf.DPMppSinglestep(bad)
    for bad in (True, 2.5):
        with unchecked(), pytest.raises(ValueError, match="order must be an integer"):
            jf.DPMppSinglestep(bad)
    x0, key, times = jnp.ones(2), jax.random.key(0), jnp.linspace(0.0, 0.9, 5)
    recorded = {"brownian": jf.Recorded(jnp.zeros((4, 2)))}
    for solver, options, given, match in (
        (SOLVERS[2], {"clock": jf.SigmaClock()}, {}, r"which it brings along. Got SigmaClock\(\)"),
        (SOLVERS[3], {"eta": 1.0}, {}, "must have the ODE. Got eta=1.0: leave out eta="),
        (SOLVERS[2], {"eta": 1.0}, recorded, "times inside a step"),
        (dfx.HalfSolver(dfx.Euler()), {"eta": 1.0}, {}, "queries it inside a step"),
    ):
        with pytest.raises(ValueError, match=match):
            jf.decode(NET, x0, jf.FixedSteps(times, solver, **options), args=1.0, key=key, **given)
