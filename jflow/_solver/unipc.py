"""UniPC: a predictor and a corrector for the ODE that share one evaluation a step."""

from typing import ClassVar, Literal, get_args

import equinox as eqx
import jax.numpy as jnp

from .._clock import AbstractClock, ThetaClock
from .._kinds import check_kinds
from .._types import Checked
from ._multistep import AbstractMultistep
from ._phi import exponential_means, exponential_moments

Variant = Literal["bh1", "bh2"]


class UniPC(AbstractMultistep):
    """UniPC-p in data prediction: a polynomial in log-SNR through `order` data predictions, corrected by one more; one
    call a step.

    With `h` the step in half log-SNR, `D_j` the latest data predictions, `r_j` their half log-SNR in steps from the
    step's start, and `B` a function of `h`, a step of the ODE is

        x' = (sigma'/sigma) x + alpha' (1 - e^(-h)) D_0 + alpha' B sum_j rho_j (D_j - D_0) / r_j ,

    where the `rho_j` make it exact for polynomials. The predictor UniP sums over `order - 1` earlier predictions. The
    corrector UniC takes the data prediction at `x'` as well, with `r = 1`; the next step starts from the corrected
    state, and the last one is not corrected. A trajectory shows the predicted states. `B` matters only where there is
    one difference, for which `rho = 1/2`: in the predictor of order 2, the corrector of order 1, and the first steps.

    - `"bh2"`: `B = 1 - e^(-h)`. The predictor of order 2 is then the midpoint form of `DPMpp`.
    - `"bh1"`: `B = h`.

    It is `u' = u + int P dtau` in `ThetaClock`, which it brings along. The order of convergence is `order + 1`, and at
    most 3 where the first steps ramp up, as they do here. A first step from infinite log-SNR, as at t = 0 where
    alpha = 0, is corrected by the mean of both predictions. With noise the same rule, exact in every difference, is
    `SASolver`.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2; time runs backwards there.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.EasedGrid(10), jf.UniPC(3)))
    assert sol.nfe == 10
    ```
    """

    points: int = eqx.field(static=True)
    variant: Variant = eqx.field(static=True)
    clock: ClassVar[AbstractClock | None] = ThetaClock()

    def __init__(self, order: Checked[int] = 2, variant: Checked[Variant] = "bh2"):
        """Makes the solver.

        Args:
            order: 1, 2 or 3, the p of UniPC-p.
            variant: `"bh2"` or `"bh1"`.

        Raises `ValueError` for another order or variant.
        """
        check_kinds(UniPC.__init__, locals())
        self.points, self.variant = order, variant  # pyright: ignore[reportAttributeAccessIssue]

    def __check_init__(self):
        if self.points not in (1, 2, 3):
            raise ValueError(f"UniPC must have order 1, 2 or 3. Got order={self.points!r}.")
        if self.variant not in get_args(Variant):
            raise ValueError(f"A variant of UniPC must be 'bh1' or 'bh2'. Got variant={self.variant!r}.")

    @property
    def corrected(self) -> int:
        return self.points + 1

    @property
    def ode_only(self) -> bool:
        return True

    def arguments(self):
        return {"order": self.points, "variant": self.variant}

    def order(self, terms):
        """The order of convergence, with starting values of that order: one more than the p of UniPC-p."""
        return self.corrected

    def gap(self, t0, t1):
        return jnp.log(t1 / t0)

    def finite(self, t):
        return t != 0

    def moments(self, gap, n, degree):
        means = exponential_means(gap, n)
        half = gap / 2 if self.variant == "bh2" else gap / (2 * exponential_moments(gap, 0)[0])
        return tuple(jnp.where(degree == 1, half, mean) if k == 0 else mean for k, mean in enumerate(means))
