"""Data predictions kept in the range of the data."""

from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, PyTree

from .._field import AbstractField
from .._prediction import Prediction, Target, given
from .._trainable import frozen
from .._types import Event, Time
from .._validate import concrete, parameter
from ._guide import AbstractGuide


class Thresholded(AbstractGuide):
    """A field whose data prediction `D` is kept in `[-limit, limit]`.

    Static: `clip(D, -limit, limit)`. Dynamic, with a `percentile`: `clip(D, -s, s) limit/s` with
    `s = max(limit, percentile of |D|)` over the components of one event.

    Source: Saharia et al. 2022, arXiv:2205.11487, section 2.3.

    ```python
    field = jf.Thresholded(jf.Field(lambda t, x, args: 3 * x, jf.CondOT(), "data"))
    assert (field.data(0.5, jnp.ones(2)) == 1).all()
    ```
    """

    field: AbstractField
    percentile: Array | None = frozen()
    limit: Array = frozen()

    def __init__(self, field: AbstractField, percentile: ArrayLike | None = None, limit: ArrayLike = 1.0):
        """Makes the guide.

        Args:
            field: The field, guided or not.
            percentile: In percent, as 99.5, or `None` for the static threshold.
            limit: The largest absolute value of the data.

        Raises `ValueError` for a percentile outside (1, 100]: at most 1 is a fraction where a percentage belongs.
        """
        self.field = field
        self.percentile = None if percentile is None else parameter(percentile, "percentile", positive=False)
        self.limit = parameter(limit, "limit")

    def __check_init__(self):
        number = concrete(self.percentile)
        if number is not None and not 1 < number <= 100:
            why = "; that looks like a fraction: 0.995 is 99.5 percent" if 0 < number <= 1 else ""
            raise ValueError(f"A percentile must be in percent, above 1 and at most 100. Got {number}{why}.")

    @property
    def sources(self) -> tuple[Prediction, ...]:
        return "data", *self.field.sources

    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        (data,) = self.field.predict(("data",), t, x, args)
        return given(self.path, t, x, (self._cut(data),), ("data",), targets, args)

    def _cut(self, data: PyTree) -> Event:
        reach = self.limit
        if self.percentile is not None:
            sizes = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in jtu.tree_leaves(data)])
            reach = jnp.maximum(reach, jnp.percentile(sizes, self.percentile))
        shrink = self.limit / reach

        def leaf(d):
            s = reach.astype(d.dtype)
            return jnp.clip(d, -s, s) * shrink.astype(d.dtype)

        return jtu.tree_map(leaf, data)
