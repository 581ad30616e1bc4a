"""DPM-Solver++, singlestep, with error estimates, and DPM-Solver++ SDE."""

from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp

from .._clock import AbstractClock, ThetaClock
from .._event import combine
from .._kinds import check_kinds
from .._types import Checked
from ._phi import exponential_moments
from ._traits import AbstractFieldSolver

FRACTIONS = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""Where in a step the intermediate points lie, in log-SNR."""


class DPMppSinglestep(AbstractFieldSolver, dfx.AbstractItoSolver[None], dfx.AbstractAdaptiveSolver[None]):
    """DPM-Solver++(2S) and (3S): `order` calls within a step and no memory of earlier ones.

    With `h` the step in half log-SNR, intermediate points at the fractions `r` of it, and `D` data predictions,

        2S, r = 1/2:       u_r = (sigma_r/sigma) x + alpha_r (1 - e^(-r h)) D ,   D_r = D(u_r)
                           x' = (sigma'/sigma) x + alpha' (1 - e^(-h)) D_r
        3S, r, q = 1/3, 2/3:  u_r as above, and with p(z) = (e^(-z) - 1)/z + 1
                           u_q = (sigma_q/sigma) x + alpha_q (1 - e^(-q h)) D + (q/r) alpha_q p(q h) (D_r - D)
                           x' = (sigma'/sigma) x + alpha' (1 - e^(-h)) D + (1/q) alpha' p(h) (D_q - D)

    In `ThetaClock`, which it brings along, each is `u_r = u + (tau_r - tau) D` with some mean `D` of data predictions,
    at `tau_r = tau^(1 - r) tau'^r`. From or to `tau = 0`, where log-SNR is infinite, it is the limit of short steps:
    the points lie at the fractions of `tau`, which leaves the order as it is (the midpoint rule and Heun's third-order
    one). The error estimate is the distance to the rule of one order less, so that it may run adaptively.

    Order 2 with `eta` is DPM-Solver++ SDE, of strong order 1: the noise up to the intermediate point and that of the
    step belong to one Brownian path, in the clock's noise time (k-diffusion's: in sigma). On a fixed grid the former
    is drawn given the latter, as a Brownian bridge.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 (2S), and arXiv:2206.00927, algorithm 2 and appendix C (3S,
    and the estimates, for the noise prediction); for SDEs k-diffusion's `sample_dpmpp_sde`. Time runs backwards there.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(10), jf.DPMppSinglestep(2)))
    assert sol.nfe == 19  # the last step is the data prediction
    ```
    """

    stages: int = eqx.field(static=True)

    clock: ClassVar[AbstractClock | None] = ThetaClock()
    asks_inside: ClassVar[bool] = True
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def __init__(self, order: Checked[int] = 2):
        """`order`: 2 or 3.

        Raises `ValueError` for another order.
        """
        check_kinds(DPMppSinglestep.__init__, locals())
        self.stages = order

    def __check_init__(self):
        if self.stages not in FRACTIONS:
            raise ValueError(
                f"DPMppSinglestep must have order 2 or 3. Got order={self.stages!r}: order 1 is jflow.DPMpp(order=1)."
            )

    @property
    def ode_only(self) -> bool:
        return self.stages == 3

    def nodes(self) -> tuple[float, ...] | None:
        """The start of the step, and its fractions in log-SNR as stand-ins: in `tau` the intermediate points lie at no
        fixed fractions, but at `tau^(1 - r) tau'^r`, and never at the end.
        """
        return (0.0, *FRACTIONS[self.stages])

    def arguments(self):
        return {"order": self.stages}

    def order(self, terms):
        return self.stages

    def strong_order(self, terms):
        return 1

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        noisy = isinstance(terms, dfx.MultiTerm)
        if noisy and self.ode_only:
            raise ValueError("DPMppSinglestep(order=3) must have an ODE. Got an SDE: take order=2.")
        drift = terms.terms[0] if noisy else terms
        gap, nodes = _nodes(t0, t1, FRACTIONS[self.stages])
        vf = terms.vf(t0, y0, args)
        first, noise = (vf[0], vf[1:]) if noisy else (vf, ())

        def advance(mean, t):
            change = terms.prod((mean, *noise) if noise else mean, terms.contr(t0, t))
            return combine((1, y0), (1, change))

        def along(weight, slope):
            return combine((1 - weight, first), (weight, slope))

        second = drift.vf(nodes[0], advance(first, nodes[0]), args)
        if self.stages == 2:
            mean, lower = second, first
        else:
            r1, r2 = FRACTIONS[3]
            third = drift.vf(nodes[1], advance(along(r2 / r1 * _mean(r2 * gap), second), nodes[1]), args)
            mean, lower = along(_mean(gap) / r2, third), along(0.5 / r1, second)
        y1 = advance(mean, t1)
        error = drift.prod(combine((1, mean), (-1, lower)), drift.contr(t0, t1))
        return y1, error, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful


def _nodes(t0, t1, fractions):
    """`log(t1/t0)` and the points at fractions of it; where it is infinite zero, and fractions of the step."""
    t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
    inside = (t0 != 0) & (t1 != 0)
    start, stop = jnp.where(inside, t0, 1), jnp.where(inside, t1, 2)
    gap = jnp.log(stop / start)
    nodes = [jnp.where(inside, start * jnp.exp(r * gap), t0 + r * (t1 - t0)) for r in fractions]
    return jnp.where(inside, gap, 0), nodes


def _mean(gap):
    """The mean of `xi` over a step from `xi = 0` to 1, where `tau` is exponential in `xi`, of rate `gap`."""
    whole, first = exponential_moments(gap, 1)
    return first / whole
