"""One training step: gradient of the mean loss over a batch, optimiser, running average."""

import functools as ft
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Key, PyTree

from .._event import joined
from .._kinds import check_kinds
from .._mesh import automatic
from .._validate import check_count, is_real, shown
from ._average import average_dtype, average_weight, each, towards
from ._couple import Couple, paired
from ._state import State, check_alive

Loss = Callable[[PyTree, Key[Array, ""], PyTree], PyTree]
"""`loss(field, key, example) -> scalar`, of one example; or `-> (scalar, metrics)`."""

_SMALL = 2**16  # numbers of an array that is copied rather than summed by a separate kernel


class Info(NamedTuple):
    """What a step reports.

    - `loss`: mean over the batch, before the step.
    - `grad_norm`: Euclidean norm of the gradient over all parameters, before any clipping.
    - `finite`: whether both are finite; where not, the step left the parameters, the optimiser and the
      average as they were.
    - `metrics`: those that the loss returned beside its value, each the mean over the batch; `None` without any.

    ```python
    state = jf.train.init({"w": jnp.array(3.0)}, optax.sgd(0.1))
    state, info = jf.train.step(state, lambda field, key, x: field["w"] * x, jr.key(0), jnp.ones(4))
    assert info.loss == 3 and info.grad_norm == 1 and info.finite
    ```
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    finite: Bool[Array, ""]
    metrics: PyTree = None


def step(
    state: State,
    loss: Loss,
    key: Key[Array, ""],
    batch: PyTree,
    *,
    mesh: Mesh | None = None,
    couple: Couple | None = None,
    microbatch: int | None = None,
) -> tuple[State, Info]:
    """One step of the optimiser on the mean of `loss(field, key_i, example_i)` over the batch.

    Some optimisers read the loss: `optax.contrib.reduce_on_plateau`, `optax.polyak_sgd`, `optax.lbfgs`. They get the
    mean as `value`, its gradient as `grad`, and the mean as a function of the parameters as `value_fn`.

    Jitted once for a loss, an optimiser and the shapes of a batch: new keys, data and parameters do not
    retrace (a `lambda` written inside a loop is a new loss every time, and does). The state given is
    donated: use the one returned.

    Args:
        state: What `init` made, or the last step returned.
        loss: `loss(field, key, example)`, a scalar, or a pair of it and a pytree of metrics, as `{"mse": value}`;
            `example` is the batch without its leading axis. A loss may hold arrays, as an equinox module or a
            `jax.tree_util.Partial`.
        key: The key of this step, of any implementation, split into one for each example.
        batch: A pytree of arrays that share their leading axis.
        mesh: Devices along an axis `"data"`: the batch is split over it, the state repeated on every device.
        couple: What is done to the whole batch first, in the same program: `f(key, batch) -> batch`, as `Coupling`,
            or `"independent"`, `"assignment"`, `"sinkhorn"` for a `Coupling` by that plan.
        microbatch: How many examples are taken at a time, of a batch that no memory holds; it divides the batch. The
            gradients of the parts are summed in float32. An example's key is that of its place in the whole batch, so
            the step is the same for every size, but for rounding.

    Raises `ValueError` for a state that an earlier step was given, leaves without a common leading axis, a batch that
    the mesh or `microbatch` cannot split evenly, a loss that is not a scalar, `couple=` where the source of the field's
    path is neither coupled nor `GIVEN`; `TypeError` for a loss that is no real number.

    ```python
    state = jf.train.init({"w": jnp.array(3.0)}, optax.sgd(0.5))
    state, info = jf.train.step(state, lambda field, key, x: (field["w"] - x) ** 2, jr.key(0), jnp.ones(4))
    assert info.loss == 4 and state.field["w"] == 1 and state.step == 1
    ```
    """
    check_kinds(step, locals())
    _check_key(key)
    check_alive(state)
    size = _batch_size(batch)
    _check_parts(size, microbatch, mesh)
    arrays, static = _split((loss, couple))
    if mesh is not None:
        mesh = _automatic(mesh)
        state, arrays, key, batch = _place(mesh, size, state, arrays, key, batch, PartitionSpec("data"))
    return _step(state, arrays, key, batch, static, mesh, microbatch)


def mean_loss(field: PyTree, loss: Loss, key: Key[Array, ""], batch: PyTree) -> Float[Array, ""]:
    """The mean of `loss(field, key_i, example_i)` over a batch, with the keys that `step` would give the examples.

    With one key and one batch that are held out it follows a run: in `fit` by
    `every=(500, lambda state, line: {"held_out": jf.train.mean_loss(state.ema, loss, key, test)})`.

    Args:
        field: What the loss takes, as `state.ema`.
        loss: As in `step`; its metrics are left out.
        key: Split into one for each example.
        batch: A pytree of arrays that share their leading axis.

    Raises as `step` does.

    ```python
    value = jf.train.mean_loss(jnp.array(3.0), lambda field, key, x: field * x, jr.key(0), jnp.array([1.0, 3.0]))
    assert value == 6
    ```
    """
    check_kinds(mean_loss, locals())
    _check_key(key)
    _batch_size(batch)
    arrays, static = _split(loss)
    return _mean_loss(field, arrays, key, batch, static)


@eqx.filter_jit
def _mean_loss(field, arrays, key, batch, static):
    loss, keys = _join(arrays, static), jr.split(key, _batch_size(batch))
    return jnp.mean(jax.vmap(lambda key, example: _value_and_metrics(loss(field, key, example))[0])(keys, batch))


_jit = ft.partial(jax.jit, static_argnames=("static", "mesh", "microbatch"), donate_argnums=0)


def _one(state, arrays, key, batch, static, mesh, microbatch):
    (loss, couple), layout = _join(arrays, static), state.layout
    if couple is not None:
        batch = paired(couple, layout.field(state.params, state.frozen), key, batch, mesh)
    keys = jr.split(key, _batch_size(batch))
    if mesh is not None:
        keys = jax.lax.with_sharding_constraint(keys, NamedSharding(mesh, PartitionSpec("data")))

    def objective(params, keys, batch):
        def one(key, example):
            return _value_and_metrics(loss(layout.field(params, state.frozen), key, example))

        values, metrics = jax.vmap(one)(keys, batch)
        return jnp.mean(values), jtu.tree_map(lambda leaf: jnp.mean(leaf, axis=0), metrics)

    def mean(function):
        """Of `function(keys, batch)` over the parts of the batch."""
        return function(keys, batch) if microbatch is None else _mean_of_parts(function, keys, batch, microbatch, mesh)

    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, metrics), grads = mean(ft.partial(gradient, state.params))
    norm = _norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    with jax.numpy_dtype_promotion("standard"):  # which optimisers count on
        new = _update(state, grads, finite, value, lambda params: mean(ft.partial(objective, params))[0])
    if mesh is not None:
        new = jax.lax.with_sharding_constraint(new, NamedSharding(mesh, PartitionSpec()))
    return new, Info(value, norm, finite, metrics)


_step = _jit(_one)


def steps_at_once(
    state: State,
    loss: Loss,
    key: Key[Array, ""],
    first: int,
    batches: Sequence[PyTree],
    mesh: Mesh | None,
    couple: Couple | None,
    microbatch: int | None,
) -> tuple[State, Info]:
    """The steps from `first` on, of the keys `fold_in(key, i)`, in one program; `Info` has a leading axis."""
    check_alive(state)
    size, *others = {_batch_size(batch) for batch in batches}
    if others:
        raise ValueError(
            f"The batches of one call must be of one size. Got {size} and {others[0]}: set steps_per_call=1."
        )
    _check_parts(size, microbatch, mesh)
    arrays, static = _split((loss, couple))
    batch = jtu.tree_map(lambda *rows: np.stack(rows) if isinstance(rows[0], np.ndarray) else jnp.stack(rows), *batches)
    if mesh is not None:
        mesh = _automatic(mesh)
        state, arrays, key, batch = _place(mesh, size, state, arrays, key, batch, PartitionSpec(None, "data"))
    return _steps(state, arrays, key, np.uint32(first), batch, static, mesh, microbatch)


@_jit
def _steps(state, arrays, key, first, batch, static, mesh, microbatch):
    def one(state, row):
        i, batch = row
        return _one(state, arrays, jr.fold_in(key, i), batch, static, mesh, microbatch)

    count = len(jtu.tree_leaves(batch)[0])
    return jax.lax.scan(one, state, (first + jnp.arange(count, dtype=jnp.uint32), batch))


def _mean_of_parts(function, keys, batch, size, mesh):
    """The mean of `function(keys, batch)` over parts of `size` examples, one after the other, summed in float32."""

    def part(leaf):
        leaf = leaf.reshape(-1, size, *leaf.shape[1:])
        if mesh is None:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(None, "data")))

    def add(total, part):
        return jtu.tree_map(lambda a, b: a + b.astype(a.dtype), total, function(*part)), None

    parts = jtu.tree_map(part, (keys, batch))
    shapes = jax.eval_shape(function, *jtu.tree_map(lambda leaf: leaf[0], parts))
    zeros = jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, average_dtype(leaf)), shapes)
    total, _ = jax.lax.scan(jax.checkpoint(add), zeros, parts)
    count = len(keys) // size
    return jtu.tree_map(lambda a, leaf: (a / count).astype(leaf.dtype), total, shapes)


def _update(
    state: State, grads: tuple[Array, ...], finite: Array, value: Array, objective: Callable[..., Array]
) -> State:
    """The state after the optimiser saw the gradients; where they are not finite, only `step` counts on."""
    layout = state.layout

    @jax.jit  # traced once for the two kinds of choices
    def moved(grads, value, old):
        params, slots, moves, average = old
        tree, grad, opt_state = layout.tree(params), layout.tree(grads), layout.slots.fill(slots)
        more = {"value": value, "grad": grad, "value_fn": lambda tree: objective(tuple(jtu.tree_leaves(tree)))}
        updates, opt_state_new = layout.update(grad, opt_state, tree, **more)
        params = tuple(jtu.tree_leaves(optax.apply_updates(tree, updates)))
        moves = moves + (has_moved := _moved(opt_state, opt_state_new)).astype(moves.dtype)

        def follow(rule, average):  # kept by a weight of 0: a choice is a kernel a leaf
            weight = jnp.where(has_moved, average_weight(rule, moves), 0.0)
            return tuple(towards(a, p, weight) for a, p in zip(average, params, strict=True))

        return params, layout.slots.pick(opt_state_new), moves, each(layout.ema, average, follow)

    old = state.params, state.slots, state.moves, state.average
    params, slots, moves, average = _where(finite, moved, grads, value, old)
    return State(params, state.frozen, slots, average, moves, state.step + 1, layout)


def _where(finite: Array, moved: Callable, grads: PyTree, value: Array, old: PyTree) -> PyTree:
    """`moved(grads, value, old)` where `finite`, else `old`: a branch, which copies nothing, but makes a GPU wait."""

    def choose(finite, grads, value, old):
        return jtu.tree_map(ft.partial(jax.lax.select, finite), moved(grads, value, old), old)

    def branch(finite, grads, value, old):
        return jax.lax.cond(finite, moved, lambda grads, value, old: old, grads, value, old)

    return jax.lax.platform_dependent(finite, grads, value, old, cpu=branch, default=choose)


def _moved(old: PyTree, new: PyTree) -> Bool[Array, ""]:
    """Whether the optimiser moved: always, but while an `optax.MultiSteps` inside it still accumulates."""

    def counts(opt_state):
        found = optax.tree.get_all_with_path(
            opt_state,
            "gradient_step",
            lambda path, _: getattr(path[-1], "tuple_name", "") == "MultiStepsState",
        )
        return [count for _, count in found]

    pairs = list(zip(counts(old), counts(new), strict=True))
    return ft.reduce(jnp.logical_or, [a != b for a, b in pairs]) if pairs else jnp.array(True)


def _norm(grads: tuple[Array, ...]) -> Float[Array, ""]:
    """The Euclidean norm over all arrays, summed in float32 or wider; small ones as one, for a sum is a kernel."""
    wide = [g.astype(average_dtype(g)).ravel() for g in grads]
    wide = [jnp.abs(g) if jnp.iscomplexobj(g) else g for g in wide]  # a kernel each
    small = [g for g in wide if g.size < _SMALL]
    parts = [g for g in wide if g.size >= _SMALL] + ([jnp.concatenate(small)] if small else [])
    return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in parts))


def _value_and_metrics(out: Any) -> tuple[Array, PyTree]:
    """The loss of one example as a real scalar, and the metrics beside it, `None` without any."""
    value: Any
    value, metrics = out if isinstance(out, (tuple, list)) and len(out) == 2 else (out, None)
    if not eqx.is_array_like(value) or jnp.iscomplexobj(value):
        what = f"a {type(out).__name__}"
        raise TypeError(
            "A loss must be the real scalar of one example, or a tuple of it and its metrics, (loss, metrics). Got "
            f"{f'{what} of {len(out)}' if isinstance(out, (tuple, list)) else what}"
            f"{', complex' if eqx.is_array_like(value) else ''}: return the scalar first."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"A loss must be the scalar of one example. Got an array of shape {jnp.shape(value)}; take the mean "
            "over the event, and leave the batch to jflow.train.step, which vmaps the loss."
        )
    for path, leaf in jtu.tree_leaves_with_path(metrics):
        if not eqx.is_array_like(leaf) or jnp.iscomplexobj(leaf):
            raise TypeError(
                "The metrics beside a loss must be numbers and arrays of one example, whose means over the batch are "
                f"reported. Got {type(leaf).__name__} at metrics{jtu.keystr(path)}: leave it out."
            )
    wide = jtu.tree_map(lambda leaf: jnp.asarray(leaf, joined(jnp.result_type(leaf), jnp.float32)), metrics)
    return jnp.asarray(value, joined(jnp.result_type(value), jnp.float32)), wide


def _split(functions: PyTree) -> tuple[list[Any], Any]:
    """Functions as their arrays and the rest, which is hashable: a plain function is all rest."""
    leaves, treedef = jtu.tree_flatten(functions)
    flags = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    static = tuple(None if flag else leaf for flag, leaf in zip(flags, leaves, strict=True))
    return [leaf for flag, leaf in zip(flags, leaves, strict=True) if flag], (static, treedef)


def _join(arrays: list[Any], static: Any) -> PyTree:
    (leaves, treedef), rest = static, iter(arrays)
    return treedef.unflatten([next(rest) if leaf is None else leaf for leaf in leaves])


def _batch_size(batch: PyTree) -> int:
    """The common leading axis of the leaves."""
    leaves = jtu.tree_leaves(batch)
    keys = [isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    if not all(key or is_real(leaf) for key, leaf in zip(keys, leaves, strict=True)):
        raise TypeError(f"A batch must be of arrays of real numbers or keys. Got {shown(batch)}.")
    shapes = [np.shape(leaf) for leaf in leaves]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"The arrays of a batch must share a leading axis of at least one example. Got shapes {shapes}; a "
            "single example wants x[None], and what is the same for all examples belongs into the loss."
        )
    return sizes.pop()


def _check_parts(size: int, microbatch: int | None, mesh: Mesh | None) -> None:
    if microbatch is None:
        return
    check_count(microbatch=microbatch)
    devices = 1 if mesh is None else mesh.shape.get("data", 1)
    if size % microbatch or microbatch % devices:
        over = f", and be split evenly over {devices} devices" if devices > 1 else ""
        raise ValueError(
            f"A microbatch must divide the batch{over}. Got {microbatch} for a batch of {size}: take "
            f"{max((d for d in range(1, microbatch + 1) if size % d == 0 and d % devices == 0), default=size)}."
        )


def _check_key(key: Any) -> None:
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise ValueError(
            "A step must have one typed key, as jax.random.key(seed) or jax.random.fold_in(key, i) make it. "
            f"Got {type(key).__name__} of shape {np.shape(key)}."
        )


@ft.lru_cache
def _automatic(mesh: Mesh) -> Mesh:
    """The mesh with shardings left to the compiler; raises `ValueError` where it has no axis for the batch."""
    if "data" not in mesh.axis_names:
        raise ValueError(
            f"A mesh must have an axis 'data', over which the batch is split. Got axes {mesh.axis_names}; "
            "make one as jax.make_mesh((jax.device_count(),), ('data',))."
        )
    return automatic(mesh)


def _place(mesh, size, state, arrays, key, batch, rows):
    """State, loss and key repeated over the mesh, the batch split along its axis `"data"`."""
    count = mesh.shape["data"]
    if size % count:
        raise ValueError(
            f"A batch must split evenly over the mesh's axis 'data'. Got {size} examples for {count} devices; "
            f"take a multiple of {count}."
        )
    repeated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, rows)
    if state.step.sharding != repeated:
        state = jax.device_put(state, repeated)
    return (
        state,
        jax.device_put(arrays, repeated),
        jax.device_put(key, repeated),
        jax.device_put(batch, split),
    )
