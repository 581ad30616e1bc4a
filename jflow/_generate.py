"""Many samples, in chunks, with one compilation."""

from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ._field import AbstractField
from ._lanes import continuous, takes_lanes
from ._misc import as_state, check_key
from ._parallel import check_split, count_devices, shard_batch
from ._sample import draw_start, plan, sample
from ._types import PRNGKey, Solution

QUEUE = 16  # samples of a lane between two reports to the host: they bound the memory


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

    Sample `i` depends on `(key, i)` alone, up to rounding whatever the batch size, the chunk and the devices. An
    adaptive solve of the ODE (`t0=`, `t1=`, an explicit Runge-Kutta solver, a `PIDController`) of which the end alone
    is asked for runs in lanes: a finished sample leaves its place in the batch to the next, and none waits for the
    slowest.

    **Arguments:**

    - `args`, `args_in_axes`: the condition, and which of its leaves have a leading axis of length `n` (0) or are
      shared (`None`): a pytree prefix, as `in_axes` of `jax.vmap`. Integers stay integers, as labels are.
    - `batch_size`: samples a chunk, or lanes; chunks of one size compile once.
    - `mesh`: devices over whose first axis each chunk is split, or which share the lanes.
    - `progress`: a progress bar, on a terminal.
    - `options`: those of `sample`.

    **Returns:** a `Solution` of numpy arrays with a leading axis of length `n`.

    Raises `ValueError` for `n < 1`, a batch that does not split over the mesh, conditions of another length, or inside
    `jax.jit` and its kin.
    """
    check_key(key, "generate")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jtu.tree_leaves((field, key, args, options, jnp.zeros(())))):
        raise ValueError(
            "generate is compiled inside and returns numpy arrays. Got a traced value, as inside jax.jit, jax.vmap or "
            "jax.grad: call it outside, or map there over keys, jax.vmap(lambda k: jflow.sample(field, k, shape, ...))."
        )
    for name, value in (("n", n), ("batch_size", batch_size)):
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} is an integer of at least 1. Got {value!r}.")
    devices = count_devices(mesh)
    batch_size = min(batch_size, -(-n // devices) * devices)
    check_split(batch_size, devices)
    pooled = takes_lanes(**options)
    options = _array_options(options)
    _, _, end = plan(field, **options)
    options |= {} if end is None else {"end": end}  # known here, where the grid is
    shared, split = _split_args(args, args_in_axes, n)
    shape = tuple(shape) if isinstance(shape, list) else shape
    static = _Static(shape, mesh, batch_size // devices if pooled else None)
    size = batch_size * min(QUEUE, -(-n // batch_size)) if pooled else batch_size
    order = np.arange(size).reshape(-1, devices).T.reshape(-1)  # the devices share the last samples too
    chunks = []
    with tqdm(total=n, desc="generate", unit="sample", disable=None if progress else True) as bar:
        for start in range(0, n, size):
            index = start + order
            part = jtu.tree_map(lambda leaf: leaf[np.minimum(index, n - 1)], split)  # noqa: B023
            out = _chunk(field, key, shared, options, static, jnp.uint32(n), jnp.asarray(index, jnp.uint32), part)
            kept = np.argsort(order)[: n - start]
            chunks.append(jtu.tree_map(lambda leaf: np.asarray(leaf)[kept], out))  # noqa: B023
            bar.update(len(kept))
    return jtu.tree_map(lambda *leaves: np.concatenate(leaves), *chunks)


class _Static(eqx.Module):
    shape: Any = eqx.field(static=True)
    mesh: Any = eqx.field(static=True)
    lanes: int | None = eqx.field(static=True)  # of each device; None for chunks


@eqx.filter_jit
def _chunk(field, key, shared, options, static, n, index, part):
    """The samples of one chunk, those below `n`."""
    arrays, rest = eqx.partition((field, key, shared, options), eqx.is_array)

    def many(arrays, n, index, part):
        field, key, shared, options = eqx.combine(arrays, rest)

        def condition(part):
            return eqx.combine(part, shared, is_leaf=lambda leaf: leaf is None)

        def one(i, part):
            return sample(field, jr.fold_in(key, i), static.shape, args=condition(part), **options)

        if static.lanes is None:
            return jax.vmap(one)(jnp.minimum(index, n - 1), part)
        return _pool(field, key, static, options, n, index, part, condition)

    if static.mesh is not None:
        many = shard_batch(many, static.mesh, 2)
    return many(arrays, n, index, part)


def _pool(field, key, static, options, n, index, part, condition):
    """The same samples by continuous batching."""
    problem, solver, _ = plan(field, **options)
    shape, t0, base, dtype = static.shape, options["t0"], options.get("base"), options.get("dtype")

    def start(slot):
        key_start, _ = jr.split(jr.fold_in(key, index[slot]))
        return as_state(draw_start(field, key_start, shape, t0, base, dtype), dtype)

    def args(slot):
        return condition(jtu.tree_map(lambda leaf: leaf[slot], part))

    return continuous(
        problem, start, args, len(index), jnp.sum(index < n, dtype=jnp.int32), t0, options["t1"], lanes=static.lanes,
        dt0=options.get("dt0"), solver=solver, controller=options.get("stepsize_controller"),
        max_steps=options.get("max_steps", 4096),
    )  # fmt: skip


def _array_options(options):
    """The options with arrays for the numbers that people sweep, so that new values do not retrace."""
    numbers = {
        name: jnp.asarray(value, jnp.result_type(float, *jtu.tree_leaves(value)))
        for name in ("times", "t0", "t1", "dt0", "eta")
        if not ((value := options.get(name)) is None or callable(value))
    }
    counts = bool, int, np.bool_, np.integer
    return jtu.tree_map(lambda leaf: leaf if isinstance(leaf, counts) else _array(leaf), options | numbers)


def _array(leaf):
    """A number or an array as an array of a strong type: a weak one would be another program."""
    return jnp.asarray(leaf, jnp.asarray(leaf).dtype) if eqx.is_array_like(leaf) else leaf


def _split_args(args, axes, n):
    """The condition as two pytrees alike: what every sample shares, and what has a leading axis of length `n`."""
    args = jtu.tree_map(_array, args)
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
