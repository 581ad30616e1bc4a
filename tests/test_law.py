"""Laws of training times (closed form G9)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import PATHS, over_paths, refuses, unchecked, within
from scipy import stats

import jflow as jf

laws = jf.laws
NAMES = ("CondOT", "VP", "VE")
U = np.array([1e-3, 0.1, 0.5, 0.9, 0.999])
LAWS = {  # a law, its quantile in numpy: of the share, and of the path as (log-SNR, time)
    "uniform": (laws.Uniform(), lambda u, path: u),
    "part": (laws.Uniform(0.1, 0.6), lambda u, path: 0.1 + 0.5 * u),
    "logit-normal": (laws.LogitNormal(0.5, 0.8), lambda u, path: 1 / (1 + np.exp(-0.5 - 0.8 * stats.norm.ppf(u)))),
    "log-normal sigma": (
        laws.LogNormalSigma(-1.2, 1.2),
        lambda u, path: np.interp(2.4 + 2.4 * stats.norm.ppf(u), *path),
    ),
    "uniform log-SNR": (laws.UniformLogSNR(-7.0, 6.0), lambda u, path: np.interp(-7 + 13 * u, *path)),
    "beta (1, 1.5)": (laws.Beta(), lambda u, path: stats.beta.ppf(u, 1, 1.5)),
    "beta (2, 1)": (laws.Beta(2.0, 1.0, 0.1, 0.7), lambda u, path: 0.1 + 0.6 * stats.beta.ppf(u, 2, 1)),
    "beta (2.5, 0.7)": (laws.Beta(2.5, 0.7, hi=0.9), lambda u, path: 0.9 * stats.beta.ppf(u, 2.5, 0.7)),
}
BY_LEVEL = ("log-normal sigma", "uniform log-SNR")


class Early(laws.AbstractLaw):
    """A law of a user's, known by its quantile alone."""

    reaches_data = True

    def quantile(self, u, path=None):
        return 0.1 + 0.5 * u**2


@pytest.mark.parametrize("name", LAWS)
def test_quantiles(name):
    law, expected = LAWS[name]
    fine = jnp.linspace(0, 1, 20_001)[1:-1]

    def both(path, share):
        return law.quantile(share, path)

    levels = over_paths(lambda path, t: path.log_snr(t), fine, names=NAMES)
    for path, value in over_paths(both, jnp.asarray(U, jnp.float32), names=NAMES).items():
        truth = expected(U, (np.asarray(levels[path], float), np.asarray(fine, float)))
        np.testing.assert_allclose(value, truth, atol=2e-4 if name in BY_LEVEL else 2e-6, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_the_density_is_the_derivative_of_the_inverse_quantile(name, x64):
    """Where the quantile is differentiated by hand: bisection has no derivative of its own."""
    law, _ = LAWS[name]

    def both(path, u):
        t = law.quantile(u, path)
        step = 1e-4 * u * (1 - u)
        rate = (law.quantile(u + step, path) - law.quantile(u - step, path)) / (2 * step)
        return law.log_density(t, path), -jnp.log(rate)

    for path, (got, truth) in over_paths(both, jnp.asarray(U), names=NAMES).items():
        np.testing.assert_allclose(got, truth, atol=1e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAWS, "one's own"])
def test_a_density_integrates_to_one(name, x64):
    """`exp(log_density)` over the range that the quantile says, on a grid that is dense at both ends of it."""
    law = Early() if name == "one's own" else LAWS[name][0]
    s = jnp.linspace(0, 1, 4_002)
    s = ((s[:-1] + s[1:]) / 2) ** 3
    s = s / (s + s[::-1])

    def integral(path):
        low, high = law.quantile(1e-12, path), law.quantile(1 - 1e-12, path)
        edges = jnp.concatenate([jnp.array([0.0]), (s[1:] + s[:-1]) / 2, jnp.array([1.0])])
        density = jnp.exp(jax.vmap(lambda t: law.log_density(t, path))(low + (high - low) * s))
        return jnp.sum(density * jnp.diff(edges)) * (high - low)

    for path, total in jax.jit(lambda: {name: integral(PATHS[name]) for name in NAMES})().items():
        assert abs(total - 1) < 5e-4, path


def test_a_density_vanishes_outside():
    path = jf.CondOT()
    for law, times in [
        (laws.Uniform(0.1, 0.6), (0.0, 0.05, 0.7, 1.0)),
        (laws.LogitNormal(), (-0.1, 0.0, 1.0, 1.1)),
        (laws.LogNormalSigma(), (-0.1, 0.0, 1.0, 1.1)),
        (laws.UniformLogSNR(-2.0, 2.0), (0.0, 0.2, 0.8, 1.0)),
        (laws.Beta(2.0, 3.0, 0.1, 0.6), (0.0, 0.05, 0.7, 1.0)),
        (Early(), (0.0, 0.05, 0.7, 1.0)),
    ]:
        density = jax.jit(jax.vmap(lambda t, law=law: law.log_density(t, path)))(jnp.array(times))
        assert (np.asarray(density) == -np.inf).all(), law
    assert laws.Beta(1.0, 1.5).log_density(0.0) == pytest.approx(np.log(1.5), rel=1e-5)  # finite where it is


def test_the_density_of_a_law_known_by_its_quantile():
    t = jnp.array([0.11, 0.2, 0.35, 0.59])
    got = jax.jit(jax.vmap(Early().log_density))(t)  # u = sqrt(2 (t - 0.1))
    np.testing.assert_allclose(got, -np.log(np.sqrt(2 * (np.asarray(t) - 0.1))), atol=1e-4)


def test_beta_times_against_scipy(x64):
    u, t = np.linspace(0.01, 0.99, 15), np.linspace(0.05, 0.9, 12)
    for a, b in ((1.5, 1.0), (1.0, 1.5), (1.0, 1.0), (0.6, 0.8), (2.0, 5.0), (40.0, 30.0)):
        law = laws.Beta(a, b)
        got, density = jax.jit(lambda law=law: (jax.vmap(law.quantile)(jnp.asarray(u)), jax.vmap(law.log_density)(t)))()
        np.testing.assert_allclose(got, stats.beta.ppf(u, a, b), rtol=1e-9)
        np.testing.assert_allclose(density, stats.beta.logpdf(t, a, b), rtol=1e-7, atol=1e-7)
        traced = jax.jit(lambda a, b: laws.Beta(a, b).quantile(0.3))(a, b)  # by bisection
        np.testing.assert_allclose(traced, stats.beta.ppf(0.3, a, b), rtol=1e-9)


def test_the_beta_law_of_pi0():
    """openpi: `time = beta(key, 1.5, 1) * 0.999 + 0.001` is the share of noise."""
    n = 20_000
    ours = jax.jit(jax.vmap(laws.Beta(1.0, 1.5, hi=0.999).sample))(jr.split(jr.key(0), n))
    theirs = 1 - (np.random.default_rng(0).beta(1.5, 1, n) * 0.999 + 0.001)
    assert stats.ks_2samp(np.asarray(ours), theirs).pvalue > 0.01


def test_uniform_log_snr_takes_the_bounds_of_the_path_where_they_are_finite(x64):
    u = jnp.linspace(0.0, 1.0, 9)
    times = jax.jit(jax.vmap(lambda u: laws.UniformLogSNR().quantile(u, jf.VE())))(u)
    np.testing.assert_allclose(times, u, atol=1e-12)  # VE is linear in log-SNR
    assert times.min() == 0 and times.max() == 1
    density = jax.vmap(lambda t: laws.UniformLogSNR().log_density(t, jf.VE()))(u[1:-1])
    np.testing.assert_allclose(density, 0.0, atol=1e-12)
    path = jf.VP()
    levels = jax.jit(jax.vmap(lambda u: path.log_snr(laws.UniformLogSNR(hi=6.0).quantile(u, path))))(u)
    np.testing.assert_allclose(levels, jnp.linspace(path.log_snr(0.0), 6.0, 9), atol=1e-8)


def test_G9_uniform_times():
    law, n = laws.Uniform(0.0, 0.999), 100_000
    times = jax.jit(jax.vmap(lambda k: law.sample(k, jf.CondOT())))(jr.split(jr.key(0), n))
    assert within(times.mean(), 0.4995, 0.999 / np.sqrt(12 * n))
    assert within(times.var(), 0.999**2 / 12, 0.999**2 * np.sqrt(1 / 180 / n))
    assert times.min() > 0 and times.max() < 0.999


@pytest.mark.parametrize("law", [laws.LogitNormal(0.0, 1.0), laws.Beta(1.0, 1.5), laws.UniformLogSNR(-9.0, 9.0)])
def test_G9_a_law_leaves_an_expectation_unchanged_with_importance_weights(law):
    """`E_law[f(t)/p(t)]` is the integral of `f` whatever the law, stratified or not."""
    path, n = jf.CondOT(), 40_000
    times = jax.jit(jax.vmap(lambda k: law.sample(k, path)))(jr.split(jr.key(1), n))
    spread = jax.jit(lambda k: laws.stratified_times(k, n, law, path))(jr.key(2))

    def estimate(t):
        density = np.exp(np.asarray(jax.jit(jax.vmap(lambda t: law.log_density(t, path)))(t), float))
        t = np.asarray(t, float)
        return np.sin(3 * t) * t * (1 - t) / density  # the integrand vanishes at both ends

    fine = np.linspace(0, 1, 100_001)[1:-1]
    truth = (np.sin(3 * fine) * fine * (1 - fine)).mean()
    values = estimate(times)
    se = values.std() / np.sqrt(n)
    assert within(values.mean(), truth, se)
    assert abs(estimate(spread).mean() - truth) < 0.2 * se


def test_stratified_times_are_one_in_each_stratum():
    n = 64
    uniform = jax.jit(lambda key: laws.stratified_times(key, n))
    for seed in range(5):
        times = np.asarray(uniform(jr.key(seed)))
        np.testing.assert_array_equal(np.floor(times * n).clip(0, n - 1), np.arange(n))
    t = np.asarray(jax.jit(lambda key: laws.stratified_times(key, n, laws.LogitNormal(0.3, 1.1)))(jr.key(0)), float)
    shares = stats.norm.cdf((np.log(t / (1 - t)) - 0.3) / 1.1)
    assert (np.abs(shares * n - np.arange(n) - 0.5) < 0.5 + 1e-3).all()


def test_stratified_times_have_a_stream_of_their_own():
    """One key used for a draw of one's own too gives independent numbers."""
    offsets = np.asarray(laws.stratified_times(jr.key(0), 512)) * 512 % 1
    assert abs(np.corrcoef(offsets, jr.uniform(jr.key(0), (512,)))[0, 1]) < 0.2
    assert laws.stratified_times(jr.key(0, impl="rbg"), 4).shape == (4,)  # training takes every kind of key


@pytest.mark.parametrize("n", [1, 128])
def test_stratified_times_never_touch_an_end(n, monkeypatch):
    """Rounding of `(i + u)/n` would give t = 1 once in a few hundred thousand batches."""
    for u in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(jr, "uniform", lambda key, shape, u=u: jnp.full(shape, u, jnp.float32))
        for law in (laws.Uniform(), laws.LogNormalSigma(), laws.Beta(), laws.UniformLogSNR(-12.0, 12.0)):
            draw = jax.jit(lambda key, law=law: laws.stratified_times(key, n, law, jf.CondOT()))
            times = np.asarray(draw(jr.key(0)))
            assert times.min() > 0 and times.max() < 1


def test_laws_know_whether_they_reach_the_data():
    assert laws.Uniform().reaches_data and not laws.Uniform(0.0, 0.999).reaches_data
    assert not laws.LogitNormal().reaches_data and not laws.LogNormalSigma().reaches_data
    assert not laws.UniformLogSNR(-9.0, 9.0).reaches_data
    # `E[1/(1 - t)]` is `(a + b - 1)/(b - 1)` for b above 1
    assert laws.Beta(2.0, 1.0).reaches_data and not laws.Beta(2.0, 1.5).reaches_data
    assert not laws.Beta(2.0, 0.5, hi=0.99).reaches_data
    # inside a traced loss too, where it is usually written
    assert jax.eval_shape(lambda: jnp.zeros(1 + laws.Uniform(0.0, 0.999).reaches_data)).shape == (1,)
    assert jax.eval_shape(lambda b: jnp.zeros(1 + laws.Beta(2.0, b).reaches_data), 1.5).shape == (2,)  # not known
    with pytest.raises(ValueError, match="0 <= lo < hi <= 1"):
        jax.eval_shape(lambda: laws.Uniform(0.5, 0.2).lo)


def test_new_numbers_of_a_law_do_not_retrace():
    traces = []

    @eqx.filter_jit
    def draw(law, key):
        traces.append(type(law))
        return law.sample(key, jf.CondOT())

    pairs = [
        (laws.Uniform(0.1, 0.6), laws.Uniform(0.2, 0.7)),
        (laws.LogitNormal(0.0, 1.0), laws.LogitNormal(0.5, 0.8)),
        (laws.LogNormalSigma(), laws.LogNormalSigma(-0.4, 1.0)),
        (laws.UniformLogSNR(-7.0, 6.0), laws.UniformLogSNR(-5.0, 4.0)),
        (laws.Beta(), laws.Beta(1.0, 1.8, hi=0.9)),
    ]
    for first, second in pairs:
        assert draw(first, jr.key(0)) != draw(second, jr.key(0))
    assert len(traces) == len(pairs)


def test_laws_compute_in_the_type_of_the_share(x64):
    for law, _ in LAWS.values():
        for dtype in (jnp.float32, jnp.float64):
            u = jax.ShapeDtypeStruct((), dtype)
            assert jax.eval_shape(lambda u, law=law: law.quantile(u, jf.CondOT()), u).dtype == dtype
            assert jax.eval_shape(lambda t, law=law: law.log_density(t, jf.CondOT()), u).dtype == dtype


def test_bad_laws_say_what_a_law_takes():
    for build, fragment in [
        (lambda: laws.Uniform(0.5, 0.5), "0 <= lo < hi <= 1"),
        (lambda: laws.Uniform(-0.1, 1.0), "0 <= lo < hi <= 1"),
        (lambda: laws.Uniform(0.0, 1.5), "0 <= lo < hi <= 1"),
        (lambda: laws.LogitNormal(std=0.0), "std must be a positive number"),
        (lambda: laws.LogitNormal(mean=float("nan")), "mean must be a finite number"),
        (lambda: laws.LogNormalSigma(std=-1.0), "std must be a positive number"),
        (lambda: laws.LogNormalSigma().quantile(0.5), "LogNormalSigma must have an affine path"),
        (lambda: laws.UniformLogSNR(3.0, 1.0), "lo below hi"),
        (lambda: laws.UniformLogSNR(-3.0, 3.0).log_density(0.5), "UniformLogSNR must have an affine path"),
        (lambda: laws.UniformLogSNR(-3.0).quantile(0.5, jf.VP()), "must have hi on VP, .* infinite at t = 1"),
        (lambda: laws.UniformLogSNR().sample(jr.key(0), jf.CondOT()), "must have lo on CondOT, .* infinite at t = 0"),
        (lambda: laws.Beta(0.0, 1.0), "a must be a positive number"),
        (lambda: laws.Beta(1.0, 1.0, 0.7, 0.3), "Beta must have 0 <= lo < hi <= 1"),
        (lambda: laws.stratified_times(jr.key(0), 0), "n must be an integer of at least 1"),
        (lambda: laws.stratified_times(jr.key(0), 4, laws.LogNormalSigma()), "path"),
        (lambda: laws.stratified_times(jr.PRNGKey(0), 4), "typed key"),
        (lambda: laws.stratified_times(jr.split(jr.key(0)), 4), "one typed key"),
    ]:
        refuses(build, fragment)
    with unchecked(), pytest.raises(ValueError, match="n must be an integer"):
        laws.stratified_times(jr.key(0), 2.0)
