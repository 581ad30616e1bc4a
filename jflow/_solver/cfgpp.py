"""CFG++."""

from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx

from .._args import Args
from .._clock import AbstractClock, ThetaClock
from .._event import combine
from ._traits import AbstractFieldSolver


class CFGpp(AbstractFieldSolver, dfx.AbstractSolver[None]):
    """CFG++: DDIM with a guided data prediction and the noise of the unguided one; for `jflow.Guided` fields, one call.

        x' = alpha' (D_u + mu (D_c - D_u)) + sigma' noise_u ,

    with `args = Args(condition, scale=mu)`, `mu` between 0 and 1. That is DDIM guided with the scale
    `mu/(1 - e^(-h))`, `h` the step in half log-SNR: the scale depends on the step, so this is a solver and not a
    field. In `ThetaClock`, which it brings along, it is Euler's method. For the ODE, `eta=None`.

    Source: Chung et al. 2024, arXiv:2406.08070, algorithm 2 (its lambda is mu; time runs backwards there).

    ```python
    net = lambda t, x, label: label - x
    guided = jf.Guided(jf.Field(net, jf.CondOT(), "velocity"), null=0.0)
    sampler = jf.FixedSteps(jf.UniformGrid(8), jf.CFGpp())
    sol = jf.sample(guided, jr.key(0), (2,), sampler, args=jf.Args(1.0, scale=0.6))
    assert sol.nfe == 16
    ```
    """

    scale: str = eqx.field(static=True, default="scale")
    """The name of the entry of `Args` that holds `mu`: the scale's name in the field."""

    clock: ClassVar[AbstractClock | None] = ThetaClock()
    error_estimate: ClassVar[bool] = False
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    @property
    def ode_only(self) -> bool:
        return True

    def nodes(self) -> tuple[float, ...] | None:
        return (0.0,)

    def order(self, terms):
        """That of Euler's method, for a fixed scale `mu/(1 - e^(-h))`; for a fixed `mu` it is no approximation."""
        return 1

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; raises `ValueError` where `args` has no scale."""
        args = Args.of(args)
        mu = args.get(self.scale)
        if mu is None:
            raise ValueError(
                f"CFGpp must have a scale in args. Got none: pass args=jflow.Args(condition, {self.scale}=mu), for a "
                "field that reads it, as jflow.Guided(field, null)."
            )
        # In `ThetaClock` without noise `tau = alpha/sigma = e^lambda`, so that `1 - e^(-h) = (tau' - tau)/tau'`.
        step_scale = mu * t1 / (t1 - t0)
        slope = terms.vf(t0, y0, Args(args.condition, **(args.entries | {self.scale: step_scale})))
        y1 = combine((1, y0), (1, terms.prod(slope, terms.contr(t0, t1))))
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
