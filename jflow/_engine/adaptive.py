"""Adaptive, implicit, event-stopped and backward solves: `diffrax.diffeqsolve` without exceptions.

A failed solve is a status. `throw=True` of diffrax would raise through a host callback. JAX does not keep a program
with a host callback on disk, and the callback costs more than one evaluation of a small network.

diffrax integrates in the time tau and the state u of a clock. The caller's functions, times and results are in the
time t and the state x of the path. `_View` translates between the two.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int, PyTree

from .._brownian import Recorded
from .._event import all_finite, combine, state_dtype
from .._sampler import AdaptiveSteps
from .._solver import AbstractFieldSolver, Watched, smaller
from .._types import DTypeLike, Solution
from .._validate import concrete, scalar_time
from .count import evaluation_nodes, explicit_tableau, is_itself, takes_two_terms, unwrapped
from .equation import AbstractEquation, Interval, located
from .noise import NoiseTerm
from .solver_rule import source_time


def run_adaptive(
    equation: AbstractEquation,
    x0: PyTree,
    args: Any,
    sampler: AdaptiveSteps,
    *,
    t0: Any,
    t1: Any,
    brownian: Any = None,
    saveat: dfx.SaveAt | None = None,
    event: dfx.Event | None = None,
) -> Solution:
    """Solves an equation from `t0` to `t1`. The solve stops where the state is not finite.

    `t1` may lie before `t0`: that is a backward solve.
    """
    solver: Any = dfx.Tsit5() if sampler.solver is None else sampler.solver
    interval, controller = clocked(equation, x0, t0, t1, solver, sampler.controller)
    check_controller(solver, controller)
    if not equation.noisy and takes_two_terms(solver):
        raise ValueError(f"{type(solver).__name__} must have an SDE. Got an ODE: take another solver.")
    u0 = x0 if interval.enter is None else equation.scaled(interval.enter, x0)
    view = _View(equation, interval, x0, u0)
    saved = dfx.SaveAt() if saveat is None else saveat
    terms, tableau = _terms(view, brownian, args), explicit_tableau(solver)
    dt0, slope = initial_step(equation, interval, terms, controller, u0, sampler.dt0, args)
    carries = tableau is not None and tableau.fsal and not equation.noisy
    known, pid = slope is not None and carries, guard(controller)
    watched = solver if pid is None or not carries else Watched(solver, pid.inner)
    sol = dfx.diffeqsolve(
        terms, watched, interval.tau0, interval.tau1, dt0, u0, args, saveat=dfx.SaveAt(
        subs={"end": dfx.SubSaveAt(t1=True), "user": view.saves(saved.subs)}, dense=saved.dense),
        stepsize_controller=controller, event=_stop(view, event, sampler.dt0), max_steps=sampler.max_steps,
        throw=False, adjoint=dfx.RecursiveCheckpointAdjoint() if sampler.adjoint is None else sampler.adjoint,
        # whether the first stage is yet to be evaluated, and the slope that diffrax takes in its place
        solver_state=(jnp.zeros((), bool), slope) if known else None,
    )  # fmt: skip
    probes = 0 if slope is None else PROBES - known
    nfe = adaptive_nfe(solver, probes, sol.stats["num_steps"], equation.cost(interval.t0, args), equation.noisy)
    return _solution(view, sol, nfe, event is not None)


class _View:
    """Translates the time and the state of a clock, `(tau, u)`, to those of the path, `(t, x)`."""

    def __init__(self, equation, interval, x0, u0):
        self.equation, self.interval, self.x0, self.u0 = equation, interval, x0, u0

    def locate(self, tau, u):
        return located(self.equation, self.interval, self.x0, tau, u)

    def call(self, fn, tau, u, args, **kwargs):
        """Calls a function of the caller's, with the time and the state of the path."""
        t, x = self.locate(tau, u)
        return fn(t, self.equation.visible(x), args, **kwargs)

    def saves(self, subs):
        """The caller's `SubSaveAt`s in the time of the clock. Each saved value comes with its path time."""

        def save(sub):
            def fn(tau, u, args):
                return self.locate(tau, u)[0], self.call(sub.fn, tau, u, args)

            ts = None if sub.ts is None else clock_times(self.equation, self.interval, sub.ts)
            return dfx.SubSaveAt(t0=sub.t0, t1=sub.t1, ts=ts, steps=sub.steps, fn=fn)

        return jtu.tree_map(save, subs, is_leaf=lambda node: isinstance(node, dfx.SubSaveAt))


def clock_times(equation: AbstractEquation, interval: Interval, ts: Array) -> Array:
    """Path times in the time of the clock.

    A time equal to an end of the interval maps to that end exactly. The formula of the clock could differ from it by
    rounding, and diffrax raises for a time outside the interval.
    """
    ts = ts.astype(interval.t0.dtype)
    taus = jax.vmap(lambda t: equation.time(t, interval.eta))(ts)
    return jnp.where(ts == interval.t0, interval.tau0, jnp.where(ts == interval.t1, interval.tau1, taus))


def _terms(view, brownian, args):
    equation, eta = view.equation, view.interval.eta
    drift = dfx.ODETerm(lambda tau, u, a: equation.drift(*view.locate(tau, u), a, eta))
    if not equation.noisy:
        return drift

    def diffusion(tau, u, a):
        return equation.diffusion(*view.locate(tau, u), a, eta)

    clock = source_time(equation, view.interval)
    colour = lambda white: equation.colour(white, args)  # noqa: E731
    return dfx.MultiTerm(drift, NoiseTerm(diffusion, check_source(brownian), view.u0, clock, colour))


def check_source(brownian: Any) -> Any:
    """The Brownian path of an adaptive SDE. Raises `ValueError` unless it is known at every time."""
    if brownian is None:
        raise ValueError(
            "An adaptive SDE must have a Brownian path known at every time. Got none: pass brownian=, as "
            "jflow.brownian_tree makes it; or take jflow.FixedSteps, and a key."
        )
    if isinstance(brownian, Recorded):
        raise ValueError(
            "Recorded noise must go with the steps of a fixed grid. Got adaptive steps: pass jflow.brownian_tree(...)."
        )
    return brownian


def check_tree(tree: Any, start: Any, stop: Any) -> None:
    """Raises `ValueError` where a Brownian tree is known not to span the time of the noise, from `start` to `stop`."""
    known: Any = [concrete(t) for t in (tree.t0, tree.t1, start, stop)]
    if any(t is None for t in known):
        return
    (t0, t1), (first, last) = known[:2], sorted(known[2:])
    slack = 1e-5 * (last - first)
    if t0 > first + slack or t1 < last - slack:
        raise ValueError(
            f"A Brownian tree must span the time of the noise, here from {first:.6g} to {last:.6g}. Got one from "
            f"{t0:.6g} to {t1:.6g}: jflow.brownian_tree(field, sampler, key, shape) makes it in the sampler's clock."
        )


def check_controller(solver: Any, controller: Any) -> None:
    """Raises `ValueError` where the controller needs an error estimate and the solver gives none."""
    if isinstance(inner := unwrapped(solver), AbstractFieldSolver):
        inner.prepare(0)  # a solver that was made for a number of steps raises here: no grid has 0 steps
    estimates = isinstance(solver, dfx.AbstractAdaptiveSolver | dfx.AbstractWrappedSolver)
    if is_itself(solver, AbstractFieldSolver):
        estimates = solver.error_estimate
    elif is_itself(solver, dfx.AbstractSRK):
        estimates = solver.tableau.b_error is not None
    if isinstance(controller, dfx.AbstractAdaptiveStepSizeController) and not estimates:
        raise ValueError(
            f"Adaptive steps must have a solver with an error estimate. Got {type(solver).__name__}(), which has none: "
            "take jflow.FixedSteps, or controller=diffrax.ConstantStepSize() and dt0=, or take diffrax.Tsit5()."
        )


def clocked(
    equation: AbstractEquation, x0: PyTree, t0: Any, t1: Any, solver: Any, controller: Any
) -> tuple[Interval, dfx.AbstractStepSizeController]:
    """The interval in the time of the clock, and the controller for that time."""
    chosen: Any = dfx.PIDController(1e-5, 1e-5) if controller is None else controller
    dtype = state_dtype(x0)
    t0, t1 = scalar_time(t0).astype(dtype), scalar_time(t1).astype(dtype)
    interval = jtu.tree_map(lambda leaf: leaf[0], equation.intervals(jnp.stack([t0, t1])))
    inner = chosen.controller if isinstance(chosen, dfx.ClipStepSizeController) else chosen
    if isinstance(inner, dfx.PIDController):
        inner = guarded(inner, interval, dtype, implicit=isinstance(solver, dfx.AbstractImplicitSolver))
    # These two controllers hold times. The caller gave them in the path's time.
    if isinstance(chosen, dfx.StepTo):
        return interval, dfx.StepTo(clock_times(equation, interval, chosen.ts))
    if not isinstance(chosen, dfx.ClipStepSizeController):
        return interval, inner
    ts = [None if t is None else clock_times(equation, interval, t) for t in (chosen.step_ts, chosen.jump_ts)]
    where = lambda c: (c.controller, c.step_ts, c.jump_ts)  # noqa: E731
    return interval, eqx.tree_at(where, chosen, (inner, *ts), is_leaf=lambda leaf: leaf is None)


def guarded(pid: dfx.PIDController, interval: Interval, dtype: DTypeLike, *, implicit: bool) -> "_Guarded":
    """A PID controller for the time of a clock, with the two bounds of `_Guarded`.

    `unit` is the larger distance of the interval's two ends from tau = 0, at most 1. `least` is the rounding error of
    the state in units of the tolerance, at most 0.1. It is 0 for an implicit solver, whose root finder measures its own
    convergence by the norm of the controller.
    """
    unit = jnp.minimum(jnp.maximum(jnp.abs(interval.tau0), jnp.abs(interval.tau1)), 1)
    rounding = jnp.finfo(dtype).eps / jnp.max(jnp.maximum(pid.rtol, pid.atol))
    least = jnp.zeros((), dtype) if implicit else jnp.minimum(rounding, 0.1).astype(dtype)
    return _Guarded(pid, unit, least)  # pyright: ignore[reportCallIssue]


PROBES = 2
"""Evaluations that the length of a first step costs; the first of them is the slope at the start."""


def initial_step(
    equation: AbstractEquation, interval: Interval, terms: Any, controller: Any, u0: PyTree, dt0: Any, args: Any
) -> tuple[Any, PyTree]:
    """The length of the first step in the time of the clock, and the slope at the start, `None` where it is not needed.

    `dt0` is the length in the path's time. Without it the length is 0.15 of the time in which the state changes its
    course, `sqrt(|u| / |u''|)`, and at most 1/16, rounded down to a power of two, so that rounding in the slopes does
    not reach it. A longer step over a fast start, as that of data in large units, or that of `encode` for data in small
    ones, is not always rejected: the slopes behind the start are alike.
    """
    tau0, span = interval.tau0, interval.tau1 - interval.tau0
    if dt0 is not None:
        # `encode` and `log_prob` run a sampler backward, so the interval decides the sign of the step
        dt0 = jnp.copysign(jnp.asarray(dt0, interval.t0.dtype), interval.t1 - interval.t0)
        past = jnp.abs(dt0) >= jnp.abs(interval.t1 - interval.t0)
        there = equation.time(interval.t0 + dt0, interval.eta)
        return dt0 if equation.own_time else jnp.where(past, interval.tau1, there) - tau0, None
    if (inner := guard(controller)) is None:
        return None, None
    drift, pid = terms.terms[0] if isinstance(terms, dfx.MultiTerm) else terms, inner.inner
    h = jnp.minimum(jnp.maximum(1e-5, 32 * jnp.finfo(tau0.dtype).eps * jnp.abs(tau0)), jnp.abs(span) / 10)
    h = jnp.copysign(h, span)

    def probe(at, _):
        slope = drift.vf(*at, args)
        return (at[0] + h, combine((1, at[1]), (h, slope))), slope

    _, slopes = jax.lax.scan(probe, (tau0, u0), None, PROBES)
    change = pid.norm(jtu.tree_map(lambda leaf: (leaf[1] - leaf[0]) / h, slopes))
    square = change / jnp.maximum(pid.norm(u0), jnp.max(pid.atol))
    length = jnp.exp2(jnp.floor(jnp.log2(0.15 / jnp.sqrt(jnp.where(square > 5.76, square, 5.76)))))
    length = jax.lax.stop_gradient(jnp.maximum(length, inner.least_step(tau0)))
    dt0 = jnp.copysign(length, span).astype(tau0.dtype)
    return dt0, jtu.tree_map(lambda leaf: leaf[0], slopes)


class _Guarded(dfx.AbstractAdaptiveStepSizeController):
    """A PID controller with two bounds that come from rounding, and a tolerance that follows a state that shrinks.

    The first bound is on the step. The controller fails where a step is shorter than the rounding error of the time it
    starts at, or of `unit` if that is larger. diffrax's `dtmin` is one number; the times of a clock may span decades,
    so here `dtmin` moves with the time.

    The second bound is on the error estimate, which is never below `least`. A smaller estimate is rounding noise. Steps
    that grow by noise differ between two programs that round differently, as for another batch size or another device.
    The bound never rejects a step.

    The tolerance is `atol + rtol |y|` with the smaller of the two sizes that the state has at the ends of the step;
    diffrax takes the larger. With that one, a step in which the state shrinks may be wrong by all that is left of it:
    `encode` of data with mean 1e5 and standard deviation 1e3 ended up to 4.6 from the noise that it should find,
    without a word, and ends within 0.004 of it.
    """

    inner: dfx.PIDController
    unit: Array
    least: Array

    @property
    def rtol(self):
        return self.inner.rtol

    @property
    def atol(self):
        return self.inner.atol

    @property
    def norm(self):
        return self._above_rounding

    def _above_rounding(self, error):
        return jnp.maximum(self.inner.norm(error), self.least)

    def wrap(self, direction):
        return self

    def least_step(self, t):
        """The shortest step from `t`: the caller's `dtmin`, or the rounding error of the time."""
        lost = jnp.finfo(self.unit.dtype).eps * jnp.maximum(32 * jnp.abs(t), self.unit)
        return lost if self.inner.dtmin is None else self.inner.dtmin

    def _at(self, t):
        """The inner controller with the bounds for a step from `t`."""
        force = self.inner.dtmin is not None and self.inner.force_dtmin
        none = {"is_leaf": lambda leaf: leaf is None}
        where = lambda c: (c.dtmin, c.force_dtmin, c.norm)  # noqa: E731
        return eqx.tree_at(where, self.inner, (self.least_step(t), force, self.norm), **none)

    def init(self, terms, t0, *rest):
        return self._at(t0).init(terms, t0, *rest)

    def adapt_step_size(self, t0, t1, y0, y1, *rest):
        size = jtu.tree_map(smaller, y0, y1)
        return self._at(t0).adapt_step_size(t0, t1, size, size, *rest)


def guard(controller: Any) -> _Guarded | None:
    """The guarded controller, where there is one."""
    inner = controller.controller if isinstance(controller, dfx.ClipStepSizeController) else controller
    return inner if isinstance(inner, _Guarded) else None


def _stop(view, event, dt0):
    """The caller's event, together with the event that stops a solve whose state is not finite."""
    stop: dict[str, Any] = {"diverged": lambda t, y, args, **kwargs: ~all_finite(y)}
    if event is None:
        return dfx.Event(stop)
    interval = view.interval
    sign = jnp.where(interval.tau0 < interval.tau1, 1, -1)  # diffrax negates the time of a backward solve
    own = {"t0": interval.t0, "t1": interval.t1, "dt0": dt0}

    def seen(fn):
        return lambda t, y, args, **kwargs: view.call(fn, sign * t, y, args, **(kwargs | own))

    user = jtu.tree_map(seen, event.cond_fn, is_leaf=callable)
    direction = None if event.direction is None else {"diverged": None, "user": event.direction}
    return dfx.Event(stop | {"user": user}, event.root_finder, direction)


def _solution(view, sol, nfe, has_event):
    """The result of `diffeqsolve` in the path's time and state. Saved times that were not reached stay infinite."""
    t, x = view.locate(sol.ts["end"][-1], jtu.tree_map(lambda leaf: leaf[-1], sol.ys["end"]))
    timeless = jnp.isnan(view.interval.t0 + view.interval.t1)  # diffrax then takes no step and reports success
    diverged = sol.event_mask["diverged"] | ~all_finite(x) | timeless
    stopped = (sol.result == dfx.RESULTS.event_occurred) & ~diverged if has_event else jnp.zeros((), bool)
    fine = sol.result == dfx.RESULTS.successful
    out_of_steps = sol.result == dfx.RESULTS.max_steps_reached
    status = jnp.where(fine, 0, jnp.where(out_of_steps, 2, jnp.where(stopped, 3, 1)))
    status = jnp.where(diverged, 1, status).astype(jnp.int32)
    taus, saved = sol.ts["user"], sol.ys["user"]
    ts = jtu.tree_map(lambda tau, pair: jnp.where(jnp.isfinite(tau), pair[0], tau), taus, saved)
    xs = jtu.tree_map(lambda _, pair: pair[1], taus, saved)
    return Solution(x=x, nfe=nfe, status=status, t=t, ts=ts, xs=xs, interpolation=sol.interpolation)


def adaptive_nfe(
    solver: Any, probes: int, steps: Int[Array, ""], cost: Any, noisy: bool = False
) -> Int[Array, ""] | None:
    """The network evaluations that `diffeqsolve` made, at `cost` a call. `None` where one of the two is not known.

    Each step evaluates all stages of the tableau, a rejected step and the stage of the error estimate too. A
    first-same-as-last method takes its first stage from the step before, so it evaluates one stage less, and one more
    at the start. The length of a first step that is not given costs `probes` more.
    """
    if not isinstance(cost, int):
        return None
    tableau, n = explicit_tableau(solver), steps.astype(jnp.int32)
    if tableau is not None:
        return cost * (probes + (1 + (tableau.num_stages - 1) * n if tableau.fsal else tableau.num_stages * n))
    nodes = None if unwrapped(solver) is not solver else evaluation_nodes(solver, noisy)
    return None if nodes is None else cost * (probes + len(nodes) * n)
