"""CFG-Zero*."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .._event import combine
from .._prediction import Prediction
from .._validate import parameter
from ._rule import AbstractGuidanceRule, inner, ratio


class CFGZero(AbstractGuidanceRule):
    """CFG-Zero*: the velocity to move away from is scaled to fit the conditional one, and the first steps do not move.

        v = s v_u + w (v_c - s v_u),   s = <v_c, v_u>/|v_u|^2;   v = 0 for t < zero_before .

    Source: Fan et al. 2025, arXiv:2503.18886 (optimized scale and zero-init).

    ```python
    guided = jf.Guided(jf.Field(lambda t, x, y: x + y, jf.CondOT(), "velocity"), null=0.0, rule=jf.CFGZero(0.1))
    assert (guided.velocity(0.05, jnp.ones(2), jf.Args(1.0, scale=3.0)) == 0).all()
    ```
    """

    zero_before: Array
    predicts: ClassVar[Prediction] = "velocity"

    def __init__(self, zero_before: ArrayLike = 0.0):
        """`zero_before`: the time before which the velocity is zero, `times[1]` for the first step of a grid."""
        self.zero_before = parameter(zero_before, "zero_before", positive=False)

    def __call__(self, t, conditional, other, scale: ArrayLike):
        fit = ratio(inner(conditional, other), inner(other, other))
        moves = jnp.where(t < self.zero_before.astype(jnp.result_type(t)), 0, 1)
        return combine((moves * scale, conditional), (moves * (1 - scale) * fit, other))
