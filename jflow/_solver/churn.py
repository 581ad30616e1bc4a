"""EDM's stochastic sampler: Heun's method between raised levels of noise."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from .._clock import AbstractClock, SigmaClock
from .._misc import combine, concrete, safe_sqrt


class EDMChurn(dfx.AbstractItoSolver[None]):
    """Heun's method with churn: each step first raises the noise a little, then carries the sample to the next level.

    With `s = sigma/alpha` (at `alpha = 1` the paper's `t`), `n` the steps of the grid, `z ~ N(0, I)` one normal a step,

        gamma = min(s_churn / n, sqrt(2) - 1) where s_min <= s <= s_max, else 0 ;   s^ = s (1 + gamma)
        x^ = x + s_noise sqrt(s^^2 - s^2) z
        d = noise(s^, x^) ;   y = x^ + (s' - s^) d ;   x' = x^ + (s' - s^) (d + noise(s', y)) / 2

    for `x/alpha` in place of `x`: `SigmaClock`, which it brings along. `n` is that of `times`, of its last step too,
    which is the data prediction, as in EDM, where `end="denoise"`: `2 n - 1` calls; that one is taken at the level of
    the grid, not raised (EDM's `s_min` lies above it). The noise is its own, so that it goes without `eta`, and needs
    a fixed grid and a key. Its first level is raised too: the field is then evaluated before `times[0]`, on a path
    that does not begin at `alpha = 0` perhaps before t = 0, which an `s_max` below its first level prevents.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """

    s_churn: Array
    s_min: Array
    s_max: Array
    s_noise: Array
    steps: int | None = eqx.field(static=True)

    stochastic: ClassVar[bool] = True
    error_estimate: ClassVar[bool] = False
    calls: ClassVar[int] = 2
    clock: ClassVar[AbstractClock | None] = SigmaClock()
    tableau: ClassVar[dfx.ButcherTableau] = dfx.Heun.tableau  # where in a step it evaluates
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def __init__(
        self, s_churn: Any, s_min: Any = 0.0, s_max: Any = math.inf, s_noise: Any = 1.0, steps: int | None = None
    ):
        """`s_churn` the churn of a whole grid; `s_min`, `s_max` the levels `sigma/alpha` between which there is any;
        `s_noise` the standard deviation of its normals: numbers, which may be traced. `steps` the `n` to divide
        `s_churn` by, where it is not that of `times` (as for a part of a grid).

        Raises `ValueError` for a number below 0, or `s_max` below `s_min`.
        """
        self.s_churn, self.s_min, self.s_max, self.s_noise = (
            jnp.asarray(value, jnp.result_type(float)) for value in (s_churn, s_min, s_max, s_noise)
        )
        self.steps = steps

    def __check_init__(self):
        for name in ("s_churn", "s_min", "s_max", "s_noise"):
            value = concrete(getattr(self, name))
            if value is not None and not (value.ndim == 0 and value >= 0):
                raise ValueError(f"{name} is a number of at least 0. Got {value}.")
        low, high = concrete(self.s_min), concrete(self.s_max)
        if low is not None and high is not None and low > high:
            raise ValueError(f"EDMChurn has s_min at most s_max. Got {low:g} and {high:g}.")

    def on_grid(self, n: int) -> "EDMChurn":
        """The same for a grid of `n` steps, where it was not told another number."""
        n = n if self.steps is None else self.steps
        return EDMChurn(self.s_churn, self.s_min, self.s_max, self.s_noise, n)

    def order(self, terms):
        return 2

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        if self.steps is None or not isinstance(terms, dfx.MultiTerm):
            raise ValueError("EDMChurn is the solver= of a sample on a fixed grid, times=. Got another use of it.")
        drift, noise = terms.terms
        level = -jnp.asarray(t0)
        most = jnp.minimum(self.s_churn / self.steps, math.sqrt(2) - 1)
        gamma = jnp.where((self.s_min <= level) & (level <= self.s_max), most, 0).astype(level.dtype)
        raised, added = t0 * (1 + gamma), self.s_noise * level * safe_sqrt(gamma * (2 + gamma))
        normals = jtu.tree_map(lambda w: w / jnp.sqrt(t1 - t0).astype(w.dtype), noise.contr(t0, t1))
        u = combine((1, y0), (added, normals))
        slope = drift.vf(raised, u, args)
        ahead = drift.vf(t1, combine((1, u), (t1 - raised, slope)), args)
        y1 = combine((1, u), ((t1 - raised) / 2, slope), ((t1 - raised) / 2, ahead))
        return y1, None, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful
