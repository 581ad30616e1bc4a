"""The condition of a field, with named entries beside it."""

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree


@jtu.register_pytree_with_keys_class
class Args:
    """A condition, and entries that guides, paths, sources, losses and metrics read by name.

    A guide takes its entry and hands the rest on; the network gets the bare condition. `scale` is that of guidance,
    `negative` the condition of each sample to move away from, `mask` marks the valid part of a padded event. It is a
    pytree that converts and checks nothing, so that it serves as `in_axes` too: `Args(0, scale=None)`.

    ```python
    args = jf.Args(3, scale=2.0)
    assert args.condition == 3 and args.get("scale") == 2.0
    ```
    """

    def __init__(self, condition: PyTree = None, **entries: PyTree):
        """`condition` any pytree; `entries` any pytrees, by name."""
        self.condition, self.entries = condition, entries

    @classmethod
    def of(cls, args: PyTree) -> "Args":
        """`args` as `Args`: as it is, or a bare condition without entries."""
        return args if isinstance(args, Args) else cls(args)

    def get(self, name: str) -> PyTree:
        """The entry of that name, `None` where there is none."""
        return self.entries.get(name)

    def take(self, name: str) -> tuple[PyTree, "Args"]:
        """The entry of that name (`None` where there is none), and the rest."""
        rest = {key: value for key, value in self.entries.items() if key != name}
        return self.entries.get(name), Args(self.condition, **rest)

    def replace(self, condition: PyTree) -> "Args":
        """The same entries beside another condition."""
        return Args(condition, **self.entries)

    def tree_flatten_with_keys(self) -> tuple[PyTree, tuple[str, ...]]:
        """The parts as JAX needs them, with their names."""
        names = tuple(sorted(self.entries))
        children = [(jtu.GetAttrKey("condition"), self.condition)]
        children += [(jtu.GetAttrKey(name), self.entries[name]) for name in names]
        return children, names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: PyTree) -> "Args":
        """The object again, as JAX makes it: nothing is checked."""
        condition, *values = children
        return cls(condition, **dict(zip(names, values, strict=True)))

    def __repr__(self) -> str:
        entries = "".join(f", {name}={value!r}" for name, value in self.entries.items())
        return f"Args({self.condition!r}{entries})"


def bare(args: PyTree) -> PyTree:
    """The bare condition, for the network: what is left when every guide has taken its entry.

    Raises `ValueError` for an entry that nobody read; `mask` is read beside the network.

    ```python
    assert jf.bare(jf.Args(3, mask=jnp.ones(4))) == 3 and jf.bare(3) == 3
    ```
    """
    if not isinstance(args, Args):
        return args
    unread = sorted(set(args.entries) - {"mask"})
    if unread:
        raise ValueError(
            f"Every entry of Args must be read by a guide. Got {', '.join(unread)}, which no guide of this field "
            "reads: wrap the field, as jflow.Guided(field, null) for scale and negative, or leave the entry out."
        )
    return args.condition


def masked(args: PyTree) -> PyTree:
    """The entry `mask`, `None` where there is none."""
    return args.get("mask") if isinstance(args, Args) else None


def present(x: PyTree, args: PyTree) -> PyTree:
    """Which components of an event are there: a boolean a component, `None` where there is no mask.

    Raises `ValueError` for a mask that does not go along the first axes of the event.
    """
    mask = masked(args)
    if mask is None:
        return None

    def leaf(a, m):
        array = eqx.is_array_like(m)
        shape = jnp.shape(m) if array else (0, *a.shape)
        if len(shape) > len(a.shape) or any(k not in (1, n) for k, n in zip(shape, a.shape, strict=False)):
            raise ValueError(
                "A mask must go along the first axes of the event, one entry for each of its points or components; "
                f"one array, or one a leaf. Got {f'shape {shape}' if array else type(m).__name__} for an event "
                f"of shape {a.shape}; jflow.generate takes one for each sample by args_in_axes, as Args(None, mask=0)."
            )
        return jnp.broadcast_to((jnp.asarray(m) != 0).reshape(shape + (1,) * (len(a.shape) - len(shape))), a.shape)

    alike = jtu.tree_structure(mask) == jtu.tree_structure(x)
    return jtu.tree_map(leaf, x, mask) if alike else jtu.tree_map(lambda a: leaf(a, mask), x)
