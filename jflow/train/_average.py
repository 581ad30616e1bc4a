"""Running averages of parameters: a decay, or a power of the number of moves."""

import dataclasses
import functools as ft
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from .._event import joined
from .._kinds import check_kinds
from .._types import Checked

WIDEST = 1 / math.sqrt(12)


@dataclasses.dataclass(frozen=True)
class PowerEMA:
    """The running average whose memory is a fixed share of the run, for `jflow.train.init(ema=)`.

    After `n` moves of the optimiser through `p_1, ..., p_n` it is `sum_k (k^(g+1) - (k-1)^(g+1)) p_k / n^(g+1)`: the
    weights are those of the density `(g+1) s^g` of the share `s = k/n` in [0, 1], whose standard deviation is the
    width, `sqrt((g+1) / ((g+2)^2 (g+3)))`. Unlike a decay it needs no tuning to the length of the run, and `posthoc`
    makes the average of another width from those that `fit` stored.

    - `width`: the width, as 0.05 or 0.1, above 0 and at most `1/sqrt(12)`, which is the plain mean.
    - `gamma`: the exponent `g`.

    Raises `ValueError` for another width.

    Source: Karras et al. 2024, arXiv:2312.02696, equations 3 and 4, and appendix C.

    ```python
    state = jf.train.init({"w": jnp.array(0.0)}, optax.sgd(1.0), ema=jf.train.PowerEMA(1 / 12**0.5))
    for i in range(4):
        state, _ = jf.train.step(state, lambda field, key, x: -field["w"], jr.key(i), jnp.ones(1))
    assert jnp.isclose(state.ema["w"], (1 + 2 + 3 + 4) / 4)
    ```
    """

    width: Checked[float]

    def __post_init__(self):
        check_kinds(PowerEMA, vars(self))
        if not 0 < self.width <= WIDEST + 1e-12:
            raise ValueError(
                "The width of a PowerEMA must be above 0 and at most 1/sqrt(12) = 0.2887, which is the plain mean. Got "
                f"{self.width}: common are 0.05 and 0.1."
            )
        object.__setattr__(self, "width", float(self.width))

    @property
    def gamma(self) -> float:
        """The exponent `g >= 0` of the width: the greatest root of `s^2 (g+2)^2 (g+3) = g + 1`."""
        return _gamma(self.width)


@ft.lru_cache
def _gamma(width: float) -> float:
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(0.0, float(roots.real.max()))


Rule = float | PowerEMA
Rules = Rule | tuple[Rule, ...] | None
"""A running average, several, or none."""


def checked(ema: Any) -> Rules:
    """The averages as they are; raises where one is not known."""
    for rule in ema if isinstance(ema, tuple) else (ema,):
        number = isinstance(rule, (int, float, np.number)) and not isinstance(rule, bool)
        if ema is not None and not number and not isinstance(rule, PowerEMA):
            raise TypeError(
                "ema must be a decay, as 0.999, a PowerEMA, a tuple of these, or None for no average. Got "
                f"{type(rule).__name__}."
            )
        if not isinstance(rule, PowerEMA) and number and not 0 <= rule < 1:
            raise ValueError(f"ema must be a decay in [0, 1), as 0.999, or None for no average. Got {rule}.")
    if ema == ():
        raise ValueError("ema must be None for no average. Got an empty tuple.")
    return ema


def each(ema: Rules, averages: Any, function: Callable[[Rule, Any], Any]) -> Any:
    """`function(rule, average)` of the one, in a tuple of the several, `None` of none."""
    if isinstance(ema, tuple):
        return tuple(function(rule, average) for rule, average in zip(ema, averages, strict=True))
    return None if ema is None else function(ema, averages)


def power_rules(ema: Rules) -> list[PowerEMA]:
    """The powers among the averages, whose snapshots `posthoc` combines."""
    return [rule for rule in (ema if isinstance(ema, tuple) else (ema,)) if isinstance(rule, PowerEMA)]


def average_weight(rule: Rule, n: Int[Array, ""]) -> Float[Array, ""]:
    """The weight `w_n` of the `n`-th point in the average `m_n = m_(n-1) + w_n (p_n - m_(n-1))`.

    `(1 - d) / (1 - d^n)` for a decay, so that `m_n` is `sum_i d^(n-i) p_i / sum_i d^(n-i)` at every `n`, and the
    average of a constant is that constant bit for bit; an uncorrected sum that is divided at the end stalls
    short of it by up to 2^-24 / (1 - d). `1 - (1 - 1/n)^(g+1)` for a power.
    """
    n = jnp.asarray(n, float)
    if isinstance(rule, PowerEMA):
        return -jnp.expm1((rule.gamma + 1) * jnp.log1p(-1 / n))
    return jnp.ones(()) if rule == 0 else (1 - rule) / -jnp.expm1(n * math.log(rule))


def towards(average: Array, p: Array, weight: Float[Array, ""]) -> Array:
    """The average with the weight `weight` for `p`."""
    return average + weight.astype(average.dtype) * (p.astype(average_dtype(p)) - average)


def average_dtype(p: Array | jax.ShapeDtypeStruct) -> DTypeLike:
    """float32, or the parameter's own type where that is wider."""
    return joined(p.dtype, jnp.float32)
