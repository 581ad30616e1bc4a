"""DEIS: the noise prediction as a polynomial in log-SNR."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from .._clock import AbstractClock, SigmaClock
from .._kinds import check_kinds
from .._types import Checked
from ._multistep import AbstractMultistep
from ._phi import exponential_means


class DEIS(AbstractMultistep):
    """DEIS: the noise prediction as a polynomial in `log rho`, integrated exactly; one call a step.

    With `rho = sigma/alpha`, for `P` the polynomial in `log rho` through the latest `order` noise predictions,

        x'/alpha' = x/alpha + int_rho^rho' P(log r) dr .

    It is a rule for the ODE in `SigmaClock`, which it brings along; that clock is infinite where alpha = 0. Order 1 is
    DDIM, and `diffrax.Euler()` in that clock. The first steps have orders 1, 2, ..., which leaves order 3 globally of
    order 2, with a smaller error; a last step to sigma = 0 is DDIM's. With the polynomial in `rho` itself, which is
    rhoAB-DEIS, it is `Adams` in that clock; for the data prediction in place of the noise it is `DPMpp`.

    Source: Zhang & Chen 2023, arXiv:2204.13902, equations 14 and 15 (in reversed time), with `log rho` for the time
    there, as public implementations have it.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.VE())
    sol = jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.LogSNRGrid(10), jf.DEIS(3)))
    assert sol.nfe == 10
    ```
    """

    points: int = eqx.field(static=True)
    corrected: ClassVar[int] = 0
    clock: ClassVar[AbstractClock | None] = SigmaClock()

    def __init__(self, order: Checked[int] = 3):
        """`order`: 1, 2 or 3.

        Raises `ValueError` for another order.
        """
        check_kinds(DEIS.__init__, locals())
        self.points = order

    def __check_init__(self):
        if self.points not in (1, 2, 3):
            raise ValueError(f"DEIS must have order 1, 2 or 3. Got order={self.points!r}.")

    @property
    def ode_only(self) -> bool:
        return True

    def arguments(self):
        return {"order": self.points}

    def order(self, terms):
        """The order, with starting values of that order."""
        return self.points

    def gap(self, t0, t1):
        return jnp.log(t1 / t0)

    def finite(self, t):
        return t != 0

    def moments(self, gap, n, degree):
        return exponential_means(gap, n)
