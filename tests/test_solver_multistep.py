"""Multistep solvers but DPM-Solver++: the textbook recursions, orders, calls, starts and ends, and what raises."""

import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import MIX1, Counter, mixture
from solver_laws import data_prediction, measured_order, spread_error

import jflow as jf

GRID = np.array([0.02, 0.05, 0.11, 0.2, 0.33, 0.41, 0.52, 0.66, 0.74, 0.85, 0.93, 0.97])
KEY = jax.random.key(1)
NET = jf.Field(lambda t, x, args: -args * jnp.tanh(x) * (1 + t), jf.CondOT(), "velocity")


def mean_of_polynomial(nodes, start, stop):
    """Weights of the values at the nodes in the mean of their polynomial, by a Vandermonde system."""
    scaled = (np.asarray(nodes) - start) / (stop - start)
    powers = np.arange(len(nodes))
    return np.linalg.solve(np.vander(scaled, increasing=True).T, 1 / (powers + 1))


def adams(order, corrector, clock):
    """Adams-Bashforth and Adams-Moulton in the time of a clock, along `alpha = t`, `sigma = 1 - t`."""

    def recursion(times, x, eta, z):
        alphas, sigmas, level = times, 1 - times, 0.0 if eta is None else eta**2
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
            weights = mean_of_polynomial(nodes[: order - corrector], taus[i], taus[i + 1])
            u = base + (taus[i + 1] - taus[i]) * sum(w * f for w, f in zip(weights, seen, strict=False))
            xs.append(u / scales[i + 1])
        return np.stack(xs)

    return recursion


def log_snr_rule(points, corrected, weights):
    """Predictor and corrector in half log-SNR along `alpha = t`, `sigma = 1 - t`: `x' = (sigma'/sigma) e^(-k h) x +
    alpha' sum_j c_j D_j + noise` at the level `k = eta^2`, with the weights as each paper has them.
    """

    def recursion(times, x, eta, z):
        alphas, sigmas, level = times, 1 - times, 0.0 if eta is None else eta**2
        half, seen, base, xs = np.log(alphas / sigmas), [], None, []
        for i in range(len(times) - 1):
            new = data_prediction(alphas[i], sigmas[i], x)
            if i:
                offsets = np.r_[half[i], half[i - 1 - np.arange(len(seen))]] - half[i - 1]
                known = [new, *seen][:corrected]
                shares = weights(offsets[: len(known)], half[i] - half[i - 1], level, True)
                x = base + alphas[i] * sum(c * d for c, d in zip(shares, known, strict=True))
            seen = [new, *seen]
            h = half[i + 1] - half[i]
            base = sigmas[i + 1] / sigmas[i] * np.exp(-level * h) * x
            base = base + sigmas[i + 1] * np.sqrt(-np.expm1(-2 * level * h)) * z[i]
            offsets = half[i - np.arange(min(points, len(seen)))] - half[i]
            shares = weights(offsets, h, level, False)
            x = base + alphas[i + 1] * sum(c * d for c, d in zip(shares, seen, strict=False))
            xs.append(x)
        return np.stack(xs)

    return recursion


def stochastic_adams(offsets, h, level, corrects):
    """Xue et al. 2023: moments of the weight by integration by parts, and a Vandermonde system."""
    kappa, moments = 1 + level, [-np.expm1(-(1 + level) * h)]
    for k in range(1, len(offsets)):
        moments.append(h**k - k / kappa * moments[-1])
    return np.linalg.solve(np.vander(offsets, increasing=True).T, moments)


def unified(variant):
    """Zhao et al. 2023: `R rho = b` with a function `B(h)`, and one half where one number is unknown."""

    def weights(offsets, h, level, corrects):
        hh = -h
        b_of_h = np.expm1(hh) if variant == "bh2" else hh
        ratios = np.r_[offsets[2:], offsets[0]] / h if corrects else offsets[1:] / h
        n, phi, b = len(ratios), np.expm1(hh) / hh - 1, []
        for k in range(1, n + 1):
            b.append(math.factorial(k) * phi / b_of_h)
            phi = phi / hh - 1 / math.factorial(k + 1)
        rho = np.full(1, 0.5) if n == 1 else np.linalg.solve(np.vander(ratios, increasing=True).T, b) if n else ratios
        shares = -b_of_h * rho / ratios
        first = -np.expm1(-h) - shares.sum()
        return np.r_[shares[-1], first, shares[:-1]] if corrects else np.r_[first, shares]

    return weights


def deis(order):
    """Zhang & Chen 2023: Lagrange's polynomials in the logarithm of `sigma/alpha`, integrated by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def recursion(times, x, eta, z):
        alphas, sigmas = times, 1 - times
        rho, seen, xs = sigmas / alphas, [], []
        for i in range(len(times) - 1):
            noise = (x - alphas[i] * data_prediction(alphas[i], sigmas[i], x)) / sigmas[i]
            seen = [noise, *seen][:order]
            known = np.log(rho[i - np.arange(len(seen))])
            radius = (rho[i + 1] - rho[i]) / 2
            points = np.log(rho[i] + radius * (1 + nodes))
            change = 0.0
            for j, value in enumerate(seen):
                others = [(points - known[k]) / (known[j] - known[k]) for k in range(len(seen)) if k != j]
                change = change + radius * (weights * np.prod([np.ones(40), *others], axis=0)).sum() * value
            x = alphas[i + 1] * (x / alphas[i] + change)
            xs.append(x)
        return np.stack(xs)

    return recursion


CORRECTED = jf.Adams(order=3, corrector=True)

# name: solver, its clock where it brings none, its recursion, amplitudes of noise, the steps that show its order; none
# for order 6, whose error is that of rounding before its slope has settled
FAMILY = {
    "LMS 4": (jf.Adams(order=4), jf.SigmaClock(), adams(4, False, "sigma"), (None, 0.7), (320, 640)),
    "vAB 2": (jf.Adams(order=2), jf.RatioClock(), adams(2, False, "ratio"), (None,), (160, 320)),
    "vAB 3": (jf.Adams(order=3), jf.RatioClock(), adams(3, False, "ratio"), (None,), (320, 640)),
    "Adams 2 PC": (
        jf.Adams(2, corrector=True),
        jf.RatioClock(),
        adams(2, True, "ratio"),
        (None, 1.0),
        (320, 640),
    ),
    "Adams 3 PC": (jf.Adams(3, corrector=True), jf.SigmaClock(), adams(3, True, "sigma"), (None,), (320, 640)),
    "Adams 4 PC": (jf.Adams(4, corrector=True), jf.SigmaClock(), adams(4, True, "sigma"), (None,), (640, 1280)),
    "Adams 5 PC": (jf.Adams(5, corrector=True), jf.RatioClock(), adams(5, True, "ratio"), (None,), (320, 640)),
    "Adams 6 PC": (jf.Adams(6, corrector=True), jf.SigmaClock(), adams(6, True, "sigma"), (None,), ()),
    "UniPC 1": (jf.UniPC(order=1), None, log_snr_rule(1, 2, unified("bh2")), (None,), (160, 320)),
    "UniPC 2": (jf.UniPC(order=2), None, log_snr_rule(2, 3, unified("bh2")), (None,), (160, 320)),
    "UniPC 2 bh1": (jf.UniPC(order=2, variant="bh1"), None, log_snr_rule(2, 3, unified("bh1")), (None,), (160, 320)),
    "UniPC 3": (jf.UniPC(order=3), None, log_snr_rule(3, 4, unified("bh2")), (None,), (160, 320)),
    "SA 1 3": (jf.SASolver(1, 3), None, log_snr_rule(1, 4, stochastic_adams), (1.0,), (320, 640)),
    "SA 2 1": (jf.SASolver(2, 1), None, log_snr_rule(2, 2, stochastic_adams), (0.5,), (320, 640)),
    "SA 3 3": (jf.SASolver(), None, log_snr_rule(3, 4, stochastic_adams), (None, 1.0, 1.5), (160, 320)),
    "DEIS 2": (jf.DEIS(order=2), None, deis(2), (None,), (160, 320)),
    "DEIS 3": (jf.DEIS(), None, deis(3), (None,), (160, 320)),
}


COMMON = ("LMS 4", "Adams 2 PC", "Adams 5 PC", "UniPC 2", "UniPC 2 bh1", "UniPC 3", "SA 3 3", "DEIS 3")
NAMES = [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in FAMILY]
DTYPES = [("float64", 1e-12), pytest.param("float32", 1e-5, marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_steps_are_those_of_the_textbook_at_one_call_each(name, dtype, tolerance, x64):
    """Each one, from the first, which ramp the order up; in one compilation for every grid, amplitude and noise."""
    solver, clock, recursion, etas, _ = FAMILY[name]
    rng, saveat = np.random.default_rng(0), dfx.SaveAt(steps=True)
    x0, z = rng.normal(size=1), rng.normal(size=(len(GRID) - 1, 1))
    net = Counter(mixture(jf.CondOT(), *MIX1).net)
    field = jf.Field(net, jf.CondOT(), "velocity")

    @eqx.filter_jit
    def run(times, eta, noise):
        sampler = jf.FixedSteps(times, solver, eta=eta, clock=clock, end="stop")
        return jf.decode(field, jnp.asarray(x0, dtype), sampler, brownian=noise, saveat=saveat)

    for eta in etas:
        traces = []
        for grid in (GRID, GRID**0.9):
            noisy = (None, None) if eta is None else (jnp.asarray(eta), jf.Recorded(jnp.asarray(z, dtype)))
            out, want = run(jnp.asarray(grid), *noisy), recursion(grid, x0, eta, z)
            assert out.xs.dtype == dtype
            np.testing.assert_allclose(out.xs, want, rtol=tolerance, atol=tolerance, err_msg=str(eta))
            assert out.nfe == len(GRID) - 1 == net.take()
            traces.append(net.traces)
        assert traces[0] == traces[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name in COMMON or FAMILY[name.values[0]][-1]])
def test_the_order_is_the_advertised_one(name, x64):
    solver, clock, _, _, counts = FAMILY[name]
    slope = measured_order(solver, solver.clock if clock is None else jf.SigmaClock(), counts)
    assert abs(slope - solver.order(None)) < 0.1, slope


PRINTED = {  # relative error of the standard deviation at n = 16 and n = 64
    (2, 1): {16: 2.8e-2, 64: 5.2e-4},
    (2, 2): {16: 3.1e-2, 64: 8.9e-4},
    (3, 3): {16: 1.2e-2, 64: 4.8e-4},
}


@pytest.mark.parametrize("n", [16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("steps", [*(pytest.param(s, marks=pytest.mark.slow) for s in ((2, 1), (2, 2))), (3, 3)])
def test_the_spread_on_gaussian_data_is_the_printed_one(steps, n, x64):
    """The last state is corrected there, at the cost of one more call. (3, 3) is 4.749e-4 at n = 64: rounded twice."""
    error, printed = spread_error(jf.SASolver(*steps), n, corrected=True), PRINTED[steps][n]
    unit = 10.0 ** (math.floor(math.log10(printed)) - 1)
    assert abs(error - printed) < 0.51 * unit, error


LENGTHS = [("SA 3 3", 1), ("SA 3 3", 2), ("SA 3 3", 1000), ("vAB 3", 1), ("vAB 3", 3), ("UniPC 2 bh1", 2)]


@pytest.mark.parametrize(("name", "n"), [("SA 3 3", 3), *(pytest.param(*c, marks=pytest.mark.slow) for c in LENGTHS)])
def test_any_number_of_steps(name, n):
    """From t = 0, where log-SNR is infinite, to t = 1."""
    solver, clock, *_ = FAMILY[name]
    sampler = jf.FixedSteps(jf.UniformGrid(n), solver, clock=clock, eta=1.0 if name == "SA 3 3" else None)
    out = jf.sample(NET, KEY, (2,), sampler, args=1.0)
    assert out.status == 0 and out.nfe == n and out.t == 1 and jnp.isfinite(out.x).all()


def test_a_step_from_infinite_log_snr_is_corrected_by_the_mean_of_its_ends(x64):
    """Two steps from t = 0: with `tau = t/(1 - t)` the state before the second is that of the trapezoid."""
    clock, path, times = jf.ThetaClock(), jf.CondOT(), jnp.array([0.0, 0.3, 0.5])
    taus, x0 = times / (1 - times), jnp.array([0.4])
    run = jax.jit(lambda x, times: jf.decode(NET, x, jf.FixedSteps(times, jf.UniPC(1), end="stop"), args=1.0).x)
    first = NET.data(times[0], x0, 1.0)
    new = NET.data(times[1], (x0 + taus[1] * first) / clock.scale(path, times[1]), 1.0)
    u = x0 + taus[1] * (first + new) / 2 + (taus[2] - taus[1]) * new
    np.testing.assert_allclose(run(x0, times), u / clock.scale(path, times[2]), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SA 3 3", "UniPC 2 bh1", "Adams 4 PC"])
def test_gradients_are_those_of_finite_differences(name, x64):
    """In the start, the condition and the grid, which starts at t = 0, and in the amplitude of noise."""
    solver, noisy = FAMILY[name][0], name == "SA 3 3"
    z = jax.random.normal(KEY, (4, 2)) if noisy else None

    @jax.jit
    def total(x0, args, eta, times):
        sampler = jf.FixedSteps(times, solver, eta=eta if noisy else None, end="stop")
        noise = jf.Recorded(z) if noisy else None
        return jnp.sum(jnp.sin(jf.decode(NET, x0, sampler, args=args, brownian=noise).x))

    point = (jnp.array([0.3, -0.5]), jnp.asarray(1.3), jnp.asarray(0.7), jnp.array([0.0, 0.1, 0.3, 0.5, 0.8]))
    way = (jnp.array([1.0, 0.5]), jnp.asarray(-0.4), jnp.asarray(0.3), jnp.array([0.0, 1.0, -0.5, 0.3, 0.2]))
    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*point)
    assert all(jnp.isfinite(s).all() for s in slopes)
    moved = [total(*(p + sign * 1e-5 * w for p, w in zip(point, way, strict=True))) for sign in (1, -1)]
    along = sum(jnp.sum(s * w) for s, w in zip(slopes, way, strict=True))
    np.testing.assert_allclose(along, (moved[0] - moved[1]) / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_the_way_back_and_the_density(x64):
    path, solver = jf.CondOT(), jf.UniPC(order=3)
    field = jf.distributions.GaussianMixture(jnp.asarray(MIX1[1]), stds=jnp.asarray(MIX1[2])).field(path)

    @jax.jit
    def there_and_back(x, times):
        noise = jf.encode(field, x, jf.FixedSteps(times, solver)).x
        density = jf.log_prob(field, x, jf.FixedSteps(times.at[0].set(0.0), solver)).log_prob
        return jf.decode(field, noise, jf.FixedSteps(times, solver, end="stop")).x, density

    errors = []
    for n in (64, 128):
        times, x1 = jf.LogSNRGrid(n, -12.0, 10.0).times(path), jnp.array([0.9])
        back, density = there_and_back(x1, times)
        np.testing.assert_allclose(back, x1, rtol=1e-3)
        errors.append(abs(density - field.distribution.at(path, times[-1]).log_prob(x1)))
    assert errors[1] < 1e-3 and errors[0] / errors[1] > 3.5, errors


def test_any_drift_of_the_lecture(x64):
    """`dx = -x^2 dt`, x(1) = 1/2, without a field or a clock: order 3 with its corrector."""
    steps = [jf.FixedSteps(jf.UniformGrid(n), CORRECTED) for n in (40, 80)]
    errors = [abs(jf.solve(lambda t, x, args: -(x**2), jnp.ones(1), sampler).x[0] - 0.5) for sampler in steps]
    assert 2.8 < np.log2(errors[0] / errors[1]) < 3.2, errors


@pytest.mark.parametrize("back", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_constant_steps_of_diffeqsolve_are_those_of_the_grid(back, x64):
    """And are counted, in both directions."""
    drift, x0 = lambda t, x, args: -jnp.sin(x) * (1 + t), jnp.array([0.4])
    t0, t1 = (1.0, 0.0) if back else (0.0, 1.0)
    constant = jf.AdaptiveSteps(CORRECTED, dfx.ConstantStepSize(), t0=t0, t1=t1, dt0=(t1 - t0) / 8)
    out = jf.solve(drift, x0, constant)
    on_grid = jf.solve(drift, x0, jf.FixedSteps(jf.UniformGrid(8, t0, t1), CORRECTED))
    np.testing.assert_allclose(out.x, on_grid.x, rtol=1e-12)
    assert out.nfe == 8


def test_what_does_not_fit_raises():
    for make, match in (
        (lambda: jf.Adams(5), "from 1 to 4 without its corrector. Got order=5: pass corrector=True"),
        (lambda: jf.Adams(7, corrector=True), "from 2 to 6 with its corrector. Got order=7"),
        (lambda: jf.Adams(True), "order must be an integer. Got True"),
        (lambda: jf.Adams(1, corrector=True), "pass order=2, or corrector=False"),
        (lambda: jf.UniPC(4), "order 1, 2 or 3. Got order=4"),
        (lambda: jf.UniPC(2, variant="vary"), "'bh1' or 'bh2'. Got 'vary'"),
        (lambda: jf.SASolver(4), "Got predictor=4"),
        (lambda: jf.SASolver(3, 0), r"Got corrector=0: without a corrector it is jflow.DPMpp\(order\)"),
        (lambda: jf.DEIS(0), "order 1, 2 or 3. Got order=0"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    x0, grid, etas = jnp.ones(2), jf.UniformGrid(4), jnp.linspace(1.0, 0.0, 4)
    for solver, options, match in (
        (CORRECTED, {"eta": etas, "end": "stop"}, "one eta for the whole grid"),
        (CORRECTED, {"clock": jf.SigmaClock()}, "t = 0, .*start a little later"),
        (jf.SASolver(1, 1), {"eta": etas}, "one eta for the whole grid"),
        (jf.UniPC(), {"eta": 1.0}, r"UniPC\(\) must have the ODE. Got eta=1.0: leave out eta="),
        (jf.DEIS(), {"eta": 0.5}, r"DEIS\(\) must have the ODE. Got eta=0.5"),
        (jf.DEIS(), {}, "t = 0, .*start a little later"),
        (jf.DEIS(), {"clock": jf.ThetaClock()}, r"DEIS\(\) must be in its own clock, SigmaClock\(\)"),
        (jf.UniPC(), {"diffusion": lambda t: 1.0}, "diffusion="),
    ):
        with pytest.raises(ValueError, match=match):
            jf.decode(NET, x0, jf.FixedSteps(grid, solver, **options), key=jax.random.key(0))
    for solver in (CORRECTED, jf.UniPC(), jf.DPMpp(), dfx.Euler()):
        with pytest.raises(ValueError, match=r"error estimate. Got .*\(\), which has none: take jflow.FixedSteps"):
            jf.decode(NET, x0, jf.AdaptiveSteps(solver, t0=0.1, t1=0.9))
