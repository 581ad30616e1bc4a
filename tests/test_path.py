"""Paths: ends, derivatives, log-SNR and shift, for every schedule alike (closed forms F1 to F11)."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIX1, PATHS, over_paths, refuses, schedule, unchecked, within

import jflow as jf

TIMES = np.linspace(0.02, 0.98, 25)
EXACT_ENDS = ("CondOT", "Cosine", "LinearVP", "root", "quadratic")  # alpha(0) = sigma(1) = 0
SCALARS = ("alpha", "sigma", "alpha_dot", "sigma_sigma_dot", "sigma_w", "sigma_dot", "log_snr")


def table(times, names=SCALARS):
    """Methods of every path at many times."""
    return over_paths(lambda path, t: tuple(getattr(path, name)(t) for name in names), times)


def test_F1_end_points():
    for name, (alpha, sigma) in table(jnp.array([0.0, 1.0]), ("alpha", "sigma")).items():
        path = PATHS[name]
        assert sigma[0] > 0 and alpha[1] > 0
        assert alpha[0] / sigma[0] <= 0.05 and sigma[1] / alpha[1] <= 0.05
        assert path.starts_at_noise == (alpha[0] == 0) and path.ends_at_data == (sigma[1] == 0)
        if name in EXACT_ENDS:
            np.testing.assert_array_equal([alpha, sigma], [[0, 1], [1, 0]], err_msg=name)
        if name == "VP":
            np.testing.assert_allclose(alpha, [np.exp(-5.025), 1], rtol=1e-5)
            assert sigma[1] == 0
        if name == "VE":
            np.testing.assert_allclose(sigma, [80, 0.002], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ends_are_finite_in_every_type_and_the_type_is_kept(dtype):
    def values(path, t):
        return tuple(getattr(path, n)(t) for n in SCALARS[:5]), path.velocity_row(t), path.log_snr(t)

    ends = jnp.array([0.0, 1.0])
    exact = table(ends)
    for name, (scalars, rows, log_snr) in over_paths(values, ends.astype(dtype)).items():
        for value in (*scalars, *rows):
            assert value.dtype == dtype and np.isfinite(value.astype(float)).all(), name
        for value, truth in zip(scalars, exact[name], strict=False):
            tolerance = 0.02 if dtype == "bfloat16" else 1e-6
            np.testing.assert_allclose(value.astype(float), truth, rtol=tolerance, atol=tolerance, err_msg=name)
        assert (log_snr[0] == -jnp.inf) == PATHS[name].starts_at_noise
        assert (log_snr[1] == jnp.inf) == PATHS[name].ends_at_data
        assert not np.isnan(log_snr.astype(float)).any()


def test_the_products_have_their_limits_at_the_ends():
    ratio = np.log(0.002 / 80)
    limits = {  # sigma sigma', sigma W
        "CondOT": ([-1, 0], [1, 0]),
        "Cosine": ([0, 0], [np.pi / 2, 0]),
        "LinearVP": ([0, -1], [1, 1]),
        "VP": ([-np.exp(-10.05) * 10, -0.05], [np.exp(-5.025) * 10, 0.05]),
        "VE": ([6400 * ratio, 4e-6 * ratio], [-6400 * ratio, -4e-6 * ratio]),
        "root": ([-0.5, -0.5], [1, 0.5]),
        "quadratic": ([0, 0], [0, 0]),
    }
    for name, got in table(jnp.array([0.0, 1.0]), ("sigma_sigma_dot", "sigma_w")).items():
        np.testing.assert_allclose(got, limits[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_formulas_agree_with_a_second_writing(x64):
    for name, values in table(jnp.asarray(TIMES)).items():
        alpha, sigma, alpha_dot, sigma_dot = schedule(name, TIMES)
        truths = alpha, sigma, alpha_dot, sigma * sigma_dot, sigma * (sigma * alpha_dot - alpha * sigma_dot), sigma_dot
        for value, truth in zip(values, (*truths, 2 * np.log(alpha / sigma)), strict=True):
            np.testing.assert_allclose(value, truth, rtol=1e-6 if name == "VE" else 1e-9, atol=1e-12, err_msg=name)


def test_the_formulas_hold_in_single_precision_close_to_the_ends():
    times = np.array([1e-6, 1e-3, 0.999, 1 - 2.0**-18], np.float32)
    for name, values in table(jnp.asarray(times), SCALARS[:4]).items():
        alpha, sigma, alpha_dot, sigma_dot = schedule(name, times.astype(float))
        for value, truth in zip(values, (alpha, sigma, alpha_dot, sigma * sigma_dot), strict=True):
            np.testing.assert_allclose(value, truth, rtol=2e-5, atol=1e-7, err_msg=name)


def test_F2_monotone():
    names = ("alpha_dot", "sigma_sigma_dot", "sigma_w", "log_snr")
    for name, (alpha_dot, product, sigma_w, log_snr) in table(jnp.linspace(0, 1, 101)[1:-1], names).items():
        assert (alpha_dot >= 0).all() and (product <= 0).all() and (sigma_w > 0).all(), name
        assert (np.diff(log_snr) > 0).all(), name


def test_F3_velocity_identity(x64):
    z, noise = jnp.array([2.0, -0.3]), jnp.array([-1.0, 0.7])

    def three(path, t):
        x = path.interpolate(t, noise, z)
        value = path.alpha_dot(t) * z + path.sigma_dot(t) * noise
        motion = jax.jvp(lambda s: path.interpolate(s, noise, z), (t,), (jnp.ones_like(t),))[1]
        return value, jf.convert(path, t, x, z, "data", "velocity"), motion

    for name, (value, from_data, motion) in over_paths(three, jnp.asarray(TIMES)).items():
        np.testing.assert_allclose(from_data, value, rtol=1e-10, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(motion, value, rtol=1e-10, atol=1e-10, err_msg=name)


def test_F3_numbers(x64):
    linear, root = PATHS["CondOT"], PATHS["root"]
    z, noise = jnp.array([2.0]), jnp.array([-1.0])
    assert linear.interpolate(0.25, noise, z) == -0.25
    assert jf.convert(linear, 0.25, jnp.array([-0.25]), z, "data", "velocity") == 3
    x = jnp.array([1.0])
    np.testing.assert_allclose(jf.convert(root, 0.36, x, z, "data", "velocity"), 1.78125, rtol=1e-10)
    np.testing.assert_allclose(jf.convert(root, 0.36, x, z, "data", "score"), -0.4375, rtol=1e-10)


def test_F4_derivatives(x64):
    def pairs(path, t):
        row = path.velocity_row(t)
        half = jax.grad(lambda s: path.sigma(s) ** 2 / 2)(t)
        return (
            (path.alpha_dot(t), jax.grad(path.alpha)(t)),
            (path.sigma_dot(t), jax.grad(path.sigma)(t)),
            (path.sigma_sigma_dot(t), half),
            (path.sigma_w(t), path.sigma(t) ** 2 * jax.grad(path.alpha)(t) - path.alpha(t) * half),
            (row[1] / row[0], path.alpha_dot(t)),
            (row[2] / row[0], path.sigma_dot(t)),
        )

    for name, both in over_paths(pairs, jnp.asarray(TIMES)).items():
        for value, truth in both:
            np.testing.assert_allclose(value, truth, rtol=1e-9, atol=1e-12, err_msg=name)


def test_F4_the_product_of_the_root_schedule_is_minus_a_half_up_to_one():
    t = jnp.array([0.36, 0.9, 1 - 1e-4, 1 - 1e-6, 1.0])
    np.testing.assert_allclose(jax.vmap(PATHS["root"].sigma_sigma_dot)(t), -0.5, rtol=1e-5)
    finite = {"CondOT", "Cosine", "VE", "quadratic"}
    assert {name for name, path in PATHS.items() if path.finite_sigma_dot} == finite


def test_F5_path_samples():
    n, z, t = 20_000, jnp.array([1.5, -0.5]), jnp.full(20_000, 0.3)
    noise = jr.normal(jr.key(0), (n, 2))
    draws = over_paths(lambda path, s, x0: path.interpolate(s, x0, z), t, noise)
    edges = over_paths(lambda path, s: path.interpolate(s, noise[0], z), jnp.array([0.0, 1.0]))
    for name, x in draws.items():
        alpha, sigma, *_ = schedule(name, 0.3)
        assert within(x.mean(0), alpha * z, sigma / np.sqrt(n))
        assert within(x.var(0), sigma**2, sigma**2 * np.sqrt(2 / n))
        assert within(np.corrcoef(x.T)[0, 1], 0, 1 / np.sqrt(n))
        if PATHS[name].starts_at_noise:  # whatever the data
            np.testing.assert_array_equal(edges[name][0], noise[0])
        if PATHS[name].ends_at_data:  # exactly
            np.testing.assert_array_equal(edges[name][1], z)
    assert jf.CondOT().interpolate(0.25, jnp.array([0.5]), jnp.array([1])) == 0.625  # integers are no type of events
    pair = jf.CondOT().interpolate(0.25, {"a": noise[0]}, {"a": z})
    np.testing.assert_allclose(pair["a"], 0.25 * z + 0.75 * noise[0], rtol=1e-6)


def conditional_flow_error(path, z, n):
    """Euler on the conditional flow of a point, against the point."""

    def velocity(t, x, args):
        return jf.convert(path, t, x, z, "data", "velocity")

    x0 = jnp.array([0.4, -1.1])
    return float(jnp.abs(jf.solve(velocity, x0, jf.UniformGrid(n)).x - z).max())


def test_F6_conditional_flow(x64):
    z = jnp.array([2.0, -1.0])
    for n in (1, 2, 7):
        assert conditional_flow_error(PATHS["CondOT"], z, n) <= 5e-16
    low, high = (conditional_flow_error(PATHS["root"], z, n) for n in (1000, 10_000))
    assert abs(np.log10(low / high) - 0.5) < 0.03


def test_F7_a_path_of_two_functions_equals_the_built_in_one(x64):
    own = {
        "CondOT": jf.CustomPath(lambda t: t, lambda t: 1 - t),
        "VP": jf.CustomPath(PATHS["VP"].alpha, PATHS["VP"].sigma),
    }
    truth = table(jnp.asarray(TIMES))
    for name, path in own.items():
        values = jax.jit(jax.vmap(lambda t: tuple(getattr(path, n)(t) for n in SCALARS)))(jnp.asarray(TIMES))  # noqa: B023
        for value, expected in zip(values, truth[name], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-9, err_msg=name)
    noise, z = jr.normal(jr.key(0), (3,)), jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(own["CondOT"].interpolate(0.3, noise, z), jf.CondOT().interpolate(0.3, noise, z))
    vp = own["VP"]
    assert (vp.finite_sigma_dot, vp.ends_at_data, vp.starts_at_noise) == (False, True, False)


def test_F8_score_of_the_linear_path(x64):
    t, x, z = jnp.asarray(0.3), jnp.array([0.7, -0.1]), jnp.array([2.0, 1.0])
    score = jf.convert(jf.CondOT(), t, x, z, "data", "score")
    np.testing.assert_allclose(score, (t * z - x) / (1 - t) ** 2, rtol=1e-12)
    # through the source's own score, s((x - t z)/(1 - t))/(1 - t)
    source = jax.grad(lambda y: jax.scipy.stats.norm.logpdf(y).sum())((x - t * z) / (1 - t))
    np.testing.assert_allclose(score, source / (1 - t), rtol=1e-12)


def test_F9_conditional_score_is_the_gradient_of_the_log_density(x64):
    x, z = jnp.array([0.7, -0.1]), jnp.array([2.0, 1.0])

    def both(path, t):
        def log_density(y):
            return jax.scipy.stats.norm.logpdf(y, path.alpha(t) * z, path.sigma(t)).sum()

        return jf.convert(path, t, x, z, "data", "score"), jax.grad(log_density)(x)

    for name, (value, truth) in over_paths(both, jnp.asarray(TIMES)).items():
        np.testing.assert_allclose(value, truth, rtol=1e-10, err_msg=name)


def test_F10_boundary_distributions():
    n, (weights, means, stds) = 100_000, MIX1
    rng = np.random.default_rng(0)
    k = rng.choice(2, n, p=weights)
    z, noise = means[k, 0] + stds[k] * rng.standard_normal(n), rng.standard_normal(n)

    def ends(path, x0, x1):
        return path.interpolate(0.0, x0, x1), path.interpolate(1.0, x0, x1)

    draws = over_paths(ends, jnp.asarray(noise, jnp.float32), jnp.asarray(z, jnp.float32), names=EXACT_ENDS)
    for start, stop in draws.values():
        np.testing.assert_array_equal(start, noise.astype(np.float32))
        assert within(start.mean(), 0, 1 / np.sqrt(n)) and within(start.var(), 1, np.sqrt(2 / n))
        # the fourth central moment of the mixture gives the error of its variance
        assert within(stop.mean(), 0.1, np.sqrt(2.413 / n))
        assert within(stop.var(), 2.413, np.sqrt((((z - z.mean()) ** 4).mean() - 2.413**2) / n))


@pytest.mark.parametrize(
    ("alpha", "sigma", "fragment"),
    [
        (lambda t: 1 - t, lambda t: t, "swapped"),
        (lambda t: 0.2 + t, lambda t: 1 - t, "at most 0.1"),
        (lambda t: t, lambda t: 1.2 - t, "at most 0.1"),
        (lambda t: t * (1 - 0.9 * jnp.sin(jnp.pi * t)), lambda t: 1 - 0.99 * t, "must increase"),
        (lambda t: jnp.log(t), lambda t: 1 - t, "must be finite"),
        (lambda t: t, lambda t: 1 - 1.01 * t, r"not be negative. Got sigma\(1\) = -0.01\.$"),
        (
            lambda t: jnp.sin(jnp.pi * t / 2),
            lambda t: jnp.cos(jnp.pi * t / 2),
            r"sigma\(1\) = .*sin\(jnp.pi \* \(1 - t\)",
        ),
        (lambda t: jnp.cos(jnp.pi * (1 - t) / 2), lambda t: 1 - t, r"alpha\(0\) = .*jnp.sin\(jnp.pi \* t / 2\)"),
        (lambda t: t, lambda t: 0 * t, r"sigma\(0\) > 0"),
    ],
)
def test_F11_user_supplied_schedules_are_checked(alpha, sigma, fragment):
    with pytest.raises(ValueError, match=fragment):
        jf.CustomPath(alpha, sigma)


def test_F11_a_noise_that_rises_is_fine_while_the_ratio_does():
    path = jf.CustomPath(lambda t: t, lambda t: (1 - t) * (1 + 3 * t))
    assert (np.diff(jax.vmap(path.log_snr)(jnp.linspace(0.01, 0.99, 99))) > 0).all()
    assert path.sigma_dot(0.0) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "row"),
    [
        (jf.CustomPath(jnp.sqrt, lambda t: jnp.sqrt(1 - t)), (1, np.inf, -0.5)),
        (jf.CustomPath(lambda t: t, lambda t: (1 - t) * (1 - jnp.sqrt(t) / 2)), (1, 1, -np.inf)),
    ],
    ids=["alpha", "sigma"],
)
def test_F11_a_derivative_that_is_infinite_at_the_start_is_infinite_there(path, row):
    field = jf.distributions.Gaussian(jnp.ones(2), std=0.5).field(path)
    np.testing.assert_allclose(path.velocity_row(0.0), row)
    np.testing.assert_allclose(path.sigma_sigma_dot(0.0), row[2])
    jf.testing.check_path(path).check()
    for name, options in (("RatioClock", {}), ("ThetaClock", {"eta": 1.0, "clock": jf.PathClock()})):
        with pytest.raises(ValueError, match=f"Got t = 0, .* {name}"):
            jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(4), **options))
    noise = jnp.array([-1.0, 0.7])
    for clock in (jf.RatioClock(), jf.ThetaClock(), jf.AngleClock()):
        x = jf.decode(field, noise, jf.FixedSteps(jf.UniformGrid(64), clock=clock)).x
        np.testing.assert_allclose(x, 1 + 0.5 * noise, atol=0.05)  # in the limit of small steps


@pytest.mark.parametrize("alpha", [lambda t: t**2, lambda t: t**1.5, lambda t: t * t * (3 - 2 * t)])
def test_F11_a_velocity_where_alpha_starts_flat_is_sampled_in_the_time_of_the_path_alone(alpha):
    """There `u(0, x) = sigma'(0) x` says nothing of the data, and autodiff sees `1e37` where the limit is infinite."""
    field = jf.Field(lambda t, x, args: -x, jf.CustomPath(alpha, lambda t: 1 - t), "velocity")
    noisy = jf.FixedSteps(jf.UniformGrid(4), eta=1.0)
    refuses(lambda: jf.sample(field, jr.key(0), (2,), noisy), "t = 0, where a field that predicts 'velocity'")
    refuses(lambda: jf.sample(field, jr.key(0), (2,)), r"or take PathClock\(\)")
    x0 = jnp.array([1.0, -2.0])
    assert jnp.allclose(jf.decode(field, x0, jf.FixedSteps(jf.UniformGrid(4), dfx.Euler())).x, x0 * 0.75**4)


def test_F11_the_built_in_paths_check_their_parameters():
    for build, fragment in [
        (lambda: jf.VP(beta_min=-1.0), "beta_min must be a positive number"),
        (lambda: jf.VP(beta_max=float("inf")), "beta_max"),
        (lambda: jf.VE(sigma_min=0.0), "sigma_min must be a positive number"),
        (lambda: jf.VE(sigma_min=80.0, sigma_max=0.002), "sigma_min below sigma_max"),
        (lambda: jf.VE(sigma_max=jnp.ones(3)), "single number"),
    ]:
        refuses(build, fragment)
    assert jf.VE(sigma_max=14.6).sigma(0.0) == pytest.approx(14.6, rel=1e-6)  # a range is its user's choice


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_snr_inverse_round_trip(dtype):
    def there_and_back(path, t, share):
        low, high = path.log_snr(jnp.asarray(0.01, t.dtype)), path.log_snr(jnp.asarray(0.99, t.dtype))
        level = low + share * (high - low)
        return path.log_snr_inverse(path.log_snr(t)), level, path.log_snr(path.log_snr_inverse(level))

    with jax.enable_x64(dtype == "float64"):
        t = jnp.asarray(np.linspace(0.0, 1.0, 101), dtype)
        for name, (back, level, again) in over_paths(there_and_back, t, t).items():
            assert back.dtype == t.dtype
            np.testing.assert_allclose(back, t, atol=3e-6 if dtype == "float32" else 1e-12, err_msg=name)
            np.testing.assert_allclose(again, level, atol=2e-4 if dtype == "float32" else 1e-10, err_msg=name)


def test_log_snr_inverse_is_never_nan():
    levels = jnp.array([-jnp.inf, -300.0, -88.0, 88.0, 300.0, jnp.inf])
    for name, times in over_paths(lambda path, l: path.log_snr_inverse(l), levels).items():
        assert not np.isnan(times).any() and (times[1:] >= times[:-1]).all(), name
        assert times[0] == 0 or not PATHS[name].starts_at_noise
        assert times[-1] == 1 or not PATHS[name].ends_at_data


def test_log_snr_inverse_has_the_gradient_of_an_inverse(x64):
    def product(path, t):
        return jax.grad(path.log_snr)(t) * jax.grad(path.log_snr_inverse)(path.log_snr(t))

    for name, value in over_paths(product, jnp.asarray(TIMES)).items():
        np.testing.assert_allclose(value, 1, rtol=1e-7, err_msg=name)


class Power(eqx.Module):
    p: jax.Array

    def __call__(self, t):
        return t**self.p


def test_log_snr_inverse_has_a_gradient_in_the_parameters_of_a_path(x64):
    def build(p):
        return jf.CustomPath(Power(jnp.asarray(p)), lambda t: 1 - t**2)

    @eqx.filter_jit
    def inverse(path):
        return path.log_snr_inverse(0.3)

    finite = (inverse(build(2 + 1e-5)) - inverse(build(2 - 1e-5))) / 2e-5
    np.testing.assert_allclose(eqx.filter_grad(inverse)(build(2.0)).alpha_fn.p, finite, rtol=1e-6)
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(lambda p: build(p).alpha(0.5))(2.0)


def test_shift_translates_the_log_snr(x64):
    factors = jnp.array([0.25, 1.0, 3.0])

    def moved(path, t):
        shifted = jax.vmap(path.shift, (None, 0))(t, factors)
        return shifted, jax.vmap(path.log_snr)(shifted), path.log_snr(t) - 2 * jnp.log(factors)

    for name, (times, got, expected) in over_paths(moved, jnp.asarray(TIMES)).items():
        inside = (times > 1e-9) & (times < 1 - 1e-9)
        assert inside.mean() > 0.8
        np.testing.assert_allclose(got[inside], expected[inside], atol=1e-7, err_msg=name)


def test_shift_on_the_linear_path_is_the_published_formula_and_keeps_the_ends():
    t = np.linspace(0, 1, 21).astype(np.float32)
    for factor in (0.5, 3.0):
        s = 1 - t
        expected = 1 - factor * s / (1 + (factor - 1) * s)
        np.testing.assert_allclose(jax.vmap(jf.CondOT().shift, (0, None))(t, factor), expected, atol=2e-6)
    ends = over_paths(lambda path, t: path.shift(t, 3.0), jnp.array([0.0, 1.0]), names=EXACT_ENDS)
    for value in ends.values():
        np.testing.assert_array_equal(value, [0, 1])


@pytest.mark.parametrize("name", PATHS)
def test_every_method_raises_for_a_batched_time(name):
    path, batch, one = PATHS[name], jnp.linspace(0.1, 0.9, 3), jnp.ones(3)
    calls = [getattr(path, method) for method in (*SCALARS, "velocity_row", "log_snr_inverse")]
    calls += [lambda t: path.shift(t, 2.0), lambda t: path.shift(0.5, t), lambda t: path.interpolate(t, one, one)]
    for call in calls:
        with pytest.raises((ValueError, TypeError)):
            call(batch)
        with unchecked(), pytest.raises(ValueError, match=r"jax\.vmap"):
            call(batch)


def test_parameters_of_paths_sweep_without_a_retrace():
    traces = []

    @eqx.filter_jit
    def sigma(path, t):
        traces.append(1)
        return path.sigma(t)

    values = [sigma(jf.VE(0.002, high), jnp.asarray(0.0)) for high in (20.0, 80.0)]
    np.testing.assert_allclose(values, [20, 80], rtol=1e-6)
    assert len(traces) == 1
    slopes = jax.vmap(jax.grad(lambda high: jf.VE(0.002, high).sigma(0.0)))(jnp.array([20.0, 80.0]))
    np.testing.assert_allclose(slopes, 1, rtol=1e-5)
    integer = jf.CondOT().alpha(1)
    assert integer.dtype == jnp.float32 and integer == 1


def test_the_velocity_row_of_a_custom_path_is_finite_where_sigma_dot_is_not():
    """`sqrt(1 - t)`: the row is `sigma` times the velocity, and at t = 1 it keeps `sigma sigma' = -1/2`."""
    path = PATHS["root"]
    np.testing.assert_allclose(path.velocity_row(1.0), [0.0, 0.0, -0.5], atol=2e-4)
    np.testing.assert_allclose(path.velocity_row(0.75), [0.5, 0.5, -0.5], rtol=1e-6)
    assert path.sigma_dot(1.0) == -np.inf
