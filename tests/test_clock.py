"""Clocks: each is the same equation in another time, for every path and every level of noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import CLOCKS, PATHS, over_paths, unchecked, weights_of

import jflow as jf

NAMES = ("CondOT", "LinearVP", "VE", "root")
TIMES = np.linspace(0.05, 0.95, 19)
ETAS = np.sqrt([0.0, 0.3, 1.0, 2.0])


def over_clocks(fn, times, etas=ETAS):
    """`fn(clock, path, t, eta)` for every clock and path: `[path][clock]`, times along rows, etas along columns."""

    def each(path, t):
        return {name: jax.vmap(lambda eta: fn(clock, path, t, eta))(etas) for name, clock in CLOCKS.items()}  # noqa: B023

    return over_paths(each, jnp.asarray(times), names=NAMES)


def test_the_time_of_a_clock_increases_and_is_inverted(x64):
    def there_and_back(clock, path, t, eta):
        tau = clock.time(path, t, eta)
        return tau, clock.path_time(path, tau, eta), clock.noise_time(path, t, eta)

    for name, clocks in over_clocks(there_and_back, TIMES).items():
        for clock, (tau, back, noise) in clocks.items():
            assert (np.diff(tau, axis=0) > 0).all(), (name, clock)
            np.testing.assert_allclose(back, np.repeat(TIMES[:, None], 4, 1), atol=1e-11, err_msg=clock)
            steps = np.diff(noise, axis=0)
            assert (steps[:, 1:] > 0).all() and (steps >= 0).all(), (name, clock)


@pytest.mark.slow
def test_the_right_hand_side_is_the_derivative_of_the_rescaled_state(x64):
    z, x0 = 1.7, -0.6

    def pair(clock, path, t, eta):
        def state(s):
            factor = clock.scale(path, s, eta)
            x = path.alpha(s) * z + path.sigma(s) * x0
            return x if factor is None else factor * x

        s, a, b = weights_of(clock.rhs(path, t, eta))
        return (a * z + b * x0) / s, jax.grad(state)(t) / jax.grad(lambda s: clock.time(path, s, eta))(t)

    for name, clocks in over_clocks(pair, TIMES, etas=np.zeros(1)).items():
        for clock, (rhs, slope) in clocks.items():
            np.testing.assert_allclose(rhs, slope, rtol=1e-9, atol=1e-9, err_msg=f"{name} {clock}")


@pytest.mark.slow
def test_the_marginals_do_not_depend_on_eta(x64):
    """`dV/dtau = 2 A V + g^2 dnoise/dtau` holds for the variance of the state on data `N(0, 0.25)`."""

    def moments(clock, path, t, eta):
        def variance(s):
            factor = clock.scale(path, s, eta)
            return (1.0 if factor is None else factor**2) * (0.25 * path.alpha(s) ** 2 + path.sigma(s) ** 2)

        marginal = 0.25 * path.alpha(t) ** 2 + path.sigma(t) ** 2
        s, a, b = weights_of(clock.rhs(path, t, eta))
        factor = clock.scale(path, t, eta)
        slope = (a * 0.25 * path.alpha(t) + b * path.sigma(t)) / (s * marginal)
        slope = slope if factor is None else slope / factor
        rate = jax.grad(lambda s: clock.time(path, s, eta))(t)
        noise = clock.diffusion(path, t, eta) ** 2 * jax.grad(lambda s: clock.noise_time(path, s, eta))(t)
        noise = jnp.where(eta == 0, 0.0, noise)  # theta's Brownian motion stands still there
        return jax.grad(variance)(t), 2 * slope * variance(t) * rate + noise

    for name, clocks in over_clocks(moments, TIMES).items():
        for clock, (left, right) in clocks.items():
            np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-8, err_msg=f"{name} {clock}")


def test_without_eta_there_is_no_noise():
    def noise(clock, path, t, eta):
        rate = jax.grad(lambda s: clock.noise_time(path, s, eta))(t)
        return clock.diffusion(path, t, eta) ** 2 * rate

    for clocks in over_clocks(noise, TIMES, etas=np.zeros(1)).values():
        for value in clocks.values():
            np.testing.assert_array_equal(value, 0)
    for clock in CLOCKS.values():
        assert np.isfinite(jax.grad(lambda eta: clock.diffusion(jf.CondOT(), 0.5, eta))(0.0))  # noqa: B023


def test_which_clocks_are_finite_at_which_end():
    def ends(clock, path, t, eta):
        factor = clock.scale(path, t, eta)
        return clock.time(path, t, eta), jnp.ones(()) if factor is None else factor

    got = over_clocks(ends, [0.0, 1.0], etas=np.array([0.0, 1.0]))["CondOT"]
    finite = {name: np.isfinite(tau).all(1).tolist() for name, (tau, _) in got.items()}
    assert finite == {
        "path": [True, True],
        "sigma": [False, True],
        "theta": [True, False],
        "ratio": [True, True],
        "angle": [True, True],
    }
    for name, (tau, factor) in got.items():
        assert CLOCKS[name].finite_end == finite[name][1]
        assert np.isfinite(factor).all(1).tolist() == finite[name]
        assert not np.isnan(tau).any()
    np.testing.assert_allclose(got["ratio"][0][:, 0], [0, 1])
    np.testing.assert_allclose(got["angle"][0][:, 0], [0, np.pi / 2], rtol=1e-6)


def test_the_inverse_of_a_clock_reaches_the_ends():
    for name, ends in {"path": (0, 1), "ratio": (0, 1), "angle": (0, np.pi / 2), "theta": (0, np.inf)}.items():
        for path in (jf.CondOT(), jf.Cosine(), jf.LinearVP(), PATHS["root"]):
            times = [float(CLOCKS[name].path_time(path, jnp.float32(tau), 0.5)) for tau in ends]
            np.testing.assert_allclose(times, [0, 1], atol=1e-6, err_msg=name)
    assert CLOCKS["sigma"].path_time(jf.CondOT(), 0.0) == 1


def test_the_noise_in_the_paths_own_time_is_finite_at_the_data():
    for path, square in ((jf.LinearVP(), 2.0), (jf.VP(), 0.1), (PATHS["root"], 1.0), (jf.CondOT(), 0.0)):
        np.testing.assert_allclose(jf.PathClock().diffusion(path, 1.0, 1.0) ** 2, square, rtol=1e-6)


def test_theta_is_a_power_of_the_signal_to_noise_ratio(x64):
    path, t = PATHS["CondOT"], 0.3
    assert CLOCKS["theta"].time(path, t, 2.0) == pytest.approx((0.3 / 0.7) ** 5)  # eta is the amplitude: 1 + eta^2
    assert CLOCKS["theta"].noise_time(path, t, 2.0) == pytest.approx((0.3 / 0.7) ** 8)
    assert CLOCKS["theta"].time(path, t, 1.0) == pytest.approx((0.3 / 0.7) ** 2)
    assert CLOCKS["theta"].scale(path, t, 1.0) == pytest.approx(0.3 / 0.7**2)
    assert CLOCKS["theta"].noise_time(path, t, 1.0) == pytest.approx((0.3 / 0.7) ** 2)  # the same clock: unit noise
    assert CLOCKS["theta"].noise_time(path, t, 0.0) == 1


def test_the_angle_clock_takes_minus_v_along_variance_preserving_paths(x64):
    for path in (jf.Cosine(), jf.LinearVP(), jf.VP()):
        s, a, b = weights_of(CLOCKS["angle"].rhs(path, 0.4, 0.0))
        np.testing.assert_allclose([a / s, b / s], [path.sigma(0.4), -path.alpha(0.4)], rtol=1e-9)


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_a_batched_time_is_refused(clock):
    batch = jnp.linspace(0.1, 0.9, 3)
    for method in ("time", "rhs", "diffusion", "noise_time", "path_time"):
        with unchecked(), pytest.raises(ValueError, match=r"jax\.vmap"):
            getattr(clock, method)(jf.CondOT(), batch)
