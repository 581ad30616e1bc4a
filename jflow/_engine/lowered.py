"""A field whose network is given the state in another type, as half precision, while all else stays wide."""

from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._event import cast_like, rounded
from .._field import AbstractField
from .._prediction import given, heads


class _Lowered(AbstractField):
    """The inner field at the rounded state; conversions take the state as it is."""

    field: AbstractField
    dtype: Any = eqx.field(static=True)

    @property
    def path(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.field.path

    @property
    def predicts(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.field.predicts

    @property
    def sources(self):
        return self.field.sources

    def predict(self, targets, t, x, args=None):
        own = heads(self.predicts)
        values = self.field.predict(own, t, rounded(x, self.dtype), args)
        wide = tuple(
            cast_like(value, x, "A prediction") if jtu.tree_structure(value) == jtu.tree_structure(x) else value
            for value in values
        )
        return given(self.path, t, x, wide, own, targets, args)

    def evaluations(self, args=None, t=None):
        return self.field.evaluations(args, t)

    def undefined(self, t):
        return self.field.undefined(t)


def lowered(field: AbstractField, dtype: Any) -> AbstractField:
    """The field with its innermost fields at the rounded state; as it is for `dtype=None`."""
    if dtype is None:
        return field

    def is_inner(node):
        return isinstance(node, AbstractField) and node is not field

    if not any(map(is_inner, jtu.tree_leaves(field, is_leaf=is_inner))):
        return _Lowered(field, dtype)  # pyright: ignore[reportCallIssue]
    return jtu.tree_map(lambda node: lowered(node, dtype) if is_inner(node) else node, field, is_leaf=is_inner)
