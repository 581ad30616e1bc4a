"""Classifier guidance."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._args import Args
from .._event import combine
from .._field import AbstractField, check_affine
from .._kinds import check_kinds
from .._prediction import Prediction, Row, Target, as_prediction, prediction_row
from .._source import check_score, covariance, noise_map, precision
from .._trainable import frozen
from .._types import Event, Time
from .._validate import scalar_time
from ._guide import AbstractGuide, check_scale


class ClassifierGuided(AbstractGuide):
    """Classifier guidance: the score of `p(x) p(y | x)^w`, `score + w grad_x log p_t(y | x)`.

    In the other predictions: data `+ w (sigma^2/alpha) grad`, noise `- w sigma grad`, velocity
    `+ w (sigma W/alpha) grad` with `W = sigma alpha' - alpha sigma'`; for noise of covariance `A A^T`, `A A^T grad` in
    place of `grad`. At alpha = 0 only noise and score are finite, and a right-hand side that needs the data raises
    there.

    Sampling takes `args = Args(condition, scale=w)`: the field and the classifier both get the condition. Without a
    scale it is unguided. The classifier's gradient is not in nfe. It reads the condition, so that it goes outside a
    field that replaces it: `ClassifierGuided(Guided(field, null), log_prob, scale="classifier_scale")`.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithms 1 and 2.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=1.0).field(jf.CondOT())
    guided = jf.ClassifierGuided(field, lambda t, x, y: -jnp.sum((x - y) ** 2))
    slope = guided.score(0.5, jnp.ones(2), jf.Args(3.0, scale=2.0)) - field.score(0.5, jnp.ones(2))
    assert jnp.allclose(slope, 8.0)
    ```
    """

    field: AbstractField
    scale: str = eqx.field(static=True)
    log_prob: Callable[[Time, PyTree, PyTree], PyTree] = frozen()

    reads_condition: ClassVar[bool] = True

    def __init__(self, field: AbstractField, log_prob: Callable[..., PyTree], *, scale: str = "scale"):
        """Makes the guide.

        Args:
            field: The field to guide, of the marginal distribution.
            log_prob: The classifier, `log_prob(t, x, condition)`: the log-probability of one condition for one noisy
                example. It is not trained.
            scale: The name of the entry of `Args` that holds `w`.

        Raises `ValueError` for a path without a score, and for a name that a guide inside takes too.
        """
        check_kinds(ClassifierGuided.__init__, locals())
        self.field, self.log_prob, self.scale = field, log_prob, scale

    def __check_init__(self):
        check_affine(self.field.path, "ClassifierGuided")
        check_score(self.field.path.source, "ClassifierGuided")

    @property
    def takes(self) -> tuple[str, ...]:
        return (self.scale,)

    @property
    def sources(self) -> tuple[Prediction, ...]:
        return "noise", *self.field.sources

    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        scale, rest = Args.of(args).take(self.scale)
        values = self.field.predict(targets, t, x, rest)
        if scale is None:
            return values
        check_scale(scale)
        slope = jax.grad(lambda y: self._log_prob(t, y, rest.condition))(x)
        mapped = noise_map(self.path.source)
        moved = covariance(mapped, slope, rest)

        def add(value, target):
            name = None if isinstance(target, Row) else as_prediction(target).name
            change = precision(mapped, moved, rest) if name == "score" else moved
            return combine((1, value), (jnp.asarray(scale) * self._weight(t, target, name), change))

        return tuple(map(add, values, targets))

    def _log_prob(self, t, x, condition):
        value = jnp.asarray(self.log_prob(t, x, condition))
        if value.ndim != 0:
            raise ValueError(
                "log_prob(t, x, y) must be a number, the log-probability of one condition for one example. "
                f"Got shape {value.shape}: pick the condition's entry of a vector over classes."
            )
        return value

    def _weight(self, t, target, name):
        """How much of the classifier's gradient a prediction takes: the score takes all.

        A change `g` of the score is `-sigma g` in the noise and, with `x` the same, `sigma^2 g / alpha` in the data.
        """
        path: Any = self.path
        t = scalar_time(t)
        alpha, sigma = path.alpha(t), path.sigma(t)
        if name == "score":
            return jnp.ones_like(sigma)  # its row would divide by sigma, which is 0 at the data
        if name == "velocity":
            return path.sigma_w(t) / alpha  # finite at the data, where sigma' of its row may not be
        s, a, b = target if isinstance(target, Row) else prediction_row(path, target, t)
        if a is None:
            return -sigma * b / s  # nothing of the data, so nothing is divided by alpha, which is 0 at the noise
        return sigma * (a * sigma - (0.0 if b is None else b) * alpha) / (alpha * s)
