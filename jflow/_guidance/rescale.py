"""Guidance that keeps the spread of the conditional prediction."""

from typing import ClassVar

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike

from .._event import safe_sqrt, size
from .._kinds import check_kinds
from .._prediction import Prediction, as_prediction
from .._validate import parameter
from ._rule import AbstractGuidanceRule, extrapolate, inner, ratio


class Rescaled(AbstractGuidanceRule):
    """Rescaled guidance: with `D` the guided data prediction and `D_c` the conditional one,

        phi D std(D_c)/std(D) + (1 - phi) D ,

    the standard deviation over the components of one event; a `D` without any, as one of a single component, stays as
    it is. `D` is classifier-free, or of another `rule`.

    Source: Lin et al. 2023, arXiv:2305.08891, section 3.4 (there of whatever the network predicts; here of the data).

    ```python
    field = jf.Field(lambda t, x, y: x * y, jf.CondOT(), "data")
    guided = jf.Guided(field, null=0.0, rule=jf.Rescaled(1.0))
    data = guided.data(0.5, jnp.arange(3.0), jf.Args(1.0, scale=3.0))
    assert jnp.allclose(data.std(), jnp.arange(3.0).std())
    ```
    """

    phi: Array
    rule: AbstractGuidanceRule | None
    predicts: ClassVar[Prediction] = "data"

    def __init__(self, phi: ArrayLike = 0.7, rule: AbstractGuidanceRule | None = None):
        """Makes the rule.

        Args:
            phi: From 0 (no rescaling) to 1.
            rule: How the prediction to rescale is guided; `None` for classifier-free guidance.

        Raises `ValueError` for a rule on another prediction than the data.
        """
        check_kinds(Rescaled.__init__, locals())
        self.phi, self.rule = parameter(phi, "phi", positive=False), rule

    def __check_init__(self):
        if self.rule is not None and (name := as_prediction(self.rule.predicts).name) != "data":
            raise ValueError(
                "Rescaled must have a rule on data predictions, as jflow.APG(). "
                f"Got {type(self.rule).__name__}, on {name!r}."
            )

    def __call__(self, t, conditional, other, scale: ArrayLike):
        guided = (
            extrapolate(conditional, other, scale) if self.rule is None else self.rule(t, conditional, other, scale)
        )
        spread = _std(guided)
        change = jnp.where(spread == 0, 0, ratio(_std(conditional), spread) - 1)
        return jtu.tree_map(lambda d: (d * (1 + self.phi * change)).astype(d.dtype), guided)


def _std(x):
    """The standard deviation over all components of an event, exactly zero where they are equal."""
    n, shift = size(x), jtu.tree_leaves(x)[0].reshape(-1)[0]
    x = jtu.tree_map(lambda leaf: leaf - shift, x)
    mean = inner(x, jtu.tree_map(jnp.ones_like, x)) / n
    centred = jtu.tree_map(lambda leaf: leaf - mean, x)
    return safe_sqrt(inner(centred, centred) / n)
