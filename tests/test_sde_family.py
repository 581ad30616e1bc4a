"""The SDEs of a field: one family with unchanged marginals, from exact coefficients (closed forms C and D).

On Gaussian data the samplers are affine in the start and the normals, so that means, variances and couplings are read
off the Jacobian, without a random number.
"""

import functools as ft
import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf
from jflow._engine.equation import FieldEquation

CONDOT = jf.CondOT()
SQRT = jf.CustomPath(lambda t: t, lambda t: jnp.sqrt(1 - t))
MIX1 = jf.distributions.GaussianMixture([[-2.0], [1.0]], stds=[0.5, 0.8], weights=[0.3, 0.7])
LEVELS = {"0": (0.0, 0.0), "0.5": (0.5, 0.0), "1": (1.0, 0.0), "beta": (0.0, 1.0)}  # sigma_t = a + b (1 - t)
LEVEL = jnp.asarray(list(LEVELS.values()))


def sigma(level, t):
    return level[0] + level[1] * (1 - t)


def gaussian(mean, std):
    return jf.distributions.Gaussian(jnp.asarray([mean]), std=std).field(CONDOT)


@eqx.filter_jit
def moments(field, n, level=None, *, end="stop", variance=1.0, mean=0.0, eta=None):
    """Mean and variance of the last state, and its covariance with the first, of an affine sampler."""
    noise = {"eta": eta} if level is None else {"diffusion": lambda t: sigma(level, t)}
    sampler = jf.FixedSteps(jf.UniformGrid(n), end=end, **noise)

    def run(x0, z):
        return jf.decode(field, x0, sampler, brownian=jf.Recorded(z)).x

    start, zeros = jnp.full((1,), mean), jnp.zeros((n, 1))
    value, (by_start, by_noise) = run(start, zeros), jax.jacrev(run, (0, 1))(start, zeros)
    return value[0], variance * by_start[0, 0] ** 2 + jnp.sum(by_noise**2), variance * by_start[0, 0]


@ft.cache
def levels(mean, std):
    """The moments at every level, 200 steps: one compilation for both data."""
    return dict(zip(LEVELS, zip(*over_levels(gaussian(mean, std), 200, LEVEL), strict=True), strict=True))


over_levels = eqx.filter_jit(eqx.filter_vmap(moments, in_axes=(None, None, 0)))


def drift(field, t, x, h=0.125, **options):
    """The drift of a sampler, from one step without noise."""

    sampler, zeros = jf.FixedSteps([t, t + h], end="stop", **options), jf.Recorded(jnp.zeros((1, 1)))
    return jax.jit(lambda x: (jf.decode(field, x, sampler, brownian=zeros).x - x)[0] / h)(jnp.asarray([x]))


def test_C1_no_diffusion_is_the_flow():
    def u(t, x, args):
        return jnp.sin(3 * x) + t

    x0, grid = jr.normal(jr.key(0), (5,)), jf.UniformGrid(20)

    @jax.jit
    def both(key):
        return jf.solve(u, x0, grid, diffusion=lambda *_: 0.0, key=key).x, jf.solve(u, x0, grid).x

    for seed in range(3):
        np.testing.assert_allclose(*both(jr.key(seed)), rtol=2e-7, atol=1e-7)  # x + (h u + 0) may fuse otherwise


def test_C2_a_diffusion_coefficient_is_a_pure_function():
    seen = []

    def sigma(t, x, args):
        seen.append((jnp.ndim(t), jnp.shape(x)))
        return 1.0 - t

    def solved():
        noise = {"diffusion": sigma, "key": jr.key(0)}
        return jf.solve(lambda t, x, args: -x, jnp.ones(2), jf.UniformGrid(5), **noise).x

    values = [jax.jit(solved)() for _ in range(2)]
    np.testing.assert_array_equal(values[0], values[1])
    assert set(seen) == {(0, (2,))}


def test_D1_drift_is_velocity_plus_half_sigma_squared_score():
    got = drift(MIX1.field(CONDOT), 0.5, 0.7, diffusion=lambda t: 0.8)
    np.testing.assert_allclose(got, 0.72319892, atol=3e-6)


def test_D2_moment_equation_keeps_the_marginal():
    """dV/dt = 2 A V + sigma^2 from V(0) = 1 ends at s^2 at every level, with A the slope of the drift."""
    field = gaussian(1.0, 0.5)

    def slope(t, level):
        def rate(x):
            return (field.velocity(t, x) + sigma(level, t) ** 2 / 2 * field.score(t, x))[0]

        return jax.grad(rate)(jnp.zeros(1))[0]

    def rate(t, v, level):
        return 2 * slope(t, level) * v + sigma(level, t) ** 2

    out = jax.jit(jax.vmap(lambda level: jf.solve(rate, jnp.ones(()), jf.AdaptiveSteps(), args=level)))(LEVEL)
    np.testing.assert_allclose(out.x, np.full(4, 0.25), atol=1e-5)
    assert (out.status == 0).all()


@pytest.mark.parametrize(
    ("std", "n", "variance"),
    [(1.0, 10, 0.89225544), (1.0, 100, 0.98814681), (1.0, 1000, 0.99880325), (0.5, 10, 0.25069663)],
)
def test_D3_euler_maruyama_variance_recursion(std, n, variance):
    got = moments(gaussian(0.0, std), n, LEVEL[2])[1]
    np.testing.assert_allclose(got, variance, rtol=2e-5)


@pytest.mark.parametrize(("level", "std"), [("0", 0.4946), ("0.5", 0.4990), ("1", 0.4975), ("beta", 0.4984)])
def test_D4_marginal_at_the_data_end(level, std):
    mean, variance, _ = levels(1.0, 0.5)[level]
    np.testing.assert_allclose(mean, 1.0, atol=6.3e-3)
    np.testing.assert_allclose(jnp.sqrt(variance), 0.5, atol=1.1e-2)
    np.testing.assert_allclose(jnp.sqrt(variance), std, atol=4 * 0.5 / math.sqrt(2e5))  # simulated, 100,000 paths


@pytest.mark.parametrize(
    ("level", "coupling"), [("0", 1.0), ("0.5", 0.82172496), ("1", math.exp(-math.pi / 4)), ("beta", math.exp(-0.25))]
)
def test_D5_coupling_of_start_and_end(level, coupling):
    """The marginals alone cannot see the noise; Cov(X_0, X_1) = s exp(-int sigma^2/(2 v) dt) can."""
    got = levels(0.0, 1.0)[level][2]
    np.testing.assert_allclose(got, coupling, atol=1e-2)


def test_D6_time_reversal_is_level_one():
    """eta = 1 is sigma_t^2 = 2 (1 - t)/t on CondOT: the drift is x/t + sigma_t^2 score, and the start is forgotten."""
    field, t, x = gaussian(1.0, 0.5), 0.5, 0.7
    expected = x / t + 2 * field.score(t, jnp.asarray([x]))[0]
    np.testing.assert_allclose(drift(field, t, x, eta=1.0, clock=jf.PathClock()), expected, rtol=1e-5)
    mean, variance, coupling = moments(gaussian(1.0, 0.5), 200, end="denoise", eta=1.0)
    assert abs(coupling) < 2e-2
    np.testing.assert_allclose([mean, jnp.sqrt(variance)], [1.0, 0.5], atol=1.1e-2)  # and the marginal is kept


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"eta": 1.0}, {"diffusion": lambda t: jnp.sqrt(1 - t), "end": "stop"}], ids=["eta", "beta"]
)
def test_D7_default_noise_is_stable_up_to_a_point(options):
    """Point data along sigma = sqrt(1 - t), 999 steps: a constant coefficient ends with a spread of 0.28."""
    z = jnp.asarray([2.0, -1.0])
    field = jf.distributions.PointSet(z[None]).field(SQRT)
    sampler = jf.FixedSteps(jf.UniformGrid(999), **options)
    x = jax.jit(jax.vmap(lambda k: jf.sample(field, k, (2,), sampler).x))(jr.split(jr.key(0), 200))
    assert jnp.max(jnp.abs(x.mean(0) - z)) < 4e-3
    assert jnp.max(x.std(0)) < 0.05


def test_D8_score_only_form():
    """(b + sigma^2/2) s + a x = u + sigma^2/2 s with a = alpha'/alpha, b = sigma W/alpha."""
    field, path, x = MIX1.field(jf.Cosine()), jf.Cosine(), jnp.asarray([0.7])

    @jax.jit
    @jax.vmap
    def both(t):
        a, b = path.alpha_dot(t) / path.alpha(t), path.sigma_w(t) / path.alpha(t)
        u, s = field.velocity(t, x), field.score(t, x)
        return (b + 0.32) * s + a * x, u + 0.32 * s

    score_only, usual = both(jnp.asarray([0.2, 0.5, 0.9]))
    np.testing.assert_allclose(score_only, usual, rtol=1e-5)


def test_D9_conditional_sde_keeps_its_marginal_half_way():
    """Data at one point z: mean alpha z and variance sigma^2 at t = 1/2, from exact coefficients, up to O(h)."""
    z, n = 1.5, 400
    field = jf.distributions.PointSet([[z]]).field(CONDOT)

    @jax.jit
    @jax.vmap
    def every(level):
        def run(x0, normals):
            sampler = jf.FixedSteps(jf.UniformGrid(n, t1=0.5), diffusion=lambda t: sigma(level, t))
            return jf.decode(field, x0, sampler, brownian=jf.Recorded(normals)).x

        start, zeros = jnp.zeros(1), jnp.zeros((n, 1))
        return run(start, zeros), jax.jacrev(run, (0, 1))(start, zeros)

    mean, (by_start, by_noise) = every(LEVEL[1:])
    np.testing.assert_allclose(mean[:, 0], np.full(3, 0.5 * z), atol=5e-3)
    variance = by_start[:, 0, 0] ** 2 + jnp.sum(by_noise**2, axis=(1, 2, 3))
    np.testing.assert_allclose(variance, np.full(3, 0.25), atol=2e-3)


def test_the_frozen_data_step_of_every_amplitude():
    """x' = (s'/s) e^(-k h) x + a' (1 - e^(-(1 + k) h)) D + s' sqrt(1 - e^(-2 k h)) z, with k = eta^2."""
    field, t0, t1, x, z = MIX1.field(jf.VP()), 0.3, 0.45, jnp.asarray([0.4]), jnp.asarray([[0.7]])
    path = field.path

    @jax.jit
    @jax.vmap
    def both(eta):
        k = eta**2
        got = jf.decode(field, x, jf.FixedSteps([t0, t1], eta=eta, end="stop"), brownian=jf.Recorded(z)).x
        h = (path.log_snr(t1) - path.log_snr(t0)) / 2
        return got, (
            path.sigma(t1) / path.sigma(t0) * jnp.exp(-k * h) * x
            - path.alpha(t1) * jnp.expm1(-(1 + k) * h) * field.data(t0, x)
            + path.sigma(t1) * jnp.sqrt(-jnp.expm1(-2 * k * h)) * z[0]
        )

    got, expected = both(jnp.asarray([0.0, 0.5, 1.0, 1.5]))
    np.testing.assert_allclose(got, expected, rtol=2e-5)


@pytest.mark.parametrize("path", [CONDOT, SQRT, jf.LinearVP(), jf.VP()], ids=["CondOT", "root", "LinearVP", "VP"])
def test_the_drift_is_finite_at_the_data(path):
    """On N(1, 0.25) at t = 1: `alpha' x - (sigma sigma' - g^2/2) score`, with `eta^2 sigma W / alpha` for `g^2/2`."""
    field, x, t = jf.distributions.Gaussian(jnp.ones(1), std=0.5).field(path), jnp.asarray([0.3]), jnp.asarray(1.0)
    score, limit = (1 - x) / 0.25, path.alpha_dot(t) * x
    for options, half in (
        ((None, lambda t: 0.8), 0.32),
        ((0.7, None), 0.49 * path.sigma_w(t)),
        ((None, None), 0.0),
    ):
        got = FieldEquation(field, jf.PathClock(), *options).drift(t, x, None, options[0] or 0.0)
        np.testing.assert_allclose(got, limit + (half - path.sigma_sigma_dot(t)) * score, rtol=1e-3)


def test_an_exact_field_is_taken_at_the_data_whatever_it_predicts():
    """It is finite there, where a network would not be; a point set is not."""
    world, x0 = jf.distributions.Gaussian(jnp.ones(1), std=0.5), jnp.asarray([0.3])

    @jax.jit
    def run(x):
        fields = [world.field(path, predicts) for path in (CONDOT, SQRT) for predicts in ("data", "noise", "score")]
        clocks = (jf.RatioClock(), jf.SigmaClock())
        steps = [jf.FixedSteps(jf.UniformGrid(64, t0=0.01), dfx.Heun(), clock=clock, end="stop") for clock in clocks]
        return [jf.decode(field, x, sampler).x for field, sampler in zip(fields, steps * 3, strict=True)]

    for x in run(0.01 + 0.99 * x0):
        np.testing.assert_allclose(x, 1 + 0.5 * x0, atol=0.02)
    whole = jf.FixedSteps(jf.UniformGrid(4), dfx.Heun(), clock=jf.RatioClock(), end="stop")
    assert jax.eval_shape(lambda: jf.decode(world.field(CONDOT, "noise"), x0, whole)).x.shape == (1,)
    guided = jf.Guided(world.field(CONDOT, "noise"), null=0.0)
    jax.eval_shape(lambda: jf.decode(guided, x0, whole))
    points = jf.distributions.PointSet([[1.0]]).field(CONDOT)
    for field in (points, jf.Guided(points, null=0.0), jf.Field(lambda t, x, args: x, CONDOT, "noise")):
        with pytest.raises(ValueError, match=r"Got t = [01]"):
            jf.decode(field, x0, whole)


def test_an_array_eta_has_a_value_for_each_step():
    field, times, z = MIX1.field(CONDOT), jnp.asarray([0.2, 0.5, 0.8]), jnp.asarray([[0.3], [-1.1]])
    etas = jnp.asarray([0.7, 1.3])

    @jax.jit
    def both(x, etas):
        whole = jf.decode(field, x, jf.FixedSteps(times, eta=etas, end="stop"), brownian=jf.Recorded(z)).x
        for i in range(2):
            sampler = jf.FixedSteps(times[i : i + 2], eta=etas[i], end="stop")
            x = jf.decode(field, x, sampler, brownian=jf.Recorded(z[i : i + 1])).x
        return whole, x

    np.testing.assert_allclose(*both(jnp.ones(1), etas), rtol=1e-5)


@pytest.mark.slow
def test_dyadic_noise_refines_one_path():
    coarse, fine = jax.jit(lambda: [jf.dyadic_noise(jr.key(0), n, (3,)).normals for n in (8, 16)])()
    np.testing.assert_allclose((fine[::2] + fine[1::2]) / math.sqrt(2), coarse, atol=1e-5)
    draws = jax.jit(jax.vmap(lambda key: jf.dyadic_noise(key, 4, (2,)).normals))(jr.split(jr.key(1), 20_000))
    np.testing.assert_allclose(np.cov(np.reshape(draws, (20_000, 8)).T), np.eye(8), atol=4 * math.sqrt(2 / 20_000))
    with pytest.raises(ValueError, match="power of two"):
        jf.dyadic_noise(jr.key(0), 6, (2,))
