"""DPM-Solver++: the textbook recursions, orders, exact spreads, starts, ends, and what raises."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import Counter
from solver_laws import carry, data_prediction, measured_order, mixture, spread_error

import jflow as jf
from jflow._solver._phi import exponential_moments

SOLVERS = {
    "1": jf.DPMpp(order=1),
    "2": jf.DPMpp(order=2),
    "2 midpoint": jf.DPMpp(order=2, variant="midpoint"),
    "3": jf.DPMpp(order=3),
    "3 half": jf.DPMpp(order=3, variant="half_curvature"),
}
ETAS = (0.0, 0.5, 1.0, 1.5)
GRID = np.array([0.02, 0.05, 0.11, 0.2, 0.33, 0.41, 0.52, 0.66, 0.74, 0.85, 0.93, 0.97])


def textbook(name, alphas, sigmas, x, eta, z):
    """The recursions as papers print them: exact moments and a Vandermonde system, or differences of predictions."""
    half_log_snr, level, kappa, seen = np.log(alphas / sigmas), eta**2, 1 + eta**2, []
    for i in range(len(alphas) - 1):
        h = half_log_snr[i + 1] - half_log_snr[i]
        seen.insert(0, data_prediction(alphas[i], sigmas[i], x))
        points = min(int(name[0]), len(seen))
        nodes = half_log_snr[i - np.arange(points)] - half_log_snr[i]
        moments = [-np.expm1(-kappa * h)]
        for k in range(1, points):
            moments.append(h**k - k / kappa * moments[-1])
        if name == "2 midpoint" and points == 2:
            update = moments[0] * (seen[0] - (seen[0] - seen[1]) * h / (2 * nodes[1]))
        elif name == "3 half" and points == 3:
            r0, r1, eh = -nodes[1] / h, (nodes[1] - nodes[2]) / h, kappa * h
            d0, d1 = (seen[0] - seen[1]) / r0, (seen[1] - seen[2]) / r1
            phi2 = np.expm1(-eh) / eh + 1
            first, second = d0 + r0 * (d0 - d1) / (r0 + r1), (d0 - d1) / (r0 + r1)
            update = moments[0] * seen[0] + phi2 * first - (phi2 / eh - 0.5) * second
        else:
            weights = np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
            update = sum(c * d for c, d in zip(weights, seen, strict=False))
        x = sigmas[i + 1] / sigmas[i] * np.exp(-level * h) * x + alphas[i + 1] * update
        x = x + sigmas[i + 1] * np.sqrt(-np.expm1(-2 * level * h)) * z[i]
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_the_steps_are_those_of_the_papers(name, x64):
    rng = np.random.default_rng(0)
    x0, z, grid = rng.normal(size=1), rng.normal(size=(len(GRID) - 1, 1)), GRID
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        run = carry(mixture(jf.CondOT()), SOLVERS[name], end="stop")
        for eta in ETAS:
            want = textbook(name, grid, 1 - grid, x0, eta, z)
            got = run(jnp.asarray(x0, dtype), jnp.asarray(grid), jnp.asarray(eta), jnp.asarray(z, dtype))
            assert got.dtype == dtype
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=f"{name} {eta} {dtype}")


def test_without_eta_it_is_the_ode_along_any_path(x64):
    path, x0 = jf.VP(), np.array([0.7])
    times = jf.LogSNRGrid(10, -8.0, 8.0).times(path)
    alphas, sigmas = (np.asarray(jax.vmap(f)(times)) for f in (path.alpha, path.sigma))
    want = textbook("2", alphas, sigmas, x0, 0.0, np.zeros((10, 1)))
    got = carry(mixture(path), SOLVERS["2"], end="stop")(x0, times, None, None)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    got = jf.decode(mixture(path), x0, jf.FixedSteps(times, SOLVERS["2"]))  # it ends before sigma = 0, by default too
    np.testing.assert_allclose(got.x, want, rtol=1e-12)


def test_it_brings_its_clock_and_order_one_is_euler_there():
    field, key, grid = mixture(jf.CondOT()), jax.random.key(0), jf.UniformGrid(8)

    @eqx.filter_jit
    def both(eta):
        ours = jf.FixedSteps(grid, SOLVERS["1"], eta=eta)
        euler = jf.FixedSteps(grid, dfx.Euler(), eta=eta, clock=jf.ThetaClock())
        return jf.sample(field, key, (1,), ours), jf.sample(field, key, (1,), euler)

    for eta in (None, 0.5):
        ours, euler = both(eta)
        assert jnp.array_equal(ours.x, euler.x) and ours.nfe == euler.nfe == 8


@pytest.mark.parametrize("name", SOLVERS)
def test_the_order_is_the_advertised_one(name, x64):
    slope = measured_order(SOLVERS[name])
    assert abs(slope - SOLVERS[name].order(None)) < 0.1, slope


PRINTED = {  # relative error of the standard deviation at n = 16 and n = 64
    "2 midpoint": {16: "+1.7e-02", 64: "+1.3e-03"},
    "2": {16: "+4.7e-02", 64: "+2.9e-03"},
    "3 half": {16: "+2.4e-02", 64: "+1.0e-03"},
    "3": {16: "+1.7e-02", 64: "+5.4e-04"},
}


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PRINTED)
def test_the_spread_on_gaussian_data_is_the_printed_one(name, n, x64):
    assert f"{spread_error(SOLVERS[name], n):+.1e}" == PRINTED[name][n]


def test_exponential_moments_have_no_cancellation(x64):
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s, w = (nodes + 1) / 2, weights / 2
    for h in (0.0, 1e-9, -1e-4, 0.3, 0.999, 1.001, -1.5, 7.0, -9.0):
        want = [(w * np.exp(-h * (1 - s)) * s**k).sum() for k in range(3)]
        np.testing.assert_allclose(exponential_moments(jnp.asarray(h), 2), want, rtol=1e-13)


NET = jf.Field(lambda t, x, args: -args * jnp.tanh(x) * (1 + t), jf.CondOT(), "velocity")


def test_one_call_a_step_and_one_compilation():
    """Also from t = 0, where log-SNR is infinite, and for keys, levels, conditions and grids of one length."""
    net = Counter(NET.net)
    field = jf.Field(net, jf.CondOT(), "velocity")

    @eqx.filter_jit
    def run(key, times, args, eta, end):
        return jf.sample(field, key, (2,), jf.FixedSteps(times, SOLVERS["3"], eta=eta, end=end), args=args)

    grids = (jf.UniformGrid(6).times(), "denoise"), (jf.LogSNRGrid(6, -8.0, 8.0).times(field.path), "stop")
    for seed, (times, end) in enumerate(grids):
        out = run(jax.random.key(seed), times, jnp.asarray(1.0 + seed), jnp.asarray(0.3 * seed), end)
        assert out.nfe == 6 == net.take() and out.status == 0 and out.t == times[-1]
    traces = net.traces
    run(jax.random.key(5), jnp.linspace(0.1, 0.9, 7), jnp.asarray(0.2), jnp.asarray(2.0), "stop")
    assert net.traces == traces


@pytest.mark.parametrize("n", [1, 3, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_number_of_steps(n):
    """From t = 0 to t = 1; the second step has no slope yet there, and is Euler's."""

    @eqx.filter_jit
    def run(solver, end, eta, times):
        return jf.sample(NET, jax.random.key(1), (2,), jf.FixedSteps(times, solver, eta=eta, end=end), args=1.0)

    out = run(SOLVERS["3"], "denoise", None, jf.UniformGrid(n))
    assert out.status == 0 and out.nfe == n and jnp.isfinite(out.x).all()
    if n == 3:
        euler = run(SOLVERS["1"], "denoise", None, jf.UniformGrid(n))
        np.testing.assert_allclose(out.x, euler.x, rtol=1e-5)
    if n == 1000:
        noisy = run(SOLVERS["3"], "stop", 1.0, jf.LogSNRGrid(n, -16.0, 16.0))
        assert noisy.status == 0 and jnp.isfinite(noisy.x).all()


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences(x64):
    """In the start, the condition, the amplitude of noise and the grid, which starts at t = 0."""
    z = jax.random.normal(jax.random.key(0), (5, 2))

    @jax.jit
    def total(x0, args, eta, times):
        sampler = jf.FixedSteps(times, SOLVERS["3"], eta=eta, end="stop")
        return jnp.sum(jnp.sin(jf.decode(NET, x0, sampler, args=args, brownian=jf.Recorded(z)).x))

    point = (jnp.array([0.3, -0.5]), jnp.asarray(1.3), jnp.asarray(0.7), jnp.array([0.0, 0.1, 0.3, 0.5, 0.7, 0.9]))
    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(*point)
    assert all(jnp.isfinite(s).all() for s in slopes)
    inside = jnp.arange(6) > 0  # noise of the first instants has an infinite slope at t = 0
    way = (
        jnp.array([1.0, 0.5]),
        jnp.asarray(-0.4),
        jnp.asarray(0.3),
        inside * jnp.array([0, 1.0, -0.5, 0.3, 0.2, 0.1]),
    )
    moved = [total(*(p + sign * 1e-5 * w for p, w in zip(point, way, strict=True))) for sign in (1, -1)]
    along = sum(jnp.sum(s * w) for s, w in zip(slopes, way, strict=True))
    np.testing.assert_allclose(along, (moved[0] - moved[1]) / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_the_way_back_and_the_density(x64):
    field, path, solver = mixture(jf.CondOT()), jf.CondOT(), SOLVERS["3"]

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
    assert errors[1] < 0.005 and errors[0] / errors[1] > 3.5


@pytest.mark.slow
def test_constant_steps_of_diffeqsolve_are_those_of_the_grid(x64):
    path, solver, clock, x0 = jf.CondOT(), SOLVERS["3"], jf.ThetaClock(), jnp.array([0.4])
    taus = jnp.linspace(*(clock.time(path, jnp.asarray(t)) for t in (0.2, 0.6)), 9)
    times = jax.vmap(lambda tau: clock.path_time(path, tau))(taus)
    on_grid = jf.decode(NET, x0, jf.FixedSteps(times, solver, end="stop"), args=1.0)
    constant = jf.AdaptiveSteps(solver, dfx.ConstantStepSize(), t0=0.2, t1=0.6, dt0=times[1] - times[0])
    by_diffrax = jf.decode(NET, x0, constant, args=1.0)
    np.testing.assert_allclose(by_diffrax.x, on_grid.x, rtol=1e-12)


def test_what_does_not_fit_raises():
    for bad, match in (
        ({"order": 4}, "order 1, 2 or 3. Got order=4"),
        ({"order": True}, "order must be an integer. Got True"),
        ({"variant": "heun"}, "'exact' or 'midpoint' or 'half_curvature'. Got 'heun'"),
        ({"order": 3, "variant": "midpoint"}, "pass order=2, or variant='exact'"),
        ({"order": 2, "variant": "half_curvature"}, "pass order=3, or variant='exact'"),
    ):
        with pytest.raises(ValueError, match=match):
            jf.DPMpp(**bad)
    x0, grid, solver = jnp.ones(2), jf.UniformGrid(4), jf.DPMpp()
    for options, match in (
        ({"clock": jf.SigmaClock()}, r"which it brings along. Got SigmaClock\(\): leave out clock="),
        ({"eta": jnp.linspace(1.0, 0.0, 4)}, "one eta for the whole grid"),
        ({"diffusion": lambda t: 1.0}, "diffusion="),
        ({"end": "stop"}, "t = 1, .*stop a little earlier"),
    ):
        with pytest.raises(ValueError, match=match):
            jf.decode(NET, x0, jf.FixedSteps(grid, solver, **options), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"in its own time. Got DPMpp\(\)"):
        jf.solve(lambda t, x, args: -x, x0, jf.FixedSteps(grid, solver))
    with pytest.raises(ValueError, match=r"t = 0, .* of ThetaClock: start a little later"):
        jf.decode(jf.Field(NET.net, jf.CondOT(), "noise"), x0, jf.FixedSteps(grid, solver))
    run = jax.jit(lambda x, s: jf.decode(NET, x, s, args=1.0).x)
    for same in (jf.FixedSteps(grid, solver, clock=jf.ThetaClock()), jf.FixedSteps(grid, dfx.HalfSolver(solver))):
        assert jnp.isfinite(run(x0, same)).all()
