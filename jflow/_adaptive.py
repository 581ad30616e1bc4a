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
from ._problem import AbstractProblem, Interval, NoiseTerm, explicit_tableau
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
    eta, tau0, tau1 = interval.eta, interval.tau0, interval.tau1
    terms = dfx.ODETerm(lambda tau, u, a: problem.drift(*problem.locate(tau, u, eta), a, eta))
    if problem.noisy:
        source = _path(problem, brownian, key)
        noise = NoiseTerm(_coefficient(problem, eta), source, lambda tau: problem.noise_time(tau, eta))
        terms = dfx.MultiTerm(terms, noise)
    u0 = x0 if interval.enter is None else problem.scaled(interval.enter, x0)
    saved = dfx.SaveAt(t1=True) if saveat is None else saveat
    sol = dfx.diffeqsolve(
        terms, solver, tau0, tau1, dt0, u0, args,
        saveat=dfx.SaveAt(subs={"end": dfx.SubSaveAt(t1=True), "user": saved.subs}, dense=saved.dense),
        stepsize_controller=controller, event=_stop(event), max_steps=max_steps, throw=False,
        adjoint=dfx.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
    )  # fmt: skip
    return _adaptive_solution(problem, solver, sol, eta, saveat, problem.cost(t0, args))


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
        smallest = 32 * jnp.finfo(dtype).eps * jnp.maximum(jnp.abs(interval.tau0), jnp.abs(interval.tau1))
        chosen = eqx.tree_at(
            lambda c: (c.dtmin, c.force_dtmin),
            chosen,
            (smallest, False),
            is_leaf=lambda leaf: leaf is None,
        )
    return interval, chosen


class _AboveRounding(eqx.Module):
    """A norm of the error in units of the tolerance, at least that of the rounding of the state.

    A smaller estimate is noise, and steps that grow by noise are others in a program that rounds otherwise: for another
    batch or on other devices. The bound rejects no step.
    """

    norm: Callable[[PyTree], Any]
    rounding: Array

    def __call__(self, error: PyTree) -> Any:
        return jnp.maximum(self.norm(error), self.rounding)


def _stop(event):
    """The user's event, and the end of a lane whose state is not finite."""
    stop: dict[str, Any] = {"diverged": lambda t, y, args, **kwargs: ~all_finite(y)}
    if event is None:
        return dfx.Event(stop)
    direction = None if event.direction is None else {"diverged": None, "user": event.direction}
    return dfx.Event(stop | {"user": event.cond_fn}, event.root_finder, direction)


def _coefficient(problem, eta):
    return lambda tau, u, a: problem.diffusion(*problem.locate(tau, u, eta), a, eta)


def _path(problem, brownian, key):
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


def _adaptive_solution(problem, solver, sol, eta, saveat, cost):
    """The result of `diffeqsolve` in the path's time and state."""
    tau, u = sol.ts["end"][-1], jtu.tree_map(lambda leaf: leaf[-1], sol.ys["end"])
    t, x = problem.locate(tau, u, eta)
    diverged = sol.event_mask["diverged"] | ~all_finite(x)
    fine = (sol.result == dfx.RESULTS.successful) | (sol.result == dfx.RESULTS.event_occurred)
    out_of_steps = sol.result == dfx.RESULTS.max_steps_reached
    status = jnp.where(diverged, 1, jnp.where(fine, 0, jnp.where(out_of_steps, 2, 1))).astype(jnp.int32)
    ts = xs = None
    if sol.ts["user"] is not None and saveat is not None:
        ts, xs = jax.vmap(lambda s, y: _located(problem, s, y, eta))(sol.ts["user"], sol.ys["user"])
    nfe = adaptive_nfe(solver, sol.stats["num_steps"], cost)
    return Solution(x=x, nfe=nfe, status=status, t=t, ts=ts, xs=xs, interpolation=sol.interpolation)


def _located(problem, tau, u, eta):
    """A saved time and state of the path; slots that were not filled stay infinite."""
    filled = jnp.isfinite(tau)
    t, x = problem.locate(jnp.where(filled, tau, 1.0), u, eta)
    return jnp.where(filled, t, tau), jtu.tree_map(lambda leaf: jnp.where(filled, leaf, jnp.inf), x)


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
