"""The variance-preserving path of a linear noise rate."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._source import AbstractSource, Normal
from .._trainable import frozen
from .._types import Time
from .._validate import parameter, scalar_time
from ._abstract import AbstractRatePath


class VP(AbstractRatePath):
    """The variance-preserving path of a linear noise rate, with `s = 1 - t`:
    `log alpha = -s^2 (beta_max - beta_min) / 4 - s beta_min / 2`, `sigma^2 = 1 - alpha^2`.

    `alpha(0) = 0.0066` at the defaults: noise keeps that much of the data. `sigma'` is infinite at t = 1.

    Source: Song et al. 2021, arXiv:2011.13456, equation 33; its t is our 1 - t.

    ```python
    path = jf.VP()
    assert jnp.allclose(path.alpha(0.0), 0.0066, atol=1e-4) and path.sigma(1.0) == 0.0
    ```
    """

    beta_min: Array = frozen()
    beta_max: Array = frozen()
    source: AbstractSource = frozen()

    def __init__(self, beta_min: Time = 0.1, beta_max: Time = 20.0, *, source: AbstractSource | None = None):
        """Makes the path.

        Args:
            beta_min: The noise rate at the data, per unit of time.
            beta_max: The noise rate at the noise end, per unit of time.
            source: The law of x0; `Normal()` by default.
        """
        self.source = Normal() if source is None else source
        self.beta_min = parameter(beta_min, "beta_min")
        self.beta_max = parameter(beta_max, "beta_max")

    def _rate(self, t):
        s = 1 - scalar_time(t)
        low, high = self.beta_min.astype(s.dtype), self.beta_max.astype(s.dtype)
        return s * (s * (high - low) / 4 + low / 2), s * (high - low) / 2 + low / 2

    def log_snr_inverse(self, log_snr):
        log_snr = scalar_time(log_snr)
        low, high = self.beta_min.astype(log_snr.dtype), self.beta_max.astype(log_snr.dtype)
        # The root of a quadratic in 1 - t, arranged to be defined where log alpha is zero or infinite too.
        root = jnp.sqrt(jax.nn.softplus(-log_snr))  # sqrt(-2 log alpha)
        return 1 - 2 * root / (low / root + jnp.sqrt((low / root) ** 2 + 2 * (high - low)))
