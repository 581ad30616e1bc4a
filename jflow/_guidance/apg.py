"""Adaptive projected guidance."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .._event import combine, safe_sqrt
from .._prediction import Prediction
from .._validate import parameter
from ._rule import AbstractGuidanceRule, inner, ratio


class APG(AbstractGuidanceRule):
    """Adaptive projected guidance: the change along the conditional prediction, which oversaturates, is weakened.

    With `Delta = D_c - D_u` the difference of data predictions, cut to a norm of at most `norm_threshold`,

        D = D_c + (w - 1) (Delta_orthogonal + parallel Delta_parallel),   Delta_parallel = (<Delta, D_c>/|D_c|^2) D_c .

    `parallel = 1` without a threshold is classifier-free guidance.

    Source: Sadat et al. 2024, arXiv:2410.02416, without its momentum; `parallel` is its eta, `norm_threshold` its r.

    ```python
    guided = jf.Guided(jf.Field(lambda t, x, y: x + y, jf.CondOT(), "data"), null=0.0, rule=jf.APG())
    assert guided.data(0.5, jnp.ones(2), jf.Args(1.0, scale=3.0)).shape == (2,)
    ```
    """

    parallel: Array
    norm_threshold: Array | None
    predicts: ClassVar[Prediction] = "data"

    def __init__(self, parallel: ArrayLike = 0.0, norm_threshold: ArrayLike | None = None):
        """Makes the rule.

        Args:
            parallel: The weight of the parallel part.
            norm_threshold: The largest norm of the change, over the components of one event: it grows with their
                number. `None` for no threshold.
        """
        self.parallel = parameter(parallel, "parallel", positive=False)
        self.norm_threshold = None if norm_threshold is None else parameter(norm_threshold, "norm_threshold")

    def __call__(self, t, conditional, other, scale: ArrayLike):
        change = combine((1, conditional), (-1, other))
        along = ratio(inner(change, conditional), inner(conditional, conditional))
        cut = jnp.ones_like(along)
        if self.norm_threshold is not None:
            norm = safe_sqrt(inner(change, change))
            cut = jnp.where(norm > self.norm_threshold, ratio(self.norm_threshold, norm), 1)
        weight = (jnp.asarray(scale) - 1) * cut
        return combine((1 + weight * (self.parallel - 1) * along, conditional), (weight, change))
