"""Weights that adapt to the error of an example: functions of its mean square, in the place of that."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._trainable import frozen
from .._types import Noun, Time
from .._validate import parameter


class AdaptiveWeight(Noun):
    """`e^2 / sg(e^2 + c)^p`: at `p = 1` every example has the same weight in the gradient, whatever its error.

    Its value says little about the error: report the unweighted mean square beside it.

    Source: Geng et al. 2025, arXiv:2505.13447, section 4.3, with sums over the event there.

    ```python
    weight = jf.few_step.AdaptiveWeight(c=1e-3)
    assert jnp.allclose(jax.grad(weight)(2.0), 1 / 2.001)
    ```
    """

    p: Array = frozen()
    c: Array = frozen()

    def __init__(self, p: Time = 1.0, c: Time = 1e-3):
        """`p` the exponent, 0 for no weight; `c` a positive number. Raises `ValueError` for others."""
        self.p, self.c = parameter(p, "p", positive=False), parameter(c, "c")

    def __call__(self, square: Float[ArrayLike, ""]) -> Float[Array, ""]:
        square = jnp.asarray(square)
        return square / jax.lax.stop_gradient((square + self.c.astype(square.dtype)) ** self.p.astype(square.dtype))


class PseudoHuber(Noun):
    """`sqrt(e^2 + c^2) - c`, a square for small errors and their size for large ones.

    Source: Song & Dhariwal 2023, arXiv:2310.14189, section 3.3 (there of the norm over the event, with
    `c = 0.00054 sqrt(d)`: ours of its mean square, so `c = 0.00054`).

    ```python
    assert jnp.allclose(jf.few_step.PseudoHuber(c=3.0)(16.0), 2.0)
    ```
    """

    c: Array = frozen()

    def __init__(self, c: Time = 0.00054):
        """`c` a positive number. Raises `ValueError` for another."""
        self.c = parameter(c, "c")

    def __call__(self, square: Float[ArrayLike, ""]) -> Float[Array, ""]:
        square = jnp.asarray(square)
        c = self.c.astype(square.dtype)
        return jnp.sqrt(square + c**2) - c
