"""Which solver goes with which clock, and with which equation."""

from typing import Any

import diffrax as dfx

from .._clock import AbstractClock, ThetaClock
from ._multistep import AbstractMultistep


def choose_clock(solver: dfx.AbstractSolver | None, clock: AbstractClock | None, eta: Any) -> AbstractClock | None:
    """The clock to integrate in: the one given, or the one a solver belongs to.

    Raises `ValueError` where these differ, or where the memory of a multistep method would mix levels of noise, and
    `TypeError` for what is neither.
    """
    for name, value, kind, example in (
        ("solver", solver, dfx.AbstractSolver, "diffrax.Heun()"),
        ("clock", clock, AbstractClock, "jflow.SigmaClock()"),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is an object, as {example}. Got {value!r}.")
    solver = _unwrapped(solver)
    own = getattr(solver, "clock", None)
    if own is not None:
        if clock is not None and type(clock) is not type(own):
            raise ValueError(
                f"{type(solver).__name__}() is a method of {type(own).__name__}() and brings it along. Got another "
                f"clock, {type(clock).__name__}(): leave out clock=, or take a solver of any clock, as diffrax.Heun()."
            )
        clock = own
    if eta is not None and getattr(solver, "ode_only", False):
        raise ValueError(
            f"{type(solver).__name__}() is a method for the ODE. Got eta={eta}: leave out eta=, or take one with a "
            "stochastic form, as jflow.SASolver() or jflow.DPMpp()."
        )
    remembers = isinstance(solver, AbstractMultistep) and solver.memory > 0
    if remembers and callable(eta) and (clock is None or isinstance(clock, ThetaClock)):
        raise ValueError(
            "A multistep method remembers earlier steps in a clock that depends on eta, so one eta holds for the "
            "whole grid. Got eta as a function of t: pass a number, or take a one-step solver, as diffrax.Euler()."
        )
    return clock


def check_ode_solver(solver: Any, what: str) -> None:
    """Raises `ValueError` where a solver adds noise of its own."""
    if adds_noise(solver):
        raise ValueError(
            f"{what}. Got {type(_unwrapped(solver)).__name__}(), which adds noise of its own: take another solver, as "
            "diffrax.Heun()."
        )


def adds_noise(solver: Any) -> bool:
    """Whether a solver of the ODE adds noise of its own, one normal a step."""
    return getattr(_unwrapped(solver), "stochastic", False)


def check_same_clock(solver: Any, clock: AbstractClock, what: str) -> None:
    """Raises `ValueError` where a solver belongs to another clock than the one that is integrated in."""
    solver = _unwrapped(solver)
    own = getattr(solver, "clock", None)
    if own is not None and type(own) is not type(clock):
        raise ValueError(
            f"{what} in the time of {type(clock).__name__}(). Got {type(solver).__name__}(), a method of "
            f"{type(own).__name__}(): take a solver of any clock, as diffrax.Heun(), or sample a field in that clock."
        )


def _unwrapped(solver: Any) -> Any:
    """The solver itself, where one like `diffrax.HalfSolver` wraps it."""
    while isinstance(getattr(solver, "solver", None), dfx.AbstractSolver):
        solver = solver.solver
    return solver
