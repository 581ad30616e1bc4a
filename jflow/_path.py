"""Conditional Gaussian paths: how noise and data are mixed at each time."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._misc import combine, concrete, parameter, scalar_time
from ._types import Event, Time


class AbstractPath(eqx.Module):
    """A conditional Gaussian path, `x_t = alpha(t) x1 + sigma(t) x0` with noise `x0 ~ N(0, I)` and data `x1`.

    `t` runs from 0 (noise) to 1 (data); every method takes one scalar time and returns a scalar of its type.
    Where `sigma'` is infinite at t = 1 (VP, LinearVP, `sqrt(1 - t)`) the products `sigma sigma'` and
    `sigma W`, with `W = sigma alpha' - alpha sigma'`, stay finite.

    Source: Lipman et al. 2023, arXiv:2210.02747, section 4; Albergo et al. 2023, arXiv:2303.08797.
    """

    finite_sigma_dot: eqx.AbstractVar[bool]
    """Whether `sigma'` is finite at t = 1."""
    ends_at_data: eqx.AbstractVar[bool]
    """Whether `sigma(1) = 0`, so that the path ends at the data itself."""
    starts_at_noise: eqx.AbstractVar[bool]
    """Whether `alpha(0) = 0`, so that the path starts at pure noise."""

    @abc.abstractmethod
    def alpha(self, t: Time) -> Float[Array, ""]:
        """`alpha(t)`, the weight of the data."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Float[Array, ""]:
        """`sigma(t)`, the weight of the noise."""

    @abc.abstractmethod
    def alpha_dot(self, t: Time) -> Float[Array, ""]:
        """`alpha'(t)`."""

    @abc.abstractmethod
    def sigma_sigma_dot(self, t: Time) -> Float[Array, ""]:
        """`sigma(t) sigma'(t) = (sigma^2)'/2`, finite at both ends."""

    @abc.abstractmethod
    def velocity_row(self, t: Time) -> tuple[Array, Array, Array]:
        """`(s, a, b)`, all finite, with `s velocity = a data + b noise`: `(1, alpha', sigma')`, times sigma
        where `sigma'` is infinite at t = 1.
        """

    @abc.abstractmethod
    def log_snr_inverse(self, log_snr: Time) -> Float[Array, ""]:
        """The time at which `log_snr` takes the given value; plus or minus infinity give the ends."""

    def sigma_dot(self, t: Time) -> Float[Array, ""]:
        """`sigma'(t)`, minus infinity at t = 1 where it is infinite."""
        s, _, b = self.velocity_row(t)
        return b / s

    def sigma_w(self, t: Time) -> Float[Array, ""]:
        """`sigma W = sigma^2 alpha' - alpha sigma sigma'`, finite at both ends.

        `2 sigma W / alpha = -sigma^2 d(1/SNR) SNR/dt` is the squared diffusion coefficient of the reverse SDE.
        """
        return self.sigma(t) ** 2 * self.alpha_dot(t) - self.alpha(t) * self.sigma_sigma_dot(t)

    def log_snr(self, t: Time) -> Float[Array, ""]:
        """`log(alpha^2 / sigma^2)`: the whole log signal-to-noise ratio, infinite where the mathematics is."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def shift(self, t: Time, factor: Time) -> Float[Array, ""]:
        """The time whose log-SNR is that of `t` minus `2 log(factor)`.

        On CondOT, with `s = 1 - t`, this is `s -> factor s / (1 + (factor - 1) s)`: the time shift of Stable
        Diffusion 3 (Esser et al. 2024, arXiv:2403.03206, equation 23, whose t is our 1 - t), and with
        `factor = d / d_ref` the resolution shift of Hoogeboom et al. 2023, arXiv:2301.11093, section 3.1.
        It maps grids and training times alike: `jax.vmap(path.shift, (0, None))(times, factor)`.
        """
        return self.log_snr_inverse(self.log_snr(t) - 2 * jnp.log(jnp.asarray(factor)))

    def interpolate(self, t: Time, x0: PyTree, x1: PyTree) -> Event:
        """`x_t = alpha(t) x1 + sigma(t) x0`, for one example of the event's shape."""
        t = scalar_time(t)
        return combine((self.alpha(t), x1), (self.sigma(t), x0))


class CondOT(AbstractPath):
    """The linear path `x_t = t x1 + (1 - t) x0`, also called rectified flow.

    Source: Lipman et al. 2023, arXiv:2210.02747, example II; Liu et al. 2023, arXiv:2209.03003.
    """

    def alpha(self, t):
        return scalar_time(t)

    def sigma(self, t):
        return 1 - scalar_time(t)

    def alpha_dot(self, t):
        return jnp.ones_like(scalar_time(t))

    def sigma_sigma_dot(self, t):
        return scalar_time(t) - 1

    def velocity_row(self, t):
        one = jnp.ones_like(scalar_time(t))
        return one, one, -one

    def log_snr_inverse(self, log_snr):
        return jax.nn.sigmoid(scalar_time(log_snr) / 2)

    finite_sigma_dot: ClassVar[bool] = True
    ends_at_data: ClassVar[bool] = True
    starts_at_noise: ClassVar[bool] = True


class Cosine(AbstractPath):
    """The trigonometric path `x_t = sin(pi t / 2) x1 + cos(pi t / 2) x0`, of unit variance for unit data.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17 without its offset; Albergo & Vanden-Eijnden
    2023, arXiv:2209.15571. The former's t is our 1 - t.
    """

    def alpha(self, t):
        return jnp.sin(jnp.pi / 2 * scalar_time(t))

    def sigma(self, t):
        return jnp.sin(jnp.pi / 2 * (1 - scalar_time(t)))

    def alpha_dot(self, t):
        return jnp.pi / 2 * self.sigma(t)

    def sigma_sigma_dot(self, t):
        return -jnp.pi / 2 * self.alpha(t) * self.sigma(t)

    def velocity_row(self, t):
        sigma = self.sigma(t)
        return jnp.ones_like(sigma), jnp.pi / 2 * sigma, -jnp.pi / 2 * self.alpha(t)

    def log_snr_inverse(self, log_snr):
        return 2 / jnp.pi * jnp.arctan(jnp.exp(scalar_time(log_snr) / 2))

    finite_sigma_dot: ClassVar[bool] = True
    ends_at_data: ClassVar[bool] = True
    starts_at_noise: ClassVar[bool] = True


class LinearVP(AbstractPath):
    """The variance-preserving path `x_t = t x1 + sqrt(1 - t^2) x0`; `sigma'` is infinite at t = 1."""

    def alpha(self, t):
        return scalar_time(t)

    def sigma(self, t):
        t = scalar_time(t)
        return jnp.sqrt((1 - t) * (1 + t))

    def alpha_dot(self, t):
        return jnp.ones_like(scalar_time(t))

    def sigma_sigma_dot(self, t):
        return -scalar_time(t)

    def velocity_row(self, t):
        sigma = self.sigma(t)
        return sigma, sigma, -scalar_time(t)

    def log_snr_inverse(self, log_snr):
        return jnp.sqrt(jax.nn.sigmoid(scalar_time(log_snr)))

    finite_sigma_dot: ClassVar[bool] = False
    ends_at_data: ClassVar[bool] = True
    starts_at_noise: ClassVar[bool] = True


class VP(AbstractPath):
    """The variance-preserving path of a linear noise rate, with `s = 1 - t`:
    `log alpha = -s^2 (beta_max - beta_min) / 4 - s beta_min / 2`, `sigma^2 = 1 - alpha^2`.

    `alpha(0) = 0.0066` at the defaults: noise keeps that much of the data. `sigma'` is infinite at t = 1.

    Source: Song et al. 2021, arXiv:2011.13456, equation 33; its t is our 1 - t.
    """

    beta_min: Array
    beta_max: Array

    def __init__(self, beta_min: Time = 0.1, beta_max: Time = 20.0):
        """`beta_min`, `beta_max`: the noise rate at the data and at the noise end, per unit of time."""
        self.beta_min = parameter(beta_min, "beta_min")
        self.beta_max = parameter(beta_max, "beta_max")

    def _rate(self, t):
        """`-log alpha` and its negated derivative in t, half the noise rate."""
        s = 1 - scalar_time(t)
        low, high = self.beta_min.astype(s.dtype), self.beta_max.astype(s.dtype)
        return s * (s * (high - low) / 4 + low / 2), s * (high - low) / 2 + low / 2

    def alpha(self, t):
        return jnp.exp(-self._rate(t)[0])

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-2 * self._rate(t)[0]))

    def alpha_dot(self, t):
        integral, rate = self._rate(t)
        return jnp.exp(-integral) * rate

    def sigma_sigma_dot(self, t):
        integral, rate = self._rate(t)
        return -jnp.exp(-2 * integral) * rate

    def velocity_row(self, t):
        sigma = self.sigma(t)
        return sigma, sigma * self.alpha_dot(t), self.sigma_sigma_dot(t)

    def log_snr_inverse(self, log_snr):
        log_snr = scalar_time(log_snr)
        low, high = self.beta_min.astype(log_snr.dtype), self.beta_max.astype(log_snr.dtype)
        # The root of a quadratic in 1 - t, arranged to be defined where log alpha is zero or infinite too.
        root = jnp.sqrt(jax.nn.softplus(-log_snr))  # sqrt(-2 log alpha)
        return 1 - 2 * root / (low / root + jnp.sqrt((low / root) ** 2 + 2 * (high - low)))

    finite_sigma_dot: ClassVar[bool] = False
    ends_at_data: ClassVar[bool] = True
    starts_at_noise: ClassVar[bool] = False


class VE(AbstractPath):
    """The variance-exploding path `x_t = x1 + sigma(t) x0`, `sigma = sigma_max^(1-t) sigma_min^t`.

    It stops at noise `sigma_min`, not at the data. Its formulas hold for times outside [0, 1] too.

    Source: Song et al. 2021, arXiv:2011.13456, equation 31; its t is our 1 - t. The bounds are those of Karras et
    al. 2022, arXiv:2206.00364, table 1.
    """

    sigma_min: Array
    sigma_max: Array

    def __init__(self, sigma_min: Time = 0.002, sigma_max: Time = 80.0):
        """`sigma_min`, `sigma_max`: noise level at t = 1 and t = 0, in units of the data."""
        self.sigma_min = parameter(sigma_min, "sigma_min")
        self.sigma_max = parameter(sigma_max, "sigma_max")

    def __check_init__(self):
        low, high = concrete(self.sigma_min), concrete(self.sigma_max)
        if low is not None and high is not None and not low < high:
            raise ValueError(f"VE has sigma_min below sigma_max. Got {low:g} and {high:g}.")

    def _log_ratio(self, dtype):
        return jnp.log(self.sigma_min.astype(dtype)) - jnp.log(self.sigma_max.astype(dtype))

    def alpha(self, t):
        return jnp.ones_like(scalar_time(t))

    def sigma(self, t):
        t = scalar_time(t)
        low, high = jnp.log(self.sigma_min.astype(t.dtype)), jnp.log(self.sigma_max.astype(t.dtype))
        return jnp.exp((1 - t) * high + t * low)

    def alpha_dot(self, t):
        return jnp.zeros_like(scalar_time(t))

    def sigma_sigma_dot(self, t):
        sigma = self.sigma(t)
        return sigma**2 * self._log_ratio(sigma.dtype)

    def velocity_row(self, t):
        sigma = self.sigma(t)
        return jnp.ones_like(sigma), jnp.zeros_like(sigma), sigma * self._log_ratio(sigma.dtype)

    def log_snr(self, t):
        t = scalar_time(t)
        return -2 * (jnp.log(self.sigma_max.astype(t.dtype)) + t * self._log_ratio(t.dtype))

    def log_snr_inverse(self, log_snr):
        log_snr = scalar_time(log_snr)
        return (-log_snr / 2 - jnp.log(self.sigma_max.astype(log_snr.dtype))) / self._log_ratio(log_snr.dtype)

    finite_sigma_dot: ClassVar[bool] = True
    ends_at_data: ClassVar[bool] = False
    starts_at_noise: ClassVar[bool] = False
