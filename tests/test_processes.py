"""Ready-made processes: exact laws, and Euler-Maruyama against its own discrete moments."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.special import ndtr

import jflow as jf
from jflow import processes

MIX1 = jf.distributions.GaussianMixture([-2.0, 1.0], stds=[0.5, 0.8], weights=[0.3, 0.7])
OU = processes.OrnsteinUhlenbeck(theta=1.0, sigma=1.0)


@eqx.filter_jit
def ends(process, starts, times, key):
    """Euler-Maruyama from each start, with its own noise."""

    def one(x0, key):
        return jf.solve(process.drift, x0, times, diffusion=process.diffusion, key=key).x

    return jax.vmap(one)(starts, jr.split(key, starts.shape[0]))


@eqx.filter_jit
def driven(process, start, times, normals):
    """Euler-Maruyama from one start with given normals, one row a path; all states."""

    def one(normals):
        return jf.solve(
            process.drift,
            start,
            times,
            diffusion=process.diffusion,
            brownian=jf.Recorded(normals),
            saveat=dfx.SaveAt(steps=True),
        ).xs

    return jax.vmap(one)(normals)


def check_moments(x, mean, variance):
    """Mean and variance within four standard errors."""
    x = np.asarray(x, np.float64)
    assert x.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / x.size))
    assert x.var() == pytest.approx(variance, abs=4 * variance * np.sqrt(2 / x.size))


def test_A1_flow_of_the_linear_field():
    field, x0 = processes.LinearField(0.5), jnp.asarray([1.0, -2.0])
    expected = [0.60653066, -1.21306132]
    np.testing.assert_allclose(field.flow(x0, 1.0), expected, rtol=1e-6)
    np.testing.assert_allclose(jf.solve(field.drift, x0, jf.AdaptiveSteps()).x, expected, atol=1e-5)
    np.testing.assert_allclose(field.flow(field.flow(x0, 1.0), -1.0), x0, rtol=1e-6)


def test_B8_scaled_brownian_motion():
    process = processes.BrownianMotion(1.0)
    times = jnp.linspace(0.0, 5.0, 51)
    mean, variance = process.transition(jnp.asarray(0.0), 5.0)
    assert (mean, variance) == (0, 5)
    check_moments(ends(process, jnp.zeros(50_000), times, jr.key(0)), 0, 5)


def test_B9_euler_maruyama_has_its_exact_discrete_moments():
    """Mean `(1 - theta h)^n x0`; the continuous moments, 0.7358 and 0.4323, lie outside the tolerance."""
    x = ends(OU, jnp.full(100_000, 2.0), jnp.linspace(0.0, 1.0, 11), jr.key(0))
    check_moments(x, 0.69735688, 0.46232808)
    mean, variance = OU.transition(jnp.asarray(2.0), 1.0)
    assert (mean, variance) == (pytest.approx(0.73575888), pytest.approx(0.43233236))


def test_B10_limits_of_the_ornstein_uhlenbeck_process():
    """The stationary variance is `sigma^2 / (2 theta)`, not `sigma^2`."""
    process = processes.OrnsteinUhlenbeck(theta=0.25, sigma=0.5)
    law = process.stationary((3,))
    assert law.shape == (3,) and law.variance == pytest.approx(0.5)
    mean, variance = process.transition(jnp.ones(3), 1e3)
    np.testing.assert_allclose(mean, 0, atol=1e-6)
    assert variance == pytest.approx(0.5)
    short = process.transition(jnp.ones(3), 1e-6)[1]
    assert short == pytest.approx(0.25e-6, rel=1e-5)  # no cancellation
    x = ends(OU, jnp.zeros(50_000), jnp.linspace(0.0, 10.0, 101), jr.key(1))
    check_moments(x, 0, 0.52631579)


def strong_errors(process, exact, key, lanes=4000):
    """Root mean square errors at t = 1 over step counts, all from the same paths."""
    counts = (16, 32, 64, 128, 256)
    normals = jr.normal(key, (lanes, 256))
    errors = []
    for n in counts:
        coarse = normals.reshape(lanes, n, 256 // n).sum(axis=2) / np.sqrt(256 // n)
        x = driven(process, jnp.asarray(1.0), jnp.linspace(0.0, 1.0, n + 1), coarse)[:, -1]
        errors.append(np.sqrt(np.mean((np.asarray(x) - np.asarray(exact(normals))) ** 2)))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.slow  # the other B12, in test_solve.py, is fast
def test_B12_strong_orders():
    """One for additive noise (against 256 steps exact in the drift), a half for multiplicative noise."""
    growth = processes.GeometricBrownianMotion(mu=0.5, sigma=0.8)

    def lognormal(normals):
        w = normals.sum(axis=1) / 16
        return growth.solution(jnp.ones_like(w), 1.0, w)

    assert strong_errors(growth, lognormal, jr.key(0)) == pytest.approx(0.5, abs=0.1)

    def fine(normals):
        # within a step of the finest grid, the noise at its exact conditional mean given the increment
        h = 1 / 256
        decay = np.exp(-h * np.arange(256)[::-1]) * (1 - np.exp(-h)) / h
        return np.exp(-1.0) + np.asarray(normals) @ decay / 16

    assert strong_errors(OU, fine, jr.key(1)) == pytest.approx(1.0, abs=0.1)


def test_B13_ito_convention():
    """`dX = X dW` keeps its mean; in the sense of Stratonovich it would be 1.6487."""
    process = processes.GeometricBrownianMotion(mu=0.0, sigma=1.0)
    x = np.asarray(ends(process, jnp.ones(40_000), jnp.linspace(0.0, 1.0, 33), jr.key(0)))
    mean, variance = process.transition(jnp.asarray(1.0), 1.0)
    assert (mean, variance) == (pytest.approx(1.0), pytest.approx(np.e - 1))
    assert x.mean() == pytest.approx(1, abs=4 * np.sqrt((np.e - 1) / x.size))


def test_B14_langevin_of_the_stationary_law_is_ornstein_uhlenbeck():
    process = processes.OrnsteinUhlenbeck(theta=0.7, sigma=0.6)
    langevin = processes.Langevin(process.stationary((2,)).log_prob, sigma=0.6)
    x = jnp.asarray([0.4, -1.3])
    np.testing.assert_allclose(langevin.drift(0.0, x), process.drift(0.0, x), atol=1e-6)
    assert langevin.diffusion(0.0, x) == process.diffusion(0.0, x)


def test_B15_law_of_the_rescaled_ornstein_uhlenbeck_process():
    """With `theta = sigma^2/(2 D)` and steps `h/sigma^2` the same normals give the same path."""
    normals = jr.normal(jr.key(0), (5, 200))
    times = jnp.linspace(0.0, 10.0, 201)
    for d in (0.25, 4.0):
        unit = driven(processes.OrnsteinUhlenbeck(1 / (2 * d), 1.0), jnp.asarray(3.0), times, normals)
        for sigma in (0.5, 2.0, 10.0):
            scaled = processes.OrnsteinUhlenbeck(sigma**2 / (2 * d), sigma)
            paths = driven(scaled, jnp.asarray(3.0), times / sigma**2, normals)
            np.testing.assert_allclose(paths, unit, atol=1e-5 * float(jnp.abs(unit).max()))


@pytest.mark.slow
def test_B16_langevin_keeps_its_law():
    n = 10_000
    starts = jax.vmap(MIX1.sample)(jr.split(jr.key(0), n))
    x = np.asarray(ends(processes.Langevin(MIX1.log_prob), starts, jnp.linspace(0.0, 0.5, 501), jr.key(1)), np.float64)
    fourth = np.mean((x - 0.1) ** 4)
    assert x.mean() == pytest.approx(0.1, abs=4 * np.sqrt(2.413 / n))
    assert x.var() == pytest.approx(2.413, abs=4 * np.sqrt((fourth - 2.413**2) / n))
    below = 0.3 * ndtr(1.2 / 0.5) + 0.7 * ndtr(-1.8 / 0.8)
    assert np.mean(x < -0.8) == pytest.approx(below, abs=4 * np.sqrt(below * (1 - below) / n))
    # the step h biases the variance of a Gaussian to s^2 / (1 - theta h / 2), theta = sigma^2 / (2 s^2)
    normal = jf.distributions.Gaussian(0.0, std=0.75)
    starts = np.sqrt(0.5629508) * jr.normal(jr.key(2), (n,))
    langevin = processes.Langevin(normal.log_prob, sigma=0.6)
    check_moments(ends(langevin, starts, jnp.linspace(0.0, 5.0, 1000), jr.key(3)), 0, 0.5629508)


def test_C1_without_noise_it_is_euler():
    """A coefficient of zero gives the flow, whatever the key; the drift serves both."""
    x0, grid = jnp.asarray([1.0, -2.0]), jf.UniformGrid(10)
    ode = jf.solve(OU.drift, x0, grid).x
    for seed in (0, 1):
        sde = jf.solve(OU.drift, x0, grid, diffusion=lambda t, x, args: 0.0, key=jr.key(seed)).x
        np.testing.assert_array_equal(sde, ode)


ALL = {
    "brownian": processes.BrownianMotion(0.8),
    "ou": processes.OrnsteinUhlenbeck(0.7, 0.4),
    "langevin": processes.Langevin(MIX1.log_prob, 0.5),
    "gbm": processes.GeometricBrownianMotion(0.1, 0.3),
}


@pytest.mark.parametrize("name", ["brownian", "ou"])
def test_P10_transition_densities_satisfy_fokker_planck(name, x64):
    """`dp/dt = -div(p drift) + sigma^2/2 p''`; for Brownian motion the heat equation."""
    process, x0 = ALL[name], jnp.asarray(0.6)

    def log_p(t, x):
        mean, variance = process.transition(x0, t)
        return -((x - mean) ** 2) / (2 * variance) - jnp.log(2 * jnp.pi * variance) / 2

    @jax.jit
    @jax.vmap
    def residual(x):
        t = jnp.asarray(0.7)
        drift, slope = jax.value_and_grad(lambda x: process.drift(t, x))(x)
        s, div_s = jax.value_and_grad(lambda x: jax.grad(log_p, 1)(t, x))(x)
        return jax.grad(log_p)(t, x) + slope + drift * s - process.diffusion(t, x) ** 2 / 2 * (div_s + s**2)

    np.testing.assert_allclose(residual(jnp.linspace(-2.0, 2.0, 21)), 0, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_C2_coefficients_are_functions_in_the_type_of_the_state(name, x64):
    process = ALL[name]
    for dtype in (jnp.float32, jnp.float64):
        x = jnp.asarray(0.3, dtype)
        for coefficient in (eqx.filter_jit(process.drift), eqx.filter_jit(process.diffusion)):
            value, again = (coefficient(jnp.asarray(t, dtype), x) for t in (0.1, 0.9))
            assert value.dtype == dtype and value.shape == () and value == again


def test_new_parameters_do_not_retrace():
    count = 0

    @eqx.filter_jit
    def end(process):
        nonlocal count
        count += 1
        return jf.solve(process.drift, jnp.ones(2), jf.UniformGrid(3)).x

    for theta in (0.1, 0.9):
        end(processes.OrnsteinUhlenbeck(theta, 1.0))
    assert count == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: processes.BrownianMotion(0.0),
        lambda: processes.OrnsteinUhlenbeck(-1.0, 1.0),
        lambda: processes.Langevin(MIX1.log_prob, np.inf),
        lambda: processes.GeometricBrownianMotion(0.1, -0.3),
    ],
)
def test_bad_input_is_named(call):
    with pytest.raises(ValueError, match="positive number"):
        call()
