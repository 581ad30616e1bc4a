"""The variance-preserving path that is linear in alpha."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from .._source import AbstractSource, Normal
from .._trainable import frozen
from .._validate import scalar_time
from ._abstract import AbstractAffinePath


class LinearVP(AbstractAffinePath):
    """The variance-preserving path `x_t = t x1 + sqrt(1 - t^2) x0`; `sigma'` is infinite at t = 1.

    ```python
    path = jf.LinearVP()
    assert path.alpha(0.6) == jnp.float32(0.6) and jnp.allclose(path.sigma(0.6), 0.8)
    ```
    """

    source: AbstractSource = frozen(default=Normal())

    finite_sigma_dot: ClassVar[bool] = False

    def alpha(self, t):
        return scalar_time(t)

    def sigma(self, t):
        t = scalar_time(t)
        return jnp.sqrt((1 - t) * (1 + t))

    def alpha_dot(self, t):
        return jnp.ones_like(scalar_time(t))

    def sigma_sigma_dot(self, t):
        return -scalar_time(t)

    def log_snr_inverse(self, log_snr):
        return jnp.sqrt(jax.nn.sigmoid(scalar_time(log_snr)))
