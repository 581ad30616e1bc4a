"""The momentum of adaptive projected guidance, for any solver of one call a step."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, PyTree

from .._clock import AbstractClock
from .._memory import Remembered, Remembering
from .._misc import parameter
from ._multistep import AbstractMultistep


class GuidanceMomentum(dfx.AbstractSolver[tuple[PyTree, Any]]):
    """Steps of another solver, guided by a running change, `Delta <- Delta + momentum Delta_previous`.

    The field is `jflow.Guided` with a rule, which is applied to the running change in the place of
    `Delta = D_c - D_u`; a negative momentum moves away from where the guidance went before. Outside an interval of
    guidance the running change waits.

    Source: Sadat et al. 2024, arXiv:2410.02416 (reverse momentum).
    """

    momentum: Array
    solver: dfx.AbstractSolver

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def __init__(self, momentum: ArrayLike = -0.5, solver: dfx.AbstractSolver | None = None):
        """`momentum` the paper's beta; `solver` one that evaluates at the start of a step alone, `diffrax.Euler()` (by
        default) or a multistep method as `jflow.DPMpp()`.

        Raises `ValueError` for another solver.
        """
        self.momentum = parameter(momentum, "momentum", positive=False)
        self.solver = dfx.Euler() if solver is None else solver

    def __check_init__(self):
        if not isinstance(self.solver, (dfx.Euler, AbstractMultistep)):
            raise ValueError(
                "GuidanceMomentum takes a solver of one call a step, as diffrax.Euler() or jflow.DPMpp(). "
                f"Got {type(self.solver).__name__}, which would forget its own stages."
            )

    @property
    def clock(self) -> AbstractClock | None:
        """The clock of the solver whose steps it takes."""
        return getattr(self.solver, "clock", None)

    def order(self, terms):
        return self.solver.order(terms)

    def init(self, terms, t0, t1, y0, args):
        return jtu.tree_map(jnp.zeros_like, y0), self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        previous, inner = solver_state
        if not (isinstance(args, tuple) and len(args) == 2 and args[1] is not None):
            raise ValueError(
                "GuidanceMomentum takes a guided field and args = (condition, scale). Got args without a scale."
            )
        drift, *noise = terms.terms if isinstance(terms, dfx.MultiTerm) else (terms,)
        if not isinstance(drift, dfx.ODETerm):
            raise ValueError("GuidanceMomentum remembers the steps of a fixed grid, times=. Got an adaptive solve.")
        answer = drift.vector_field(t0, y0, (args[0], Remembering(args[1], self.momentum, previous)))
        if not isinstance(answer, Remembered):
            raise ValueError("GuidanceMomentum takes a field jflow.Guided(..., rule=jflow.APG()). Got another field.")
        known = _Known(drift, answer.value)
        known = dfx.MultiTerm(known, *noise) if noise else known
        y1, error, dense, inner, result = self.solver.step(known, t0, t1, y0, args, inner, made_jump)
        return y1, error, dense, (answer.change, inner), result

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


class _Known(dfx.AbstractTerm):
    """A term whose value at the start of the step is known."""

    term: dfx.AbstractTerm
    value: PyTree

    def vf(self, t, y, args):
        return self.value

    def contr(self, t0, t1, **kwargs):
        return self.term.contr(t0, t1, **kwargs)

    def prod(self, vf, control):
        return self.term.prod(vf, control)
