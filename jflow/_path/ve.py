"""The variance-exploding path."""

import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from .._source import AbstractSource, Normal
from .._trainable import frozen
from .._types import Time
from .._validate import concrete, parameter, scalar_time
from ._abstract import AbstractAffinePath


class VE(AbstractAffinePath):
    """The variance-exploding path `x_t = x1 + sigma(t) x0`, `sigma = sigma_max^(1-t) sigma_min^t`.

    It stops at noise `sigma_min`, not at the data. Its formulas hold for times outside [0, 1] too.

    Source: Song et al. 2021, arXiv:2011.13456, equation 31; its t is our 1 - t. The bounds are those of Karras et
    al. 2022, arXiv:2206.00364, table 1.

    ```python
    path = jf.VE(sigma_min=0.002, sigma_max=80.0)
    assert path.alpha(0.5) == 1.0 and jnp.allclose(path.sigma(0.5), 0.4)  # the geometric mean
    ```
    """

    ends_at_data: ClassVar[bool] = False
    starts_at_noise: ClassVar[bool] = False
    interval: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    sigma_min: Array = frozen()
    sigma_max: Array = frozen()
    source: AbstractSource = frozen()

    def __init__(self, sigma_min: Time = 0.002, sigma_max: Time = 80.0, *, source: AbstractSource | None = None):
        """Makes the path.

        Args:
            sigma_min: The noise level at t = 1, in units of the data.
            sigma_max: The noise level at t = 0, in units of the data.
            source: The law of x0; `Normal()` by default.
        """
        self.source = Normal() if source is None else source
        self.sigma_min = parameter(sigma_min, "sigma_min")
        self.sigma_max = parameter(sigma_max, "sigma_max")

    def __check_init__(self):
        low, high = concrete(self.sigma_min), concrete(self.sigma_max)
        if low is not None and high is not None and not low < high:
            raise ValueError(f"VE must have sigma_min below sigma_max. Got {low:g} and {high:g}.")

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
