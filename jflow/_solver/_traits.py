"""What the engine must know of a solver beyond what diffrax asks."""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
from jaxtyping import PyTree

from .._clock import AbstractClock
from .._rule import AbstractStepRule
from .._types import Noun


class AbstractFieldSolver(Noun, dfx.AbstractSolver):
    """The marker of a solver that declares facts which diffrax does not know; each fact has a default.

    A solver of diffrax's own, or of yours, needs none of this: the defaults are those of a one-step solver of any
    clock, and where in a step it evaluates is found by trying one step.

    ```python
    solver = jf.DPMpp(2)  # brings its clock, with a memory of one right-hand side, one more at the start of a step
    assert isinstance(solver, jf.AbstractFieldSolver) and solver.clock == jf.ThetaClock()
    assert solver.memory == 1 and solver.nodes() == (0.0,) and not solver.error_estimate
    ```
    """

    clock: ClassVar[AbstractClock | None] = None
    """The clock that it brings along; `None` for a solver of any clock."""
    adds_noise: ClassVar[bool] = False
    """Whether it adds noise to the ODE itself, one normal a step."""
    asks_inside: ClassVar[bool] = False
    """Whether it queries the noise up to a time inside the step."""
    error_estimate: ClassVar[bool] = True
    """Whether a step returns an estimate of its error, for adaptive steps."""

    @property
    def ode_only(self) -> bool:
        """Whether the method has no stochastic form."""
        return False

    @property
    def memory(self) -> int:
        """How many right-hand sides of earlier steps it remembers."""
        return 0

    def nodes(self) -> tuple[float, ...] | None:
        """Where in a step, from 0 to 1 in the clock's time, it evaluates the right-hand side; `None` to have it found
        by trying one step.
        """
        return None

    def prepare(self, n: int) -> "AbstractFieldSolver":
        """The solver for a grid of `n` steps, where it depends on their number; raises `ValueError` for a wrong one."""
        return self


def unwrapped(solver: PyTree) -> PyTree:
    """The solver itself, where one like `diffrax.HalfSolver` wraps it."""
    while isinstance(solver, dfx.AbstractWrappedSolver):
        solver = solver.solver
    return solver


class AbstractWrappedRule(AbstractStepRule):
    """The marker of a step rule around the solver of a sampler, or around another step rule.

    Clock, noise and end of the sampler are those of the solver inside. Where field and sampler meet, the step rule of
    that solver takes its place: the methods of the rule see a step rule, whose `row` and `noise` are a part of theirs.
    """

    solver: eqx.AbstractVar[PyTree]


def with_solver(noun: Any, solver: Any) -> Any:
    """A sampler, or a rule around a solver, with another one."""
    return eqx.tree_at(lambda n: n.solver, noun, solver, is_leaf=lambda node: node is None)
