"""Adams-Bashforth in any clock, alone or mended by Adams-Moulton."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from .._clock import AbstractClock
from ._multistep import AbstractMultistep


class Adams(AbstractMultistep):
    """Adams-Bashforth: the right-hand side as a polynomial in the clock's own time; one call a step, on any grid.

    With `f_j` the right-hand sides at the latest `order` points,

        u' = u + int_tau^tau' P dtau + noise ,   P(tau_j) = f_j ,   j = 0, ..., order - 1 .

    It goes with any clock, and with any drift of `jflow.solve`. In `SigmaClock()` it is the LMS sampler, of order 4
    there, and rhoAB-DEIS; in `RatioClock()` it is the multistep method of flow matching. Order 1 is `diffrax.Euler()`.

    With `corrector=True` the right-hand side at `u'` then mends the step that led there, by the Adams-Moulton rule of
    the same order, and the next step starts from the mended `v'` (PEC: predict, evaluate, correct; still one call):

        v' = v + int_tau^tau' Q dtau + noise ,   Q(tau') = f(u') ,   Q(tau_j) = f_j ,   j = 0, ..., order - 2 .

    The error at equal calls is then several times smaller, and so is that of the first steps, which have orders 1, 2,
    ...: these leave a global order of 2 without the corrector and of 3 with it. A trajectory shows the predicted
    states; the last state is not mended.

    For an SDE the noise is that of Euler-Maruyama, the same in predictor and corrector: of order 1 where the noise is
    additive, with a smaller error where it is weak.

    Source: Hairer, Norsett & Wanner 1993, Solving ordinary differential equations I, section III.1 (equations 1.5 and
    1.8) and III.5 (variable steps); Zhang & Chen 2023, arXiv:2204.13902 (rhoAB, in reversed time); Buckwar & Winkler
    2006, SIAM Journal on Numerical Analysis 44, for SDEs.
    """

    points: int = eqx.field(static=True)
    corrected: int = eqx.field(static=True)
    clock: ClassVar[AbstractClock | None] = None
    ode_only: ClassVar[bool] = False

    def __init__(self, order: Any = 3, corrector: Any = False):
        """`order`: 1, 2, 3 or 4; with `corrector=True` 2, 3 or 4.

        Raises `ValueError` for another order.
        """
        self.points, self.corrected = order, order if corrector else 0

    def __check_init__(self):
        if isinstance(self.points, bool) or self.points not in (1, 2, 3, 4):
            raise ValueError(f"Adams has order 1, 2, 3 or 4. Got order={self.points!r}.")
        if self.corrected == 1:
            raise ValueError(
                "The corrector of Adams has order 2, 3 or 4. Got order=1: pass order=2, or corrector=False."
            )

    def order(self, terms):
        """The order for an ODE, with starting values of that order."""
        return self.points

    def gap(self, t0, t1):
        return t1 - t0

    def finite(self, t):
        return jnp.isfinite(t)

    def moments(self, gap, n, degree):
        return tuple(gap**k / (k + 1) for k in range(1, n + 1))
