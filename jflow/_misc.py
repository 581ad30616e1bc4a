"""Small helpers shared by every floor: checks, and linear combinations of events."""

import functools as ft
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree, Shaped


def scalar_time(t: Any) -> Array:
    """`t` as a floating-point scalar array; raises `ValueError` where it is batched."""
    t = jnp.asarray(t)
    if t.ndim != 0:
        raise ValueError(
            f"A time is a scalar: everything is written for one example. Got t of shape {t.shape}; "
            "a batch goes through jax.vmap (or equinox.filter_vmap), over t, x and args together."
        )
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


def parameter(value: Any, name: str, *, positive: bool = True) -> Array:
    """A number that people sweep, as a scalar array of the default float type, checked where it is concrete."""
    if isinstance(value, jax.core.Tracer):
        array = value.astype(jnp.result_type(float))
    else:  # inside jax.jit too, where a constant would become a tracer
        with jax.ensure_compile_time_eval():
            array = jnp.asarray(value, dtype=jnp.result_type(float))
    if array.ndim != 0:
        raise ValueError(f"{name} is a single number. Got an array of shape {array.shape}.")
    number = concrete(array)
    if number is not None and not (np.isfinite(number) and (number > 0 or not positive)):
        raise ValueError(f"{name} is {'a positive' if positive else 'a finite'} number. Got {number}.")
    return array


def concrete(x: Any) -> Any:
    """`x` as a numpy array where its value is known, `None` where it is being traced."""
    if x is None or isinstance(x, jax.core.Tracer):
        return None
    try:
        return np.asarray(x)
    except (jax.errors.TracerArrayConversionError, TypeError):
        return None


def float_type(x: Any) -> Any:
    """The type in which a leaf of an event is computed: its own, float32 where it holds integers."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32


def combine(*terms: tuple[Any, PyTree]) -> PyTree:
    """The linear combination `sum(a * x)` of events, in the `float_type` of the first event's leaves."""

    def leaf(*xs):
        total = ft.reduce(lambda u, v: u + v, (a * x for (a, _), x in zip(terms, xs, strict=True)))
        return total.astype(float_type(xs[0]))

    return jtu.tree_map(leaf, *(x for _, x in terms))


def scale(a: Any, x: PyTree) -> PyTree:
    """`a * x`, leaf by leaf, in the `float_type` of `x`."""
    return combine((a, x))


def cast_like(x: PyTree, like: PyTree, what: str) -> PyTree:
    """`x` in the `float_type`s of `like`; raises `ValueError` where structure or shapes differ."""
    if jtu.tree_structure(x) != jtu.tree_structure(like):
        raise ValueError(
            f"{what} has the structure of the state. Got {jtu.tree_structure(x)} "
            f"for a state {jtu.tree_structure(like)}."
        )

    def leaf(a, b):
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"{what} has the shape of the state. Got {jnp.shape(a)} for a state of shape {jnp.shape(b)}; "
                "if these differ by a leading batch axis, a jax.vmap is missing."
            )
        return jnp.asarray(a).astype(float_type(b))

    return jtu.tree_map(leaf, x, like)


def size(x: PyTree) -> int:
    """Number of components of an event, or of its `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) for leaf in jtu.tree_leaves(x))


def state_dtype(x: PyTree) -> Any:
    """The floating type in which coefficients and times of the state `x` are computed."""
    return jnp.result_type(*map(float_type, jtu.tree_leaves(x)))


def as_state(x: PyTree, dtype: Any = None) -> PyTree:
    """`x` as an event of floating arrays of at least float32 (`dtype` overrides)."""

    def leaf(a):
        a = jnp.asarray(a)
        if dtype is not None:
            return a.astype(dtype)
        return a if a.dtype in (jnp.float32, jnp.float64) else a.astype(jnp.float32)

    return jtu.tree_map(leaf, x)


def safe_sqrt(x: Array) -> Array:
    """The square root, with derivative zero at zero: a noise that is absent has no derivative."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), jnp.where(x == 0, 0, jnp.nan)).astype(x.dtype)


def all_finite(x: PyTree) -> Shaped[Array, ""]:
    """Whether every component of the event is finite."""
    return ft.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jtu.tree_leaves(x)])


def check_key(key: Any, why: str) -> None:
    """Raises `ValueError` where `key` is not one typed key of an implementation that vmaps lane by lane."""
    if key is None:
        raise ValueError(f"{why} takes randomness: pass key=jax.random.key(seed).")
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"A key is a typed key, as jax.random.key(seed) makes it. Got {type(key).__name__}.")
    if key.ndim != 0:
        raise ValueError(f"One example takes one key. Got keys of shape {key.shape}: vmap over them.")
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            "Sample i depends on its key alone, and keys of the 'rbg' implementations draw numbers that depend "
            f"on the batch. Got {jax.random.key_impl(key)}; use jax.random.key(seed, impl='threefry2x32')."
        )


def normal_like(key: Key[Array, ""], x: PyTree) -> PyTree:
    """Standard normals of the shapes and types of `x`, one key a leaf."""
    leaves, treedef = jtu.tree_flatten(x)
    keys = [key] if len(leaves) == 1 else list(jax.random.split(key, len(leaves)))
    draws = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jtu.tree_unflatten(treedef, draws)
