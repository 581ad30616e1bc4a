"""Multistep solvers but DPM-Solver++: the textbook recursions, orders, calls, starts and ends, and what is refused."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import Counter
from solver_laws import data_prediction, measured_order, mixture

import jflow as jf

GRID = np.array([0.02, 0.05, 0.11, 0.2, 0.33, 0.41, 0.52, 0.66, 0.74, 0.85, 0.93, 0.97])
NET = jf.Field(lambda t, x, args: -args * jnp.tanh(x) * (1 + t), jf.CondOT(), "velocity")


def mean_of_polynomial(nodes, start, stop):
    """Weights of the values at the nodes in the mean of their polynomial, by a Vandermonde system."""
    scaled = (np.asarray(nodes) - start) / (stop - start)
    powers = np.arange(len(nodes))
    return np.linalg.solve(np.vander(scaled, increasing=True).T, 1 / (powers + 1))


def adams(order, corrector, clock):
    """Adams-Bashforth and Adams-Moulton in the time of a clock, along `alpha = t`, `sigma = 1 - t`."""

    def recursion(times, x, eta, z):
        alphas, sigmas, level = times, 1 - times, 0.0 if eta is None else eta
        taus = -sigmas / alphas if clock == "sigma" else alphas
        scales = 1 / alphas if clock == "sigma" else np.ones_like(alphas)  # alpha + sigma = 1
        u, base, nodes, seen, xs = scales[0] * x, None, [], [], []
        for i in range(len(times) - 1):
            data = data_prediction(alphas[i], sigmas[i], u / scales[i])
            noise = (u / scales[i] - alphas[i] * data) / sigmas[i]
            rhs = -(1 + level) * noise if clock == "sigma" else data - noise - level / alphas[i] * noise
            nodes, seen = [taus[i], *nodes], [rhs, *seen]
            if corrector and i:
                weights = mean_of_polynomial(nodes[:order], taus[i - 1], taus[i])
                u = base + (taus[i] - taus[i - 1]) * sum(w * f for w, f in zip(weights, seen, strict=False))
            rate = np.sqrt(2 * level * sigmas[i] / alphas[i])
            base = u + rate * np.sqrt(taus[i + 1] - taus[i]) * z[i]
            weights = mean_of_polynomial(nodes[:order], taus[i], taus[i + 1])
            u = base + (taus[i + 1] - taus[i]) * sum(w * f for w, f in zip(weights, seen, strict=False))
            xs.append(u / scales[i + 1])
        return np.stack(xs)

    return recursion


MENDED = jf.Adams(order=3, corrector=True)

# name: solver, its clock where it brings none, its recursion, levels of noise, the steps that show its order
FAMILY = {
    "LMS 4": (jf.Adams(order=4), jf.SigmaClock(), adams(4, False, "sigma"), (None, 0.5), (320, 640)),
    "vAB 2": (jf.Adams(order=2), jf.RatioClock(), adams(2, False, "ratio"), (None,), (160, 320)),
    "vAB 3": (jf.Adams(order=3), jf.RatioClock(), adams(3, False, "ratio"), (None,), (320, 640)),
    "Adams 2 mended": (jf.Adams(2, corrector=True), jf.RatioClock(), adams(2, True, "ratio"), (None, 1.0), (320, 640)),
    "Adams 3 mended": (jf.Adams(3, corrector=True), jf.SigmaClock(), adams(3, True, "sigma"), (None,), (320, 640)),
    "Adams 4 mended": (jf.Adams(4, corrector=True), jf.SigmaClock(), adams(4, True, "sigma"), (None,), (640, 1280)),
}


DTYPES = [("float64", 1e-12), pytest.param("float32", 1e-5, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", FAMILY)
def test_the_steps_are_those_of_the_textbook(name, dtype, tolerance, x64):
    """Each one, from the first, which ramp the order up."""
    solver, clock, recursion, levels, _ = FAMILY[name]
    rng, saveat = np.random.default_rng(0), dfx.SaveAt(steps=True)
    x0, z = rng.normal(size=1), rng.normal(size=(len(GRID) - 1, 1))

    @eqx.filter_jit
    def run(times, eta, noise):
        options = {"times": times, "eta": eta, "brownian": noise, "clock": clock, "saveat": saveat, "dtype": dtype}
        return jf.decode(mixture(jf.CondOT()), x0, solver=solver, end="stop", **options).xs

    for eta in levels:
        noisy = (None, None) if eta is None else (jnp.asarray(eta), jf.Recorded(jnp.asarray(z, dtype)))
        got = run(jnp.asarray(GRID), *noisy)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, recursion(GRID, x0, eta, z), rtol=tolerance, atol=tolerance, err_msg=str(eta))


@pytest.mark.parametrize("name", FAMILY)
def test_the_order_is_the_advertised_one(name, x64):
    solver, clock, _, _, counts = FAMILY[name]
    slope = measured_order(solver, None if clock is None else jf.SigmaClock(), counts)
    assert abs(slope - solver.order(None)) < 0.1, slope


@pytest.mark.parametrize("n", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 8))])
@pytest.mark.parametrize("name", FAMILY)
def test_one_call_a_step_and_one_compilation(name, n):
    """From t = 0 where the clock is finite there; new grids, keys and conditions are no new program."""
    solver, clock, *_ = FAMILY[name]
    net, start = Counter(NET.net), 0.1 if isinstance(clock or solver.clock, jf.SigmaClock) else 0.0
    field = jf.Field(net, jf.CondOT(), "velocity")

    @eqx.filter_jit
    def run(key, times, args):
        return jf.sample(field, key, (2,), args=args, times=times, clock=clock, solver=solver)

    for seed in (0, 1):
        times, traces = jnp.linspace(start, 0.9 + seed / 20, n + 1), net.traces
        out = run(jax.random.key(seed), times, jnp.asarray(1.0 + seed))
        assert out.nfe == n == net.take() and out.status == 0 and out.t == times[-1]
        assert jnp.isfinite(out.x).all()
    assert net.traces == traces


def test_any_drift_of_the_lecture(x64):
    """`dx = -x^2 dt`, x(1) = 1/2, without a field or a clock: order 3 with its corrector."""
    run = jax.jit(lambda times: jf.solve(lambda t, x, a: -(x**2), jnp.ones(1), times=times, solver=MENDED).x)
    errors = [abs(run(jf.uniform_times(n))[0] - 0.5) for n in (40, 80)]
    assert 2.8 < np.log2(errors[0] / errors[1]) < 3.2, errors


def test_adaptive_solves(x64):
    """Constant steps are those of the grid and are counted; there is no error estimate to adapt to."""
    drift, x0, times = lambda t, x, args: -jnp.sin(x) * (1 + t), jnp.array([0.4]), jf.uniform_times(8)
    constant = {"t0": 0.0, "t1": 1.0, "dt0": 0.125, "stepsize_controller": dfx.ConstantStepSize()}
    out = jf.solve(drift, x0, solver=MENDED, **constant)
    np.testing.assert_allclose(out.x, jf.solve(drift, x0, times=times, solver=MENDED).x, rtol=1e-12)
    assert out.nfe == 8
    for solver in (MENDED, jf.DPMpp(), dfx.Euler()):
        with pytest.raises(ValueError, match=r"error estimate. Got .*\(\), which has none: give a grid, times="):
            jf.decode(NET, x0, t0=0.1, t1=0.9, solver=solver)


def test_what_does_not_fit_is_refused():
    for make, match in (
        (lambda: jf.Adams(5), "order 1, 2, 3 or 4. Got order=5"),
        (lambda: jf.Adams(True), "Got order=True"),
        (lambda: jf.Adams(1, corrector=True), "pass order=2, or corrector=False"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    x0, times = jnp.ones(2), jf.uniform_times(4)
    for options, match in (
        ({"solver": MENDED, "eta": lambda t: 1 - t}, "one eta holds for the whole grid"),
        ({"solver": MENDED, "clock": jf.SigmaClock()}, "t = 0, .*start a little later"),
    ):
        with pytest.raises(ValueError, match=match):
            jf.decode(NET, x0, times=times, **options)
