"""EDM's stochastic sampler: Heun's method between raised levels of noise."""

import math
from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from .._clock import AbstractClock, SigmaClock
from .._event import combine, safe_sqrt
from .._types import Time
from .._validate import as_array, check_count, concrete
from ._traits import AbstractFieldSolver


class EDMChurn(AbstractFieldSolver, dfx.AbstractItoSolver[None]):
    """Heun's method with churn: each step first raises the noise a little, then carries the sample to the next level.

    With `s = sigma/alpha` (at `alpha = 1` the paper's `t`), `n` the steps of the grid, `z ~ N(0, I)` one normal a step,

        gamma = min(s_churn / n, sqrt(2) - 1) where s_min <= s <= s_max, else 0 ;   s^ = s (1 + gamma)
        x^ = x + s_noise sqrt(s^^2 - s^2) z
        d = noise(s^, x^) ;   y = x^ + (s' - s^) d ;   x' = x^ + (s' - s^) (d + noise(s', y)) / 2

    for `x/alpha` in place of `x`: `SigmaClock`, which it brings along. `n` counts the last step too. Where that step is
    the data prediction, `end="denoise"` as in EDM, there are `2 n - 1` calls, and it is taken at the level of the grid,
    not raised (EDM's `s_min` lies above it). The noise is the solver's own: it goes without `eta` and needs a fixed
    grid and a key. The first level is raised too, so the field is then evaluated before the first time of the grid. On
    a path that does not begin at `alpha = 0` this may be before t = 0; an `s_max` below the first level prevents it.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.VE())
    sampler = jf.FixedSteps(jf.KarrasGrid(18), jf.EDMChurn(40.0, 0.05, 50.0, 1.003), end="denoise")
    sol = jf.sample(field, jr.key(0), (2,), sampler)
    assert sol.nfe == 35
    ```
    """

    s_churn: Array
    s_min: Array
    s_max: Array
    s_noise: Array
    steps: int | None = eqx.field(static=True)

    adds_noise: ClassVar[bool] = True
    error_estimate: ClassVar[bool] = False
    clock: ClassVar[AbstractClock | None] = SigmaClock()
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def __init__(
        self, s_churn: Time, s_min: Time = 0.0, s_max: Time = math.inf, s_noise: Time = 1.0, steps: int | None = None
    ):
        """Makes the solver; all numbers but `steps` may be traced.

        Args:
            s_churn: The churn of a whole grid.
            s_min: The lowest level `sigma/alpha` with churn.
            s_max: The highest level with churn.
            s_noise: The standard deviation of the normals.
            steps: The `n` to divide `s_churn` by, where it is not that of the grid (as for a part of a grid).

        Raises `ValueError` for a number below 0, or `s_max` below `s_min`.
        """
        self.s_churn, self.s_min, self.s_max, self.s_noise = (
            as_array(value, "A number of EDMChurn", jnp.result_type(float))
            for value in (s_churn, s_min, s_max, s_noise)
        )
        self.steps = steps

    def __check_init__(self):
        numbers = {"s_churn": self.s_churn, "s_min": self.s_min, "s_max": self.s_max, "s_noise": self.s_noise}
        for name, value in numbers.items():
            known = concrete(value)
            if value.ndim != 0 or (known is not None and not known >= 0):
                got = f"an array of shape {value.shape}" if value.ndim else known
                raise ValueError(f"{name} must be a number of at least 0. Got {got}.")
        low, high = concrete(self.s_min), concrete(self.s_max)
        if low is not None and high is not None and low > high:
            raise ValueError(f"EDMChurn must have s_min of at most s_max. Got {low:g} and {high:g}.")
        if self.steps is not None:
            check_count(steps=self.steps)

    def nodes(self) -> tuple[float, ...] | None:
        """Both ends; the first one is raised a little, to before the start of the step."""
        return (0.0, 1.0)

    def prepare(self, n: int) -> "EDMChurn":
        """The same with `s_churn` divided by `n`, unless it was made with `steps`."""
        if self.steps is not None:
            return self
        return EDMChurn(self.s_churn, self.s_min, self.s_max, self.s_noise, n)

    def order(self, terms):
        return 2

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        if self.steps is None or not isinstance(terms, dfx.MultiTerm):
            raise ValueError(
                "EDMChurn must be the solver of a sample on a fixed grid. Got another use of it: pass "
                "jflow.FixedSteps(times, jflow.EDMChurn(s_churn)), or take diffrax.Heun()."
            )
        drift, noise = terms.terms
        level = -jnp.asarray(t0)
        most = jnp.minimum(self.s_churn / self.steps, math.sqrt(2) - 1)
        gamma = jnp.where((self.s_min <= level) & (level <= self.s_max), most, 0).astype(level.dtype)
        raised, added = t0 * (1 + gamma), self.s_noise * level * safe_sqrt(gamma * (2 + gamma))
        # The noise of a step has the variance `t1 - t0`, for that is the noise time of `SigmaClock`; churn takes its
        # normals and gives them the variance of the churn.
        normals = jtu.tree_map(lambda w: w / jnp.sqrt(t1 - t0).astype(w.dtype), noise.contr(t0, t1))
        u = combine((1, y0), (added, normals))
        slope = drift.vf(raised, u, args)
        ahead = drift.vf(t1, combine((1, u), (t1 - raised, slope)), args)
        y1 = combine((1, u), ((t1 - raised) / 2, slope), ((t1 - raised) / 2, ahead))
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful
