"""The loss of a flow map on one example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._args import bare
from .._event import as_state, cast_like, combine, state_dtype
from .._flow_map import FlowMap
from .._kinds import check_kinds
from .._loss import mean_present
from .._source import AbstractGaussianSource, noise_map
from .._types import PRNGKey, Time
from .._validate import as_array, concrete, shown, streams
from .._weight import LogSNRWeight
from ._law import AbstractPairLaw
from ._objective import AbstractObjective, Example, ImprovedMeanFlow


def flow_map_loss(
    flow_map: FlowMap,
    key: PRNGKey,
    x1: PyTree,
    args: Any = None,
    *,
    objective: AbstractObjective | None = None,
    law: AbstractPairLaw | None = None,
    weight: Callable[[Array], Array] | None = None,
    x0: PyTree | None = None,
    null: PyTree = None,
    guidance: Callable[[PyTree], tuple[Time, PyTree]] | None = None,
) -> Float[Array, ""]:
    """One example's loss of a flow map: the mean square over the event of an objective's error.

    It draws `(s, t, dropped)`, the noise end `x0`, and takes the state `x_s = alpha x1 + sigma x0` with its conditional
    velocity `v = alpha' x1 + sigma' x0`. As in `matching_loss`, `x1` and `x0` are taken within the space that the
    source fills, and the mean runs over what the entry `mask` of `args` says is there.

    Args:
        flow_map: The map.
        key: Decides the times, `x0`, and what the objective draws.
        x1: One data example.
        args: Its bare condition.
        objective: `ImprovedMeanFlow()` by default.
        law: The joint law of the times and of dropping the condition; by default the objective's.
        weight: A function of the mean square in its place, as `AdaptiveWeight()`.
        x0: Its partner at the noise end; by default a draw of the path's source. Pairs need a source that says so.
        null: The condition in the place of one that is dropped, for a law that drops.
        guidance: For a map that learns its guided flow: `guidance(args)` gives the scale `w`, an input of the network
            through its condition, and the condition without label; `v` is then `w v + (1 - w) u(s, s, x)` with the
            map's own velocity at the latter.

    Returns:
        The loss, a scalar.

    Raises `ValueError` or `TypeError` for a law that never gives `s = t` where the velocity is learned there alone, a
    teacher along another path, a network that does not depend on `s`, a map of another output than the objective's, a
    law that gives `s > t`, or an error that is not finite outside of `jax.jit`.

    Source: that of the objective.

    ```python
    net = lambda s, t, x, args: s * t * x
    loss = jf.few_step.flow_map_loss(jf.FlowMap(net, jf.CondOT()), jr.key(0), jnp.ones(2))
    assert loss.shape == ()
    ```
    """
    objective = ImprovedMeanFlow() if objective is None else objective
    law = _checked(flow_map, objective, law, null, x0, weight)
    check_kinds(flow_map_loss, locals())
    path = flow_map.path
    key_times, key_source, key_own = streams(key, "flow_map_loss", 3)
    x1 = as_state(x1, "Data")
    s, t, dropped = law.sample(key_times, path)
    s, t = (time.astype(state_dtype(x1)) for time in (s, t))
    x0 = path.source.sample(key_source, x1, args) if x0 is None else cast_like(as_state(x0, "x0"), x1, "x0")
    whole = args  # with the mask, which a label that is dropped leaves
    x0, x1 = (noise_map(path.source).project(x, whole) for x in (x0, x1))
    x, v = path.interpolate(s, x0, x1), path.velocity(s, x0, x1)
    _check_order(law, path, s, t)
    _check_times(flow_map, s, t, x, args)
    if guidance is not None:
        pair = guidance(args)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise ValueError(f"guidance must return (scale, condition without label). Got {shown(pair)}.")
        w, without = pair
        guided = combine((w, v), (1 - w, jax.lax.stop_gradient(flow_map.velocity(s, x, without))))
        v = jtu.tree_map(lambda plain, own: jnp.where(dropped, plain, own), v, guided)
    if null is not None:
        if jtu.tree_structure(null) != jtu.tree_structure(args):
            raise ValueError(
                "null must be a condition as the example's own, which it replaces. Got one of the structure "
                f"{jtu.tree_structure(null)} for {jtu.tree_structure(args)}."
            )
        args = jtu.tree_map(
            lambda own, none: jnp.where(dropped, jnp.asarray(none).astype(jnp.asarray(own).dtype), own), args, null
        )
    errors = objective.errors(flow_map, Example(s, t, x, v, x0, x1, args, key_own))
    _check_finite(errors, s, t, objective)
    square = mean_present(jtu.tree_map(jnp.square, errors), whole)
    return jnp.asarray(square) if weight is None else _weighed(weight(square))  # pyright: ignore[reportArgumentType]


def _weighed(value):
    value = as_array(value, "A weighed error")
    if value.ndim:
        raise ValueError(f"weight must return one number, in the place of the mean square. Got shape {value.shape}.")
    return value


def _checked(flow_map, objective, law, null, x0, weight):
    """The law; raises where the parts do not go together."""
    if not isinstance(flow_map, FlowMap):
        raise TypeError(
            f"flow_map_loss must have a flow map, jflow.FlowMap(net, path) with net(s, t, x, args). Got "
            f"{type(flow_map).__name__}: a network of one time is trained by jflow.matching_loss."
        )
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be an object, as jf.few_step.MeanFlow(). Got {objective!r}.")
    if not (law is None or isinstance(law, AbstractPairLaw)):
        raise TypeError(f"law must be a joint law of two times, as jf.few_step.TimePairs(law). Got {law!r}.")
    if not (weight is None or callable(weight)) or isinstance(weight, LogSNRWeight):
        raise TypeError(
            f"weight must be a function of the mean square, as jf.few_step.AdaptiveWeight(). Got {weight!r}."
        )
    law, name = objective.law if law is None else law, type(objective).__name__
    if objective.needs_average and flow_map.predicts != "velocity":
        raise ValueError(
            f"{name} must have a map of the average velocity. Got one of {flow_map.predicts!r}: leave out predicts= of "
            "jflow.FlowMap, or take Lagrangian() or Consistency()."
        )
    if objective.needs_diagonal and law.diagonal <= 0:
        raise ValueError(
            f"The law of the times must give s = t with a positive probability, where {name} learns the velocity. Got "
            f"diagonal = {law.diagonal:g}: take one as TimePairs(diagonal=0.5), or distil a teacher."
        )
    drops = concrete(getattr(law, "dropped", 0.0))  # a law that a user writes may drop nothing
    if drops is not None and drops > 0 and null is None:
        raise ValueError(
            f"A law that drops the condition must have null=, the condition in its place. Got none with dropped = "
            f"{float(drops):g}: pass the network's null label, as null=10."
        )
    source = flow_map.path.source
    if x0 is not None and isinstance(source, AbstractGaussianSource) and not source.coupled:
        raise ValueError(
            f"Pairs must have a source that says so. Got x0= along a path with the source {type(source).__name__}(): "
            "take jf.CondOT(source=jf.Normal(coupled=True)) where x0 is Gaussian, or source=jf.GIVEN."
        )
    if objective.teacher is not None:
        check_path(objective.teacher, flow_map, "A teacher")
    return law


def check_path(field, flow_map, name):
    """Raises `ValueError` for a field along another path than the map's."""
    if not _same(field.path, flow_map.path):
        raise ValueError(
            f"{name} must be a field along the map's own path. Got one along {type(field.path).__name__} for a map "
            f"along {type(flow_map.path).__name__}: take jflow.change_path(field, path)."
        )


def _same(one, other):
    """Whether two paths are the same, as far as it is known before they are traced."""
    leaves = list(zip(jtu.tree_leaves(one), jtu.tree_leaves(other), strict=False))
    known = [(concrete(a), concrete(b)) for a, b in leaves]
    alike = all(a is None or b is None or bool((a == b).all()) for a, b in known)
    return type(one) is type(other) and jtu.tree_structure(one) == jtu.tree_structure(other) and alike


def _check_order(law, path, s, t):
    """Raises `ValueError` for a law that gives `s > t`: in this draw, or where that is traced in one of 16 others."""
    s, t = concrete(s), concrete(t)
    if s is None or t is None:
        with jax.ensure_compile_time_eval():
            pairs = jax.vmap(lambda key: law.sample(key, path))(jr.split(jr.key(0), 16))
        s, t = concrete(pairs.s), concrete(pairs.t)
    if s is not None and t is not None and (s > t).any():
        s, t = (time[np.asarray(s > t)].ravel()[0] for time in (s, t))
        raise ValueError(
            f"A law of two times must give s <= t. Got s = {s:g} and t = {t:g} from "
            f"{type(law).__name__}: return the smaller as s."
        )


def _check_finite(errors, s, t, objective):
    """Raises `ValueError` where an error is known and not finite; under `jax.jit` a loss that is not finite says so."""
    known = [concrete(leaf) for leaf in jtu.tree_leaves(errors)]
    if not all(leaf is None or np.isfinite(leaf).all() for leaf in known):
        raise ValueError(
            f"The error of a flow map must be finite. Got another at s = {s}, t = {t} in "
            f"{type(objective).__name__}: its network or the derivative of that is not finite there. Take a law that "
            "keeps away from this time, or difference=0.005 in the place of the derivative where the objective has it."
        )


def _check_times(flow_map, s, t, x, args):
    """Raises `ValueError` for a network whose program does not read one of its two times."""
    leaves, treedef = jtu.tree_flatten(x)

    def net(s, t, *leaves):
        return jtu.tree_leaves(flow_map.net(s, t, jtu.tree_unflatten(treedef, leaves), bare(args)))

    program = jax.make_jaxpr(net)(s, t, *leaves).jaxpr
    for i, name in enumerate("st"):
        reached = {program.invars[i]}
        for equation in program.eqns:
            if any(isinstance(var, jex.Var) and var in reached for var in equation.invars):
                reached.update(equation.outvars)
        if program.eqns and not any(isinstance(var, jex.Var) and var in reached for var in program.outvars):
            raise ValueError(
                f"A flow map's network must depend on both of its times, net(s, t, x, args). Got one without {name}:"
                " feed both, as s and t - s."
            )
