"""The loop of a fixed grid: a scan that takes a diffrax solver's own steps."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, Float, PyTree

from ._brownian import Recorded, block_length, block_normals, levy_kinds, step_path
from ._misc import all_finite
from ._problem import AbstractProblem, NoiseTerm, check_start, explicit_tableau, located, needed_stages, noise_clock
from ._types import PRNGKey


class Ending(NamedTuple):
    """A last step that is not the solver's."""

    step: Callable[[PyTree], tuple[PyTree, Any]]  # the state at the last time but one -> at the last, evaluations
    when: Any = True  # or a traced boolean, where the values of the grid decide


class Steps(NamedTuple):
    """What the loop returns."""

    x: PyTree
    t: Array
    status: Array
    nfe: Any  # network evaluations for the whole grid, None where they are not known
    saved: Any


def scan_steps(
    problem: AbstractProblem,
    x0: PyTree,
    args: Any,
    times: Float[Array, "..."],
    *,
    solver: dfx.AbstractSolver,
    key: PRNGKey | None,
    brownian: Any,
    noise_like: PyTree,
    save: Any,
    ending: Ending | None = None,
    unroll: bool = False,
) -> Steps:
    """Carries `x0` along the grid, one step of the solver an interval.

    `key` draws the increments, by the index of the step; `brownian` (`Recorded`, or a diffrax path) replaces them.
    `save(t, x)` is stacked over the steps where it is not `None`. `ending` takes the last step. `unroll` writes the
    steps of an ODE out, without a loop: it compiles longer, and on CPU the gradient through a convolution is not as
    slow as inside a loop.
    """
    table, costs, n = problem.intervals(times), [], times.shape[0] - 1
    check_start(solver, table)
    step = _Step(problem, solver, args, brownian, costs)
    cost = problem.cost(times[0], args)
    spent = None if isinstance(cost, int) else jnp.zeros((), jnp.int32)
    carry = x0, step.start(x0, table), spent, jnp.zeros((), jnp.int32), jnp.ones((), bool)

    def body(carry, slices):
        x, state, spent, count, alive = carry
        interval, normals = slices
        costs.clear()
        x, state, okay = step(interval, x, state, normals)
        if spent is not None and None not in costs:
            spent = spent + sum(costs)
        alive = alive & all_finite(x) & okay
        return (x, state, spent, count + alive, alive), None if save is None else save(interval.t1, x)

    body = jax.checkpoint(body, prevent_cse=False)
    drawn = problem.noisy and brownian is None
    noise = (key, noise_like, levy_kinds(solver)) if drawn else brownian if isinstance(brownian, Recorded) else None
    whole = n if ending is None else n - 1
    carry, saved = _scan(body, carry, table, whole, noise, unroll) if whole else (carry, None)
    if ending is not None:
        own = ft.partial(_evaluations, solver, costs, cost, None, 1)
        carry, calls = _last_step(body, carry, table, n, noise, ending, own)
        last = None if save is None else jtu.tree_map(lambda leaf: jnp.asarray(leaf)[None], save(times[-1], carry[0]))
        saved = last if saved is None else jtu.tree_map(lambda *leaves: jnp.concatenate(leaves), saved, last)
    x, _, spent, count, alive = carry
    nfe = _evaluations(solver, costs, cost, spent, whole)
    if ending is not None:
        nfe = None if nfe is None or calls is None else nfe if spent is not None else nfe + calls
    return Steps(x, times[count], jnp.where(alive, 0, 1).astype(jnp.int32), nfe, saved)


def _scan(body, carry, table, n, noise, unroll):
    """The first `n` steps: with recorded normals, with those of a key, or with none."""
    rows = _row(table, slice(0, n))
    if isinstance(noise, Recorded):
        return lax.scan(body, carry, (rows, (_row(noise.normals, slice(0, n)),)))
    if noise is not None:
        return _scan_blocks(body, carry, rows, n, *noise)
    return lax.scan(body, carry, (rows, None), unroll=unroll)


def _last_step(body, carry, table, n, noise, ending, calls):
    """The last step where an ending takes it, or takes it in some cases, and the evaluations it counts; `calls()` are
    those of a step of the loop.
    """

    def foreign(carry):
        x, state, spent, count, alive = carry
        x, calls = ending.step(x)
        if spent is not None and calls is not None:
            spent = spent + calls
        alive = alive & all_finite(x)
        return (x, state, spent, count + alive, alive), calls

    def own(carry):
        spent = carry[2]
        # a finite step where it is not taken, since its derivative is computed under `jax.vmap` all the same
        interval = jtu.tree_map(
            lambda a, b: jnp.where(ending.when, a, b), _row(table, max(n - 2, 0)), _row(table, n - 1)
        )
        carry, _ = body(carry, (interval, _last_normals(noise, n)))
        return carry, jnp.asarray(0 if spent is not None else calls() or 0, jnp.int32)

    return foreign(carry) if ending.when is True else lax.cond(ending.when, foreign, own, carry)


def _last_normals(noise, n):
    """The normals of the last of `n` steps."""
    if isinstance(noise, Recorded):
        return (_row(noise.normals, n - 1),)
    if noise is None:
        return None
    key, like, kinds = noise
    block, index = divmod(n - 1, block_length(like))
    return _row(block_normals(key, block, like, kinds), index)


def _scan_blocks(body, carry, table, n, key, noise_like, kinds):
    """The scan with its normals drawn a block of steps a key; memory does not grow with the number of steps."""
    block = block_length(noise_like)
    full, rest = divmod(n, block)

    @jax.checkpoint
    def outer(carry, slices):
        index, steps = slices
        normals = block_normals(key, index, noise_like, kinds)
        if block == 1:
            carry, saved = body(carry, (_row(steps, 0), _row(normals, 0)))
            return carry, jtu.tree_map(lambda leaf: leaf[None], saved)
        return lax.scan(body, carry, (steps, normals))

    parts = []
    if full:
        head = jtu.tree_map(lambda leaf: leaf[: full * block].reshape(full, block, *leaf.shape[1:]), table)
        carry, saved = lax.scan(outer, carry, (jnp.arange(full), head))
        parts.append(jtu.tree_map(lambda leaf: leaf.reshape(full * block, *leaf.shape[2:]), saved))
    if rest:
        normals = jtu.tree_map(lambda leaf: leaf[:rest], block_normals(key, full, noise_like, kinds))
        carry, saved = lax.scan(body, carry, (jtu.tree_map(lambda leaf: leaf[full * block :], table), normals))
        parts.append(saved)
    return carry, jtu.tree_map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _row(tree, i):
    return jtu.tree_map(lambda leaf: leaf[i], tree)


class _Step:
    """One step of a solver over an interval, in the clock of the problem."""

    def __init__(self, problem, solver, args, brownian, costs):
        self.problem, self.solver, self.args, self.brownian, self.costs = (
            problem,
            solver,
            args,
            brownian,
            costs,
        )
        self.tableau = explicit_tableau(solver)

    def start(self, x0, table):
        """The solver's state before the first step."""
        if self.tableau is not None:
            return None
        interval = _row(table, 0)
        u0, terms = self._terms(interval, x0, None)
        return self.solver.init(terms, interval.tau0, interval.tau1, u0, self.args)

    def __call__(self, interval, x, state, normals):
        u0, terms = self._terms(interval, x, normals)
        tau0, tau1 = interval.tau0, interval.tau1
        okay = True
        if self.tableau is not None:
            u1 = unrolled_step(self.tableau, terms, tau0, tau1, u0, self.args)
        else:
            made_jump = jnp.zeros((), bool)
            u1, _, _, state, result = self.solver.step(terms, tau0, tau1, u0, self.args, state, made_jump)
            okay = result == dfx.RESULTS.successful
        return u1 if interval.leave is None else self.problem.scaled(interval.leave, u1), state, okay

    def _terms(self, interval, x, normals):
        """The state in the clock, and the terms of the step. At the ends of the step `t` and `x` are the grid's."""
        problem, eta = self.problem, interval.eta
        u0 = x if interval.enter is None else problem.scaled(interval.enter, x)

        def locate(tau, u):
            if tau is interval.tau0 and u is u0:
                return interval.t0, x
            if tau is interval.tau1:
                return interval.t1, u if interval.leave is None else problem.scaled(interval.leave, u)
            t, y = located(problem, interval, x, u0, tau, u)
            t = jnp.where(tau == interval.tau0, interval.t0, jnp.where(tau == interval.tau1, interval.t1, t))
            return t, y

        outside = get_opaque_trace_state(convention="flax")

        def drift(tau, u, args):
            t, y = locate(tau, u)
            unrolled = get_opaque_trace_state(convention="flax") == outside
            self.costs.append(problem.cost(t, args) if unrolled else None)
            return problem.drift(t, y, args, eta)

        def diffusion(tau, u, args):
            return problem.diffusion(*locate(tau, u), args, eta)

        ode = dfx.ODETerm(drift)
        if not problem.noisy:
            return u0, ode

        noise_time = noise_clock(problem, interval, self.brownian)
        if normals is None:
            noise = NoiseTerm(diffusion, self.brownian, u0, noise_time)
        else:
            inside = noise_time if getattr(self.solver, "asks_inside", False) else None
            path = step_path(interval.tau0, interval.tau1, interval.variance, normals, inside)
            noise = NoiseTerm(diffusion, path, u0)
        return u0, dfx.MultiTerm(ode, noise)


def unrolled_step(
    tableau: dfx.ButcherTableau, terms: dfx.AbstractTerm, t0: Any, t1: Any, y0: PyTree, args: Any
) -> PyTree:
    """One explicit Runge-Kutta step with the stages of the tableau written out: weights are Python numbers, zeros
    are skipped, and stages that only an error estimate would read are not evaluated.
    """
    control = terms.contr(t0, t1)
    slopes: list[Any] = []
    for stage in range(tableau.num_stages):
        if stage not in needed_stages(tableau):
            slopes.append(None)
            continue
        c = 0.0 if stage == 0 else float(tableau.c[stage - 1])
        y = y0 if stage == 0 else _advance(y0, tableau.a_lower[stage - 1], slopes)
        t = t0 if c == 0 else t1 if c == 1 else t0 + c * (t1 - t0)
        slopes.append(terms.vf_prod(t, y, args, control))
    return _advance(y0, tableau.b_sol, slopes)


def _advance(y0, weights, slopes):
    terms = [(float(w), k) for w, k in zip(weights, slopes, strict=False) if w != 0]

    def leaf(y, *ks):
        increment = None
        for (w, _), k in zip(terms, ks, strict=True):
            part = k if w == 1 else w * k
            increment = part if increment is None else increment + part
        return y if increment is None else (y + increment).astype(y.dtype)

    return jtu.tree_map(leaf, y0, *(k for _, k in terms))


def _evaluations(solver, costs, cost, spent, n):
    """Network evaluations of `n` steps: the sum over the steps where the cost of a right-hand side varies with time,
    else `n` times that of one step; from the solver's own table where its stages run in a loop of known length, and
    `None` where it evaluates in another loop of its own.
    """
    if isinstance(solver, dfx.AbstractSRK) and spent is None:
        skipped = solver.tableau.ignore_stage_f
        return n * cost * (len(solver.tableau.b_sol) - (0 if skipped is None else int(sum(skipped))))
    if isinstance(solver, dfx.AbstractImplicitSolver) or None in costs:
        return None
    return n * sum(costs) if spent is None else spent
