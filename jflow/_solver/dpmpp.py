"""DPM-Solver++, multistep, and its stochastic forms."""

from typing import ClassVar, Literal, get_args

import equinox as eqx
import jax.numpy as jnp

from .._clock import AbstractClock, ThetaClock
from .._kinds import check_kinds
from .._types import Checked
from ._multistep import AbstractMultistep
from ._phi import exponential_means

Variant = Literal["exact", "midpoint", "half_curvature"]


class DPMpp(AbstractMultistep):
    """DPM-Solver++(pM): the data prediction as a polynomial in log-SNR, integrated exactly; one call a step.

    With `h` the step in half log-SNR, `k = eta^2` for `eta` the amplitude of the noise (0 the ODE, 1 the reverse SDE),
    and `P` the polynomial in half log-SNR through the latest `order` data predictions `D`,

        x' = (sigma'/sigma) e^(-k h) x + alpha' int_0^h (1 + k) e^(-(1 + k)(h - u)) P(u) du
             + sigma' sqrt(1 - e^(-2 k h)) z .

    In `ThetaClock`, which it brings along, this is `u' = u + int P dtau + noise` at every `eta`: the one rule is
    DPM-Solver++(1M, 2M, 3M) at `eta = 0`, and 2M SDE and 3M SDE at `eta = 1`. Order 1 is DDIM, and `diffrax.Euler()`
    in that clock. The first steps have orders 1, 2, ..., which leaves order 3 globally of order 2, with a smaller
    error; so does a first step from infinite log-SNR, as at t = 0 where alpha = 0.

    The `variant` is how the integral is taken:

    - `"exact"`: as above.
    - `"midpoint"`, for order 2: `P` at the middle of the step in place of its weighted mean. Of order 2 too; the
      popular form of 2M, often better at few steps.
    - `"half_curvature"`, for order 3: the second difference with half its weight, as public implementations of 3M
      have it. Of order 2, often better at few steps.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2 (midpoint), appendix A (exact; SDE forms in section 4.3 and
    appendix B); time runs backwards there.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(10), jf.DPMpp(2, "midpoint"), eta=0.5))
    assert sol.nfe == 10
    ```
    """

    points: int = eqx.field(static=True)
    variant: Variant = eqx.field(static=True)
    corrected: ClassVar[int] = 0
    clock: ClassVar[AbstractClock | None] = ThetaClock()

    def __init__(self, order: Checked[int] = 2, variant: Checked[Variant] = "exact"):
        """Makes the solver.

        Args:
            order: 1, 2 or 3.
            variant: `"exact"`, `"midpoint"` (order 2) or `"half_curvature"` (order 3).

        Raises `ValueError` for another order, or a variant that the order does not have.
        """
        check_kinds(DPMpp.__init__, locals())
        self.points, self.variant = order, variant  # pyright: ignore[reportAttributeAccessIssue]

    def __check_init__(self):
        if self.points not in (1, 2, 3):
            raise ValueError(f"DPMpp must have order 1, 2 or 3. Got order={self.points!r}.")
        if self.variant not in get_args(Variant):
            names = ", ".join(map(repr, get_args(Variant)))
            raise ValueError(f"A variant of DPMpp must be one of {names}. Got variant={self.variant!r}.")
        fits = {"midpoint": 2, "half_curvature": 3}.get(self.variant, self.points)
        if fits != self.points:
            raise ValueError(
                f"variant={self.variant!r} must have order {fits}. Got order={self.points}: "
                f"pass order={fits}, or variant='exact'."
            )

    def arguments(self):
        return {"order": self.points, "variant": self.variant}

    def order(self, terms):
        """The order for an ODE, with starting values of that order."""
        return 2 if self.variant == "half_curvature" else self.points

    def gap(self, t0, t1):
        return jnp.log(t1 / t0)

    def finite(self, t):
        return t != 0

    def moments(self, gap, n, degree):
        means = list(exponential_means(gap, n))
        if self.variant == "midpoint":
            means[0] = gap / 2
        if self.variant == "half_curvature":
            means[1] = means[1] / 2
        return tuple(means)
