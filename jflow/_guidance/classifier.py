"""Classifier guidance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._field import AbstractNetwork
from .._misc import combine, scalar_time
from .._prediction import Row, prediction_row
from .._types import Time
from ._guide import AbstractGuide, apply, ask, split_args


class ClassifierGuided(AbstractGuide):
    """Classifier guidance: the score of `p(x) p(y | x)^w`, `score + w grad_x log p_t(y | x)`.

    In the other predictions: data `+ w (sigma^2/alpha) grad`, noise `- w sigma grad`, velocity
    `+ w (sigma W/alpha) grad` with `W = sigma alpha' - alpha sigma'`. Noise and score stay finite where `alpha = 0`,
    and a right-hand side there that needs the data is refused. Sampling takes `args = (condition, w)`: the field and
    the classifier both get the condition. `(condition, None)` is unguided. The classifier's gradient is not in nfe.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithms 1 and 2.
    """

    field: AbstractNetwork
    log_prob: Callable[..., Any]

    @property
    def sources(self):
        return "noise", *self.field.sources

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        return self.field.evaluations(split_args(args, "classifier-guided")[0], t)

    def give(self, target, t, x, args: Any):
        condition, scale = split_args(args, "classifier-guided")
        value = ask(self.field, target, t, x, condition)
        if scale is None:
            return value
        gradient = jax.grad(lambda y: self._log_prob(t, y, condition))(x)

        def add(value, name):
            weight = jnp.asarray(scale) * self._weight(t, name)
            return apply(lambda v: combine((1, v), (weight, gradient)), value)

        if isinstance(target, tuple):
            return tuple(add(v, row) for v, row in zip(value, target, strict=True))
        return add(value, target)

    def _log_prob(self, t, x, condition):
        value = jnp.asarray(self.log_prob(t, x, condition))
        if value.ndim != 0:
            raise ValueError(
                "log_prob(t, x, y) is the log-probability of one condition for one example, a number. "
                f"Got shape {value.shape}: pick the condition's entry of a vector over classes."
            )
        return value

    def _weight(self, t, target):
        """How much of the classifier's gradient a prediction, by name or as a row, takes: the score takes all."""
        path, t = self.path, scalar_time(t)
        if target == "velocity":
            return path.sigma_w(t) / path.alpha(t)
        s, a, b = target if isinstance(target, Row) else prediction_row(path, target, t)
        alpha, sigma = path.alpha(t), path.sigma(t)
        if isinstance(a, float) and a == 0:
            return -sigma * b / s
        return sigma * (a * sigma - b * alpha) / (alpha * s)
