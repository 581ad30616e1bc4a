"""The checks of paths and fields pass what is right, and fail what is wrong."""

import jax.numpy as jnp
import pytest

import jflow as jf
from jflow import testing

PATHS = [
    jf.CondOT(),
    jf.VP(),
    jf.VE(),
    jf.CustomPath(lambda t: t, lambda t: jnp.sqrt(1 - t)),
    jf.CustomPath(lambda t: jnp.sqrt(t), lambda t: 1 - t),
]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=["CondOT", "VP", "VE", "root of the noise", "root of the data"])
def test_check_path_passes_every_path(path):
    report = testing.check_path(path)
    report.check()
    assert report["alpha' against autodiff"].figure < 1e-12
    assert "pass" in str(report) and type(path).__name__ in str(report)


class WrongRate(jf.AbstractAffinePath):
    """CondOT with a derivative that is off by one part in a hundred."""

    source: jf.AbstractSource = jf.Normal()

    def alpha(self, t):
        return jnp.asarray(t)

    def sigma(self, t):
        return 1 - jnp.asarray(t)

    def alpha_dot(self, t):
        return 1.01 * jnp.ones_like(jnp.asarray(t))


def test_check_path_fails_a_wrong_derivative():
    report = testing.check_path(WrongRate())
    assert not report.ok
    assert [check.name for check in report if not check.passed] == ["alpha' against autodiff"]
    with pytest.raises(AssertionError, match="FAIL"):
        report.check()
    with pytest.raises(KeyError, match=r"must be that of a check.*inverse of log-SNR.*nonsense"):
        report["nonsense"]


def test_check_path_names_the_coefficients_that_are_not_finite():
    path = jf.CustomPath(lambda t: t, lambda t: jnp.sqrt(1 - t**2 * (2 - t**2)))  # a root of a rounded difference
    assert "sigma sigma' at t = 1" in testing.check_path(path)["not finite at the ends, bfloat16"].note


class Told(jf.AbstractAffinePath):
    """Roots at both ends, which stop short of noise and of data; its flags are those of `CondOT`."""

    source: jf.AbstractSource = jf.Normal()

    def alpha(self, t):
        return jnp.sqrt(jnp.asarray(t)) + 0.01

    def sigma(self, t):
        return jnp.sqrt(1 - jnp.asarray(t)) + 0.01


class ToldRight(Told):
    finite_sigma_dot = finite_alpha_dot = ends_at_data = starts_at_noise = False


class Unduly(jf.AbstractAffinePath):
    """CondOT, whose flags say less than what is so."""

    source: jf.AbstractSource = jf.Normal()
    finite_sigma_dot = finite_alpha_dot = ends_at_data = starts_at_noise = False

    def alpha(self, t):
        return jnp.asarray(t)

    def sigma(self, t):
        return 1 - jnp.asarray(t)


FLAGS = {
    "ends_at_data": "sigma(1) = 0",
    "starts_at_noise": "alpha(0) = 0",
    "finite_sigma_dot": "sigma'(1)",
    "finite_alpha_dot": "alpha'(0)",
}


@pytest.mark.parametrize(("path", "right"), [(Told(), False), (ToldRight(), True), (Unduly(), False)])
def test_check_path_compares_the_flags_with_the_values(path, right):
    report = testing.check_path(path)
    assert [report[f"{flag} against {value}"].passed for flag, value in FLAGS.items()] == [right] * 4


def test_check_path_takes_the_noise_ends_that_a_path_may_have():
    """Bounds as those of `CustomPath`: Stable Diffusion's schedule keeps 0.068 of the data."""
    for level, passed in ((0.09, True), (0.11, False)):
        path = jf.VE(sigma_min=level, sigma_max=1 / level)
        report = testing.check_path(path)
        assert report["alpha(0)/sigma(0)"].passed == report["sigma(1)/alpha(1)"].passed == passed


@pytest.mark.slow
def test_check_field_tells_the_exact_field_from_another():
    world = jf.distributions.GaussianMixture(jnp.asarray([[-1.0, 0.0], [1.0, 1.0]]), stds=jnp.asarray([0.5, 0.8]))
    testing.check_field(world.field(jf.CondOT()), world, n=64).check()
    other = jf.distributions.Gaussian(jnp.zeros(2), std=1.0)
    report = testing.check_field(other.field(jf.CondOT()), world, n=64)
    assert not report["velocity against the exact one"].passed
    assert not report["continuity equation"].passed


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["label", "mean"])
def test_check_field_takes_a_condition(condition):
    means = jnp.asarray([[-1.0, 0.0], [1.0, 1.0]])
    world, args, other = {
        "label": (jf.distributions.LabelledMixture(jf.distributions.GaussianMixture(means, stds=jnp.ones(2))), 0, 1),
        "mean": (jf.distributions.HierarchicalGaussian(0.5, (2,)), means[0], means[1]),
    }[condition]
    field = world.field(jf.CondOT())
    testing.check_field(field, world, n=64, args=args).check()
    taken = jf.Field(lambda t, x, _: field.velocity(t, x, other), jf.CondOT(), "velocity")
    assert not any(check.passed for check in testing.check_field(taken, world, n=64, args=args))
