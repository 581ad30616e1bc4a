"""Which arrays are trained: all but those that the class that owns them declares frozen."""

from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree


def frozen(**options: PyTree) -> PyTree:
    """A field of a module whose arrays are never trained, as `sigma_data: Array = jf.frozen()`.

    `options` are those of `equinox.field`.

    ```python
    class Scaled(eqx.Module):
        net: eqx.nn.Linear
        scale: jax.Array = jf.frozen()

    mask = jf.trainable(Scaled(eqx.nn.Linear(2, 2, key=jr.key(0)), jnp.ones(2)))
    assert mask.net.weight and not mask.scale
    ```
    """
    return eqx.field(metadata={"frozen": True}, **options)


def trainable(tree: PyTree) -> PyTree:
    """Which leaves are trained: a pytree of booleans with the structure of `tree`.

    True on every inexact array but those in a field that its class declares `frozen`: the constants of built-in
    paths and sources, `sigma_data`, null conditions, classifiers, the weak field of a guided one. In flax modules only
    the `Param`s. Gradient, optimiser and averages of weights all use this one function, as
    `equinox.partition(field, trainable(field))`.

    ```python
    field = jf.Preconditioned(jf.nn.MLP(2, rngs=nnx.Rngs(0)), jf.VE(), sigma_data=0.5)
    assert not jf.trainable(field).sigma_data
    ```
    """
    return jtu.tree_map(_flags, tree, is_leaf=_owns)


def _owns(node: Any) -> bool:
    """Whether a node says itself what of it is trained."""
    # `isinstance` would ask every subclass of Module, one by one
    return eqx.Module in type(node).__mro__ or _flax_kind(node) is not None


def _flags(node: Any) -> Any:
    kind = _flax_kind(node)
    if kind is not None:
        if kind != "Module":
            return jtu.tree_map(lambda leaf: kind == "Param" and eqx.is_inexact_array(leaf), node)
        inside = {"is_leaf": lambda child: child is not node and _owns(child)}
        return jtu.tree_map(lambda child: _owns(child) and _flags(child), node, **inside)
    if eqx.Module not in type(node).__mro__:
        return eqx.is_inexact_array(node)
    paths, treedef = jtu.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
    declared = type(node).__dataclass_fields__
    flags = []
    for path, child in paths:
        field = declared.get(str(path[0].name)) if isinstance(path[0], jtu.GetAttrKey) else None
        still = field is not None and field.metadata.get("frozen", False)
        flags.append(jtu.tree_map(lambda _: False, child) if still else trainable(child))
    return jtu.tree_unflatten(treedef, flags)


def _flax_kind(node: Any) -> str | None:
    """`"Param"` for a parameter of flax's, `"Variable"` for another variable, `"Module"` for what holds these.

    The names of the classes decide, so flax is not imported. `None` is for anything else.

    """
    names = [base.__name__ for base in type(node).__mro__ if base.__module__.startswith("flax.nnx.")]
    return next((kind for kind in ("Param", "Variable", "Module") if kind in names), None)
