"""Predictions: what a network outputs, its target and its error, and every conversion as one 2x2 solve."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ._event import cast_like, combine
from ._kinds import check_kinds
from ._path import AbstractAffinePath, AbstractDifferentiablePath, AbstractPath
from ._source import check_score, covariance, noise_map, precision
from ._types import Event, Noun, Time
from ._validate import is_real, scalar_time


class Row(NamedTuple):
    """A quantity linear in data and noise: `s q = a data + b noise`, with s, a and b finite.

    `None` stands for a weight that vanishes at every time.

    ```python
    velocity = jf.Row(1.0, 1.0, -1.0)  # of CondOT: data - noise
    field = jf.distributions.Gaussian(jnp.zeros(2), std=1.0).field(jf.CondOT())
    (value,) = field.predict((velocity,), 0.5, jnp.ones(2))
    assert jnp.allclose(value, 0.0, atol=1e-6)
    ```
    """

    s: PyTree
    a: PyTree
    b: PyTree


class AbstractPrediction(Noun):
    """What a network outputs: its name, the target of its training, and its row, if it has one.

    A prediction with a row converts into every other on an affine path; one without is taken as it is.

    ```python
    class Residual(jf.AbstractPrediction):  # x1 - x0, whatever the path
        name = "residual"

        def target(self, path, t, x0, x1, z=None, args=None):
            return x1 - x0

        def row(self, path, t):
            return jf.Row(jnp.ones_like(t), jnp.ones_like(t), -jnp.ones_like(t))

    field = jf.Field(lambda t, x, args: x, jf.Cosine(), predicts=Residual())
    assert field.data(0.5, jnp.ones(2)).shape == (2,)
    ```
    """

    name: eqx.AbstractClassVar[str]

    @abc.abstractmethod
    def target(self, path: AbstractPath, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None, args: Any = None) -> Event:
        """What the network is trained towards, for one example."""

    def row(self, path: AbstractAffinePath, t: Time) -> Row | None:
        """The prediction as weights of data and noise along an affine path; by default `None`: it has none."""
        return None

    def output(self, value: PyTree, x: PyTree) -> Event:
        """The network's output, checked and in its type; by default it must have the shape of `x`."""
        return cast_like(value, x, "A network's output")

    def errors(self, value: PyTree, target: PyTree) -> Event:
        """The error of each component of the event; by default its square."""
        return jtu.tree_map(lambda u, v: (u - v) ** 2, value, target)


class Velocity(AbstractPrediction):
    """`d x_t / dt`: `alpha' data + sigma' noise` on an affine path.

    ```python
    field = jf.Field(lambda t, x, args: x, jf.CondOT(), predicts=jf.Velocity())  # as predicts="velocity"
    assert (field.velocity(0.5, jnp.ones(2)) == 1).all()
    ```
    """

    name: ClassVar[str] = "velocity"

    def target(self, path: AbstractPath, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None, args: Any = None) -> Event:
        if not isinstance(path, AbstractDifferentiablePath):
            raise ValueError(
                "A velocity must have a path with one, an AbstractDifferentiablePath. "
                f"Got {type(path).__name__}: predict something else."
            )
        return path.velocity(t, x0, x1, z)

    def row(self, path: AbstractAffinePath, t: Time) -> Row | None:
        return Row(*path.velocity_row(t))


class Data(AbstractPrediction):
    """`E[x1 | x_t]`, the denoiser; the literature's "x0-prediction"."""

    name: ClassVar[str] = "data"

    def target(self, path: AbstractPath, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None, args: Any = None) -> Event:
        return x1

    def row(self, path: AbstractAffinePath, t: Time) -> Row | None:
        one = jnp.ones_like(scalar_time(t))
        return Row(one, one, None)


class Noise(AbstractPrediction):
    """`E[x0 | x_t]`; the literature's "epsilon-prediction"."""

    name: ClassVar[str] = "noise"

    def target(self, path: AbstractPath, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None, args: Any = None) -> Event:
        return x0

    def row(self, path: AbstractAffinePath, t: Time) -> Row | None:
        one = jnp.ones_like(scalar_time(t))
        return Row(one, None, one)


class Score(AbstractPrediction):
    """`grad log p_t(x)`: `-noise/sigma` for white noise, `-(A A^T)^+ noise / sigma` for a source `x0 = A e`.

    Its row is that of `-noise/sigma`; `convert` applies the map.
    """

    name: ClassVar[str] = "score"

    def target(self, path: AbstractPath, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None, args: Any = None) -> Event:
        check_score(path.source, "A field that predicts the score")
        sigma = path.sigma(t)  # pyright: ignore[reportAttributeAccessIssue]
        return precision(noise_map(path.source), jtu.tree_map(lambda leaf: -leaf / sigma, x0), args)

    def row(self, path: AbstractAffinePath, t: Time) -> Row | None:
        check_score(path.source, "A score")
        sigma = path.sigma(t)
        return Row(sigma, None, -jnp.ones_like(sigma))


class V(AbstractPrediction):
    """`alpha noise - sigma data`. Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D."""

    name: ClassVar[str] = "v"

    def target(self, path: AbstractPath, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None, args: Any = None) -> Event:
        return combine((path.alpha(t), x0), (-path.sigma(t), x1))  # pyright: ignore[reportAttributeAccessIssue]

    def row(self, path: AbstractAffinePath, t: Time) -> Row | None:
        sigma = path.sigma(t)
        return Row(jnp.ones_like(sigma), -sigma, path.alpha(t))


class Logits(AbstractPrediction):
    """Unnormalised log-probabilities of the data's letters, with a last axis over the alphabet; its error is the
    cross-entropy.

    ```python
    errors = jf.Logits().errors(jnp.zeros((2, 4)), jnp.array([0, 3]))  # two letters of four, all equally likely
    assert jnp.allclose(errors, jnp.log(4.0))
    ```
    """

    name: ClassVar[str] = "logits"

    def target(self, path: AbstractPath, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None, args: Any = None) -> Event:
        return x1

    def output(self, value: PyTree, x: PyTree) -> Event:
        for v, letters in zip(jtu.tree_leaves(value), jtu.tree_leaves(x), strict=True):
            if v.ndim != letters.ndim + 1 or v.shape[:-1] != letters.shape:
                raise ValueError(
                    "Logits must have the shape of the letters and a last axis over the alphabet. "
                    f"Got {v.shape} for letters of shape {letters.shape}."
                )
        return value

    def errors(self, value: PyTree, target: PyTree) -> Event:
        def leaf(v, letters):
            return -jnp.take_along_axis(jax.nn.log_softmax(v, axis=-1), letters[..., None], axis=-1)[..., 0]

        return jtu.tree_map(leaf, value, target)


PREDICTIONS: dict[str, AbstractPrediction] = {
    prediction.name: prediction for prediction in (Velocity(), Data(), Noise(), Score(), V(), Logits())
}

Prediction = str | AbstractPrediction
"""A prediction, by name or as an object."""

Target = Prediction | Row
"""What a field predicts on request: a prediction or a row."""


def as_prediction(prediction: Any) -> AbstractPrediction:
    """A prediction by its name, or as it is; raises `ValueError` for an unknown name."""
    if isinstance(prediction, AbstractPrediction):
        return prediction
    if not (isinstance(prediction, str) and prediction in PREDICTIONS):
        raise ValueError(
            f"A prediction must be one of {', '.join(map(repr, PREDICTIONS))}, or an AbstractPrediction. "
            f"Got {prediction!r}. The literature's 'x0-prediction' is 'data', its 'epsilon-prediction' is 'noise'."
        )
    return PREDICTIONS[prediction]


def heads(predicts: Any) -> tuple[AbstractPrediction, ...]:
    """The predictions of a network with one head, or with several."""
    return tuple(map(as_prediction, predicts)) if isinstance(predicts, tuple) else (as_prediction(predicts),)


def prediction_row(path: AbstractPath, prediction: Prediction, t: Time) -> Row:
    """The row of a prediction at time `t`; raises `ValueError` where it has none on this path.

    velocity `alpha' data + sigma' noise`; score `-noise / sigma`; v `alpha noise - sigma data`.
    """
    prediction, t = as_prediction(prediction), scalar_time(t)
    row = prediction.row(path, t) if isinstance(path, AbstractAffinePath) else None
    if row is None:
        raise ValueError(
            f"A conversion must be between quantities linear in data and noise, on an affine path. Got "
            f"{prediction.name!r} along {type(path).__name__}: train a network that predicts it, as one of its heads."
        )
    return row


def coefficients(path: AbstractAffinePath, t: Time, source: Row, target: Row) -> tuple[Array, Array]:
    """`(k_x, k_p)` with `target = k_x x + k_p source`.

    They solve `[alpha sigma; a b] (data, noise) = (x, s source)`, whose determinant is `alpha b - sigma a`
    (`-sigma W` for a velocity), and are not finite where the prediction does not determine the target: the data
    from the noise at t = 0, the noise from the data at t = 1. Noise and score are multiples of each other at
    every time, and need no solve.
    """
    if not all(w is None or is_real(w) for w in (*source, *target)):
        raise TypeError(f"A Row must hold numbers, s q = a data + b noise. Got {source} and {target}.")
    if source.a is None and target.a is None:
        return jnp.zeros_like(path.alpha(t)), target.b * source.s / (source.b * target.s)
    alpha, sigma = path.alpha(t), path.sigma(t)
    (s, a, b), (s_to, a_to, b_to) = ([0.0 if w is None else w for w in row] for row in (source, target))
    determinant = (alpha * b - sigma * a) * s_to
    return (a_to * b - b_to * a) / determinant, (b_to * alpha - a_to * sigma) * s / determinant


def convert(
    path: AbstractPath, t: Time, x: PyTree, value: PyTree, source: Prediction, target: Target, args: Any = None
) -> Event:
    """A prediction turned into another one, for one example.

    Args:
        path: The path, an affine one.
        t: The time, a scalar.
        x: The state at `t`.
        value: The prediction `source` at `(t, x)`, of the shape of `x`.
        source: What `value` is.
        target: The prediction wanted, by name, as an object, or as a row.
        args: The condition, for a source with a mask.

    Returns:
        The target, of the shape of `x`; not finite where the source does not determine it.

    With `W = sigma alpha' - alpha sigma'`: `data = (sigma u - sigma' x)/W`, `noise = (alpha' x - alpha u)/W`,
    `score = -noise/sigma` for a velocity `u` (Lipman et al. 2024, arXiv:2412.06264, table 1).

    ```python
    path, x, u = jf.CondOT(), jnp.array([1.0]), jnp.array([2.0])
    data = jf.convert(path, 0.25, x, u, "velocity", "data")  # x + (1 - t) u
    assert jnp.allclose(data, 2.5)
    ```
    """
    check_kinds(convert, locals())
    t, source = scalar_time(t), as_prediction(source)
    named = None if isinstance(target, Row) else as_prediction(target)
    if named is not None and named.name == source.name:
        return value
    mapped = noise_map(path.source)
    if source.name == "score":
        value = covariance(mapped, value, args)  # `-noise/sigma`, which is what the row stands for
    to = target if named is None else prediction_row(path, named, t)
    k_x, k_p = coefficients(path, t, prediction_row(path, source, t), to)  # pyright: ignore[reportArgumentType]
    result = combine((k_x, x), (k_p, value))
    if named is not None and named.name == "score":
        result = precision(mapped, result, args)
    return result


def given(
    path: AbstractPath, t: Time, x: PyTree, values: tuple[PyTree, ...], predicts: tuple[Prediction, ...],
    targets: tuple[Target, ...], args: Any = None,
) -> tuple[Event, ...]:  # fmt: skip
    """The targets from the values of a network's heads: a head by its name, else converted from the first one that has
    a row. Those with a row are taken within the space that the path's source fills (zero in padding, centred clouds).

    Args:
        path: The path.
        t: The time, a scalar.
        x: The state at `t`.
        values: The values of the heads, in their order.
        predicts: What the heads predict: names or objects.
        targets: What is wanted: names, objects or rows.
        args: The condition, for a source with a mask.

    ```python
    x = jnp.ones(2)
    data, velocity = jf.given(jf.CondOT(), 0.5, x, (x,), ("velocity",), ("data", "velocity"))
    assert jnp.allclose(data, 1.5) and (velocity == x).all()
    ```
    """
    check_kinds(given, locals())
    if len(values) != len(predicts):
        raise ValueError(f"A field must have a value for each head. Got {len(values)} for {len(predicts)}.")
    sources = tuple(map(as_prediction, predicts))
    names = [source.name for source in sources]

    def inside(source, value):  # a coupled source has scores, but no row for them
        linear = source.name == "score" or name_has_row(path, source, t)
        return noise_map(path.source).project(value, args) if linear and isinstance(path, AbstractAffinePath) else value

    values = tuple(map(inside, sources, values))

    def one(target):
        name = None if isinstance(target, Row) else as_prediction(target).name
        if name in names:
            return values[names.index(name)]
        rows = [i for i, source in enumerate(sources) if name_has_row(path, source, t)]
        if not rows:
            wanted = "a combination of data and noise" if name is None else repr(name)
            own = ", ".join(map(repr, names))
            raise ValueError(
                f"A field must determine what it is evaluated for. Got {wanted}, from a field that predicts {own} "
                f"along {type(path).__name__}: train a head that predicts it."
            )
        return convert(path, t, x, values[rows[0]], sources[rows[0]], target, args)

    return tuple(map(one, targets))


def name_has_row(path: AbstractPath, prediction: AbstractPrediction, t: Time) -> bool:
    """Whether a prediction is linear in data and noise on this path."""
    return isinstance(path, AbstractAffinePath) and prediction.row(path, scalar_time(t)) is not None
