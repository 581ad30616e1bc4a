"""Continuous batching: a pool of adaptive solves in which a finished sample leaves its lane to the next one.

The step is a copy of the order of operations of `diffrax.diffeqsolve`, version 0.7.2, `_integrate.py`, the function
`body_fun` of its loop: the solver's step, NaN errors to infinity, `adapt_step_size`, the clip of `tprev` and `tnext` to
`t1`, the choice by `keep_step`. `tests/test_lanes.py` compares with `diffeqsolve`, and fails where diffrax moves.
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
from .._types import Solution
from .adaptive import adaptive_nfe, clocked, first_step
from .count import explicit_tableau
from .equation import AbstractEquation, located


class _Sample(NamedTuple):
    """How far the solve of a sample has come. In a pool every field has a leading axis."""

    u: PyTree
    slope: PyTree  # at (tau, u), where the solver carries its last stage; else None
    tau: Array
    target: Array  # where the next step would end
    memory: Any  # the controller's
    steps: Array
    failed: Array


def takes_lanes(sampler: Any) -> bool:
    """Whether a solve is one that lanes can take: an ODE, forward in time, with an explicit Runge-Kutta method under a
    `PIDController`, of which the end alone is asked for.
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
    """The first `count` of `size` adaptive solves, in `lanes` lanes, from `start(slot)` under `condition(slot)`.

    All lanes attempt a step together. A lane whose sample has come to its end takes the next one of the queue, so
    that the number of iterations is about the mean number of steps times `size / lanes`, and not the sum over chunks of
    the largest. When the queue is empty and a quarter of the lanes is left, that quarter goes on alone.

    Every sample takes the steps that it takes alone, which are those of `diffrax.diffeqsolve`.
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
    """The pool once every sample has come to its end."""
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
    """The slots of the lanes and how many of the queue are taken: free lanes take what comes next, in order, or the
    slot `size`, which is none.
    """
    place = taken + jnp.cumsum(free, dtype=jnp.int32) - 1
    return jnp.where(free, jnp.where(place < count, place, size), slots), jnp.minimum(place[-1] + 1, count)


def _drawn(start, size, count, lanes):
    """The pool before the first step, drawn as many at a time as there are lanes."""
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
        self.tableau, self.max_steps = solver.tableau, max_steps
        self.dt0 = 0.01 if dt0 is None else first_step(equation, interval, dt0)  # diffrax's for terms that it wraps
        # an ODE's scale is never zero, so no state of the start is needed to locate another
        self.term = dfx.ODETerm(
            lambda tau, u, a: equation.drift(*located(equation, interval, u, tau, u), a, interval.eta)
        )
        self.floor = _before(interval.tau1)

    def running(self, sample):
        return ~sample.failed & (sample.tau < self.interval.tau1) & (sample.steps < self.max_steps)

    def start(self, x0, args):
        tau0, tau1 = self.interval.tau0, self.interval.tau1
        u = x0 if self.interval.enter is None else self.equation.scaled(self.interval.enter, x0)
        order = self.solver.error_order(self.term)
        dt0 = jnp.asarray(self.dt0, tau0.dtype)
        target, memory = self.controller.init(self.term, tau0, tau1, u, dt0, args, self.solver.func, order)
        slope = self.term.vf(tau0, u, args) if self.tableau.fsal else None
        target, memory = jnp.minimum(target, tau1).astype(tau0.dtype), jtu.tree_map(jnp.asarray, memory)
        return _Sample(u, slope, tau0, target, memory, jnp.zeros((), jnp.int32), ~all_finite(u))

    def step(self, sample, args):
        """One attempted step: the sequence of `diffeqsolve`. What has come to its end stays as it is."""
        tau1 = self.interval.tau1
        before = sample.tau, sample.target, sample.u
        u, error, slope = embedded_step(self.tableau, self.term, *before, sample.slope, args)
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
        nfe = adaptive_nfe(self.solver, sample.steps, self.equation.cost(self.interval.t0, args))
        return Solution(x=x, nfe=nfe, status=status, t=t)


def _before(t):
    """The hundredth floating-point number before `t`; diffrax ends a step that would end past it at `t`."""
    tiny = jnp.finfo(t.dtype).tiny
    return lax.fori_loop(0, 100, lambda _, t: jnp.where(t == 0, -tiny, jnp.nextafter(t, -jnp.inf)), t)


def embedded_step(
    tableau: dfx.ButcherTableau, term: dfx.ODETerm, t0: Any, t1: Any, y0: PyTree, slope: PyTree, args: Any
) -> tuple[PyTree, PyTree, PyTree]:
    """One step of an explicit Runge-Kutta method: the state, the estimate of its error, and the last stage's slope.

    `slope` is the first stage's where the last stage of the step before is that; else `None`. The stages are a scan, so
    that the right-hand side is compiled once.
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
    """`dt sum(weight k)`, summed in one order whatever the batch: a matrix product would not be."""

    def leaf(ks):
        w = jnp.asarray(weights, ks.dtype).reshape(-1, *[1] * (ks.ndim - 1))
        return (dt * jnp.sum(w * ks, axis=0)).astype(ks.dtype)

    return jtu.tree_map(leaf, slopes)
