"""What a search draws: samples that depend on the sampler alone, and those of a fine solve."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._clock import AbstractClock, RatioClock
from .._engine import lowered, run_grid, stepper
from .._event import event_like, size, state_dtype
from .._field import check_affine
from .._path import AbstractAffinePath
from .._sample import check_start, draw_start
from .._sampler import FixedSteps
from .._solver import Adams
from .._types import DType, Solution
from .._validate import check_count, check_key, concrete, parameter, shown, streams

FINE_STEPS, FINE_LEVEL = 400, 1e-3


class Task(eqx.Module):
    """Samples that depend on the sampler alone."""

    field: Any
    keys: Any
    args: Any
    axes: Any
    like: Any
    start: Any
    dtype: DType

    def one(self):
        """The task of drawing the first sample alone."""

        def first(axis, part):
            return part if axis is None else jtu.tree_map(lambda leaf: leaf[0], part)

        args = jtu.tree_map(first, self.axes, self.args, is_leaf=lambda leaf: leaf is None)
        return Task(self.field, self.keys[:1], args, None, self.like, self.start, self.dtype)

    def draw(self, sampler: FixedSteps, unroll: bool = False) -> Solution:
        """The samples of `jflow.sample`, a batched `Solution`; `unroll` is that of the loop, and the state is in the
        loop's own type.
        """

        def one(key, args):
            key_start, _ = streams(key, "sample", 2)
            x0 = draw_start(self.field, key_start, self.like, sampler, args, self.start)
            steps = stepper(lowered(self.field, self.dtype), sampler, dtype=state_dtype(x0))
            return run_grid(steps, x0, args, unroll=unroll)

        return jax.vmap(one, in_axes=(0, self.axes))(self.keys, self.args)


def make_task(field: Any, key: Any, shape: Any, args: Any, axes: Any, num: int, start: Any, dtype: DType) -> Task:
    """What is drawn, its arguments checked; sample `i` is that of `generate(field, key, num, ...)`."""
    check_affine(field.path, "A search among samplers")
    check_key(key, "A search among samplers")
    check_start(start, "sample")
    check_count(num=num)
    args = jtu.tree_map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, (int, float, np.ndarray)) else leaf, args)
    _check_axes(args, axes, num)
    keys = jax.vmap(lambda i: jr.fold_in(key, i))(jnp.arange(num, dtype=jnp.uint32))
    return Task(field, keys, args, axes, event_like(shape), start, dtype)


class Known(NamedTuple):
    """What is known of a sampler with a field before it runs."""

    end: str
    noisy: bool
    nfe: Any  # an integer, `None` where it is not known, else a shape: it depends on the times


def known(task: Task, sampler: FixedSteps) -> Known:
    """What is known of a sampler, and the checks of what needs both; nothing is computed.

    Raises `ValueError` or `TypeError` where field and sampler do not go together.
    """
    one = task.one()

    def look(x):  # field and times stay values, so that what is not finite is found
        taken = stepper(one.field, sampler)
        return Known(taken.end, taken.noisy, taken.nfe(x, one.args))

    return eqx.filter_eval_shape(look, task.like)


def settled(task: Task, sampler: FixedSteps) -> FixedSteps:
    """The sampler with its end decided; raises as `known` does."""
    return with_times(sampler, sampler.times, known(task, sampler).end)


def times_of(task: Task, sampler: FixedSteps) -> Array:
    """The times of a sampler as an array."""
    return sampler.grid(task.field.path)


def with_times(sampler: FixedSteps, times: Any, end: Any) -> FixedSteps:
    """The sampler of an ODE on another grid."""
    return FixedSteps(times, sampler.solver, clock=sampler.clock, end=end)


def draw(task: Task, sampler: FixedSteps) -> Solution:
    """The samples of a settled sampler; other times of the same number are no new program."""
    return _draw(task, times_of(task, sampler), sampler.solver, sampler.clock, sampler.end)


@eqx.filter_jit
def _draw(task, times, solver, clock, end):
    return task.draw(FixedSteps(times, solver, clock=clock, end=end))


def evaluations(task: Task, sampler: FixedSteps) -> int:
    """Network evaluations of the first sample, where they depend on the times; the samples themselves are not drawn."""
    return int(_evaluations(task.one(), times_of(task, sampler), sampler.solver, sampler.clock, sampler.end)[0])


@eqx.filter_jit
def _evaluations(task, times, solver, clock, end):
    return task.draw(FixedSteps(times, solver, clock=clock, end=end)).nfe


def fine(task: Task, ends: Float[Array, "2"], end: Any) -> Any:
    """The samples of a fine solve between the same ends."""
    path, clock = task.field.path, RatioClock()
    if end == "denoise":  # from a level of noise where its error is far below that of a coarse grid
        level = jnp.maximum(FINE_LEVEL, jnp.exp(-path.log_snr(ends[1]) / 2))
        stop = jnp.clip(path.log_snr_inverse(-2 * jnp.log(level)), max=ends[1])
        times = jnp.append(even(clock, path, jnp.stack([ends[0], stop]), FINE_STEPS), ends[1])
    else:
        times = even(clock, path, ends, FINE_STEPS)
    sampler = FixedSteps(times, Adams(5, corrector=True), clock=clock, end=end)
    known(task, sampler)
    return draw(task, sampler).x


def even(clock: AbstractClock, path: AbstractAffinePath, ends: Array, n: int) -> Array:
    """`n` equal steps in the time of a clock, between two path times."""
    return between(clock, path, ends, jnp.linspace(0.0, 1.0, n + 1))


def between(clock: AbstractClock, path: AbstractAffinePath, ends: Array, shares: Array) -> Array:
    """The path times at given shares of the way, in the time of a clock, between two path times."""
    start, stop = clock.time(path, ends[0]), clock.time(path, ends[1])
    inner = jax.vmap(lambda share: clock.path_time(path, start + (stop - start) * share))(shares[1:-1])
    return jnp.concatenate([ends[:1], inner, ends[1:]])


def errors(x: Any, target: Any) -> Float[Array, " num"]:
    """The root mean square over the event of `x - target` for each sample; never below rounding."""
    pairs = list(zip(jtu.tree_leaves(x), jtu.tree_leaves(target), strict=True))

    def mean(fn):
        squares = [jnp.sum(fn(a, b) ** 2, axis=tuple(range(1, a.ndim))) for a, b in pairs]
        return sum(squares) * len(pairs[0][1]) / size(target)

    eps = jnp.finfo(jnp.result_type(*jtu.tree_leaves(target))).eps
    return jnp.sqrt(mean(lambda a, b: a - b) + eps**2 * jnp.mean(mean(lambda a, b: b)))


def make_ends(t0: Any, t1: Any) -> Float[Array, "2"]:
    """Both ends of a grid; raises `ValueError` where they are out of order."""
    t0, t1 = parameter(t0, "t0", positive=False), parameter(t1, "t1", positive=False)
    if concrete(t0) is None or concrete(t1) is None:
        raise ValueError(f"The ends of a search must be known outside of jax.jit. Got t0 = {t0}, t1 = {t1}.")
    if not 0 <= float(t0) < float(t1) <= 1:
        raise ValueError(f"A grid must run from t0 to t1 with 0 <= t0 < t1 <= 1. Got {float(t0):g} and {float(t1):g}.")
    return jnp.asarray([t0, t1], float)


def _check_axes(args, axes, num):
    """Raises `ValueError` where the axes do not fit the condition, or its length is not `num`."""

    def check(axis, part):
        if axis is not None and not (isinstance(axis, int) and axis == 0):
            raise ValueError(f"args_in_axes must hold 0 (one value a noise) and None (shared). Got {axis!r}.")
        for leaf in jtu.tree_leaves(part) if axis == 0 else ():
            if np.ndim(leaf) < 1 or np.shape(leaf)[0] != num:
                raise ValueError(
                    "A condition with args_in_axes 0 must have one value a noise, a leading axis of length "
                    f"num = {num}. Got shape {np.shape(leaf)}."
                )

    try:
        jtu.tree_map(lambda axis, part: None, axes, args, is_leaf=lambda leaf: leaf is None)
    except ValueError:
        raise ValueError(f"args_in_axes must be a pytree prefix of args, as 0 or None. Got {shown(axes)}.") from None
    jtu.tree_map(check, axes, args, is_leaf=lambda leaf: leaf is None)
