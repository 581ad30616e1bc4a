"""What every exact world is: samples, a law at each time, and an exact field along any affine path."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from .._args import Args, bare
from .._clock import AngleClock, RatioClock
from .._event import as_state, float_type
from .._field import AbstractField, check_affine
from .._grid import EasedGrid
from .._kinds import check_kinds
from .._path import AbstractAffinePath, AbstractPath
from .._prediction import Prediction, Row, Target, as_prediction, prediction_row
from .._sampler import FixedSteps
from .._solver import Adams
from .._source import has_score
from .._trainable import frozen
from .._types import Event, Noun, PRNGKey, Time
from .._validate import as_array, concrete, scalar_time

Numbers = ArrayLike | Sequence[PyTree]
"""Parameters as people write them: arrays, numbers, lists of numbers."""


class Moments(NamedTuple):
    """What is known exactly of `x = alpha z + sigma eps`, with `z` of a distribution and `eps ~ N(0, I)`.

    - `log_prob`: the log-density of `x`, in nats.
    - `data`: `E[z | x]`, of the shape of `x`.
    - `score`: the gradient of `log_prob` with respect to `x`. Then `E[eps | x] = -sigma score`.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(1), std=1.0)
    moments = world.moments(0.6, 0.8, jnp.ones(1))  # 0.6 z + 0.8 eps ~ N(0, 1)
    assert jnp.allclose(moments.score, -1.0) and jnp.allclose(moments.data, 0.6)
    ```
    """

    log_prob: Float[Array, "*batch"]
    data: Float[Array, "..."]
    score: Float[Array, "..."]


class AbstractDistribution(Noun):
    """A distribution of one event `z` whose noised versions `alpha z + sigma eps`, `eps ~ N(0, I)`, are known exactly.

    `args` is a condition, for the distributions that have one.

    ```python
    world = jf.distributions.PointSet([[-1.0], [1.0]])
    assert isinstance(world, jf.distributions.AbstractDistribution) and world.shape == (1,)
    assert jnp.allclose(world.field(jf.CondOT()).data(0.5, jnp.zeros(1)), 0.0)
    ```
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The event's shape."""

    @abc.abstractmethod
    def sample(self, key: PRNGKey) -> PyTree:
        """One event; where the distribution has a condition, the pair of an event and its condition."""

    @abc.abstractmethod
    def at(self, path: AbstractPath, t: Time) -> "AbstractDistribution":
        """The marginal `p_t` of the path: the distribution of `alpha(t) z + sigma(t) eps`.

        Raises `ValueError` for a path that is not affine, or whose source is not white noise.
        """

    @abc.abstractmethod
    def _moments(self, alpha: Array, sigma: Array, x: Array, args: Any) -> Moments:
        """`moments`, for a checked event in whose type the parameters are."""

    def field(self, path: AbstractPath, predicts: Prediction | None = None) -> "ExactField":
        """The exact field along a path: velocity, data, noise and score at every time.

        Args:
            path: An affine path whose source is white noise.
            predicts: The prediction by which losses take the field, and where there is no density samplers too: by
                default the velocity, and the data where there is no density.

        Raises as `ExactField` does.
        """
        if predicts is None:
            predicts = "velocity" if isinstance(self, AbstractDensity) else "data"
        return ExactField(self, path, predicts)

    def moments(self, alpha: Time, sigma: Time, x: Shaped[ArrayLike, "..."], args: Any = None) -> Moments:
        """Log-density, `E[z | x]` and score of `x = alpha z + sigma eps`, for one `x` of the event's shape.

        At `sigma = 0` all three are finite where the mathematics is. Outside the support the score is NaN and `data` is
        the nearest point of the support.

        Raises `ValueError` for an `x` of another shape.
        """
        if jnp.shape(x) != self.shape:
            raise ValueError(
                f"An event of this {type(self).__name__} must have shape {self.shape}. Got {jnp.shape(x)}; "
                "if these differ by a leading batch axis, a jax.vmap is missing."
            )
        point: Array = as_state(x, "An event")
        alpha, sigma = (jnp.asarray(number).astype(point.dtype) for number in (alpha, sigma))
        return cast(self, point.dtype)._moments(alpha, sigma, point, Args.of(args).condition)


class AbstractDensity(AbstractDistribution):
    """A distribution that has a density.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(1), std=2.0)
    assert isinstance(world, jf.distributions.AbstractDensity) and jnp.allclose(world.score(jnp.ones(1)), -0.25)
    ```
    """

    def log_prob(self, x: Shaped[ArrayLike, "..."], args: Any = None) -> Float[Array, ""]:
        """The log-density at `x`, in nats."""
        return self.moments(1.0, 0.0, x, args).log_prob

    def score(self, x: Shaped[ArrayLike, "..."], args: Any = None) -> Float[Array, "..."]:
        """The gradient of `log_prob`, of the shape of `x`."""
        return self.moments(1.0, 0.0, x, args).score


# from how many evaluations: order, clock, exponents of the eased grid; see docs/which_sampler.md
_SMOOTH: tuple[tuple[int, Any, Any, Any, Any], ...] = (
    (28, 6, AngleClock(), 1.2, 1.0),
    (16, 6, AngleClock(), 1.2, 1.15),
    (8, 5, RatioClock(), 1.2, 1.3),
    (0, 2, RatioClock(), 1.0, 1.15),
)


class ExactField(AbstractField):
    """The exact marginal field of a distribution along a path; what a trained field approaches.

    `data = E[x1 | x_t = x]`, `score = grad log p_t(x)`, `noise = -sigma score` and
    `velocity = alpha' data - sigma sigma' score`, each from one evaluation and finite at both ends of every path
    where the mathematics is. Along a path that ends at the data, the velocity, noise and score of a point set are
    infinite at t = 1. There they raise `ValueError` if the time is known.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 8; Lipman et al. 2024, arXiv:2412.06264, section 4.8.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    assert jnp.allclose(field.velocity(0.5, jnp.ones(2)), -1.2)
    ```
    """

    distribution: AbstractDistribution = frozen()
    path: AbstractAffinePath
    predicts: Prediction = eqx.field(static=True)

    def __init__(self, distribution: AbstractDistribution, path: AbstractPath, predicts: Prediction):
        """Makes the field of a distribution, as `distribution.field(path)` does.

        Args:
            distribution: The law of the data.
            path: An affine path whose source is white noise, `N(0, I)` and independent of the data.
            predicts: What the field gives without conversion.

        Raises `ValueError` for an unknown prediction or another path, `TypeError` where `path` is not a path.
        """
        check_kinds(ExactField.__init__, locals())
        as_prediction(predicts)
        self.distribution, self.path, self.predicts = distribution, white(path), predicts

    @property
    def sources(self) -> tuple[Prediction, ...]:
        """None where there is a density: data and score are known at every time, whatever the field predicts."""
        return () if isinstance(self.distribution, AbstractDensity) else (self.predicts,)

    def recommended(self, nfe: int, args: Any = None) -> PyTree:
        """Of a density, whose field is smooth: Adams methods of high order; else that of the path."""
        if not isinstance(self.distribution, AbstractDensity):
            return None
        order, clock, first, last = next(row for least, *row in _SMOOTH if nfe >= least)
        return FixedSteps(EasedGrid(nfe, first, last), Adams(order, corrector=True), clock=clock, end="stop")

    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        t = scalar_time(t).astype(as_state(x).dtype)  # in the type in which the event is computed
        return self._combine([self._weights(target, t) for target in targets], t, x, bare(args))

    def _weights(self, target, t):
        """A target as weights of data and score, `None` for one that vanishes at every time.

        A row `s q = a data + b noise` is `q = (a/s) data - (b sigma/s) score`. Where `s = 0` it is `sigma` times one
        that is finite in data and score: a velocity's (plus any multiple of the score), or a score's.
        """
        if not isinstance(target, Row):
            if as_prediction(target).name == "velocity":
                return self.path.alpha_dot(t), -self.path.sigma_sigma_dot(t)
            target = prediction_row(self.path, target, t)
        singular = target.s == 0
        s = jnp.where(singular, 1, target.s)
        a = None if target.a is None else jnp.where(singular, self.path.alpha_dot(t), target.a / s)
        b = None if target.b is None else -target.b * jnp.where(singular, 1, self.path.sigma(t) / s)
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
                f"Velocity, noise and score of a {type(self.distribution).__name__} must be evaluated where "
                f"sigma(t) > 0, since they are infinite where it is 0. Got t = {float(t):g}: stop a little earlier, as "
                "at t = 0.999 (the noise left is sigma(t)), or take the data prediction, which is the nearest point; "
                "end='denoise' makes it the last step."
            )


def white(path: Any) -> AbstractAffinePath:
    """`path`; raises `ValueError` where it is not affine, or its source is not `N(0, I)` and independent of the data,
    `TypeError` for what is not a path.
    """
    check_affine(path, "An exact world")
    if not has_score(path.source) or path.source.map is not None:
        raise ValueError(
            "An exact world must have a path from white noise that is independent of the data, for its marginals are "
            f"those of alpha z + sigma eps, eps ~ N(0, I). Got the source {path.source!r}: leave out source=."
        )
    return path


def marginal_weights(path: AbstractPath, t: Time) -> tuple[Array, Array]:
    """`alpha(t)` and `sigma(t)`; raises as `white` does."""
    path, t = white(path), scalar_time(t)
    return path.alpha(t), path.sigma(t)


def cast(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """The inexact arrays of a pytree in another type."""
    return jtu.tree_map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)


def values(x: Any, name: str) -> Array:
    """A parameter given as numbers, in the default float type; raises `ValueError` where one is not finite."""
    x = as_array(x, name, jnp.result_type(float))
    if (known := concrete(x)) is not None and not np.isfinite(known).all():
        raise ValueError(f"{name} must be finite numbers. Got a non-finite one.")
    return x


def positive(x: Any, name: str) -> Array:
    """`values`, all above zero."""
    x = values(x, name)
    known = concrete(x)
    with np.errstate(over="ignore"):
        fits = known is None or ((known > 0) & np.isfinite(known**2)).all()
    if known is not None and not fits:
        raise ValueError(
            f"{name} must be positive, with finite squares. Got numbers from {known.min():g} to {known.max():g}; "
            "points without width are a PointSet."
        )
    return x


def log_weights(weights: Any, k: int) -> Float[Array, "{k}"]:
    """Logarithms of `k` weights normalised to sum one; equal ones where none are given."""
    if weights is None:
        return jnp.full((k,), -jnp.log(k), jnp.result_type(float))
    weights = values(weights, "Weights")
    known = concrete(weights)
    if weights.shape != (k,) or (known is not None and ((known < 0).any() or known.sum() == 0)):
        raise ValueError(
            f"Weights must be one number of at least 0 for each of the {k} components, with a positive sum. "
            f"Got shape {weights.shape}{'' if known is None or not known.size else f', least {known.min():g}'}."
        )
    return jnp.log(weights) - jnp.log(jnp.sum(weights))
