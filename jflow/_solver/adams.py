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

    With `corrector=True` `P` takes one point less, and the right-hand side at `u'` then mends the step that led there
    by the Adams-Moulton rule, from whose `v'` the next step starts (PEC: predict, evaluate, correct; still one call):

        v' = v + int_tau^tau' Q dtau + noise ,   Q(tau') = f(u') ,   Q(tau_j) = f_j ,   j = 0, ..., order - 2 .

    The error at equal calls is then several times smaller, and so is that of the first steps, which have orders 1, 2,
    ...: these leave a global order of 2 without the corrector and of 3 with it. A high order pays on a smooth
    right-hand side with many steps, and oscillates on a rough one with few. A trajectory shows the predicted states;
    the last state is not mended.

    For an SDE the noise is that of Euler-Maruyama, the same in predictor and corrector: of order 1 where the noise is
    additive, with a smaller error where it is weak. Towards the data the steps of `ThetaClock`, the default with `eta`,
    grow by large factors, over which a polynomial does not extrapolate: to t = 1 take `DPMpp` or `SASolver` there.

    Source: Hairer, Norsett & Wanner 1993, Solving ordinary differential equations I, section III.1 (equations 1.5 and
    1.8) and III.5 (variable steps); Zhang & Chen 2023, arXiv:2204.13902 (rhoAB, in reversed time); Buckwar & Winkler
    2006, SIAM Journal on Numerical Analysis 44, for SDEs.
    """

    points: int = eqx.field(static=True)
    corrected: int = eqx.field(static=True)
    clock: ClassVar[AbstractClock | None] = None
    ode_only: ClassVar[bool] = False

    def __init__(self, order: Any = 3, corrector: Any = False):
        """`order`: 1 to 4; with `corrector=True` 2 to 6.

        Raises `ValueError` for another order.
        """
        low, high = (2, 6) if corrector else (1, 4)
        if isinstance(order, bool) or order not in range(low, high + 1):
            fix = "pass order=2, or corrector=False" if corrector else "pass corrector=True for orders up to 6"
            raise ValueError(
                f"Adams has order {low} to {high} {'with' if corrector else 'without'} its corrector. "
                f"Got order={order!r}: {fix}."
            )
        self.points, self.corrected = (order - 1, order) if corrector else (order, 0)

    def order(self, terms):
        """The order for an ODE, with starting values of that order."""
        return max(self.points, self.corrected)

    def gap(self, t0, t1):
        return t1 - t0

    def finite(self, t):
        return jnp.isfinite(t)

    def moments(self, gap, n, degree):
        return tuple(gap**k / (k + 1) for k in range(1, n + 1))
