"""States: events as arrays of one type, and their arithmetic leaf by leaf."""

import functools as ft
import math

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree, Shaped

from ._types import Checked, DType, DTypeLike, Shape
from ._validate import as_array


def float_type(x: PyTree) -> DTypeLike:
    """The type in which a leaf of an event is computed: its own, float32 where it holds integers."""
    dtype = jnp.result_type(x)
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32


def combine(*terms: tuple[PyTree, PyTree]) -> PyTree:
    """The linear combination `sum(a * x)` of events, in the `float_type` of the first event's leaves."""
    if len(kinds := {jtu.tree_structure(x) for _, x in terms}) > 1:
        raise ValueError(f"Events that are combined must have one structure. Got {', '.join(map(str, kinds))}.")

    def leaf(*xs):
        xs = [as_array(x, "An event") for x in xs]
        if len(shapes := {x.shape for x in xs}) > 1:
            raise ValueError(f"Events that are combined must have one shape. Got {', '.join(map(str, shapes))}.")
        total = ft.reduce(lambda u, v: u + v, (a * x for (a, _), x in zip(terms, xs, strict=True)))
        return total.astype(float_type(xs[0]))

    return jtu.tree_map(leaf, *(x for _, x in terms))


def scale(a: PyTree, x: PyTree) -> PyTree:
    """`a * x`, leaf by leaf, in the `float_type` of `x`."""
    return combine((a, x))


def cast_like(x: PyTree, like: PyTree, what: str) -> PyTree:
    """`x` in the `float_type`s of `like`; raises `ValueError` where structure or shapes differ."""
    if (own := jtu.tree_structure(x)) != (other := jtu.tree_structure(like)):
        raise ValueError(f"{what} must have the structure of the state. Got {own} for a state {other}.")

    def leaf(a, b):
        a = as_array(a, what)
        if a.shape != jnp.shape(b):
            raise ValueError(
                f"{what} must have the shape of the state. Got {a.shape} for a state of shape {jnp.shape(b)}; "
                "if these differ by a leading batch axis, a jax.vmap is missing, or args_in_axes= of jflow.generate."
            )
        return a.astype(float_type(b))

    return jtu.tree_map(leaf, x, like)


def size(x: PyTree) -> int:
    """Number of components of an event, or of its `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) for leaf in jtu.tree_leaves(x))


def shape_of(x: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types of an event."""
    return jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)


def state_dtype(x: PyTree) -> DTypeLike:
    """The floating type in which coefficients and times of the state `x` are computed: float32 or wider."""
    return joined(jnp.float32, *map(float_type, jtu.tree_leaves(x)))


def joined(*kinds: DTypeLike) -> np.dtype:
    """The type that holds all of these, whatever rule of implicit promotion JAX follows."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*kinds)


def as_state(x: PyTree, what: str = "A state", *, letters: bool = False) -> PyTree:
    """`x` as an event of float32 or float64 arrays; on a path of letters, integers stay as they are.

    Raises `ValueError` for an integer leaf elsewhere: rounding a state to integers at each step is never meant.
    """

    def leaf(a):
        a = as_array(a, what)
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            if letters:
                return a
            raise ValueError(
                f"{what} must be of a floating-point type. Got {a.dtype}: scale pixels to [-1, 1] "
                "(jflow.data.from_array does), or pass x.astype(jnp.float32)."
            )
        return a if a.dtype in (jnp.float32, jnp.float64) else a.astype(jnp.float32)

    state = jtu.tree_map(leaf, x)
    if not size(state):
        raise ValueError(f"{what} must have at least one component. Got {x!r}: pass an array of the event's shape.")
    return state


def event_like(shape: Checked[Shape], *, letters: bool = False) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types of the state of an event's shape: a tuple of integers, or a pytree of `ShapeDtypeStruct`."""
    if isinstance(shape, (tuple, list)) and all(isinstance(n, (int, np.integer)) for n in shape):
        shape = jax.ShapeDtypeStruct(tuple(shape), jnp.int32 if letters else jnp.float32)
    leaves = jtu.tree_leaves(shape)
    known = all(isinstance(leaf, jax.ShapeDtypeStruct) and min(leaf.shape, default=0) >= 0 for leaf in leaves)
    if not (known and size(shape)):
        raise ValueError(
            f"shape must be that of one event, as (28, 28, 1), or a pytree of jax.ShapeDtypeStruct. Got {shape!r}."
        )

    def wide(leaf):
        if not (letters or jnp.issubdtype(leaf.dtype, jnp.inexact)):
            raise ValueError(f"An event must be of a floating-point type, or letters. Got {leaf.dtype}.")
        narrow = jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype != jnp.float64
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if narrow else leaf.dtype)

    return jtu.tree_map(wide, shape)


def widened(x: PyTree, dtype: DType) -> PyTree:
    """The leaves of a state, or of its `jax.ShapeDtypeStruct`s, in a type that is not narrower than `dtype`."""

    def leaf(a, dtype):
        wide = joined(a.dtype, dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a.dtype
        return jax.ShapeDtypeStruct(a.shape, wide) if isinstance(a, jax.ShapeDtypeStruct) else a.astype(wide)

    return x if dtype is None else jtu.tree_map(lambda a: leaf(a, dtype), x)


def rounded(x: PyTree, dtype: DType) -> PyTree:
    """The floating-point leaves of `x` in another type."""
    return jtu.tree_map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a, x)


def safe_sqrt(x: Array) -> Array:
    """The square root, with derivative zero at zero: a noise that is absent has no derivative."""
    positive = x > 0
    rest = jax.lax.stop_gradient(jnp.minimum(x, 0))  # NaN where it is negative, and no NaN is written down
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), jnp.sqrt(rest))


def all_finite(x: PyTree) -> Shaped[Array, ""]:
    """Whether every component of the event is finite."""
    return ft.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jtu.tree_leaves(x)])


def normal_like(key: Key[Array, ""], x: PyTree) -> PyTree:
    """Standard normals of the shapes and types of `x`, one key a leaf."""
    leaves, treedef = jtu.tree_flatten(x)
    keys = [key] if len(leaves) == 1 else list(jax.random.split(key, len(leaves)))
    draws = [jax.random.normal(k, leaf.shape, float_type(leaf)) for k, leaf in zip(keys, leaves, strict=True)]
    return jtu.tree_unflatten(treedef, draws)


def row(tree: PyTree, i: PyTree) -> PyTree:
    """The `i`-th row of every leaf."""
    return jtu.tree_map(lambda leaf: leaf[i], tree)
