"""The state of a training run: a field, its optimiser and its running average, as flat tuples of arrays."""

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from .._front import canonical
from .._kinds import check_kinds
from .._trainable import trainable
from .._types import Checked
from ._average import PowerEMA, Rules, average_dtype, checked, each


@dataclasses.dataclass(frozen=True)
class _Skeleton:
    """A pytree without its arrays: `fill` puts them back, in the order of its leaves.

    In `leaves`, `None`, which is never a leaf, stands for an array.
    """

    treedef: Any = dataclasses.field(hash=False)
    leaves: tuple[Any, ...] = dataclasses.field(hash=False)

    @classmethod
    def of(cls, tree: PyTree) -> "_Skeleton":
        leaves, treedef = jtu.tree_flatten(tree)
        return cls(treedef, tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves))

    def pick(self, tree: PyTree) -> tuple[Any, ...]:
        """The leaves of a tree like this one that stand where the arrays do."""
        leaves = jtu.tree_leaves(tree)
        return tuple(leaf for leaf, static in zip(leaves, self.leaves, strict=True) if static is None)

    def fill(self, arrays: Iterable[Any]) -> PyTree:
        arrays = iter(arrays)
        return self.treedef.unflatten([next(arrays) if leaf is None else leaf for leaf in self.leaves])


@dataclasses.dataclass(frozen=True)
class _Layout:
    """All of a state that is not an array."""

    skeleton: _Skeleton
    trained: tuple[bool, ...]  # one flag for each array of the field
    slots: _Skeleton
    optimizer: Any
    ema: Rules

    def field(self, params: Iterable[Any], frozen: Iterable[Any]) -> PyTree:
        """The field with these arrays."""
        params, frozen = iter(params), iter(frozen)
        return self.skeleton.fill(next(params) if flag else next(frozen) for flag in self.trained)

    def update(self, grads: PyTree, opt_state: PyTree, params: PyTree, **more: Any) -> tuple[PyTree, PyTree]:
        """The optimiser's own `update`, with as much of `more` as it reads."""
        known = inspect.signature(self.optimizer.update).parameters
        reads_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        taken = more if reads_all else {name: value for name, value in more.items() if name in known}
        return self.optimizer.update(grads, opt_state, params, **taken)

    def tree(self, params: Iterable[Array]) -> PyTree:
        """The trained arrays in the structure of the field: what the optimiser sees."""
        return _trained_tree(self.skeleton, self.trained, params)


def _trained_tree(skeleton, trained, params):
    params, flags = iter(params), iter(trained)
    leaves = [next(params) if leaf is None and next(flags) else None for leaf in skeleton.leaves]
    return skeleton.treedef.unflatten(leaves)


class State(eqx.Module):
    """A training run at one moment: what `init` makes, and `step` takes and returns.

    Its arrays are flat tuples and everything else sits in one static object: taking apart and rebuilding a
    tree of flax modules at every step costs more than a small network's step does.

    `step` donates the state it is given, so `state.field` and `state.ema` live until the next step; copy
    what is to outlive it, as `jax.tree.map(jax.numpy.copy, eqx.filter(state.ema, eqx.is_array))`.

    - `field`: the field with its current parameters.
    - `ema`: the field with the bias-corrected running average of its parameters; a tuple of fields where `init` was
      given a tuple of averages.
    - `opt_state`: the state of the optimiser.
    - `step`: batches taken so far, a scalar int32.

    ```python
    state = jf.train.init(jf.nn.MLP(2, width=8, depth=1, rngs=nnx.Rngs(0)), optax.sgd(0.1))
    assert state.step == 0 and state.field(0.5, jnp.ones(2)).shape == (2,)
    ```
    """

    params: tuple[Array, ...]
    frozen: tuple[Array, ...]
    slots: tuple[Array, ...]
    average: tuple[Array, ...] | tuple[tuple[Array, ...], ...] | None
    moves: Int[Array, ""]
    step: Int[Array, ""]
    layout: _Layout = eqx.field(static=True, repr=False)

    @property
    def field(self) -> PyTree:
        """The field with its current parameters."""
        check_alive(self)
        return self.layout.field(self.params, self.frozen)

    @property
    def ema(self) -> PyTree:
        """The field with the averaged parameters, in the parameters' types; before the first move, `field`.

        Raises `ValueError` where the run keeps no average.
        """
        if self.average is None:
            raise ValueError(
                "state.ema must have a running average. Got a state made with ema=None: use state.field, or "
                "jflow.train.init(..., ema=0.999)."
            )

        check_alive(self)

        def field(_, average):
            params = [a.astype(p.dtype) for a, p in zip(average, self.params, strict=True)]
            return self.layout.field(params, self.frozen)

        return each(self.layout.ema, self.average, field)

    @property
    def opt_state(self) -> PyTree:
        """The state of the optimiser, as its `init` and `update` know it."""
        check_alive(self)
        return self.layout.slots.fill(self.slots)


def check_alive(state: State) -> None:
    """Raises `ValueError` for a state whose arrays went into the next one."""
    if isinstance(state.step, jax.Array) and not isinstance(state.step, jax.core.Tracer) and state.step.is_deleted():
        raise ValueError(
            "A state must be the one that the last step, or fit, returned. Got an earlier one, whose arrays went into "
            "the next: write state, info = jflow.train.step(state, ...), and copy what is to outlive a step, as "
            "jax.tree.map(jax.numpy.copy, equinox.filter(state.ema, equinox.is_array))."
        )


def init(
    field: PyTree,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    ema: Checked[float | PowerEMA | tuple[float | PowerEMA, ...] | None] = 0.999,
    trained: PyTree | None = None,
) -> State:
    """The state at step 0, with copies of all arrays: donation never takes the caller's.

    Args:
        field: A jflow field, or any pytree that the loss takes, as an autoencoder.
        optimizer: Any optax transformation: also a chain that clips (`optax.chain`), one that accumulates
            (`optax.MultiSteps`), and one that reads the loss. It is static: two states share one compiled step where
            both were made with the same object.
        ema: The decay `d` in [0, 1) of the running average, `None` for no average. After `n` moves of the optimiser
            through `p_1, ..., p_n`, the average is `sum_i d^(n-i) p_i / sum_i d^(n-i)`, kept in float32. Or a
            `PowerEMA`, or a tuple of decays and these, of which `state.ema` is then a tuple.
        trained: Which leaves of the field are trained: a pytree of booleans with the structure of the field, as
            `jflow.trainable(field)`, which is the default, gives it.

    A step changes parameters and nothing else.

    Raises `TypeError` if `optimizer` is not an optimiser, `ema` no average, or the mask does not hold booleans. Raises
    `ValueError` if nothing is trained, if the mask has another structure or marks something else than floating-point
    arrays, for a decay outside [0, 1), and for a flax network that changes when it is called: a batch normalisation
    that keeps statistics, a dropout that draws from its own stream.

    Source: of the bias correction, Kingma and Ba 2015, arXiv:1412.6980, section 3.

    ```python
    field = jf.Field(jf.nn.MLP(2, width=8, depth=1, rngs=nnx.Rngs(0)), jf.CondOT(), "velocity")
    state = jf.train.init(field, optax.adam(1e-3), ema=0.99)
    assert (state.ema.velocity(0.5, jnp.ones(2)) == field.velocity(0.5, jnp.ones(2))).all()
    ```
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"An optimiser must be an optax transformation, as optax.adam(1e-3). Got {optimizer!r}.")
    ema = checked(ema)
    check_kinds(init, locals())
    _check_still(field)
    kinds = (jax.Array, np.ndarray)
    field = jtu.tree_map(lambda leaf: jnp.asarray(canonical(leaf)) if isinstance(leaf, kinds) else leaf, field)
    skeleton = _Skeleton.of(field)
    mask = trainable(field) if trained is None else _mask(field, trained)
    arrays, flags = skeleton.pick(field), skeleton.pick(mask)
    if not any(flags):
        raise ValueError(
            "A field must have floating-point arrays that are trained. Got none: where the network is a plain "
            "function, bind its parameters by jax.tree_util.Partial(function, params)."
        )
    params = _copies(leaf for leaf, flag in zip(arrays, flags, strict=True) if flag)
    opt_state = jtu.tree_map(_as_array, jax.jit(optimizer.init)(_trained_tree(skeleton, flags, params)))
    slots = _Skeleton.of(opt_state)
    return State(
        params=params,
        frozen=_copies(leaf for leaf, flag in zip(arrays, flags, strict=True) if not flag),
        slots=_copies(slots.pick(opt_state)),
        average=each(ema, ema, lambda *_: _copies(p.astype(average_dtype(p)) for p in params)),
        moves=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
        layout=_Layout(skeleton, flags, slots, optimizer, ema),
    )


def _mask(field, trained):
    """The mask of the leaves, checked; raises where it does not fit the field."""
    leaves, structure = jtu.tree_flatten_with_path(field)
    flags, given = jtu.tree_flatten(trained)
    if structure != given:
        what = "as many in another structure" if len(flags) == len(leaves) else f"{len(flags)}"
        raise ValueError(
            "trained must have the structure of the field, a boolean a leaf, as jflow.trainable(field). Got a "
            f"{type(trained).__name__} for a field of {len(leaves)} leaves, with {what}."
        )
    for (path, leaf), flag in zip(leaves, flags, strict=True):
        where = jtu.keystr(path)
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"trained must hold True or False. Got {flag!r} at {where}.")
        if flag and not eqx.is_inexact_array(leaf):
            raise ValueError(f"Only floating-point arrays must be marked as trained. Got {leaf!r} at {where}.")
    return jtu.tree_unflatten(structure, [bool(flag) for flag in flags])


def _check_still(field):
    """Raises `ValueError` where a call changes a flax module. Attributes show this, since only `nn` imports flax."""

    def check(node):
        draws = getattr(node, "deterministic", None) is False and getattr(node, "rngs", None) is not None
        if (draws and getattr(node, "rate", getattr(node, "dropout_rate", 0)) > 0) or getattr(
            node, "use_running_average", None
        ) is False:
            raise ValueError(
                "A network must be without statistics and random streams, which would never change: a step updates "
                f"parameters only. Got a {type(node).__name__} that has them: call net.eval(), normalise by GroupNorm "
                "or LayerNorm, or make a dropout without rngs and hand it nnx.Rngs(key) at each call: "
                "Field(net, path, predicts, draws=True) gives the network a key."
            )
        return False

    jtu.tree_leaves(field, is_leaf=check)


def _as_array(leaf):
    """Numbers as arrays: an optimiser's state changes, and what is static cannot."""
    return jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex | np.ndarray | np.generic) else leaf


def _copies(arrays: Iterable[Array]) -> tuple[Array, ...]:
    """Fresh buffers of strong types: a weak one turns strong in the first step and retraces the second."""
    typed = [leaf if _is_key(leaf) else jnp.asarray(leaf, leaf.dtype) for leaf in arrays]
    return tuple(jax.device_put(typed, may_alias=False))  # compiles nothing


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
