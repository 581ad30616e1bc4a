"""Adaptive, implicit, event-stopped and backward solves: `diffrax.diffeqsolve` without exceptions."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int, PyTree

from ._brownian import Recorded
from ._misc import all_finite, scalar_time, state_dtype
from ._problem import AbstractProblem, Interval, NoiseTerm, check_start, explicit_tableau, located, noise_clock
from ._types import PRNGKey, Solution


def adaptive(
    problem: AbstractProblem,
    x0: PyTree,
    args: Any,
    t0: Any,
    t1: Any,
    *,
    dt0: Any,
    solver: dfx.AbstractSolver | None,
    stepsize_controller: dfx.AbstractStepSizeController | None,
    key: PRNGKey | None,
    brownian: Any,
    saveat: dfx.SaveAt | None,
    adjoint: dfx.AbstractAdjoint | None,
    event: dfx.Event | None,
    max_steps: int,
) -> Solution:
    """The solve of a problem by `diffeqsolve(throw=False)`, stopped where the state is not finite."""
    solver = dfx.Tsit5() if solver is None else solver
    interval, controller = clocked(problem, x0, t0, t1, solver, stepsize_controller)
    _check_controller(solver, controller)
    check_start(solver, interval)
    u0 = x0 if interval.enter is None else problem.scaled(interval.enter, x0)
    view = _View(problem, interval, x0, u0)
    saved = dfx.SaveAt() if saveat is None else saveat
    sol = dfx.diffeqsolve(
        _terms(view, brownian), solver, interval.tau0, interval.tau1, first_step(problem, interval, dt0), u0, args,
        saveat=dfx.SaveAt(subs={"end": dfx.SubSaveAt(t1=True), "user": view.saves(saved.subs)}, dense=saved.dense),
        stepsize_controller=controller, event=_stop(view, event, dt0), max_steps=max_steps, throw=False,
        adjoint=dfx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
    )  # fmt: skip
    return _adaptive_solution(view, solver, sol, problem.cost(t0, args))


class _View:
    """A solve in the time and state of its clock, seen in those of the path."""

    def __init__(self, problem, interval, x0, u0):
        self.problem, self.interval, self.x0, self.u0 = problem, interval, x0, u0

    def locate(self, tau, u):
        return located(self.problem, self.interval, self.x0, self.u0, tau, u)

    def call(self, fn, tau, u, args, **kwargs):
        """A function of the caller's."""
        t, x = self.locate(tau, u)
        return fn(t, self.problem.visible(x), args, **kwargs)

    def saves(self, subs):
        """What to save, each value with its time."""

        def save(sub):
            def fn(tau, u, args):
                return self.locate(tau, u)[0], self.call(sub.fn, tau, u, args)

            ts = None if sub.ts is None else clock_times(self.problem, self.interval, sub.ts)
            return dfx.SubSaveAt(t0=sub.t0, t1=sub.t1, ts=ts, steps=sub.steps, fn=fn)

        return jtu.tree_map(save, subs, is_leaf=lambda node: isinstance(node, dfx.SubSaveAt))


def clock_times(problem: AbstractProblem, interval: Interval, ts: Array) -> Array:
    """Path times in the clock of the problem; those at the ends of the interval are its ends."""
    ts = ts.astype(interval.t0.dtype)
    taus = jax.vmap(lambda t: problem.time(t, interval.eta))(ts)
    return jnp.where(ts == interval.t0, interval.tau0, jnp.where(ts == interval.t1, interval.tau1, taus))


def first_step(problem: AbstractProblem, interval: Interval, dt0: Any) -> Any:
    """The length of a first step, given in the path's time, in the clock of the problem."""
    if dt0 is None:
        return None
    t = interval.t0 + jnp.asarray(dt0, interval.t0.dtype)
    tau = problem.time(t, interval.eta)
    past = jnp.abs(dt0) >= jnp.abs(interval.t1 - interval.t0)
    return dt0 if tau is t else jnp.where(past, interval.tau1, tau) - interval.tau0


def _terms(view, brownian):
    problem, eta = view.problem, view.interval.eta
    drift = dfx.ODETerm(lambda tau, u, a: problem.drift(*view.locate(tau, u), a, eta))
    if not problem.noisy:
        return drift

    def diffusion(tau, u, a):
        return problem.diffusion(*view.locate(tau, u), a, eta)

    source = _path(brownian)
    noise = NoiseTerm(diffusion, source, view.u0, noise_clock(problem, view.interval, source))
    return dfx.MultiTerm(drift, noise)


def _check_controller(solver, controller):
    """Steps adapt to an error estimate, which a solver without an embedded method does not give."""
    if getattr(solver, "steps", None) is not None:
        raise ValueError(
            f"{type(solver).__name__} has weights of its own for each step of one grid. Got an adaptive solve: pass "
            "that grid, times=, or take another solver, as diffrax.Tsit5()."
        )
    adapts = isinstance(controller, dfx.AbstractAdaptiveStepSizeController)
    if adapts and (isinstance(solver, dfx.Euler) or not getattr(solver, "error_estimate", True)):
        name = type(solver).__name__
        raise ValueError(
            f"Adaptive steps need a solver with an error estimate. Got {name}(), which has none: give a grid, times=, "
            "or stepsize_controller=diffrax.ConstantStepSize() and dt0=, or take diffrax.Tsit5()."
        )


def clocked(
    problem: AbstractProblem,
    x0: PyTree,
    t0: Any,
    t1: Any,
    solver: dfx.AbstractSolver,
    controller: dfx.AbstractStepSizeController | None,
) -> tuple[Interval, dfx.AbstractStepSizeController]:
    """The interval in the problem's clock, and the controller, which stops where its steps are lost in rounding, and
    takes no error for smaller than the rounding of the state.
    """
    chosen: Any = dfx.PIDController(1e-5, 1e-5) if controller is None else controller
    dtype = state_dtype(x0)
    t0, t1 = scalar_time(t0).astype(dtype), scalar_time(t1).astype(dtype)
    interval = jtu.tree_map(lambda leaf: leaf[0], problem.intervals(jnp.stack([t0, t1])))
    if isinstance(chosen, dfx.PIDController) and not isinstance(solver, dfx.AbstractImplicitSolver):
        rounding = jnp.finfo(dtype).eps / jnp.maximum(chosen.rtol, chosen.atol)
        norm = _AboveRounding(chosen.norm, jnp.minimum(rounding, 0.1).astype(dtype))
        chosen = eqx.tree_at(lambda c: c.norm, chosen, norm)
    if isinstance(chosen, dfx.PIDController) and chosen.dtmin is None:
        chosen = _Floored(chosen, jnp.minimum(jnp.maximum(jnp.abs(interval.tau0), jnp.abs(interval.tau1)), 1))
    for name in ("ts", "step_ts", "jump_ts"):  # of StepTo and ClipStepSizeController
        if (ts := getattr(chosen, name, None)) is not None:
            chosen = eqx.tree_at(lambda c, name=name: getattr(c, name), chosen, clock_times(problem, interval, ts))
    return interval, chosen


class _Floored(dfx.AbstractAdaptiveStepSizeController):
    """A controller that fails where a step is lost in the rounding of the time it starts at (those of a clock span
    decades), or of `unit` where that is larger.
    """

    inner: dfx.PIDController
    unit: Array

    def __init__(self, inner, unit):
        self.inner, self.unit = inner, unit

    @property
    def rtol(self):
        return self.inner.rtol

    @property
    def atol(self):
        return self.inner.atol

    @property
    def norm(self):
        return self.inner.norm

    def wrap(self, direction):
        return self

    def _at(self, t):
        dtmin = 32 * jnp.finfo(self.unit.dtype).eps * jnp.maximum(jnp.abs(t), self.unit)
        none = {"is_leaf": lambda leaf: leaf is None}
        return eqx.tree_at(lambda c: (c.dtmin, c.force_dtmin), self.inner, (dtmin, False), **none)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return self._at(t0).init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, *step):
        return self._at(t0).adapt_step_size(t0, t1, *step)


class _AboveRounding(eqx.Module):
    """A norm of the error in units of the tolerance, at least that of the rounding of the state.

    A smaller estimate is noise, and steps that grow by noise are others in a program that rounds otherwise: for another
    batch or on other devices. The bound rejects no step.
    """

    norm: Callable[[PyTree], Any]
    rounding: Array

    def __call__(self, error: PyTree) -> Any:
        return jnp.maximum(self.norm(error), self.rounding)


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


def _path(brownian):
    if brownian is None:
        raise ValueError(
            "An adaptive SDE needs a Brownian path known at every time: pass brownian=diffrax.VirtualBrownianTree(...) "
            "with the interval, tolerance, shape and key; or give a grid, times=, and a key."
        )
    if isinstance(brownian, Recorded):
        raise ValueError(
            "Recorded noise belongs to the steps of a fixed grid, times=. For adaptive steps pass "
            "brownian=diffrax.VirtualBrownianTree(...)."
        )
    return brownian


def _adaptive_solution(view, solver, sol, cost):
    """The result of `diffeqsolve` in the path's time and state; slots that were not filled stay infinite."""
    t, x = view.locate(sol.ts["end"][-1], jtu.tree_map(lambda leaf: leaf[-1], sol.ys["end"]))
    diverged = sol.event_mask["diverged"] | ~all_finite(x)
    fine = (sol.result == dfx.RESULTS.successful) | (sol.result == dfx.RESULTS.event_occurred)
    out_of_steps = sol.result == dfx.RESULTS.max_steps_reached
    status = jnp.where(diverged, 1, jnp.where(fine, 0, jnp.where(out_of_steps, 2, 1))).astype(jnp.int32)
    taus, saved = sol.ts["user"], sol.ys["user"]
    ts = jtu.tree_map(lambda tau, pair: jnp.where(jnp.isfinite(tau), pair[0], tau), taus, saved)
    xs = jtu.tree_map(lambda _, pair: pair[1], taus, saved)
    nfe = adaptive_nfe(solver, sol.stats["num_steps"], cost)
    return Solution(x=x, nfe=nfe, status=status, t=t, ts=ts, xs=xs, interpolation=sol.interpolation)


def adaptive_nfe(solver: dfx.AbstractSolver, steps: Int[Array, ""], cost: Any) -> Int[Array, ""] | None:
    """Network evaluations of a number of steps, at `cost` a call; `None` where either is not known."""
    calls = _adaptive_calls(solver, steps)
    return None if calls is None or not isinstance(cost, int) else calls * cost


def _adaptive_calls(solver, steps):
    """Evaluations that `diffeqsolve` made: the stages of every step, rejected ones too; a first-same-as-last method
    evaluates its first stage once. (The first step's size costs none: diffrax takes 0.01 for the terms it wraps.)
    """
    if isinstance(solver, dfx.Euler):
        return steps.astype(jnp.int32)
    if (calls := getattr(solver, "calls", None)) is not None:
        return (calls * steps).astype(jnp.int32)
    tableau = explicit_tableau(solver)
    if tableau is None:
        return None
    if tableau.fsal:
        return (1 + (tableau.num_stages - 1) * steps).astype(jnp.int32)
    return (tableau.num_stages * steps).astype(jnp.int32)
