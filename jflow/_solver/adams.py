"""Adams-Bashforth in any clock, alone or corrected by Adams-Moulton."""

import equinox as eqx
import jax.numpy as jnp

from .._kinds import check_kinds
from .._types import Checked
from ._multistep import AbstractMultistep


class Adams(AbstractMultistep):
    """Adams-Bashforth: the right-hand side as a polynomial in the clock's own time; one call a step, on any grid.

    With `f_j` the right-hand sides at the latest `order` points,

        u' = u + int_tau^tau' P dtau + noise ,   P(tau_j) = f_j ,   j = 0, ..., order - 1 .

    It goes with any clock, and with any drift of `jflow.solve`. In `SigmaClock()` it is the LMS sampler, of order 4
    there, and rhoAB-DEIS; in `RatioClock()` it is the multistep method of flow matching. Order 1 is `diffrax.Euler()`.

    With `corrector=True` `P` takes one point less, and the right-hand side at `u'` then corrects the step that led
    there by the Adams-Moulton rule, from whose `v'` the next step starts (PEC: predict, evaluate, correct; still one
    call):

        v' = v + int_tau^tau' Q dtau + noise ,   Q(tau') = f(u') ,   Q(tau_j) = f_j ,   j = 0, ..., order - 2 .

    The error at equal calls is then several times smaller, and so is that of the first steps, which have orders 1, 2,
    ...: these leave a global order of 2 without the corrector and of 3 with it. A high order pays on a smooth
    right-hand side with many steps, and oscillates on a rough one with few. A trajectory shows the predicted states;
    the last state is not corrected.

    For an SDE the noise is that of Euler-Maruyama, the same in predictor and corrector: of order 1 where the noise is
    additive, with a smaller error where it is weak. Towards the data the steps of `ThetaClock`, the default with `eta`,
    grow by large factors, over which a polynomial does not extrapolate: to t = 1 take `DPMpp` or `SASolver` there.

    Source: Hairer, Norsett & Wanner 1993, Solving ordinary differential equations I, section III.1 (equations 1.5 and
    1.8) and III.5 (variable steps); Zhang & Chen 2023, arXiv:2204.13902 (rhoAB, in reversed time); Buckwar & Winkler
    2006, SIAM Journal on Numerical Analysis 44, for SDEs.

    ```python
    sol = jf.solve(lambda t, x, args: -x, jnp.ones(1), jf.FixedSteps(jf.UniformGrid(50), jf.Adams(3, corrector=True)))
    assert jnp.allclose(sol.x, jnp.exp(-1), atol=1e-4) and sol.nfe == 50
    ```
    """

    nominal: int = eqx.field(static=True)
    """The order, as given."""
    corrector: bool = eqx.field(static=True)

    def __init__(self, order: Checked[int] = 3, corrector: Checked[bool] = False):
        """Makes the solver.

        Args:
            order: 1 to 4; with the corrector 2 to 6.
            corrector: Whether Adams-Moulton corrects each step.

        Raises `ValueError` for another order.
        """
        check_kinds(Adams.__init__, locals())
        self.nominal, self.corrector = order, corrector

    def __check_init__(self):
        low, high = (2, 6) if self.corrector else (1, 4)
        if self.nominal not in range(low, high + 1):
            fix = "pass order=2, or corrector=False" if self.corrector else "pass corrector=True for orders up to 6"
            raise ValueError(
                f"Adams must have an order from {low} to {high} {'with' if self.corrector else 'without'} its "
                f"corrector. Got order={self.nominal!r}: {fix}."
            )

    @property
    def points(self) -> int:
        return self.nominal - self.corrector

    @property
    def corrected(self) -> int:
        return self.nominal if self.corrector else 0

    def arguments(self):
        return {"order": self.nominal, "corrector": self.corrector}

    def order(self, terms):
        """The order for an ODE, with starting values of that order."""
        return self.nominal

    def gap(self, t0, t1):
        return t1 - t0

    def finite(self, t):
        return jnp.isfinite(t)

    def moments(self, gap, n, degree):
        return tuple(gap**k / (k + 1) for k in range(1, n + 1))
