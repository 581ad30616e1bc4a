"""The certificates certify what is right, and fail what is wrong."""

import diffrax as dfx
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
STEPS = (8, 16)


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


def test_check_field_tells_the_exact_field_from_another():
    world = jf.distributions.GaussianMixture(jnp.asarray([[-1.0, 0.0], [1.0, 1.0]]), stds=jnp.asarray([0.5, 0.8]))
    testing.check_field(world.field(jf.CondOT()), world, n=64).check()
    other = jf.distributions.Gaussian(jnp.zeros(2), std=1.0)
    report = testing.check_field(other.field(jf.CondOT()), world, n=64)
    assert not report["velocity against the exact one"].passed
    assert not report["continuity equation"].passed


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


def heun(field, x0, z):
    return jf.decode(field, x0, jf.FixedSteps(jf.UniformGrid(len(z)), dfx.Heun())).x


@pytest.mark.slow
def test_certify_measures_order_and_calls():
    report = testing.certify(heun, steps=STEPS, order=2, calls=32)
    report.check()
    assert report["network calls, n = 16"].figure == 32
    wrong = testing.certify(heun, steps=STEPS, order=3, calls=16)
    failed = [check.name for check in wrong if not check.passed]
    assert failed == ["order, off the advertised", "network calls, off the advertised"]


def test_certify_finds_exact_moments_of_the_ancestral_step():
    """On N(m, s^2) the data prediction is affine, and so is the recursion: its variance is known in closed form."""

    def ancestral(field, x0, z):
        return jf.decode(field, x0, jf.FixedSteps(jf.UniformGrid(len(z)), eta=1.0), brownian=jf.Recorded(z)).x

    report = testing.certify(ancestral, steps=STEPS, tolerance=1.0)
    variance, s2, n = 1.0, 0.25, STEPS[-1]
    for i in range(n):
        (a, b), (a1, b1) = ((t, 1 - t) for t in (i / n, (i + 1) / n))
        gain = a * s2 / (a * a * s2 + b * b)  # d data / dx
        if i == n - 1:
            variance = gain**2 * variance
            continue
        ratio = (a * b1 / (a1 * b)) ** 2  # e^(-2h)
        keep = b1 / b * ratio**0.5
        variance = (keep + a1 * (1 - ratio) * gain) ** 2 * variance + b1**2 * (1 - ratio)
    check = report[f"standard deviation on Gaussian data, n = {n}"]
    assert check.note == "exact"
    assert check.figure == pytest.approx(abs((variance / s2) ** 0.5 - 1), rel=1e-6)


@pytest.mark.slow
def test_certify_marks_what_is_not_affine_as_monte_carlo():
    def rounded(field, x0, z):
        return heun(field, jnp.tanh(x0), z)

    report = testing.certify(rounded, steps=STEPS)
    assert "Monte Carlo" in report["mean on Gaussian data, n = 16"].note
    assert not report.ok


@pytest.mark.slow
def test_certify_catches_noise_drawn_twice():
    """A diffusion coefficient that is itself random has the right variance, and is not affine in the noise."""

    def twice(field, x0, z):
        sampler = jf.FixedSteps(jf.UniformGrid(len(z), t1=0.9), eta=1.0)
        return jf.decode(field, x0, sampler, brownian=jf.Recorded(z * jnp.roll(z, 1, 0))).x

    assert "Monte Carlo" in testing.certify(twice, steps=(4, 8), t1=0.9)["mean on Gaussian data, n = 8"].note
