"""SA-Solver: the stochastic Adams predictor and corrector."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from .._clock import AbstractClock, ThetaClock
from .._kinds import check_kinds
from .._types import Checked
from ._multistep import AbstractMultistep
from ._phi import exponential_means


class SASolver(AbstractMultistep):
    """SA-Solver: the data prediction as a polynomial in log-SNR, integrated exactly, then corrected; one call a step.

    With `h` the step in half log-SNR, `k = eta^2` for `eta` the amplitude of the noise (the paper's `tau`; 0 the ODE),
    and `P` the polynomial in half log-SNR through the latest `predictor` data predictions,

        x' = (sigma'/sigma) e^(-k h) x + alpha' int_0^h (1 + k) e^(-(1 + k)(h - u)) P(u) du
             + sigma' sqrt(1 - e^(-2 k h)) z .

    The corrector repeats the step with the same `z`, for the polynomial through the data prediction at `x'` and the
    latest `corrector` before it; the next step starts from the corrected state, and the last one is not corrected. A
    trajectory shows the predicted states.

    It is the rule of `DPMpp(order=predictor)` with a corrector, in `ThetaClock`, which it brings along, at any one
    `eta`. The first steps take the points there are. A first step from infinite log-SNR, as at t = 0 where alpha = 0,
    is corrected by the mean of both predictions.

    Source: Xue et al. 2023, arXiv:2309.05019, algorithm 1; time runs backwards there. Public implementations count the
    new prediction too: their order of the corrector is `corrector + 1`.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(10), jf.SASolver(), eta=1.0))
    assert sol.nfe == 10
    ```
    """

    predictor: int = eqx.field(static=True)
    corrector: int = eqx.field(static=True)
    clock: ClassVar[AbstractClock | None] = ThetaClock()

    def __init__(self, predictor: Checked[int] = 3, corrector: Checked[int] = 3):
        """Makes the solver.

        Args:
            predictor: Known data predictions that the predictor takes into account, 1, 2 or 3.
            corrector: Known data predictions that the corrector takes into account, 1, 2 or 3.

        Raises `ValueError` for another number.
        """
        check_kinds(SASolver.__init__, locals())
        self.predictor, self.corrector = predictor, corrector

    def __check_init__(self):
        for name, steps in (("predictor", self.predictor), ("corrector", self.corrector)):
            if steps not in (1, 2, 3):
                raise ValueError(
                    f"SASolver must have 1, 2 or 3 steps in predictor and corrector. Got {name}={steps!r}: without a "
                    "corrector it is jflow.DPMpp(order)."
                )

    @property
    def points(self) -> int:
        return self.predictor

    @property
    def corrected(self) -> int:
        return self.corrector + 1

    def arguments(self):
        return {"predictor": self.points, "corrector": self.corrected - 1}

    def order(self, terms):
        """The order for an ODE, with starting values of that order."""
        return min(self.points + 1, self.corrected)

    def gap(self, t0, t1):
        return jnp.log(t1 / t0)

    def finite(self, t):
        return t != 0

    def moments(self, gap, n, degree):
        return exponential_means(gap, n)
