"""CFG++."""

from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx

from .._clock import AbstractClock, ThetaClock
from .._misc import combine


class CFGpp(dfx.AbstractSolver[None]):
    """CFG++: DDIM with a guided data prediction and the noise of the unguided one; for `jflow.Guided` fields, one call.

        x' = alpha' (D_u + mu (D_c - D_u)) + sigma' noise_u ,

    with `args = (condition, mu)`, `mu` between 0 and 1. That is DDIM guided with the scale `mu/(1 - e^(-h))`, `h` the
    step in half log-SNR: the scale depends on the step, so this is a solver and not a field. In `ThetaClock`, which it
    brings along, it is Euler's method. For the ODE, `eta=None`.

    Raises `ValueError` where `args` has no scale.

    Source: Chung et al. 2024, arXiv:2406.08070, algorithm 2 (its lambda is mu; time runs backwards there).
    """

    clock: ClassVar[AbstractClock | None] = ThetaClock()
    ode_only: ClassVar[bool] = True
    calls: ClassVar[int] = 1
    error_estimate: ClassVar[bool] = False
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def order(self, terms):
        """That of Euler's method, for a fixed scale `mu/(1 - e^(-h))`; for a fixed `mu` it is no approximation."""
        return 1

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        if not (isinstance(args, tuple) and len(args) == 2 and args[1] is not None):
            raise ValueError("CFGpp() takes a guided field and args = (condition, mu). Got args without a scale.")
        condition, mu = args
        slope = terms.vf(t0, y0, (condition, mu * t1 / (t1 - t0)))
        y1 = combine((1, y0), (1, terms.prod(slope, terms.contr(t0, t1))))
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
