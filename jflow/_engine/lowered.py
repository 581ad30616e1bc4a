"""A field whose network is given the state in another type, as half precision. Everything else stays in float32."""

from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._event import cast_like, rounded
from .._field import AbstractField, AbstractWrappedField, Preconditioned
from .._flow_map import FlowMap
from .._prediction import given, heads


class _Lowered(AbstractWrappedField):
    """Calls the inner field with the rounded state, and converts its predictions with the state as it is."""

    dtype: Any = eqx.field(static=True)

    def predict(self, targets, t, x, args=None):
        own = heads(self.predicts)
        values = self.field.predict(own, t, rounded(x, self.dtype), args)
        like = jtu.tree_structure(x)
        wide = tuple(cast_like(v, x, "A prediction") if jtu.tree_structure(v) == like else v for v in values)
        return given(self.path, t, x, wide, own, targets, args)


class _LoweredNet(eqx.Module):
    """A network behind scalings or a jump, which stay wide, at the rounded input."""

    net: Any
    dtype: Any = eqx.field(static=True)

    def __call__(self, *given):
        *times, x, args = given
        return self.net(*times, rounded(x, self.dtype), args)


def lowered(field: AbstractField, dtype: Any) -> AbstractField:
    """The field with each innermost field called at the rounded state; the field itself if `dtype` is `None`."""
    if dtype is None:
        return field

    if isinstance(field, (FlowMap, Preconditioned)):
        return eqx.tree_at(lambda field: field.net, field, _LoweredNet(field.net, dtype))

    def is_inner(node):
        return isinstance(node, AbstractField) and node is not field

    if not any(map(is_inner, jtu.tree_leaves(field, is_leaf=is_inner))):
        return _Lowered(field, dtype)  # pyright: ignore[reportCallIssue]
    return jtu.tree_map(lambda node: lowered(node, dtype) if is_inner(node) else node, field, is_leaf=is_inner)
