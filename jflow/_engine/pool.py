"""Continuous batching: adaptive solves share a fixed number of lanes, and a finished sample frees its lane.

A sample must take the steps that it takes in `diffrax.diffeqsolve`. So the step repeats the operations of diffrax
0.7.2, in their order. From the file `_integrate.py`, function `loop`:

- `body_fun_aux`: the solver's step; error estimates that are NaN become infinite; `adapt_step_size`; `tprev` is cut to
  `t1`; the old state is kept where `keep_step` is false.
- `_clip_to_end`, and the first lines of `loop`: a step that would end within 100 floats of `t1`, or beyond it, ends at
  `t1`; after a rejected step it ends half way.
- `cond_fun`: the loop runs while `tprev < t1`.

From the file `_solver/runge_kutta.py`, `AbstractRungeKutta.step`: a stage at `c = 1` is evaluated at `t1`
itself. `tests/test_lanes.py` compares the pool with `diffeqsolve`, and fails if a new version of diffrax differs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .._event import all_finite
from .._sampler import AdaptiveSteps
from .._solver import watched
from .._types import Solution
from .adaptive import PROBES, adaptive_nfe, clocked, initial_step
from .count import explicit_tableau
from .equation import AbstractEquation, located


class _Sample(NamedTuple):
    """The state of one solve. In a pool of solves every array has a leading axis."""

    u: PyTree
    slope: PyTree  # the right-hand side at (tau, u), for a first-same-as-last method; else `None`
    tau: Array
    target: Array  # the time at which the next step ends
    memory: Any  # the controller's
    steps: Array
    failed: Array


def takes_lanes(sampler: Any) -> bool:
    """Whether lanes can run the sampler.

    They run ODEs forward in time, by an explicit Runge-Kutta method under a `PIDController`, without an adjoint.
    """
    if not isinstance(sampler, AdaptiveSteps) or sampler.max_steps is None or not sampler.facts.increases:
        return False
    plain = sampler.eta is None and sampler.diffusion is None and sampler.adjoint is None
    explicit = sampler.solver is None or explicit_tableau(sampler.solver) is not None
    return plain and explicit and isinstance(sampler.controller, (dfx.PIDController, type(None)))


def continuous(
    equation: AbstractEquation,
    start: Callable[[Any], PyTree],
    condition: Callable[[Any], Any],
    size: int,
    count: Array,
    t0: Any,
    t1: Any,
    *,
    lanes: int,
    sampler: AdaptiveSteps,
) -> Solution:
    """Runs the first `count` of `size` adaptive solves in `lanes` lanes.

    Solve `slot` starts from `start(slot)` under the condition `condition(slot)`. `count` is traced, so that the last,
    smaller part of a long queue runs in the same program.

    In each iteration every lane attempts one step. A lane whose sample has finished takes the next sample of the queue.
    So the number of iterations is about `size / lanes` times the mean number of steps. With fixed chunks it would be
    the sum of each chunk's largest number of steps. When the queue is empty and only a quarter of the lanes is busy,
    the samples of those move to a loop of a quarter of the width.

    Every sample takes the same steps as alone, those of `diffrax.diffeqsolve`.
    """
    solver: Any = dfx.Tsit5() if sampler.solver is None else sampler.solver
    like = jax.eval_shape(lambda: start(jnp.zeros((), jnp.int32)))
    interval, controller = clocked(equation, like, t0, t1, solver, sampler.controller)
    lane = _Lane(equation, solver, controller, interval, sampler.dt0, sampler.max_steps)
    pool = _drawn(lambda slot: lane.start(start(slot), condition(slot)), size, count, lanes)

    def advance(carry):
        pool, slots, taken = carry
        moved = jax.vmap(lambda sample, slot: lane.step(sample, condition(slot)))(_rows(pool, slots), slots)
        free = (slots == size) | ~lane.running(moved)
        return _written(pool, slots, moved), *_refilled(slots, free, taken, count, size)

    every = jnp.ones(lanes, bool)
    carry = pool, *_refilled(jnp.zeros(lanes, jnp.int32), every, jnp.zeros((), jnp.int32), count, size)
    pool = _emptied(advance, carry, count, size)
    return jax.vmap(lambda sample, slot: lane.solution(sample, condition(slot)))(pool, jnp.arange(size))


def _emptied(advance, carry, count, size):
    """The pool after every sample has finished."""
    lanes = carry[1].shape[0]
    for width in (lanes // 4, 0) if lanes >= 4 else (0,):

        def busy(carry, width=width):
            _, slots, taken = carry
            return (taken < count) | (jnp.sum(slots < size) > width)

        pool, slots, taken = lax.while_loop(busy, advance, carry)
        carry = pool, jnp.sort(slots)[:width], taken
    return carry[0]


def _rows(pool, slots):
    return jtu.tree_map(lambda leaf: leaf.at[slots].get(mode="clip"), pool)


def _written(pool, slots, rows):
    return jtu.tree_map(lambda leaf, row: leaf.at[slots].set(row, mode="drop"), pool, rows)


def _refilled(slots, free, taken, count, size):
    """The slots of the lanes, and how many samples have left the queue.

    Free lanes take the next samples in order. When the queue is empty they get the slot `size`, which stands for an
    idle lane: reading it clips the index, and writing to it is dropped.
    """
    place = taken + jnp.cumsum(free, dtype=jnp.int32) - 1
    return jnp.where(free, jnp.where(place < count, place, size), slots), jnp.minimum(place[-1] + 1, count)


def _drawn(start, size, count, lanes):
    """The pool before the first step. The starts are drawn in chunks of `lanes`."""
    chunk = jnp.arange(lanes, dtype=jnp.int32)
    shapes = jax.eval_shape(jax.vmap(start), chunk)
    pool = jtu.tree_map(lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype), shapes)

    def write(k, pool):
        slots = k * lanes + chunk
        return _written(pool, slots, jax.vmap(start)(slots))

    return lax.fori_loop(0, -(-count // lanes), write, pool)


class _Lane:
    """The adaptive solve of one sample, a step at a time."""

    def __init__(self, equation, solver, controller, interval, dt0, max_steps):
        self.equation, self.solver, self.controller, self.interval = equation, solver, controller, interval
        self.tableau, self.dt0, self.max_steps = solver.tableau, dt0, max_steps
        # `located` uses the start of a step only where the scale is zero. Without noise it never is: `u` stands in.
        self.term = dfx.ODETerm(lambda s, u, a: equation.drift(*located(equation, interval, u, s, u), a, interval.eta))
        self.floor = _before(interval.tau1)

    def running(self, sample):
        return ~sample.failed & (sample.tau < self.interval.tau1) & (sample.steps < self.max_steps)

    def start(self, x0, args):
        tau0, tau1 = self.interval.tau0, self.interval.tau1
        u = x0 if self.interval.enter is None else self.equation.scaled(self.interval.enter, x0)
        order = self.solver.error_order(self.term)
        dt0, slope = initial_step(self.equation, self.interval, self.term, self.controller, u, self.dt0, args)
        target, memory = self.controller.init(self.term, tau0, tau1, u, dt0, args, self.solver.func, order)
        slope = None if not self.tableau.fsal else self.term.vf(tau0, u, args) if slope is None else slope
        target, memory = jnp.minimum(target, tau1).astype(tau0.dtype), jtu.tree_map(jnp.asarray, memory)
        return _Sample(u, slope, tau0, target, memory, jnp.zeros((), jnp.int32), ~all_finite(u))

    def step(self, sample, args):
        """One attempted step, in the order of `diffeqsolve`. A finished sample stays as it is."""
        tau1 = self.interval.tau1
        before = sample.tau, sample.target, sample.u
        u, error, slope = embedded_step(self.tableau, self.term, *before, sample.slope, args)
        if slope is not None:
            dt = sample.target - sample.tau
            increments = jtu.tree_map(lambda a, b: (dt * a, dt * b), sample.slope, slope)
            order = self.solver.error_order(self.term)
            error = watched(error, sample.u, u, increments, self.controller.inner, order)
        error = jtu.tree_map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        keep, tau, target, _, memory, result = self.controller.adapt_step_size(
            *before, u, args, error, self.solver.error_order(self.term), sample.memory
        )
        tau = jnp.minimum(tau, tau1)
        clipped = jnp.where(keep, tau1, tau + 0.5 * (tau1 - tau))
        u, slope = jtu.tree_map(lambda new, old: jnp.where(keep, new, old), (u, slope), (sample.u, sample.slope))
        target, failed = jnp.where(target > self.floor, clipped, target), result != dfx.RESULTS.successful
        moved = _Sample(u, slope, tau, target, memory, sample.steps + 1, failed | ~all_finite(u))
        running = self.running(sample)
        return jtu.tree_map(lambda new, old: jnp.where(running, new, old).astype(old.dtype), moved, sample)

    def solution(self, sample, args):
        t, x = located(self.equation, self.interval, sample.u, sample.tau, sample.u)
        diverged = sample.failed | ~all_finite(x)
        status = jnp.where(diverged, 1, jnp.where(sample.tau < self.interval.tau1, 2, 0)).astype(jnp.int32)
        probes = 0 if self.dt0 is not None else PROBES - self.tableau.fsal
        nfe = adaptive_nfe(self.solver, probes, sample.steps, self.equation.cost(self.interval.t0, args))
        return Solution(x=x, nfe=nfe, status=status, t=t)


def _before(t):
    """The hundredth floating-point number before `t`: the `t1_clip_floor` of diffrax's `loop`."""
    tiny = jnp.finfo(t.dtype).tiny
    return lax.fori_loop(0, 100, lambda _, t: jnp.where(t == 0, -tiny, jnp.nextafter(t, -jnp.inf)), t)


def embedded_step(
    tableau: dfx.ButcherTableau, term: dfx.ODETerm, t0: Any, t1: Any, y0: PyTree, slope: PyTree, args: Any
) -> tuple[PyTree, PyTree, PyTree]:
    """One step of an explicit Runge-Kutta method: the state, its error estimate, and the slope of the last stage.

    `slope` is the slope of the first stage for a first-same-as-last method, taken from the step before. It is `None`
    for other methods, and so is the last result. The stages are a scan, so the right-hand side is compiled once.
    """
    dt, first = t1 - t0, 0 if slope is None else 1
    lower = np.zeros((tableau.num_stages, tableau.num_stages))
    for i, row in enumerate(tableau.a_lower, 1):
        lower[i, :i] = row
    nodes = np.concatenate([[0.0], tableau.c])
    slopes = jtu.tree_map(lambda y: jnp.zeros((tableau.num_stages, *y.shape), y.dtype), y0)
    if slope is not None:
        slopes = _stored(slopes, 0, slope)

    def stage(carry, row):
        slopes, _ = carry
        i, c, weights = row
        y = jtu.tree_map(lambda y, k: y + k, y0, _weighted(dt, weights, slopes))
        t = jnp.where(c == 1, t1, t0 + c * dt)
        return (_stored(slopes, i, term.vf(t, y, args)), y), None

    rows = np.arange(tableau.num_stages), nodes.astype(dt.dtype), lower.astype(dt.dtype)
    (slopes, y1), _ = lax.scan(stage, (slopes, y0), jtu.tree_map(lambda leaf: jnp.asarray(leaf[first:]), rows))
    if not tableau.ssal:
        y1 = jtu.tree_map(lambda y, k: y + k, y0, _weighted(dt, tableau.b_sol, slopes))
    last = None if slope is None else jtu.tree_map(lambda k: k[-1], slopes)
    return y1, _weighted(dt, tableau.b_error, slopes), last


def _stored(slopes, i, slope):
    return jtu.tree_map(lambda ks, k: ks.at[i].set(k), slopes, slope)


def _weighted(dt, weights, slopes):
    """`dt sum(weight k)`. The order of the sum does not depend on the batch, as in a matrix product it could."""

    def leaf(ks):
        w = jnp.asarray(weights, ks.dtype).reshape(-1, *[1] * (ks.ndim - 1))
        return (dt * jnp.sum(w * ks, axis=0)).astype(ks.dtype)

    return jtu.tree_map(leaf, slopes)
