"""The SDEs of a field: one family with unchanged marginals, from exact coefficients (closed forms C and D).

On Gaussian data the samplers are affine in the start and the normals, so that means, variances and couplings are read
off the Jacobian, without a random number.
"""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

CONDOT = jf.CondOT()
SQRT = jf.Path(lambda t: t, lambda t: jnp.sqrt(1 - t))
MIX1 = jf.distributions.GaussianMixture([[-2.0], [1.0]], stds=[0.5, 0.8], weights=[0.3, 0.7])
LEVELS = {"0": lambda t: 0.0, "0.5": lambda t: 0.5, "1": lambda t: 1.0, "beta": lambda t: 1 - t}


def gaussian(mean, std):
    return jf.distributions.Gaussian(jnp.asarray([mean]), std=std).field(CONDOT)


def moments(field, n, *, end="stop", variance=1.0, mean=0.0, **options):
    """Mean and variance of the last state, and its covariance with the first, of an affine sampler."""

    def run(x0, z):
        return jf.decode(field, x0, times=jf.uniform_times(n), brownian=jf.Recorded(z), end=end, **options).x

    start, zeros = jnp.full((1,), mean), jnp.zeros((n, 1))
    value = jax.jit(run)(start, zeros)
    by_start, by_noise = jax.jit(jax.jacrev(run, (0, 1)))(start, zeros)
    return value[0], variance * by_start[0, 0] ** 2 + jnp.sum(by_noise**2), variance * by_start[0, 0]


def drift(field, t, x, h=0.125, **options):
    """The drift of a sampler, from one step without noise."""
    times, x = jnp.asarray([t, t + h]), jnp.asarray([x])
    zeros = jf.Recorded(jnp.zeros((1, 1)))
    return (jf.decode(field, x, times=times, brownian=zeros, end="stop", **options).x - x)[0] / h


def test_C1_no_diffusion_is_the_flow():
    def u(t, x, args):
        return jnp.sin(3 * x) + t

    x0 = jr.normal(jr.key(0), (5,))
    flow = jf.solve(u, x0, times=jf.uniform_times(20)).x
    for seed in range(3):
        sde = jf.solve(u, x0, diffusion=lambda t, x, args: 0.0, key=jr.key(seed), times=jf.uniform_times(20)).x
        np.testing.assert_allclose(sde, flow, rtol=2e-7, atol=1e-7)  # x + (h u + 0) may fuse otherwise


def test_C2_a_diffusion_coefficient_is_a_pure_function():
    seen = []

    def sigma(t, x, args):
        seen.append((jnp.ndim(t), jnp.shape(x)))
        return 1.0 - t

    options = {"diffusion": sigma, "key": jr.key(0), "times": jf.uniform_times(5)}
    values = [jf.solve(lambda t, x, args: -x, jnp.ones(2), **options).x for _ in range(2)]
    np.testing.assert_array_equal(values[0], values[1])
    assert set(seen) == {(0, (2,))}


def test_D1_drift_is_velocity_plus_half_sigma_squared_score():
    got = drift(MIX1.field(CONDOT), 0.5, 0.7, diffusion=lambda t, x, args: 0.8)
    np.testing.assert_allclose(got, 0.72319892, atol=3e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_D2_moment_equation_keeps_the_marginal(level):
    """dV/dt = 2 A V + sigma^2 from V(0) = 1 ends at s^2, with A the slope of the drift."""
    field, sigma = gaussian(1.0, 0.5), LEVELS[level]

    def slope(t):
        def rate(x):
            return (field.velocity(t, x) + sigma(t) ** 2 / 2 * field.score(t, x))[0]

        return jax.grad(rate)(jnp.zeros(1))[0]

    out = jf.solve(lambda t, v, args: 2 * slope(t) * v + sigma(t) ** 2, jnp.ones(()), t0=0.0, t1=1.0)
    np.testing.assert_allclose(out.x, 0.25, atol=1e-5)


@pytest.mark.parametrize(
    ("std", "n", "variance"),
    [(1.0, 10, 0.89225544), (1.0, 100, 0.98814681), (1.0, 1000, 0.99880325), (0.5, 10, 0.25069663)],
)
def test_D3_euler_maruyama_variance_recursion(std, n, variance):
    got = moments(gaussian(0.0, std), n, diffusion=lambda t, x, args: 1.0)[1]
    np.testing.assert_allclose(got, variance, rtol=2e-5)


@pytest.mark.parametrize(("level", "std"), [("0", 0.4946), ("0.5", 0.4990), ("1", 0.4975), ("beta", 0.4984)])
def test_D4_marginal_at_the_data_end(level, std):
    mean, variance, _ = moments(gaussian(1.0, 0.5), 200, diffusion=lambda t, x, args: LEVELS[level](t))
    np.testing.assert_allclose(mean, 1.0, atol=6.3e-3)
    np.testing.assert_allclose(jnp.sqrt(variance), 0.5, atol=1.1e-2)
    np.testing.assert_allclose(jnp.sqrt(variance), std, atol=4 * 0.5 / math.sqrt(2e5))  # simulated, 100,000 paths


@pytest.mark.parametrize(
    ("level", "coupling"), [("0", 1.0), ("0.5", 0.82172496), ("1", math.exp(-math.pi / 4)), ("beta", math.exp(-0.25))]
)
def test_D5_coupling_of_start_and_end(level, coupling):
    """The marginals alone cannot see the noise; Cov(X_0, X_1) = s exp(-int sigma^2/(2 v) dt) can."""
    got = moments(gaussian(0.0, 1.0), 200, diffusion=lambda t, x, args: LEVELS[level](t))[2]
    np.testing.assert_allclose(got, coupling, atol=1e-2)


def test_D6_time_reversal_is_level_one():
    """eta = 1 is sigma_t^2 = 2 (1 - t)/t on CondOT: the drift is x/t + sigma_t^2 score, and the start is forgotten."""
    field, t, x = gaussian(1.0, 0.5), 0.5, 0.7
    expected = x / t + 2 * field.score(t, jnp.asarray([x]))[0]
    np.testing.assert_allclose(drift(field, t, x, eta=1.0, clock=jf.PathClock()), expected, rtol=1e-5)
    assert abs(moments(gaussian(0.0, 1.0), 200, end="denoise", eta=1.0)[2]) < 2e-2


@pytest.mark.parametrize(
    "options", [{"eta": 1.0}, {"diffusion": lambda t, x, args: jnp.sqrt(1 - t)}], ids=["eta", "beta"]
)
def test_D7_default_noise_is_stable_up_to_a_point(options):
    """Point data along sigma = sqrt(1 - t), 999 steps: a constant coefficient ends with a spread of 0.28."""
    z = jnp.asarray([2.0, -1.0])
    field = jf.distributions.PointSet(z[None]).field(SQRT)
    times = jf.uniform_times(999)
    x = jax.jit(
        jax.vmap(
            lambda k: (
                jf.sample(field, k, (2,), times=times, end="stop" if "diffusion" in options else None, **options).x
            )
        )
    )(jr.split(jr.key(0), 200))
    assert jnp.max(jnp.abs(x.mean(0) - z)) < 4e-3
    assert jnp.max(x.std(0)) < 0.05


def test_D8_score_only_form():
    """(b + sigma^2/2) s + a x = u + sigma^2/2 s with a = alpha'/alpha, b = sigma W/alpha."""
    field = MIX1.field(jf.Cosine())
    for t in (0.2, 0.5, 0.9):
        path, x = field.path, jnp.asarray([0.7])
        a, b = path.alpha_dot(t) / path.alpha(t), path.sigma_w(t) / path.alpha(t)
        u, s = field.velocity(t, x), field.score(t, x)
        np.testing.assert_allclose((b + 0.32) * s + a * x, u + 0.32 * s, rtol=1e-5)


@pytest.mark.parametrize("level", ["0.5", "1", "beta"])
def test_D9_conditional_sde_keeps_its_marginal_half_way(level):
    """Data at one point z: mean alpha z and variance sigma^2 at t = 1/2, from exact coefficients, up to O(h)."""
    z, n = 1.5, 400
    field = jf.distributions.PointSet([[z]]).field(CONDOT)

    def run(x0, normals):
        times = jnp.linspace(0.0, 0.5, n + 1)
        options = {"diffusion": lambda t, x, args: LEVELS[level](t), "brownian": jf.Recorded(normals)}
        return jf.decode(field, x0, times=times, end="stop", **options).x

    zeros = jnp.zeros((n, 1))
    np.testing.assert_allclose(jax.jit(run)(jnp.zeros(1), zeros), [0.5 * z], atol=5e-3)
    by_start, by_noise = jax.jit(jax.jacrev(run, (0, 1)))(jnp.zeros(1), zeros)
    np.testing.assert_allclose(by_start[0, 0] ** 2 + jnp.sum(by_noise**2), 0.25, atol=2e-3)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 2.0])
def test_the_frozen_data_step_of_every_level(eta):
    """x' = (s'/s) e^(-eta h) x + a' (1 - e^(-(1 + eta) h)) D + s' sqrt(1 - e^(-2 eta h)) z."""
    field, t0, t1, x, z = MIX1.field(jf.VP()), 0.3, 0.45, jnp.asarray([0.4]), jnp.asarray([[0.7]])
    path = field.path
    got = jf.decode(field, x, times=jnp.asarray([t0, t1]), eta=eta, brownian=jf.Recorded(z), end="stop").x
    h = (path.log_snr(t1) - path.log_snr(t0)) / 2
    expected = (
        path.sigma(t1) / path.sigma(t0) * jnp.exp(-eta * h) * x
        - path.alpha(t1) * jnp.expm1(-(1 + eta) * h) * field.data(t0, x)
        + path.sigma(t1) * jnp.sqrt(-jnp.expm1(-2 * eta * h)) * z[0]
    )
    np.testing.assert_allclose(got, expected, rtol=2e-5)


def test_eta_as_a_function_is_its_value_at_the_start_of_each_step():
    field, times, z = MIX1.field(CONDOT), jnp.asarray([0.2, 0.5, 0.8]), jnp.asarray([[0.3], [-1.1]])
    levels = 0.5, 1.7
    both = jf.decode(
        field, jnp.ones(1), times=times, eta=lambda t: jnp.where(t < 0.4, *levels), brownian=jf.Recorded(z), end="stop"
    ).x
    x = jnp.ones(1)
    for i, eta in enumerate(levels):
        step = {"times": times[i : i + 2], "eta": eta, "brownian": jf.Recorded(z[i : i + 1]), "end": "stop"}
        x = jf.decode(field, x, **step).x
    np.testing.assert_allclose(both, x, rtol=1e-5)


def test_dyadic_noise_refines_one_path():
    coarse, fine = (jf.dyadic_noise(jr.key(0), n, (3,)).normals for n in (8, 16))
    np.testing.assert_allclose((fine[::2] + fine[1::2]) / math.sqrt(2), coarse, atol=1e-5)
    draws = jax.vmap(lambda key: jf.dyadic_noise(key, 4, (2,)).normals)(jr.split(jr.key(1), 20_000)).reshape(20_000, 8)
    np.testing.assert_allclose(jnp.cov(draws.T), jnp.eye(8), atol=4 * math.sqrt(2 / 20_000))
    with pytest.raises(ValueError, match="power of two"):
        jf.dyadic_noise(jr.key(0), 6, (2,))


def test_P10_fokker_planck_of_the_ornstein_uhlenbeck_process_and_of_heat():
    """dp/dt = -(b p)' + sigma^2/2 p'' for the transition densities."""
    with jax.enable_x64(True):
        for theta, sigma in ((1.0, 0.5), (0.0, 1.3)):

            def density(t, x, theta=theta, sigma=sigma):
                decay = jnp.exp(-theta * t)
                variance = sigma**2 * (t if theta == 0 else -jnp.expm1(-2 * theta * t) / (2 * theta))
                return jnp.exp(-((x - 0.7 * decay) ** 2) / (2 * variance)) / jnp.sqrt(2 * jnp.pi * variance)

            for t, x in ((0.4, 0.3), (1.1, -0.6)):
                flow = jax.grad(lambda y, t=t, theta=theta: theta * y * density(t, y))(x)
                spread = jax.grad(jax.grad(density, 1), 1)(t, x) * sigma**2 / 2
                np.testing.assert_allclose(jax.grad(density)(t, x), flow + spread, atol=1e-8)
            if theta:
                mean, variance = jf.processes.OrnsteinUhlenbeck(theta=theta, sigma=sigma).transition(
                    jnp.asarray(0.7), 0.4
                )
                np.testing.assert_allclose(mean, 0.7 * jnp.exp(-0.4), rtol=1e-6)
                np.testing.assert_allclose(variance, 0.125 * -jnp.expm1(-0.8), rtol=1e-6)
