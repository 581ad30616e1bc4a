"""Many examples, in chunks, with one compilation."""

import functools as ft
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from tqdm import tqdm

from ._engine import adaptive_equation, continuous, lowered, takes_lanes
from ._event import event_like, widened
from ._event import size as event_size
from ._field import AbstractField
from ._front import as_arrays, numbers, prepare
from ._kinds import check_kinds, fits
from ._mesh import check_split, count_devices, repeated, shard_batch
from ._recommended import recommended
from ._sample import _carry, _checked, _Shape, draw_start, ends, typed
from ._sampler import SamplerLike, as_sampler
from ._types import Checked, DType, Noun, PRNGKey, Shape, Solution
from ._validate import check_count, check_key, is_real, shown, streams

CHUNK = 2**22  # numbers in the states of a chunk: they bound the memory of a network, which holds many times as many
NEAR = 2**14  # as many on a CPU, in whose cache a layer stays: 1.3 times the speed of a DiT on 16 x 16 pixels
QUEUE = 16  # samples of a lane between two reports to the host: they bound the memory


def batched(
    fn: Callable[..., PyTree], *mapped: PyTree, batch_size: int = 1024, mesh: Mesh | None = None, progress: bool = True
) -> PyTree:
    """A function of one example over many: chunks of one compiled program, devices, a progress bar.

    Args:
        fn: A function of one example, of as many arguments as there are `mapped`. The arrays that it closes over are
            arguments of the program, not constants in it.
        *mapped: Pytrees of arrays with a leading axis of the same length n; keys are arrays too.
        batch_size: Examples a chunk; all chunks have one size.
        mesh: Devices over whose first axis each chunk is split.
        progress: Whether a progress bar is shown, on a terminal.

    Returns:
        What `fn` returns, as numpy arrays with a leading axis of length n.

    Raises `ValueError` for mapped arrays of different lengths, a batch that does not split over the mesh, or inside
    `jax.jit` and its kin.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
    field, points = world.field(jf.CondOT()), np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    lp = jf.batched(lambda x: jf.log_prob(field, x).log_prob, points, batch_size=2)
    assert lp.shape == (5,)
    ```
    """
    check_kinds(batched, locals())
    _check_outside((fn, mapped), "batched")
    n = _length(mapped)
    if not fits(fn, Callable, ([Any] * len(mapped), Any)):
        raise TypeError(f"fn must be a function of {len(mapped)} argument(s), as many as are mapped. Got {shown(fn)}.")
    mapped = _on_host(mapped)
    example = jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], _kind(leaf)), mapped)
    # what a function closes over becomes an argument; a module is one already
    held = _Closed.of(fn, example) if jtu.all_leaves([fn]) else fn
    hidden = jtu.tree_leaves(held) if held is not fn and mesh is not None else []
    if any(len(leaf.devices()) > 1 for leaf in hidden if isinstance(leaf, jax.Array)):
        raise ValueError(
            "A function over a mesh must close over arrays of one device. Got some on several, where a field lies that "
            "was trained on a mesh: pass it as an argument, fn=jax.tree_util.Partial(function, field)."
        )
    devices = count_devices(mesh)
    size = _chunk_size(n, batch_size, devices)
    program, given = prepare(_map_chunk, repeated((_Mapped(held),), mesh), mesh, len(mapped))

    def chunk(index, part):
        return program(*given, (index, part)).unpack()

    return _drive(chunk, mapped, n, size, np.arange(size), "batched", "example", progress)


class _Closed(eqx.Module):
    """A plain function as the program it is now, and what it closes over."""

    consts: list[Any]
    jaxpr: Any = eqx.field(static=True)
    out: Any = eqx.field(static=True)

    @classmethod
    def of(cls, fn: Any, example: Any) -> "_Closed":
        now = lambda *rows: fn(*rows)  # noqa: E731  # JAX keeps the program of a function that it knows
        closed, out = jax.make_jaxpr(now, return_shape=True)(*example)
        return cls(closed.consts, closed.jaxpr, jtu.tree_structure(out))

    def __call__(self, *rows):
        return jtu.tree_unflatten(self.out, jax.core.eval_jaxpr(self.jaxpr, self.consts, *jtu.tree_leaves(rows)))


class _Mapped(Noun):
    """A function over the rows of a chunk."""

    fn: Any


def _map_chunk(held, index, part, mesh, count):
    arrays, rest = eqx.partition(held.fn, eqx.is_array)

    def many(arrays, part):
        fn = eqx.combine(arrays, rest)
        return jax.vmap(lambda *rows: jtu.tree_map(jnp.asarray, fn(*rows)))(*part)

    return (many if mesh is None else shard_batch(many, mesh, 1))(arrays, part)


def generate(
    field: AbstractField,
    key: PRNGKey,
    n: int,
    shape: Checked[Shape],
    sampler: Checked[SamplerLike | None] = None,
    *,
    args: Any = None,
    args_in_axes: PyTree = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
    saveat: Checked[dfx.SaveAt | None] = None,
    dtype: DType = None,
) -> Solution:
    """Draws `n` samples; sample `i` is `sample(field, fold_in(key, i), shape, sampler, args=args_i)`.

    Sample `i` depends on `(key, i)` alone, up to rounding whatever the batch size, the chunk and the devices. Adaptive
    ODE solves that return only the final state are batched continuously: when a sample finishes, the next one takes its
    place.

    Args:
        field: As in `sample`.
        key: One typed key for all samples.
        n: The number of samples.
        shape: As in `sample`.
        sampler: As in `sample`; an SDE needs fixed steps here.
        args: The condition, as in `sample`.
        args_in_axes: Which of its leaves have a leading axis of length `n` (0) or are shared (`None`): a pytree
            prefix, as `in_axes` of `jax.vmap`: `Args(0, scale=None)` for labels and one scale, `0` where all have the
            axis.
        batch_size: Samples a chunk, or lanes; chunks of one size compile once. By default 1024, and fewer where those
            would be more than `2^22` numbers: 341 images of 64 x 64 x 3, 5 of 512 x 512 x 3. On a CPU, where small
            chunks stay in the cache, no more than `2^14` numbers or 32 samples. With a mesh it is rounded down to a
            multiple of the devices, at least a sample each.
        mesh: Devices over whose first axis each chunk is split, or which share the lanes.
        progress: Whether a progress bar is shown, on a terminal. Its rate counts from the second chunk, since the
            first one compiles.
        saveat: As in `sample`.
        dtype: As in `sample`.

    Returns:
        A `Solution` of numpy arrays with a leading axis of length `n`.

    Raises `ValueError` for `n < 1`, a batch that does not split over the mesh, conditions of another length, or inside
    `jax.jit` and its kin. What it lacks goes by `batched`.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    xs = jf.generate(field, jr.key(0), 100, (2,), batch_size=32).x
    assert xs.shape == (100, 2)
    ```
    """
    check_kinds(generate, locals())
    check_key(key, "generate")
    _check_outside((field, key, args, sampler), "generate")
    check_count(n=n)
    like = widened(event_like(tuple(shape) if isinstance(shape, list) else shape, letters=field.path.letters), dtype)
    shared, split = _split_args(args, args_in_axes, n)
    one = _condition(shared, jtu.tree_map(lambda leaf: leaf[0], split))
    sampler = recommended(field, args=one) if sampler is None else as_sampler(sampler)
    _checked(field, sampler, one, False, None)
    devices = count_devices(mesh)
    if batch_size is None:
        near = max(32, NEAR // event_size(like)) if jax.default_backend() == "cpu" else 1024
        batch_size = max(min(1024, near, CHUNK // event_size(like)) // devices, 1) * devices
    size = _chunk_size(n, batch_size, devices)
    pooled = takes_lanes(sampler) and saveat is None
    lanes = size // devices if pooled else None
    size = size * min(QUEUE, -(-n // size)) if pooled else size
    operands = repeated((field, key, numbers(sampler), shared, saveat), mesh)
    program, given = prepare(_draw_chunk, operands, _Shape(like), mesh, lanes, dtype)
    order = np.arange(size).reshape(-1, devices).T.reshape(-1)  # the devices share the last samples too

    def chunk(index, part):
        return program(*given, (jnp.uint32(n), jnp.asarray(index, jnp.uint32), part)).unpack()

    try:
        return _drive(chunk, _on_host(split), n, size, order, "generate", "sample", progress)
    except (TypeError, ValueError, IndexError) as error:
        many = sorted({np.shape(leaf) for leaf in jtu.tree_leaves(shared) if np.shape(leaf)[:1] == (n,)})
        if not many:
            raise
        raise ValueError(
            f"A condition of each sample must be marked by args_in_axes, or every sample is given all n = {n}. Got "
            f"shared ones of shape {', '.join(map(str, many))}, with which the field fails ({error}): pass "
            "args_in_axes=0, or a prefix of args, as Args(0, scale=None)."
        ) from error


def _draw_chunk(field, key, sampler, shared, saveat, n, index, part, shape, mesh, lanes, dtype):
    """The samples of one chunk, those below `n`."""
    arrays, rest = eqx.partition((field, key, sampler, shared, saveat), eqx.is_array)

    def many(arrays, n, index, part):
        field, key, sampler, shared, saveat = eqx.combine(arrays, rest)
        condition = ft.partial(_condition, shared)

        def one(i, part):
            own = None, jr.fold_in(key, i), sampler, condition(part), None, None, None, saveat, None
            return _carry(field, *own, shape, False, dtype)

        if lanes is None:
            return jax.vmap(one)(jnp.minimum(index, n - 1), part)
        return _pool(field, key, sampler, shape, lanes, dtype, n, index, part, condition)

    return (many if mesh is None else shard_batch(many, mesh, 2))(arrays, n, index, part)


def _pool(field, key, sampler, shape, lanes, dtype, n, index, part, condition):
    """The same samples by continuous batching."""
    field = lowered(field, dtype)
    equation = adaptive_equation(field, sampler)
    t0, t1 = ends(sampler)

    def args(slot):
        return condition(jtu.tree_map(lambda leaf: leaf[slot], part))

    def start(slot):
        key_start, _ = streams(jr.fold_in(key, index[slot]), "sample", 2)
        return draw_start(field, key_start, shape.like, sampler, args(slot), None)

    count = jnp.sum(index < n, dtype=jnp.int32)
    return typed(continuous(equation, start, args, len(index), count, t0, t1, lanes=lanes, sampler=sampler), dtype)


def _drive(chunk, mapped, n, size, order, name, unit, progress):
    """The chunks one after another; their results on the host, in order."""
    parts = []
    with tqdm(total=n, desc=f"{name}, compiling", unit=unit, disable=None if progress else True) as bar:
        for start in range(0, n, size):
            index = start + order
            part = jtu.tree_map(lambda leaf: leaf[np.minimum(index, n - 1)], mapped)  # noqa: B023
            out = chunk(index, part)
            kept = np.argsort(order)[: n - start]
            parts.append(jtu.tree_map(lambda leaf: np.asarray(leaf)[kept], out))  # noqa: B023
            bar.update(len(kept))
            if not start:  # the rate counts from here
                bar.reset(n)
                bar.initial = bar.n = bar.last_print_n = len(kept)
                bar.set_description(name)
    return jtu.tree_map(lambda *leaves: np.concatenate(leaves), *parts)


def _chunk_size(n, batch_size, devices):
    check_count(batch_size=batch_size)
    size = min(batch_size, -(-n // devices) * devices)
    check_split(size, devices)
    return size


def _check_outside(operands, name):
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jtu.tree_leaves((operands, jnp.zeros(())))):
        raise ValueError(
            f"{name} must be called outside of transformations: it is compiled inside and returns numpy arrays. Got a "
            "traced value, as inside jax.jit, jax.vmap or jax.grad: call it outside, or map there, as "
            "jax.vmap(lambda k: jflow.sample(field, k, shape).x)."
        )


def _length(mapped):
    """The common length of mapped arrays."""
    if bad := [leaf for leaf in jtu.tree_leaves(mapped) if not (_is_key(leaf) or is_real(leaf))]:
        raise TypeError(f"The mapped arrays must be of real numbers or keys. Got {shown(bad[0])}.")
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in jtu.tree_leaves(mapped)}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        raise ValueError(f"Arrays must share a leading axis, of at least 1. Got lengths {sorted(map(str, lengths))}.")
    return lengths.pop()


def _on_host(tree):
    """The arrays of a pytree in numpy, where rows are cheap to take; typed keys, which numpy does not hold, anew."""
    return jtu.tree_map(lambda leaf: _anew(leaf) if _is_key(leaf) else np.asarray(leaf), tree)


def _anew(key):
    return jr.wrap_key_data(jnp.array(np.asarray(jr.key_data(key))), impl=jr.key_impl(key))


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf):
    """The type that an array has on a device."""
    return leaf.dtype if _is_key(leaf) else jax.dtypes.canonicalize_dtype(leaf.dtype)


def _condition(shared, part):
    """The condition of a sample, from what all share and its own part."""
    return eqx.combine(part, shared, is_leaf=lambda leaf: leaf is None)


def _split_args(args, axes, n):
    """The condition as two pytrees alike: what every sample shares, and what has a leading axis of length `n`."""
    args = as_arrays(args)
    if args is None and axes is not None:
        raise ValueError(f"args_in_axes must go with args. Got {axes!r} and no args: pass args=, or leave it out.")
    try:
        flags = jtu.tree_map(
            lambda axis, sub: jtu.tree_map(lambda _: axis is not None, sub),
            axes, args, is_leaf=lambda leaf: leaf is None,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(
            f"args_in_axes must be a pytree prefix of args, as Args(0, scale=None). Got {axes!r}: {error}"
        ) from None
    for axis in jtu.tree_leaves(axes):
        if type(axis) is not int or axis != 0:
            raise ValueError(f"args_in_axes must hold 0 (one value a sample) and None (shared). Got {axis!r}.")
    split, shared = eqx.partition(args, flags)
    for leaf in jtu.tree_leaves(split):
        if np.ndim(leaf) < 1 or np.shape(leaf)[0] != n:
            raise ValueError(
                f"A condition with args_in_axes 0 must have a leading axis of length n = {n}. Got {np.shape(leaf)}."
            )
    return shared, jtu.tree_map(np.asarray, split)
