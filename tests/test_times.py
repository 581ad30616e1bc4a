"""Grids of times, and laws of training times (closed form G9)."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import PATHS, over_paths, refuses, unchecked, within
from scipy import stats

import jflow as jf


def test_uniform_times_have_one_point_more_than_steps():
    for n in (1, 2, 7, 1000):
        times = jf.uniform_times(n)
        assert times.shape == (n + 1,) and times[0] == 0 and times[-1] == 1 and times.dtype == jnp.float32
    np.testing.assert_allclose(np.diff(jf.uniform_times(8)), 1 / 8, rtol=1e-6)


@pytest.mark.parametrize("name", ["CondOT", "VP", "VE", "root"])
def test_karras_times_are_the_published_levels(name, x64):
    path, n, rho = PATHS[name], 18, 7.0
    times = jax.jit(lambda: jf.karras_times(n, path, sigma_min=0.01, sigma_max=50.0, rho=rho))()
    assert times.shape == (n + 1,) and times[-1] == 1
    i = np.arange(n)
    levels = (50 ** (1 / rho) + i / (n - 1) * (0.01 ** (1 / rho) - 50 ** (1 / rho))) ** rho
    got = jax.jit(jax.vmap(lambda t: path.sigma(t) / path.alpha(t)))(times[:-1])
    np.testing.assert_allclose(got, levels, rtol=1e-7)
    assert (np.diff(times) > 0).all()


def test_karras_times_take_the_bounds_of_the_path_where_they_are_finite():
    path = jf.VE(sigma_min=0.002, sigma_max=80.0)
    times, one, vp = jax.jit(
        lambda: (jf.karras_times(18, path), jf.karras_times(1, path), jf.karras_times(5, jf.VP(), sigma_min=0.01))
    )()
    assert times[0] == 0 and times[-2] == 1 and times[-1] == 1  # the last step is the denoising one
    sigma = jax.jit(jax.vmap(path.sigma))(times)
    published = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma[:-1], published, rtol=2e-5)
    np.testing.assert_array_equal(one, [0, 1])
    assert vp[0] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="infinite at t = 0, so sigma_max has no default"):
        jf.karras_times(5, jf.CondOT(), sigma_min=0.01)
    with pytest.raises(ValueError, match="infinite at t = 1, so sigma_min has no default"):
        jf.karras_times(5, jf.VP())
    with pytest.raises(ValueError, match="sigma_max above sigma_min"):
        jf.karras_times(5, jf.CondOT(), sigma_min=80.0, sigma_max=0.002)


@pytest.mark.parametrize("name", ["Cosine", "LinearVP", "VE", "quadratic"])
def test_log_snr_times_are_equal_in_the_whole_log_snr(name, x64):
    path = PATHS[name]
    times = jax.jit(lambda: jf.log_snr_times(10, path, -6.0, 8.0))()
    assert times.shape == (11,)
    np.testing.assert_allclose(jax.jit(jax.vmap(path.log_snr))(times), np.linspace(-6, 8, 11), atol=1e-7)


def test_log_snr_times_take_the_bounds_of_the_path_where_they_are_finite():
    times = jf.log_snr_times(4, jf.VE())
    np.testing.assert_allclose(times, np.linspace(0, 1, 5), atol=1e-6)  # VE is linear in log-SNR
    assert times[0] >= 0 and times[-1] <= 1
    with pytest.raises(ValueError, match="lo has no default"):
        jf.log_snr_times(4, jf.CondOT(), hi=8.0)
    with pytest.raises(ValueError, match="hi has no default"):
        jf.log_snr_times(4, jf.VP(), lo=-8.0)
    with pytest.raises(ValueError, match="hi above lo"):
        jf.log_snr_times(4, jf.CondOT(), 8.0, -8.0)


def test_eased_times_have_their_shares_in_the_ratio_clock(x64):
    n, names = 9, ("CondOT", "Cosine", "VP", "VE")

    @jax.jit
    def grids(first, last):
        times = {name: jf.eased_times(n, PATHS[name], first, last) for name in names}
        return {k: (ts, jax.vmap(lambda t, k=k: jf.RatioClock().time(PATHS[k], t))(ts)) for k, ts in times.items()}

    s = np.arange(n + 1) / n
    for first, last in ((1.2, 1.3), (1.0, 1.0), (0.7, 2.5)):
        for name, (times, tau) in grids(first, last).items():
            assert times.shape == (n + 1,) and times[0] == 0 and times[-1] == 1, name
            shares = 1 - (1 - s**first) ** last
            np.testing.assert_allclose((tau - tau[0]) / (tau[-1] - tau[0]), shares, atol=1e-12, err_msg=name)
    assert jf.eased_times(1, PATHS["VP"]).tolist() == [0, 1]
    assert (jf.eased_times(n, PATHS["VP"]) == jf.eased_times(n, PATHS["VP"], 1.2, 1.3)).all()
    assert np.allclose(jf.eased_times(n, PATHS["VP"], 1, 1), jf.ratio_times(n, PATHS["VP"]))
    with pytest.raises(ValueError, match=r"last is a positive number\. Got 0\.0"):
        jf.eased_times(n, PATHS["VP"], last=0.0)


def test_poly_exponential_times(x64):
    """`log(sigma/alpha)` as k-diffusion has it: `ramp^rho (log sigma_max - log sigma_min) + log sigma_min`."""
    for n, rho in ((10, 0.7), (10, 1.0), (1, 3.0), (7, 2.0)):
        times = jf.log_snr_times(n, jf.CondOT(), -6.0, 8.0, rho=rho)
        levels = np.linspace(1, 0, n + 1) ** rho * (3.0 + 4.0) - 4.0
        np.testing.assert_allclose(np.log((1 - times) / times), levels, atol=1e-12)
    for rho in (0.0, -1.0):
        with pytest.raises(ValueError, match="rho is a positive number"):
            jf.log_snr_times(4, jf.CondOT(), -6.0, 8.0, rho=rho)


@pytest.mark.parametrize("name", ["CondOT", "VP", "VE", "root"])
def test_ratio_times_are_equal_in_the_time_of_the_ratio_clock(name, x64):
    path, clock = PATHS[name], jf.RatioClock()
    times = jf.ratio_times(9, path)
    taus = jax.vmap(lambda t: clock.time(path, t))(times)
    np.testing.assert_allclose(np.diff(taus), (taus[-1] - taus[0]) / 9, rtol=1e-9)
    if name == "CondOT":
        np.testing.assert_allclose(times, np.linspace(0, 1, 10), atol=1e-15)


def test_cosine_times_grow_from_noise_to_data(x64):
    np.testing.assert_allclose(jf.cosine_times(9), 1 - np.cos(np.pi * np.arange(10) / 18), atol=1e-15)


def test_every_grid_ends_at_its_ends():
    """To the last bit, for one step too, and in between strictly increasing."""
    grids = {
        "uniform": jf.uniform_times,
        "cosine": jf.cosine_times,
        **{
            f"ratio {name}": lambda n, path=path: jf.ratio_times(n, path)
            for name, path in PATHS.items()
            if name in ("VP", "VE", "root")
        },
        "log-SNR": lambda n: jf.log_snr_times(n, jf.VE(0.002, 80.0)),
        "poly": lambda n: jf.log_snr_times(n, jf.VE(0.01, 50.0), rho=3.0),
        "karras": lambda n: jf.karras_times(n, jf.VE(0.002, 80.0)),
    }
    for name, grid in grids.items():
        for n in (1, 50):
            times = np.asarray(grid(n))
            assert times.shape == (n + 1,) and times[0] == 0 and times[-1] == 1, name
            steps = np.diff(times)[: -1 if name == "karras" else None]
            assert (steps > 0).all(), (name, n)
        with pytest.raises(ValueError, match="at least one step"):
            grid(0)


@pytest.mark.parametrize("name", ["CondOT", "VP", "root"])
def test_a_shifted_grid_is_translated_in_log_snr(name, x64):
    path, factor = PATHS[name], 3.0
    times = jnp.linspace(0.0, 1.0, 9) if name != "VP" else jnp.linspace(0.2, 1.0, 9)  # VP has no lower log-SNR at 0
    shifted = jax.vmap(path.shift, (0, None))(times, factor)
    moved = jax.vmap(path.log_snr)(shifted) - jax.vmap(path.log_snr)(times)
    np.testing.assert_allclose(moved[1:-1], -2 * np.log(factor), rtol=1e-9)
    np.testing.assert_allclose(shifted[-1], 1, rtol=1e-15)
    if name == "CondOT":  # equation 23 of Esser et al. 2024 (arXiv:2403.03206), whose time is 1 - t
        s = 1 - np.asarray(times)
        np.testing.assert_allclose(1 - shifted, factor * s / (1 + (factor - 1) * s), rtol=1e-12, atol=1e-15)
        assert shifted[0] == 0


def test_rounding_never_turns_a_grid_around():
    paths = (jf.CondOT(), jf.VP(), jf.VE())
    grids = jax.jit(
        lambda: [(jf.log_snr_times(40, path, -80.0, 80.0), jf.karras_times(40, path, 1e-12, 1e12)) for path in paths]
    )()
    for times in jax.tree.leaves(grids):
        assert (np.diff(times) >= 0).all() and np.isfinite(times).all()


def test_bad_grids_say_what_a_grid_is():
    for n in (0, -3, 2.0, "8"):
        with unchecked(), pytest.raises(ValueError, match="at least one step"):
            jf.uniform_times(n)
        with unchecked(), pytest.raises(ValueError, match="at least one step"):
            jf.karras_times(n, jf.VE())
        with unchecked(), pytest.raises(ValueError, match="at least one step"):
            jf.eased_times(n, jf.VE())
    for bounds in ((0.0, 80.0), (-1.0, 80.0), (float("nan"), 80.0)):
        with pytest.raises(ValueError, match="sigma_min"):
            jf.karras_times(5, jf.VE(), *bounds)


def test_grids_can_be_traced_and_differentiated():
    grid = jax.jit(lambda low: jf.karras_times(4, jf.VE(), low, 80.0))
    np.testing.assert_allclose(grid(0.002), jf.karras_times(4, jf.VE(), 0.002, 80.0), atol=1e-6)
    slopes = jax.jacfwd(grid)(0.01)
    assert np.isfinite(slopes).all() and slopes[-2] < 0 and slopes[-1] == 0


def test_eased_times_have_a_gradient_in_their_exponents():
    """With `u = 1 - s^a` the share `1 - u^b`, a time of CondOT, moves in `a` by `b u^(b - 1) s^a log(s)`."""
    slopes = jax.jit(jax.jacrev(lambda first: jf.eased_times(5, jf.CondOT(), first, 0.9)))(1.2)
    s = np.arange(1, 5) / 5
    np.testing.assert_allclose(slopes[1:-1], 0.9 * (1 - s**1.2) ** -0.1 * s**1.2 * np.log(s), rtol=1e-5)
    assert slopes[0] == slopes[-1] == 0


LAWS = {
    "uniform": (jf.Uniform(), lambda u, path: u),
    "part": (jf.Uniform(0.1, 0.6), lambda u, path: 0.1 + 0.5 * u),
    "logit-normal": (jf.LogitNormal(0.5, 0.8), lambda u, path: 1 / (1 + np.exp(-0.5 - 0.8 * stats.norm.ppf(u)))),
    "log-normal sigma": (
        jf.LogNormalSigma(-1.2, 1.2),
        lambda u, path: np.interp(2.4 + 2.4 * stats.norm.ppf(u), *path),  # log-SNR to time
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_quantiles(name):
    law, expected = LAWS[name]
    u = np.array([1e-3, 0.1, 0.5, 0.9, 0.999])
    fine = jnp.linspace(0, 1, 20_001)[1:-1]

    def both(path, share):
        return law.quantile(share, path)

    levels = over_paths(lambda path, t: path.log_snr(t), fine, names=("CondOT", "VP", "VE"))
    for path, value in over_paths(both, jnp.asarray(u, jnp.float32), names=("CondOT", "VP", "VE")).items():
        truth = expected(u, (np.asarray(levels[path], float), np.asarray(fine, float)))
        np.testing.assert_allclose(value, truth, atol=2e-4 if name == "log-normal sigma" else 1e-6, err_msg=path)


def test_G9_uniform_times():
    law, n = jf.Uniform(0.0, 0.999), 100_000
    times = jax.jit(jax.vmap(lambda k: law.sample(k, jf.CondOT())))(jr.split(jr.key(0), n))
    assert within(times.mean(), 0.4995, 0.999 / np.sqrt(12 * n))
    assert within(times.var(), 0.999**2 / 12, 0.999**2 * np.sqrt(1 / 180 / n))
    assert times.min() > 0 and times.max() < 0.999


def test_G9_a_law_leaves_an_expectation_unchanged_with_importance_weights():
    """`E_law[f(t)/p(t)]` is the integral of `f` whatever the law, stratified or not."""
    law, n = jf.LogitNormal(0.0, 1.0), 40_000
    times = jax.jit(jax.vmap(lambda k: law.sample(k, jf.CondOT())))(jr.split(jr.key(1), n))
    spread = np.asarray(jax.jit(lambda k: jf.stratified_times(k, n, law, jf.CondOT()))(jr.key(2)))

    def estimate(t):
        t = np.asarray(t, float)
        density = stats.norm.pdf(np.log(t / (1 - t))) / (t * (1 - t))
        return np.sin(3 * t) * t * (1 - t) / density  # the integrand vanishes at both ends

    fine = np.linspace(0, 1, 100_001)[1:-1]
    truth = (np.sin(3 * fine) * fine * (1 - fine)).mean()
    values = estimate(times)
    se = values.std() / np.sqrt(n)
    assert within(values.mean(), truth, se)
    assert abs(estimate(spread).mean() - truth) < 0.2 * se


def test_stratified_times_are_one_in_each_stratum():
    n = 64
    uniform = jax.jit(lambda key: jf.stratified_times(key, n))
    for seed in range(5):
        times = np.asarray(uniform(jr.key(seed)))
        np.testing.assert_array_equal(np.floor(times * n).clip(0, n - 1), np.arange(n))
    t = np.asarray(jax.jit(lambda key: jf.stratified_times(key, n, jf.LogitNormal(0.3, 1.1)))(jr.key(0)), float)
    shares = stats.norm.cdf((np.log(t / (1 - t)) - 0.3) / 1.1)
    assert (np.abs(shares * n - np.arange(n) - 0.5) < 0.5 + 1e-3).all()


@pytest.mark.parametrize("n", [1, 128])
def test_stratified_times_never_touch_an_end(n, monkeypatch):
    """Rounding of `(i + u)/n` would give t = 1 once in a few hundred thousand batches."""
    for u in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(jr, "uniform", lambda key, shape, u=u: jnp.full(shape, u, jnp.float32))
        for law in (jf.Uniform(), jf.LogNormalSigma()):
            times = np.asarray(jax.jit(lambda key, law=law: jf.stratified_times(key, n, law, jf.CondOT()))(jr.key(0)))
            assert times.min() > 0 and times.max() < 1


def test_laws_know_whether_they_reach_the_data():
    assert jf.Uniform().reaches_data and not jf.Uniform(0.0, 0.999).reaches_data
    assert not jf.LogitNormal().reaches_data and not jf.LogNormalSigma().reaches_data
    # inside a traced loss too, where it is usually written
    assert jax.eval_shape(lambda: jnp.zeros(1 + jf.Uniform(0.0, 0.999).reaches_data)).shape == (1,)
    with pytest.raises(ValueError, match="0 <= lo < hi <= 1"):
        jax.eval_shape(lambda: jf.Uniform(0.5, 0.2).lo)


def test_bad_laws_say_what_a_law_takes():
    for build, fragment in [
        (lambda: jf.Uniform(0.5, 0.5), "0 <= lo < hi <= 1"),
        (lambda: jf.Uniform(-0.1, 1.0), "0 <= lo < hi <= 1"),
        (lambda: jf.Uniform(0.0, 1.5), "0 <= lo < hi <= 1"),
        (lambda: jf.LogitNormal(std=0.0), "std is a positive number"),
        (lambda: jf.LogitNormal(mean=float("nan")), "mean is a finite number"),
        (lambda: jf.LogNormalSigma(std=-1.0), "std is a positive number"),
        (lambda: jf.stratified_times(jr.key(0), 0), "at least one step"),
        (lambda: jf.stratified_times(jr.key(0), 4, jf.LogNormalSigma()), "path"),
        (lambda: jf.stratified_times(jr.PRNGKey(0), 4), "typed key"),
        (lambda: jf.stratified_times(jr.split(jr.key(0)), 4), "one key"),
    ]:
        refuses(build, fragment)
