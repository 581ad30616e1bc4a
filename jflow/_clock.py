"""Clocks: in which time, and for which rescaled state, the equation of a field is integrated."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._event import safe_sqrt
from ._path import AbstractAffinePath
from ._prediction import Row
from ._types import Noun, Time
from ._validate import scalar_time


class AbstractClock(Noun):
    """A time change: an increasing time `tau`, a state `u = scale x`, and the right-hand side `du/dtau` along a path.

    The equation is the SDE whose noise has the amplitude `eta`; its marginals are those of the ODE (`eta = 0`) for
    every `eta`. With the half log-SNR `lambda = log(alpha / sigma)`,

        dx = (velocity + eta^2 sigma^2 lambda' score) dt + eta sqrt(2 sigma^2 lambda') dW .

    In a clock it reads `du = rhs dtau + diffusion dB(s)`, with `s` the `noise_time` and `B` a Brownian motion whose
    increments have the variance `s' - s`.

    How to find the parts of a clock: `du = scale dx + (scale'/scale) u dt`. On an affine path `x = alpha data + sigma
    noise`, and velocity and score are rows of data and noise too. So the drift of `u` is a row, and `rhs` is this row
    divided by `tau'`.

    Why the clocks differ: an Euler step is exact where the right-hand side is constant. Each clock makes another
    quantity the right-hand side: the velocity, the noise, the data, or a combination of these.

    Source: Song et al. 2021, arXiv:2011.13456, section 4; Zhang & Chen 2023, arXiv:2204.13902, proposition 1
    (both in reversed time).

    ```python
    class HalfLogSNRClock(jf.AbstractClock):  # tau = log(alpha/sigma), u = x/alpha
        finite_end = False

        def time(self, path, t, eta=0.0):
            return path.log_snr(t) / 2

        def path_time(self, path, tau, eta=0.0):
            return path.log_snr_inverse(2 * tau)

        def scale(self, path, t, eta=0.0):
            return 1 / path.alpha(t)

        def rhs(self, path, t, eta=0.0):
            s = path.sigma(t) / path.alpha(t)
            return jf.Row(jnp.ones_like(s), None, -(1 + eta**2) * s)

        def diffusion(self, path, t, eta=0.0):
            return eta * jnp.sqrt(2) * path.sigma(t) / path.alpha(t)

    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())

    grid = jf.UniformGrid(40, t0=0.1, t1=0.9)
    mine, path = (
        jf.decode(field, jnp.ones(2), jf.FixedSteps(grid, dfx.Heun(), clock=clock)).x
        for clock in (HalfLogSNRClock(), jf.PathClock())
    )
    assert jnp.allclose(mine, path, atol=1e-2)
    ```
    """

    finite_end: eqx.AbstractClassVar[bool]
    """Whether the clock's time is finite where sigma = 0."""
    keeps_start: ClassVar[bool] = True
    """Whether, with noise, the scale is not zero where alpha = 0, so that `u` determines `x` there."""
    depends_on_eta: ClassVar[bool] = False
    """Whether time and scale depend on `eta`. Then a memory of earlier steps needs one `eta` on the whole grid."""
    own_time: ClassVar[bool] = False
    """Whether this is the path's own time, `tau = t` and `u = x`."""

    @abc.abstractmethod
    def time(self, path: AbstractAffinePath, t: Time, eta: Time = 0.0) -> Float[Array, ""]:
        """`tau(t)`."""

    @abc.abstractmethod
    def path_time(self, path: AbstractAffinePath, tau: Time, eta: Time = 0.0) -> Float[Array, ""]:
        """`t(tau)`."""

    @abc.abstractmethod
    def scale(self, path: AbstractAffinePath, t: Time, eta: Time = 0.0) -> Float[Array, ""] | None:
        """`u / x`; `None` where it is one at every time."""

    @abc.abstractmethod
    def rhs(self, path: AbstractAffinePath, t: Time, eta: Time = 0.0) -> Row:
        """The right-hand side as a row of weights of data and noise."""

    @abc.abstractmethod
    def diffusion(self, path: AbstractAffinePath, t: Time, eta: Time = 0.0) -> Float[Array, ""]:
        """The diffusion coefficient of `u`."""

    def noise_time(self, path: AbstractAffinePath, t: Time, eta: Time = 0.0) -> Float[Array, ""]:
        """The time in which the Brownian motion runs, by default the clock's own."""
        return self.time(path, t)


class PathClock(AbstractClock):
    """The path's own time: `du/dt` is the velocity. Singular at t = 0 for `eta > 0` where `alpha(0) = 0`.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sampler = jf.FixedSteps(jf.UniformGrid(8), dfx.Heun(), clock=jf.PathClock())  # the default of the ODE
    assert jf.sample(field, jr.key(0), (2,), sampler).nfe == 16
    ```
    """

    finite_end: ClassVar[bool] = True
    own_time: ClassVar[bool] = True

    def time(self, path, t, eta=0.0):
        return scalar_time(t)

    def path_time(self, path, tau, eta=0.0):
        return scalar_time(tau)

    def scale(self, path, t, eta=0.0):
        return None

    def rhs(self, path, t, eta=0.0):
        s, a, b = path.velocity_row(t)
        return Row(s, a, b - _level(eta**2, path.sigma(t) * a - path.alpha(t) * b, path.alpha(t)))

    def diffusion(self, path, t, eta=0.0):
        return safe_sqrt(2 * _level(eta**2, path.sigma_w(t), path.alpha(t)))


class SigmaClock(AbstractClock):
    """`tau = -sigma/alpha`, `u = x/alpha`, `du/dtau = -noise`: Euler is DDIM, Heun is EDM's. Infinite where alpha = 0.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1, with `sigma(t) = t`.

    ```python
    clock, path = jf.SigmaClock(), jf.CondOT()
    assert clock.time(path, 0.5) == -1.0 and jnp.allclose(clock.path_time(path, -1.0), 0.5)
    ```
    """

    finite_end: ClassVar[bool] = True

    def time(self, path, t, eta=0.0):
        return -path.sigma(t) / path.alpha(t)

    def path_time(self, path, tau, eta=0.0):
        return path.log_snr_inverse(-2 * jnp.log(-scalar_time(tau)))

    def scale(self, path, t, eta=0.0):
        return 1 / path.alpha(t)

    def rhs(self, path, t, eta=0.0):
        one = jnp.ones_like(path.alpha(t))
        return Row(one, None, -(1 + eta**2) * one)

    def diffusion(self, path, t, eta=0.0):
        return safe_sqrt(2 * _level(eta**2, path.sigma(t), path.alpha(t)))


class ThetaClock(AbstractClock):
    """`tau = (alpha/sigma)^(1 + eta^2)`, `u = tau x / alpha`, `du = data dtau + dB(tau^(2 eta^2 / (1 + eta^2)))`.

    One clock for every `eta`: noise is additive, the right-hand side is the data prediction, and Euler is the
    exact solution for a frozen data prediction. With `h` the step in `lambda` and `k = eta^2`,

        x' = (sigma'/sigma) e^(-k h) x + alpha' (1 - e^(-(1 + k) h)) data + sigma' sqrt(1 - e^(-2 k h)) z :

    DDIM at `eta = 0`, DDPM's ancestral step at 1. Finite at the noise end, infinite where sigma = 0.

    This time is theta in `du = D dtheta + dB`, with `D` the data prediction. The derivation: let `y = x/alpha` and `s =
    sigma/alpha`, so that `noise = (y - data)/s`. The SDE of `y` is

        dy = (1 + k) (y - data) ds/s + sqrt(2 k s) dW ,   W of variance |ds|, s falling.

    The integrating factor of its linear part is `s^-(1 + k) = tau`. So `u = tau y` obeys

        du = data dtau + tau sqrt(2 k s) dW .

    The variance of the noise is `2 k s^(-1 - 2k) |ds| = d(s^(-2k))`. So the noise is a Brownian motion in the time
    `s^(-2k) = tau^(2k/(1 + k))`.

    Why the scale is zero at `alpha = 0`: the scale is `tau/alpha = s^-k / sigma`, and `s` is infinite there. For `eta >
    0` the scale is 0, and `u = 0` for every `x`. The SDE takes infinitely many units of lambda to leave `alpha = 0`, so
    the first step forgets its start. For `eta = 0` the scale is `1/sigma`.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sampler = jf.FixedSteps(jf.UniformGrid(8), clock=jf.ThetaClock())  # Euler here is DDIM
    assert jf.sample(field, jr.key(0), (2,), sampler).nfe == 8
    ```
    """

    finite_end: ClassVar[bool] = False
    keeps_start: ClassVar[bool] = False
    depends_on_eta: ClassVar[bool] = True

    def time(self, path, t, eta=0.0):
        return _power(path.alpha(t) / path.sigma(t), 1 + eta**2)

    def path_time(self, path, tau, eta=0.0):
        return path.log_snr_inverse(2 * jnp.log(scalar_time(tau)) / (1 + eta**2))

    def scale(self, path, t, eta=0.0):
        return _power(path.alpha(t) / path.sigma(t), jnp.asarray(eta) ** 2) / path.sigma(t)

    def rhs(self, path, t, eta=0.0):
        one = jnp.ones_like(path.alpha(t))
        return Row(one, one, None)

    def diffusion(self, path, t, eta=0.0):
        return jnp.ones_like(path.alpha(t))

    def noise_time(self, path, t, eta=0.0):
        return _power(path.alpha(t) / path.sigma(t), 2 * jnp.asarray(eta) ** 2)


class RatioClock(AbstractClock):
    """`tau = 1 - r` with `r = sigma/(alpha + sigma)`, `u = x/(alpha + sigma)`, `du/dtau = data - noise`.

    Finite at both ends: the linear path of any field. Euler is DDIM.

    ```python
    clock = jf.RatioClock()
    assert clock.time(jf.CondOT(), 0.3) == jnp.float32(0.3) and clock.time(jf.Cosine(), 0.5) == 0.5
    ```
    """

    finite_end: ClassVar[bool] = True

    def time(self, path, t, eta=0.0):
        return path.alpha(t) / (path.alpha(t) + path.sigma(t))

    def path_time(self, path, tau, eta=0.0):
        tau = scalar_time(tau)
        return path.log_snr_inverse(2 * (jnp.log(tau) - jnp.log1p(-tau)))

    def scale(self, path, t, eta=0.0):
        return 1 / (path.alpha(t) + path.sigma(t))

    def rhs(self, path, t, eta=0.0):
        one = jnp.ones_like(path.alpha(t))
        return Row(one, one, -one - _level(eta**2, path.alpha(t) + path.sigma(t), path.alpha(t)))

    def diffusion(self, path, t, eta=0.0):
        return safe_sqrt(2 * _level(eta**2, path.sigma(t), path.alpha(t)))


class AngleClock(AbstractClock):
    """`tau = atan(alpha/sigma)`, `u = x/n`, `du/dtau = (sigma data - alpha noise)/n`, `n = sqrt(alpha^2 + sigma^2)`:
    minus the v-prediction of the variance-preserving path. Finite at both ends.

    Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D.

    ```python
    tau = jf.AngleClock().time(jf.Cosine(), 0.3)
    assert jnp.allclose(tau, 0.3 * jnp.pi / 2)  # Cosine runs at constant angular speed
    ```
    """

    finite_end: ClassVar[bool] = True

    def time(self, path, t, eta=0.0):
        return jnp.arctan2(path.alpha(t), path.sigma(t))

    def path_time(self, path, tau, eta=0.0):
        tau = scalar_time(tau)
        right_angle = jnp.asarray(jnp.pi / 2, tau.dtype)  # so that its cosine rounds to zero, not below
        return path.log_snr_inverse(2 * (jnp.log(jnp.sin(tau)) - jnp.log(jnp.sin(right_angle - tau))))

    def scale(self, path, t, eta=0.0):
        return 1 / jnp.hypot(path.alpha(t), path.sigma(t))

    def rhs(self, path, t, eta=0.0):
        alpha, sigma = path.alpha(t), path.sigma(t)
        norm = jnp.hypot(alpha, sigma)
        return Row(norm, sigma, -alpha - _level(eta**2, norm**2, alpha))

    def diffusion(self, path, t, eta=0.0):
        return safe_sqrt(2 * _level(eta**2, path.sigma(t), path.alpha(t)))


def _level(k: Any, numerator: Any, denominator: Any) -> Any:
    """`k numerator / denominator`, zero for `k = 0` where the denominator vanishes too."""
    absent = jnp.asarray(k) == 0
    return jnp.where(absent, 0, k * numerator / jnp.where(absent, 1, denominator)).astype(jnp.result_type(numerator))


def _power(x, p):
    """`x^p` for `x >= 0`, with finite derivatives at `x = 0`."""
    positive = x > 0
    inner = jnp.where(positive, x, 1) ** p
    return jnp.where(positive, inner, jnp.where(p == 0, 1, 0)).astype(x.dtype)
