"""The linear path."""

import jax
import jax.numpy as jnp

from .._source import AbstractSource, Normal
from .._trainable import frozen
from .._validate import scalar_time
from ._abstract import AbstractAffinePath


class CondOT(AbstractAffinePath):
    """The linear path `x_t = t x1 + (1 - t) x0`, also called rectified flow.

    Source: Lipman et al. 2023, arXiv:2210.02747, example II; Liu et al. 2023, arXiv:2209.03003.

    ```python
    path = jf.CondOT()
    assert path.interpolate(0.25, jnp.array(4.0), jnp.array(8.0)) == 5.0
    assert path.velocity(0.25, jnp.array(4.0), jnp.array(8.0)) == 4.0
    ```
    """

    source: AbstractSource = frozen(default=Normal())

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
