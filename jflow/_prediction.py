"""The five things a network can predict, and every conversion between them as one 2x2 solve."""

from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._misc import combine, scalar_time
from ._types import Event, Time

Prediction = Literal["velocity", "data", "noise", "score", "v"]
"""What a network outputs; `v = alpha noise - sigma data` (Salimans & Ho 2022, arXiv:2202.00512)."""


class Row(NamedTuple):
    """A quantity linear in data and noise: `s q = a data + b noise`, with s, a and b finite.

    A Python zero says that a weight vanishes at every time.
    """

    s: Any
    a: Any
    b: Any


def check_prediction(name: str) -> None:
    """Raises `ValueError` where `name` is not one of the five predictions."""
    if name not in get_args(Prediction):
        raise ValueError(
            f"A prediction is one of {', '.join(map(repr, get_args(Prediction)))}. Got {name!r}. "
            "The literature's 'x0-prediction' is 'data', its 'epsilon-prediction' is 'noise'."
        )


def prediction_row(path: Any, name: Prediction, t: Time) -> Row:
    """The row of a prediction at time `t`.

    velocity `alpha' data + sigma' noise`; score `-noise / sigma`; v `alpha noise - sigma data`.
    """
    check_prediction(name)
    t = scalar_time(t)
    one = jnp.ones_like(t)
    if name == "velocity":
        return Row(*path.velocity_row(t))
    if name == "data":
        return Row(one, one, 0.0)
    if name == "noise":
        return Row(one, 0.0, one)
    if name == "score":
        return Row(path.sigma(t), 0.0, -one)
    return Row(one, -path.sigma(t), path.alpha(t))


def coefficients(path: Any, t: Time, source: Row, target: Row) -> tuple[Array, Array]:
    """`(k_x, k_p)` with `target = k_x x + k_p source`.

    They solve `[alpha sigma; a b] (data, noise) = (x, s source)`, whose determinant is `alpha b - sigma a`
    (`-sigma W` for a velocity), and are not finite where the prediction does not determine the target: the data
    from the noise at t = 0, the noise from the data at t = 1. Noise and score are multiples of each other at
    every time, and need no solve.
    """
    if all(isinstance(row.a, float) for row in (source, target)):
        return jnp.zeros_like(path.alpha(t)), target.b * source.s / (source.b * target.s)
    alpha, sigma = path.alpha(t), path.sigma(t)
    determinant = (alpha * source.b - sigma * source.a) * target.s
    k_x = (target.a * source.b - target.b * source.a) / determinant
    k_p = (target.b * alpha - target.a * sigma) * source.s / determinant
    return k_x, k_p


def convert(path: Any, t: Time, x: PyTree, value: PyTree, source: Prediction, target: Prediction | Row) -> Event:
    """A prediction turned into another one, for one example.

    **Arguments:** `t` the time, a scalar; `x` the state at `t`; `value` the prediction `source` at `(t, x)`, of the
    shape of `x`; `target` the prediction wanted, by name or as a row.

    **Returns:** the target, of the shape of `x`; not finite where the source does not determine it.

    With `W = sigma alpha' - alpha sigma'`: `data = (sigma u - sigma' x)/W`, `noise = (alpha' x - alpha u)/W`,
    `score = -noise/sigma` for a velocity `u` (Lipman et al. 2024, arXiv:2412.06264, table 1).
    """
    t = scalar_time(t)
    if isinstance(target, str):
        if target == source:
            return value
        target = prediction_row(path, target, t)
    k_x, k_p = coefficients(path, t, prediction_row(path, source, t), target)
    return combine((k_x, x), (k_p, value))
