"""The trigonometric path."""

import jax.numpy as jnp

from .._source import AbstractSource, Normal
from .._trainable import frozen
from .._validate import scalar_time
from ._abstract import AbstractAffinePath


class Cosine(AbstractAffinePath):
    """The trigonometric path `x_t = sin(pi t / 2) x1 + cos(pi t / 2) x0`, of unit variance for unit data.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17 without its offset; Albergo & Vanden-Eijnden
    2023, arXiv:2209.15571. The former's t is our 1 - t.

    ```python
    path = jf.Cosine()
    assert jnp.allclose(path.alpha(0.3) ** 2 + path.sigma(0.3) ** 2, 1.0)
    ```
    """

    source: AbstractSource = frozen(default=Normal())

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
