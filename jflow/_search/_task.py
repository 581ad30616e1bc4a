"""What a search draws: samples that depend on the sampler alone, and those of a fine solve."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._clock import AbstractClock, RatioClock
from .._end import on_grid
from .._misc import as_state, check_key, size
from .._path import AbstractPath
from .._sample import draw_start, plan
from .._solver import Adams

FINE_STEPS, FINE_LEVEL = 400, 1e-3


class Task(eqx.Module):
    """Samples that depend on the sampler alone."""

    field: Any
    keys: Any
    args: Any
    axes: Any
    shape: Any
    options: Any

    def one(self):
        """The task of drawing the first sample alone."""

        def first(axis, part):
            return part if axis is None else jtu.tree_map(lambda leaf: leaf[0], part)

        args = jtu.tree_map(first, self.axes, self.args, is_leaf=lambda leaf: leaf is None)
        return Task(self.field, self.keys[:1], args, None, self.shape, self.options)

    def draw(self, options, unroll=False):
        """A batched `Solution`; `unroll` is that of the loop."""
        problem, solver, end = plan(self.field, **options)
        times = options["times"]

        def one(key, args):
            x0 = draw_start(self.field, jr.split(key)[0], self.shape, times, **self.options)
            x0 = as_state(x0, self.options["dtype"])
            return on_grid(problem, x0, args, times, solver, end, unroll=unroll)

        return jax.vmap(one, in_axes=(0, self.axes))(self.keys, self.args)


@eqx.filter_jit
def draw(task, options):
    return task.draw(options)


@eqx.filter_jit
def evaluations(task, options):
    """Network evaluations of every sample; the samples themselves are not drawn."""
    return task.draw(options).nfe


def make_task(field, key, shape, args, axes, num, base, dtype) -> Task:
    """What is drawn, its arguments checked; sample `i` is that of `generate(field, key, num, ...)`."""
    check_key(key, "A search among samplers")
    check_counts(num=num)
    args = jtu.tree_map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, (int, float, np.ndarray)) else leaf, args)
    _check_axes(args, axes, num)
    keys = jax.vmap(lambda i: jr.fold_in(key, i))(jnp.arange(num, dtype=jnp.uint32))
    return Task(field, keys, args, axes, shape, {"base": base, "dtype": dtype})


def fine(task, ends, end):
    """The samples of a fine solve between the same ends."""
    path, clock = task.field.path, RatioClock()
    if end == "denoise":  # from a level of noise where its error is far below that of a coarse grid
        level = jnp.maximum(FINE_LEVEL, jnp.exp(-path.log_snr(ends[1]) / 2))
        stop = jnp.clip(path.log_snr_inverse(-2 * jnp.log(level)), max=ends[1])
        times = jnp.append(even(clock, path, jnp.stack([ends[0], stop]), FINE_STEPS), ends[1])
    else:
        end, times = "stop", even(clock, path, ends, FINE_STEPS)
    options = {"times": times, "solver": Adams(5, corrector=True), "clock": clock, "end": end}
    plan(task.field, **options)
    return draw(task, options).x


def even(clock: AbstractClock, path: AbstractPath, ends: Array, n: int) -> Array:
    """`n` equal steps in the time of a clock, between two path times."""
    return between(clock, path, ends, jnp.linspace(0.0, 1.0, n + 1))


def between(clock: AbstractClock, path: AbstractPath, ends: Array, shares: Array) -> Array:
    """The path times at given shares of the way, in the time of a clock, between two path times."""
    start, stop = clock.time(path, ends[0]), clock.time(path, ends[1])
    inner = jax.vmap(lambda share: clock.path_time(path, start + (stop - start) * share))(shares[1:-1])
    return jnp.concatenate([ends[:1], inner, ends[1:]])


def errors(x, target):
    """The root mean square over the event of `x - target` for each sample; never below rounding."""
    pairs = list(zip(jtu.tree_leaves(x), jtu.tree_leaves(target), strict=True))

    def mean(fn):
        squares = [jnp.sum(fn(a, b) ** 2, axis=tuple(range(1, a.ndim))) for a, b in pairs]
        return sum(squares) * len(pairs[0][1]) / size(target)

    eps = jnp.finfo(jnp.result_type(*jtu.tree_leaves(target))).eps
    return jnp.sqrt(mean(lambda a, b: a - b) + eps**2 * jnp.mean(mean(lambda a, b: b)))


def check_counts(**counts: Any) -> None:
    """Raises `ValueError` where one is no integer of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} is an integer of at least 1. Got {value!r}.")


def make_ends(t0: Any, t1: Any) -> Float[Array, "2"]:
    """Both ends of a grid; raises `ValueError` where they are out of order."""
    if not 0 <= float(t0) < float(t1) <= 1:
        raise ValueError(f"A grid runs from t0 to t1 with 0 <= t0 < t1 <= 1. Got {float(t0):g} and {float(t1):g}.")
    return jnp.asarray([t0, t1], float)


def _check_axes(args, axes, num):
    """Raises `ValueError` where the axes do not fit the condition, or its length is not `num`."""

    def check(axis, part):
        if axis not in (0, None):
            raise ValueError(f"args_in_axes holds 0 (one value a noise) and None (shared). Got {axis!r}.")
        for leaf in jtu.tree_leaves(part) if axis == 0 else ():
            if np.ndim(leaf) < 1 or np.shape(leaf)[0] != num:
                raise ValueError(
                    f"A condition with args_in_axes 0 has one value a noise: a leading axis of length num = {num}. "
                    f"Got shape {np.shape(leaf)}."
                )

    jtu.tree_map(check, axes, args, is_leaf=lambda leaf: leaf is None)
