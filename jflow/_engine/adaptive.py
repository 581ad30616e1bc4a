"""Adaptive, implicit, event-stopped and backward solves: `diffrax.diffeqsolve` without exceptions.

`throw=False` leaves out the host callbacks of `throw=True`, with which JAX does not keep a program on disk and which
cost more than a small network's evaluation; a failed solve is a status.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int, PyTree

from .._brownian import Recorded
from .._event import all_finite, state_dtype
from .._sampler import AdaptiveSteps
from .._solver import AbstractFieldSolver
from .._types import Solution
from .._validate import scalar_time
from .count import evaluation_nodes, explicit_tableau, takes_two_terms, unwrapped
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
    """The solve of an equation from `t0` to `t1`, which may lie before `t0`, stopped where the state is not finite."""
    solver: Any = dfx.Tsit5() if sampler.solver is None else sampler.solver
    interval, controller = clocked(equation, x0, t0, t1, solver, sampler.controller)
    check_controller(solver, controller)
    if not equation.noisy and takes_two_terms(solver):
        raise ValueError(f"{type(solver).__name__} must have an SDE. Got an ODE: take another solver.")
    u0 = x0 if interval.enter is None else equation.scaled(interval.enter, x0)
    view = _View(equation, interval, x0, u0)
    saved = dfx.SaveAt() if saveat is None else saveat
    sol = dfx.diffeqsolve(
        _terms(view, brownian, args), solver, interval.tau0, interval.tau1, first_step(equation, interval,
        sampler.dt0), u0, args, saveat=dfx.SaveAt(subs={"end": dfx.SubSaveAt(t1=True), "user": view.saves(saved.subs)},
        dense=saved.dense), stepsize_controller=controller, event=_stop(view, event, sampler.dt0),
        max_steps=sampler.max_steps, throw=False,
        adjoint=dfx.RecursiveCheckpointAdjoint() if sampler.adjoint is None else sampler.adjoint,
    )  # fmt: skip
    return _solution(view, solver, sol, equation.cost(interval.t0, args), event is not None)


class _View:
    """A solve in the time and state of its clock, seen in those of the path."""

    def __init__(self, equation, interval, x0, u0):
        self.equation, self.interval, self.x0, self.u0 = equation, interval, x0, u0

    def locate(self, tau, u):
        return located(self.equation, self.interval, self.x0, tau, u)

    def call(self, fn, tau, u, args, **kwargs):
        """A function of the caller's."""
        t, x = self.locate(tau, u)
        return fn(t, self.equation.visible(x), args, **kwargs)

    def saves(self, subs):
        """What to save, each value with its time."""

        def save(sub):
            def fn(tau, u, args):
                return self.locate(tau, u)[0], self.call(sub.fn, tau, u, args)

            ts = None if sub.ts is None else clock_times(self.equation, self.interval, sub.ts)
            return dfx.SubSaveAt(t0=sub.t0, t1=sub.t1, ts=ts, steps=sub.steps, fn=fn)

        return jtu.tree_map(save, subs, is_leaf=lambda node: isinstance(node, dfx.SubSaveAt))


def clock_times(equation: AbstractEquation, interval: Interval, ts: Array) -> Array:
    """Path times in the clock of the equation; those at the ends of the interval are its ends."""
    ts = ts.astype(interval.t0.dtype)
    taus = jax.vmap(lambda t: equation.time(t, interval.eta))(ts)
    return jnp.where(ts == interval.t0, interval.tau0, jnp.where(ts == interval.t1, interval.tau1, taus))


def first_step(equation: AbstractEquation, interval: Interval, dt0: Any) -> Any:
    """The length of a first step, given in the path's time, in the clock of the equation."""
    if dt0 is None:
        return None
    # its sign is that of the interval, since `encode` and `log_prob` turn a sampler around
    dt0 = jnp.copysign(jnp.asarray(dt0, interval.t0.dtype), interval.t1 - interval.t0)
    if equation.own_time:
        return dt0
    tau = equation.time(interval.t0 + dt0, interval.eta)
    past = jnp.abs(dt0) >= jnp.abs(interval.t1 - interval.t0)
    return jnp.where(past, interval.tau1, tau) - interval.tau0


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
    """The Brownian path of an adaptive SDE; raises `ValueError` for what is not known at every time."""
    if brownian is None:
        raise ValueError(
            "An adaptive SDE must have a Brownian path known at every time. Got none: pass brownian=, as "
            "jflow.brownian_tree makes it; or take jflow.FixedSteps, and a key."
        )
    if isinstance(brownian, Recorded):
        raise ValueError(
            "Recorded noise must go with the steps of a fixed grid. Got adaptive steps: pass brownian=, as "
            "jflow.brownian_tree makes it."
        )
    return brownian


def check_controller(solver: Any, controller: Any) -> None:
    """Raises `ValueError` for steps that adapt to an error estimate which the solver does not give."""
    inner, name = unwrapped(solver), type(solver).__name__
    if isinstance(inner, AbstractFieldSolver):
        inner.prepare(0)  # a solver with something of its own for each step raises: no grid has no steps
    adapts = isinstance(controller, dfx.AbstractAdaptiveStepSizeController)
    estimates = isinstance(solver, dfx.AbstractAdaptiveSolver | dfx.AbstractWrappedSolver | dfx.AbstractSRK)
    if isinstance(inner, AbstractFieldSolver) and inner is solver:
        estimates = inner.error_estimate
    if adapts and not estimates:
        raise ValueError(
            f"Adaptive steps must have a solver with an error estimate. Got {name}(), which has none: take "
            "jflow.FixedSteps, or controller=diffrax.ConstantStepSize() and dt0=, or take diffrax.Tsit5()."
        )


def clocked(
    equation: AbstractEquation, x0: PyTree, t0: Any, t1: Any, solver: Any, controller: Any
) -> tuple[Interval, dfx.AbstractStepSizeController]:
    """The interval in the equation's clock, and the controller for it."""
    chosen: Any = dfx.PIDController(1e-5, 1e-5) if controller is None else controller
    dtype = state_dtype(x0)
    t0, t1 = scalar_time(t0).astype(dtype), scalar_time(t1).astype(dtype)
    interval = jtu.tree_map(lambda leaf: leaf[0], equation.intervals(jnp.stack([t0, t1])))
    if isinstance(chosen, dfx.PIDController):
        return interval, guarded(chosen, interval, dtype, implicit=isinstance(solver, dfx.AbstractImplicitSolver))
    # the controllers that hold times hold path times
    if isinstance(chosen, dfx.StepTo):
        chosen = dfx.StepTo(clock_times(equation, interval, chosen.ts))
    if isinstance(chosen, dfx.ClipStepSizeController):
        ts = [None if t is None else clock_times(equation, interval, t) for t in (chosen.step_ts, chosen.jump_ts)]
        is_none = {"is_leaf": lambda leaf: leaf is None}
        chosen = eqx.tree_at(lambda c: (c.step_ts, c.jump_ts), chosen, tuple(ts), **is_none)
    return interval, chosen


def guarded(pid: dfx.PIDController, interval: Interval, dtype: Any, *, implicit: bool) -> "_Guarded":
    """A PID controller in the clock of an interval."""
    unit = jnp.minimum(jnp.maximum(jnp.abs(interval.tau0), jnp.abs(interval.tau1)), 1)
    rounding = jnp.finfo(dtype).eps / jnp.maximum(pid.rtol, pid.atol)
    least = jnp.zeros((), dtype) if implicit else jnp.minimum(rounding, 0.1).astype(dtype)
    return _Guarded(pid, unit, least)  # pyright: ignore[reportCallIssue]


class _Guarded(dfx.AbstractAdaptiveStepSizeController):
    """A PID controller that knows rounding, in a clock whose times may span decades.

    It fails where a step is lost in the rounding of the time it starts at, or of `unit` where that is larger: its
    `dtmin` moves with the time. And it never reports an error below `least`, the rounding of the state in units of the
    tolerance: a smaller estimate is noise, and steps that grow by noise are others in a program that rounds otherwise,
    for another batch or on other devices. (Without it one sample of 4,096 differed by 178 tolerances between batch
    sizes
    in float32, with it by 65.) The bound rejects no step.
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

    def _at(self, t):
        """The inner controller for a step from `t`."""
        lost = 32 * jnp.finfo(self.unit.dtype).eps * jnp.maximum(jnp.abs(t), self.unit)
        dtmin, force = (lost, False) if self.inner.dtmin is None else (self.inner.dtmin, self.inner.force_dtmin)
        none = {"is_leaf": lambda leaf: leaf is None}
        where = lambda c: (c.dtmin, c.force_dtmin, c.norm)  # noqa: E731
        return eqx.tree_at(where, self.inner, (dtmin, force, self.norm), **none)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return self._at(t0).init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, *step):
        return self._at(t0).adapt_step_size(t0, t1, *step)


def _stop(view, event, dt0):
    """The user's event, and the end of a lane whose state is not finite."""
    stop: dict[str, Any] = {"diverged": lambda t, y, args, **kwargs: ~all_finite(y)}
    if event is None:
        return dfx.Event(stop)
    interval = view.interval
    sign = jnp.where(interval.tau0 < interval.tau1, 1, -1)  # diffrax turns the time of a backward solve around
    own = {"t0": interval.t0, "t1": interval.t1, "dt0": dt0}

    def seen(fn):
        return lambda t, y, args, **kwargs: view.call(fn, sign * t, y, args, **(kwargs | own))

    user = jtu.tree_map(seen, event.cond_fn, is_leaf=callable)
    direction = None if event.direction is None else {"diverged": None, "user": event.direction}
    return dfx.Event(stop | {"user": user}, event.root_finder, direction)


def _solution(view, solver, sol, cost, has_event):
    """The result of `diffeqsolve` in the path's time and state; slots that were not filled stay infinite."""
    t, x = view.locate(sol.ts["end"][-1], jtu.tree_map(lambda leaf: leaf[-1], sol.ys["end"]))
    timeless = jnp.isnan(view.interval.t0 + view.interval.t1)  # diffrax takes no step then, and calls it done
    diverged = sol.event_mask["diverged"] | ~all_finite(x) | timeless
    stopped = (sol.result == dfx.RESULTS.event_occurred) & ~diverged if has_event else jnp.zeros((), bool)
    fine = sol.result == dfx.RESULTS.successful
    out_of_steps = sol.result == dfx.RESULTS.max_steps_reached
    status = jnp.where(fine, 0, jnp.where(out_of_steps, 2, jnp.where(stopped, 3, 1)))
    status = jnp.where(diverged, 1, status).astype(jnp.int32)
    taus, saved = sol.ts["user"], sol.ys["user"]
    ts = jtu.tree_map(lambda tau, pair: jnp.where(jnp.isfinite(tau), pair[0], tau), taus, saved)
    xs = jtu.tree_map(lambda _, pair: pair[1], taus, saved)
    nfe = adaptive_nfe(solver, sol.stats["num_steps"], cost, view.equation.noisy)
    return Solution(x=x, nfe=nfe, status=status, t=t, ts=ts, xs=xs, interpolation=sol.interpolation)


def adaptive_nfe(solver: Any, steps: Int[Array, ""], cost: Any, noisy: bool = False) -> Int[Array, ""] | None:
    """Network evaluations that `diffeqsolve` made, at `cost` a call; `None` where either is not known.

    They are the stages of every step, rejected ones and the stage of the error estimate too; a first-same-as-last
    method evaluates its first stage once. (The first step's size costs none: diffrax takes 0.01 for terms that it
    wraps.)
    """
    if not isinstance(cost, int):
        return None
    tableau = explicit_tableau(solver)
    if tableau is not None:
        stages, n = tableau.num_stages, steps.astype(jnp.int32)
        return cost * (1 + (stages - 1) * n if tableau.fsal else stages * n)
    nodes = None if unwrapped(solver) is not solver else evaluation_nodes(solver, noisy)
    return None if nodes is None else (cost * len(nodes) * steps).astype(jnp.int32)
