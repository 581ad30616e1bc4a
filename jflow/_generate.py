"""Many samples, in chunks, with one compilation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ._field import AbstractField
from ._misc import check_key
from ._parallel import check_split, count_devices, shard_batch
from ._sample import plan, sample
from ._types import PRNGKey, Solution


def generate(
    field: AbstractField,
    key: PRNGKey,
    n: int,
    shape: Any,
    *,
    args: Any = None,
    args_in_axes: Any = None,
    batch_size: int = 1024,
    mesh: Mesh | None = None,
    progress: bool = True,
    **options: Any,
) -> Solution:
    """Draws `n` samples; sample `i` is `sample(field, fold_in(key, i), shape, args=args_i, **options)`.

    Sample `i` depends on `(key, i)` alone, whatever the batch size, the chunk and the devices.

    **Arguments:**

    - `args`, `args_in_axes`: the condition, and which of its leaves have a leading axis of length `n` (0) or are
      shared (`None`): a pytree prefix, as `in_axes` of `jax.vmap`.
    - `batch_size`: samples a chunk; chunks of one size compile once.
    - `mesh`: devices over whose first axis each chunk is split.
    - `progress`: a progress bar, on a terminal.
    - `options`: those of `sample`.

    **Returns:** a `Solution` of numpy arrays with a leading axis of length `n`.

    Raises `ValueError` for `n < 1`, a batch that does not split over the mesh, or conditions of another length.
    """
    check_key(key, "generate")
    for name, value in (("n", n), ("batch_size", batch_size)):
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} is an integer of at least 1. Got {value!r}.")
    devices = count_devices(mesh)
    batch_size = min(batch_size, -(-n // devices) * devices)
    check_split(batch_size, devices)
    if not options.get("log_prob"):
        plan(field, **options)
    shared, split = _split_args(args, args_in_axes, n)
    options = jtu.tree_map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, (float, np.ndarray)) else leaf, options)
    shape = tuple(shape) if isinstance(shape, list) else shape
    chunks = []
    with tqdm(total=n, desc="generate", unit="sample", disable=None if progress else True) as bar:
        for start in range(0, n, batch_size):
            index = np.minimum(np.arange(start, start + batch_size), n - 1)
            part = jtu.tree_map(lambda leaf: leaf[index], split)  # noqa: B023
            out = _chunk(field, key, shared, options, _Static(shape, mesh), jnp.asarray(index, jnp.uint32), part)
            kept = min(batch_size, n - start)
            chunks.append(jtu.tree_map(lambda leaf: np.asarray(leaf)[:kept], out))  # noqa: B023
            bar.update(kept)
    return jtu.tree_map(lambda *leaves: np.concatenate(leaves), *chunks)


class _Static(eqx.Module):
    shape: Any = eqx.field(static=True)
    mesh: Any = eqx.field(static=True)


@eqx.filter_jit
def _chunk(field, key, shared, options, static, index, part):
    """The samples of one chunk."""
    arrays, rest = eqx.partition((field, key, shared, options), eqx.is_array)

    def many(arrays, index, part):
        field, key, shared, options = eqx.combine(arrays, rest)

        def one(i, part):
            condition = eqx.combine(part, shared, is_leaf=lambda leaf: leaf is None)
            return sample(field, jr.fold_in(key, i), static.shape, args=condition, **options)

        return jax.vmap(one)(index, part)

    if static.mesh is not None:
        many = shard_batch(many, static.mesh, 2)
    return many(arrays, index, part)


def _split_args(args, axes, n):
    """The condition as two pytrees alike: what every sample shares, and what has a leading axis of length `n`."""
    args = jtu.tree_map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, (int, float)) else leaf, args)
    try:
        flags = jtu.tree_map(
            lambda axis, sub: jtu.tree_map(lambda _: axis is not None, sub),
            axes,
            args,
            is_leaf=lambda leaf: leaf is None,
        )
    except ValueError as error:
        raise ValueError(
            f"args_in_axes is a pytree prefix of args, as (0, None) for (labels, scale). Got {axes!r}: {error}"
        ) from None
    for axis in jtu.tree_leaves(axes):
        if axis != 0:
            raise ValueError(f"args_in_axes holds 0 (one value a sample) and None (shared). Got {axis!r}.")
    batched, shared = eqx.partition(args, flags)
    for leaf in jtu.tree_leaves(batched):
        if np.ndim(leaf) < 1 or np.shape(leaf)[0] != n:
            raise ValueError(
                f"A condition with args_in_axes 0 has one value a sample: a leading axis of length n = {n}. "
                f"Got shape {np.shape(leaf)}."
            )
    return shared, jtu.tree_map(np.asarray, batched)
