"""Data predictions kept in the range of the data."""

from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, PyTree

from .._field import AbstractNetwork
from .._misc import concrete, parameter
from .._types import Event
from ._guide import AbstractGuide, apply, ask, turn


class Thresholded(AbstractGuide):
    """A field whose data prediction `D` is kept in `[-limit, limit]`.

    Static: `clip(D, -limit, limit)`. Dynamic, with a `percentile`: `clip(D, -s, s) limit/s` with
    `s = max(limit, percentile of |D|)` over the components of one event.

    Source: Saharia et al. 2022, arXiv:2205.11487, section 2.3.
    """

    field: AbstractNetwork
    percentile: Array | None
    limit: Array

    def __init__(self, field: AbstractNetwork, percentile: ArrayLike | None = None, limit: ArrayLike = 1.0):
        """`field` the field, guided or not; `percentile` in percent, as 99.5, or `None` for the static threshold;
        `limit` the largest absolute value of the data.

        Raises `ValueError` for a percentile outside (1, 100]: at most 1 is a fraction where a percentage belongs.
        """
        self.field = field
        self.percentile = None if percentile is None else parameter(percentile, "percentile", positive=False)
        self.limit = parameter(limit, "limit")

    def __check_init__(self):
        number = concrete(self.percentile)
        if number is not None and not 1 < number <= 100:
            why = "; that looks like a fraction: 0.995 is 99.5 percent" if 0 < number <= 1 else ""
            raise ValueError(f"A percentile is in percent, above 1 and at most 100. Got {number}{why}.")

    @property
    def sources(self):
        return "data", *self.field.sources

    def give(self, target, t, x, args: Any):
        value = apply(self._cut, ask(self.field, "data", t, x, args))
        return turn(self.path, t, x, value, "data", target)

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
