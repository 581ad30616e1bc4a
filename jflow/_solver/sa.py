"""SA-Solver: the stochastic Adams predictor and corrector."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from .._clock import AbstractClock, ThetaClock
from ._multistep import AbstractMultistep
from ._phi import exponential_means


class SASolver(AbstractMultistep):
    """SA-Solver: the data prediction as a polynomial in log-SNR, integrated exactly, then mended; one call a step.

    With `h` the step in half log-SNR and `eta` the level of the SDE (`tau^2` in the paper; 0 the ODE), for `P` the
    polynomial in half log-SNR through the latest `predictor` data predictions,

        x' = (sigma'/sigma) e^(-eta h) x + alpha' int_0^h (1 + eta) e^(-(1 + eta)(h - u)) P(u) du
             + sigma' sqrt(1 - e^(-2 eta h)) z .

    The corrector repeats the step with the same `z`, for the polynomial through the data prediction at `x'` and the
    latest `corrector` before it; the next step starts from the mended state, and the last one is not mended. A
    trajectory shows the predicted states.

    It is the rule of `DPMpp(order=predictor)` with a corrector, in `ThetaClock`, which it brings along, at any one
    `eta`. The first steps take the points there are. A first step from infinite log-SNR, as at t = 0 where alpha = 0,
    is mended by the mean of both predictions.

    Source: Xue et al. 2023, arXiv:2309.05019, algorithm 1; time runs backwards there. Public implementations count the
    new prediction too: their order of the corrector is `corrector + 1`.
    """

    points: int = eqx.field(static=True)
    corrected: int = eqx.field(static=True)
    clock: ClassVar[AbstractClock | None] = ThetaClock()
    ode_only: ClassVar[bool] = False

    def __init__(self, predictor: Any = 3, corrector: Any = 3):
        """`predictor`, `corrector`: known data predictions that each takes into account, 1, 2 or 3.

        Raises `ValueError` for another number.
        """
        for name, steps in (("predictor", predictor), ("corrector", corrector)):
            if isinstance(steps, bool) or steps not in (1, 2, 3):
                raise ValueError(
                    f"SASolver takes 1, 2 or 3 steps in predictor and corrector. Got {name}={steps!r}; without a "
                    "corrector it is jflow.DPMpp(order)."
                )
        self.points, self.corrected = predictor, corrector + 1

    def order(self, terms):
        """The order for an ODE, with starting values of that order."""
        return min(self.points + 1, self.corrected)

    def gap(self, t0, t1):
        return jnp.log(t1 / t0)

    def finite(self, t):
        return t != 0

    def moments(self, gap, n, degree):
        return exponential_means(gap, n)
