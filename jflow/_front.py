"""The eager front of the verbs: a call outside of `jax.jit` compiles once, and never uses outdated numbers.

A verb has two parts. Its front checks the arguments, and sees values. Its core is one function that is compiled here,
and sees tracers. The arrays of the operands are arguments of the compiled program. All else (structures, activations,
names) is static, and a second call with the same statics compiles nothing.

Under an outer `jax.jit` the core is traced into the caller's program. Then the front sees tracers too, where the caller
passed them.
"""

import functools as ft
from collections.abc import Callable, Hashable
from typing import Any

import diffrax as dfx
import jax
import jax.core
import jax.dtypes
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ._types import Noun
from ._validate import shown


def run(core: Callable[..., Any], operands: tuple[Any, ...], *static: Any) -> Any:
    """`core(*operands, *static)`, compiled once for operands of one structure, shapes and types."""
    program, given = prepare(core, operands, *static)
    return program(*given, ()).unpack()


def prepare(core: Callable[..., Any], operands: tuple[Any, ...], *static: Any) -> tuple[Callable[..., Any], Any]:
    """A program and its first arguments: `program(*given, more).unpack()` is `core(*operands, *more, *static)`, for a
    tuple `more` of pytrees of arrays.

    A noun may hold a plain function, which may read globals. A program from an earlier call would use the old values of
    these globals. So operands with such a function get a new `jax.jit`, which is freed together with the returned
    program. It acts on flat leaves: a new `equinox.filter_jit` for each call, or none, would keep about 2 MB a call.
    """
    leaves, treedef = jtu.tree_flatten(operands)
    arrays = [canonical(leaf) for leaf in leaves if _is_array(leaf)]
    rest = tuple(None if _is_array(leaf) else (type(leaf), leaf) for leaf in leaves)
    if _holds_function(operands, treedef, rest):
        fresh = jax.jit(
            lambda arrays, more: _Packed.of(core(*_filled(treedef, rest, arrays), *more, *static)), inline=True
        )
        return fresh, (arrays,)
    return _kept, (core, treedef, rest, static, arrays)


@ft.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _kept(core, treedef, rest, static, arrays, more):
    return _Packed.of(core(*_filled(treedef, rest, arrays), *more, *static))


def _filled(treedef, rest, arrays):
    """The operands, from their arrays and the rest."""
    arrays = iter(arrays)
    return jtu.tree_unflatten(treedef, [next(arrays) if leaf is None else leaf[1] for leaf in rest])


@jtu.register_pytree_node_class
class _Packed:
    """A result of a compiled function. Its arrays are outputs of the program; its other leaves are static."""

    def __init__(self, arrays: Any, rest: Any, treedef: Any):
        self.arrays, self.rest, self.treedef = arrays, rest, treedef

    @classmethod
    def of(cls, tree: PyTree) -> "_Packed":
        leaves, treedef = jtu.tree_flatten(tree)
        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        return cls(arrays, tuple(None if _is_array(leaf) else (leaf,) for leaf in leaves), treedef)

    def unpack(self) -> Any:
        arrays = iter(self.arrays)
        return jtu.tree_unflatten(self.treedef, [next(arrays) if leaf is None else leaf[0] for leaf in self.rest])

    def tree_flatten(self):
        return (self.arrays,), (self.rest, self.treedef)

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(children[0], *aux)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def canonical(leaf: Any) -> Any:
    """An array in the type that it has on a device: inside an outer jit JAX may keep a numpy array in its own.

    Raises `ValueError` where that type does not hold its numbers: an integer must not wrap around in silence.
    """
    if isinstance(leaf, jax.Array):
        if not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
            raise ValueError("An array must still be there. Got one that went into jflow.train.step: copy it before.")
        return leaf
    leaf = np.asarray(leaf)
    try:
        kind = jax.dtypes.canonicalize_dtype(leaf.dtype)
    except TypeError:
        raise TypeError(f"An array must be of numbers. Got one of {leaf.dtype}.") from None
    with np.errstate(over="ignore"):
        array = np.asarray(leaf, kind)
    if kind != leaf.dtype and (array != leaf if leaf.dtype.kind in "iu" else np.isinf(array) & ~np.isinf(leaf)).any():
        raise ValueError(
            f"The numbers of an array must fit the type on a device, {kind}. Got {leaf.max()}: set jax_enable_x64."
        )
    return array


_HOLDS: dict[Any, bool] = {}


def _holds_function(operands: Any, treedef: Any, rest: Any) -> bool:
    """Whether a noun among the operands holds a plain function.

    The answer is stored by the structure and the types of the operands, so that no function is kept alive.
    """
    key = treedef, tuple(leaf and (leaf[0], leaf[1] is _OWN) for leaf in rest)
    if (known := _HOLDS.get(key)) is None:
        if len(_HOLDS) > 1024:
            _HOLDS.clear()
        known = _HOLDS[key] = any(map(_holds, jtu.tree_leaves(operands, is_leaf=_keeper)))
    return known


def _keeper(node: Any) -> bool:
    """Whether a node is an object whose functions are the user's: a noun, or diffrax's saves and events."""
    return isinstance(node, (Noun, dfx.SubSaveAt, dfx.Event))


def _holds(node: Any) -> bool:
    if not _keeper(node):
        return False
    children = jtu.tree_leaves(
        node, is_leaf=lambda child: child is not node and not isinstance(child, (tuple, dict, list))
    )
    return any(_is_plain(child) or any(map(_holds, jtu.tree_leaves(child, is_leaf=_keeper))) for child in children)


_OWN = dfx.SubSaveAt(t1=True).fn
"""diffrax's own function of what to save."""


def _is_plain(child: Any) -> bool:
    return callable(child) and jtu.all_leaves([child]) and child is not _OWN


def numbers(tree: PyTree, *, integers: bool = False) -> PyTree:
    """A pytree with arrays in place of its Python floats and, with `integers`, of its integers.

    New values then need no new program. All arrays get a strong type, since a weak type would be another program.
    """
    kinds = (float, int, np.ndarray, np.generic) if integers else float

    def leaf(value):
        if isinstance(value, kinds) and not isinstance(value, bool):
            return canonical(value)
        if not isinstance(value, (jax.Array, np.ndarray, Hashable)):
            raise TypeError(f"A condition must be of arrays, numbers and names. Got {shown(value)} in it.")
        return value.astype(value.dtype) if isinstance(value, jax.Array) and value.aval.weak_type else value

    return jtu.tree_map(leaf, tree)


def as_arrays(args: PyTree) -> PyTree:
    """A condition, with arrays for its numbers."""
    return numbers(args, integers=True)
