"""What every exact world is: samples, a law at each time, and an exact field along any path."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from .._field import AbstractNetwork
from .._misc import as_state, concrete, float_type, scalar_time
from .._path import AbstractPath
from .._prediction import Prediction, Row, check_prediction, prediction_row
from .._types import Event, PRNGKey, Time

Numbers = ArrayLike | Sequence[Any]
"""Parameters as people write them: arrays, numbers, lists of numbers."""


class Moments(NamedTuple):
    """What is known exactly of `x = alpha z + sigma eps`, with `z` of a distribution and `eps ~ N(0, I)`.

    - `log_prob`: the log-density of `x`, in nats.
    - `data`: `E[z | x]`, of the shape of `x`.
    - `score`: the gradient of `log_prob` with respect to `x`. Then `E[eps | x] = -sigma score`.
    """

    log_prob: Any
    data: Any
    score: Any


class AbstractDistribution(eqx.Module):
    """A distribution of one event `z` whose noised versions `alpha z + sigma eps` are known exactly.

    `args` is a condition, for the distributions that have one.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The event's shape."""

    @abc.abstractmethod
    def sample(self, key: PRNGKey) -> Any:
        """One event; where the distribution has a condition, the pair of an event and its condition."""

    @abc.abstractmethod
    def at(self, path: AbstractPath, t: Time) -> "AbstractDistribution":
        """The marginal `p_t` of the path: the distribution of `alpha(t) z + sigma(t) eps`."""

    @abc.abstractmethod
    def _moments(self, alpha: Array, sigma: Array, x: Array, args: Any) -> Moments:
        """`moments`, for a checked event in whose type the parameters are."""

    def field(self, path: AbstractPath, predicts: Prediction | None = None) -> "ExactField":
        """The exact field along a path: velocity, data, noise and score at every time.

        **Arguments:** `predicts`, the prediction by which losses and end policies take the field: by default the
        velocity, and the data where there is no density.
        """
        if predicts is None:
            predicts = "velocity" if isinstance(self, AbstractDensity) else "data"
        return ExactField(self, path, predicts)

    def moments(self, alpha: Time, sigma: Time, x: Shaped[ArrayLike, "..."], args: Any = None) -> Moments:
        """Log-density, `E[z | x]` and score of `x = alpha z + sigma eps`, for one `x` of the event's shape.

        All three are NaN-free at `sigma = 0` where the mathematics is finite; where `x` is impossible the score is NaN,
        and the data the limit, the nearest point of the support.
        Raises `ValueError` for an `x` of another shape.
        """
        if jnp.shape(x) != self.shape:
            raise ValueError(
                f"An event of this {type(self).__name__} has shape {self.shape}. Got {jnp.shape(x)}; "
                "if these differ by a leading batch axis, a jax.vmap is missing."
            )
        point: Array = as_state(x)
        alpha, sigma = (jnp.asarray(number).astype(point.dtype) for number in (alpha, sigma))
        return cast(self, point.dtype)._moments(alpha, sigma, point, args)


class AbstractDensity(AbstractDistribution):
    """A distribution that has a density."""

    def log_prob(self, x: Shaped[ArrayLike, "..."], args: Any = None) -> Float[Array, ""]:
        """The log-density at `x`, in nats."""
        return self.moments(1.0, 0.0, x, args).log_prob

    def score(self, x: Shaped[ArrayLike, "..."], args: Any = None) -> Float[Array, "..."]:
        """The gradient of `log_prob`, of the shape of `x`."""
        return self.moments(1.0, 0.0, x, args).score


class ExactField(AbstractNetwork):
    """The exact marginal field of a distribution along a path; what a trained field approaches.

    `data = E[x1 | x_t = x]`, `score = grad log p_t(x)`, `noise = -sigma score` and
    `velocity = alpha' data - sigma sigma' score`, each from one evaluation and finite at both ends of every path
    where the mathematics is. Along a path that ends at the data, the velocity, noise and score of a point set are
    infinite at t = 1: asked for there, at a time that is known, they raise `ValueError`.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 8; Lipman et al. 2024, arXiv:2412.06264, section 4.8.
    """

    distribution: AbstractDistribution
    path: AbstractPath
    predicts: Prediction = eqx.field(static=True)

    def __init__(self, distribution: AbstractDistribution, path: AbstractPath, predicts: Prediction):
        """`distribution` the law of the data; `path`; `predicts` what the field gives when it is called.

        Raises `ValueError` for an unknown prediction, `TypeError` where `path` is no path.
        """
        self.distribution, self.path, self.predicts = distribution, path, predicts

    def __check_init__(self):
        check_prediction(self.predicts)
        if not isinstance(self.path, AbstractPath):
            raise TypeError(f"A field's path is a jflow path, as jflow.CondOT(). Got {type(self.path).__name__}.")

    @property
    def sources(self) -> tuple[Prediction, ...]:
        """None where there is a density: data and score are known at every time, whatever the field predicts."""
        return () if isinstance(self.distribution, AbstractDensity) else (self.predicts,)

    def __call__(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._predict(self.predicts, t, x, args)

    def conditional(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self(t, x, args)

    def velocity(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._predict("velocity", t, x, args)

    def data(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._predict("data", t, x, args)

    def noise(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._predict("noise", t, x, args)

    def score(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._predict("score", t, x, args)

    def mixed(self, rows: tuple[Row, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        t = _time(t, x)
        return self._combine([self._weights(row, t) for row in rows], t, x, args)

    def _predict(self, name, t, x, args):
        t = _time(t, x)
        if name != "velocity":
            return self.mixed((prediction_row(self.path, name, t),), t, x, args)[0]
        weights = self.path.alpha_dot(t), -self.path.sigma_sigma_dot(t)
        return self._combine([weights], t, x, args)[0]

    def _weights(self, row, t):
        """A row as weights of data and score, `(a/s, -b sigma/s)`; `None` for one that vanishes at every time.

        Where `s = 0` the row is `sigma` times one that is finite in data and score: a velocity's (plus any multiple
        of the score), or a score's.
        """
        singular = row.s == 0
        s = jnp.where(singular, 1, row.s)
        a = None if _vanishes(row.a) else jnp.where(singular, self.path.alpha_dot(t), row.a / s)
        b = None if _vanishes(row.b) else -row.b * jnp.where(singular, 1, self.path.sigma(t) / s)
        return a, b

    def _combine(self, weights, t, x, args):
        """Sums of data and score with the weights given, from one evaluation."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        if any(b is not None for _, b in weights):
            self._check_end(t, sigma)
        moments = self.distribution.moments(alpha, sigma, x, args)

        def total(a, b):
            parts = [w * q for w, q in ((a, moments.data), (b, moments.score)) if w is not None]
            return sum(parts[1:], parts[0]).astype(float_type(x))

        return tuple(total(a, b) for a, b in weights)

    def _check_end(self, t, sigma):
        if concrete(sigma) == 0 and not isinstance(self.distribution, AbstractDensity):
            raise ValueError(
                f"Velocity, noise and score of a {type(self.distribution).__name__} are infinite where sigma(t) = 0. "
                f"Got t = {float(t):g}. Stop a little earlier, as at t = 0.999 (the noise left is sigma(t)), or take "
                "the data prediction, which is the nearest point: end='denoise' makes it the last step."
            )


def _vanishes(weight):
    """Whether a weight of a row is the Python zero."""
    return isinstance(weight, float) and weight == 0


def _time(t, x):
    """The time in the type in which the event is computed."""
    return scalar_time(t).astype(as_state(x).dtype)


def cast(tree: PyTree, dtype: Any) -> Any:
    """The inexact arrays of a pytree in another type."""
    return jtu.tree_map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)


def values(x: Any, name: str) -> Array:
    """A parameter given as numbers, in the default float type; raises `ValueError` where one is not finite."""
    x = jnp.asarray(x, jnp.result_type(float))
    if (known := concrete(x)) is not None and not np.isfinite(known).all():
        raise ValueError(f"{name} are finite numbers. Got a non-finite one.")
    return x


def positive(x: Any, name: str) -> Array:
    """`values`, all above zero."""
    x = values(x, name)
    if (known := concrete(x)) is not None and not (known > 0).all():
        raise ValueError(f"{name} are positive. Got {known.min():g}; points without width are a PointSet.")
    return x


def log_weights(weights: Any, k: int) -> Float[Array, "{k}"]:
    """Logarithms of `k` weights normalised to sum one; equal ones where none are given."""
    if weights is None:
        return jnp.full((k,), -jnp.log(k), jnp.result_type(float))
    weights = values(weights, "Weights")
    known = concrete(weights)
    if weights.shape != (k,) or (known is not None and ((known < 0).any() or known.sum() == 0)):
        raise ValueError(
            f"Weights are one number of at least 0 for each of the {k} components, with a positive sum. "
            f"Got shape {weights.shape}{'' if known is None else f', least {known.min():g}'}."
        )
    return jnp.log(weights) - jnp.log(jnp.sum(weights))
