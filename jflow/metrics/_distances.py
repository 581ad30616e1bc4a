"""Distances between two samples."""

import functools as ft
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, Integer, Num, PyTree

from .._extra import from_extra
from .._kinds import check_kinds
from .._types import PRNGKey
from .._validate import check_count, shown

Sample = Num[ArrayLike, "_ ..."]
Mask = tuple[ArrayLike, ArrayLike]
Metric = TypeVar("Metric", bound=Callable[..., float])

_BLOCK = 2**23  # numbers held at once: 64 MiB


def _keyed(metric: Metric) -> Metric:
    """A metric that says where its key is missing; Python would name the last argument, not the first."""

    @ft.wraps(metric)
    def keyed(*args: Any, **options: Any) -> float:
        if args and not (isinstance(args[0], jax.Array) and jnp.issubdtype(args[0].dtype, jax.dtypes.prng_key)):
            names = ", ".join(list(metric.__annotations__)[:3])
            raise ValueError(
                f"The first argument of {metric.__name__} must be a typed key: {metric.__name__}({names}), with "
                f"key=jax.random.key(seed). Got {shown(args[0])}."
            )
        return metric(*args, **options)

    return keyed  # pyright: ignore


def energy_distance(x: Sample, y: Sample, *, mask: Mask | None = None) -> float:
    """Energy distance, `2 E|X - Y| - E|X - X'| - E|Y - Y'|`, a V-statistic; in units of the data.

    Zero only where the laws agree. It is not the square root of this, which some authors call by the name.

    Args:
        x: A sample, shape `(n, *event)`.
        y: Another sample of events of the same shape.
        mask: A pair `(mask_x, mask_y)` of what is there in padded events, as the module says.

    Source: Székely and Rizzo 2013, Energy statistics, J. Statistical Planning and Inference 143.

    ```python
    x, y = jr.normal(jr.key(0), (2, 50, 2))
    assert abs(jf.metrics.energy_distance(x, x)) < 1e-6 and jf.metrics.energy_distance(x, y + 3) > 1
    ```
    """
    check_kinds(energy_distance, locals())
    x, y = _centred(x, y, mask)
    return 2 * _mean(np.sqrt, x, y) - _mean(np.sqrt, x, x) - _mean(np.sqrt, y, y)


def mmd(x: Sample, y: Sample, bandwidth: float | int | None = None, *, mask: Mask | None = None) -> float:
    """Squared maximum mean discrepancy, `E k(X, X') + E k(Y, Y') - 2 E k(X, Y)`, a V-statistic; at most 2.

    `k(a, b) = exp(-|a - b|^2 / (2 bandwidth^2))`. The default bandwidth is the median distance between points
    of the pooled sample (of at most 1,000 points of each, taken evenly); to compare several samples with one
    reference, fix it. Raises `ValueError` where it is not positive.

    Args:
        x: A sample, shape `(n, *event)`.
        y: Another sample of events of the same shape.
        bandwidth: The width of the kernel, by default the median distance.
        mask: As in `energy_distance`.

    Source: Gretton et al. 2012, A kernel two-sample test, JMLR 13, equation 5 (squared) and section 8.

    ```python
    x, y = jr.normal(jr.key(0), (2, 50, 2))
    assert abs(jf.metrics.mmd(x, x)) < 1e-6 and jf.metrics.mmd(x, y + 3) > 0.5
    ```
    """
    check_kinds(mmd, locals())
    x, y = _centred(x, y, mask)
    if bandwidth is None:
        pooled = np.concatenate([x[:: math.ceil(len(x) / 1000)], y[:: math.ceil(len(y) / 1000)]])
        squares = np.concatenate(list(_square_distances(pooled, pooled)))
        bandwidth = float(np.sqrt(np.median(squares[np.triu_indices(len(pooled), 1)])))
    if not bandwidth > 0:
        raise ValueError(
            f"The bandwidth must be positive. Got {bandwidth}; where that is the median distance, most points "
            "coincide: pass bandwidth=."
        )

    def kernel(squares):
        return np.exp(squares / (-2 * bandwidth**2))

    return _mean(kernel, x, x) + _mean(kernel, y, y) - 2 * _mean(kernel, x, y)


def wasserstein_1d(x: Sample, y: Sample, p: float | int = 2) -> float:
    """Wasserstein distance of order `p >= 1` between two samples of numbers, exact; in units of the data.

    `(int_0^1 |F^-1(u) - G^-1(u)|^p du)^(1/p)`, `F` and `G` the empirical distribution functions.

    Args:
        x: A sample of numbers, shape `(n,)` or `(n, 1)`.
        y: Another sample of numbers.
        p: The order, at least 1.

    Source: Villani 2003, Topics in Optimal Transportation, theorem 2.18.

    ```python
    x = np.arange(5.0)
    assert jf.metrics.wasserstein_1d(x, x[::-1] + 2) == 2.0
    ```
    """
    check_kinds(wasserstein_1d, locals())
    x, y = _pair(x, y)
    if x.shape[1] != 1:
        raise ValueError(
            f"The exact distance must be that of numbers, shape (n,) or (n, 1). Got vectors of {x.shape[1]} "
            "components; use sliced_wasserstein."
        )
    return float(_transport_cost(x, y, p)[0] ** (1 / p))


@_keyed
def sliced_wasserstein(
    key: PRNGKey, x: Sample, y: Sample, num_projections: int = 512, p: float | int = 2, *, mask: Mask | None = None
) -> float:
    """Sliced Wasserstein distance of order `p >= 1`; in units of the data.

    `(E_theta W_p(theta.X, theta.Y)^p)^(1/p)`, `theta` uniform on the unit sphere, by `num_projections`
    directions drawn by `key`, each distance exact. At p = 2 a shift by `a` gives `|a| / sqrt(d)`.

    Args:
        key: Decides the directions.
        x: A sample, shape `(n, *event)`.
        y: Another sample of events of the same shape.
        num_projections: The number of directions.
        p: The order, at least 1.
        mask: As in `energy_distance`.

    Source: Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures, J. Mathematical Imaging
    and Vision 51.

    ```python
    x = jr.normal(jr.key(0), (50, 2))
    assert np.isclose(jf.metrics.sliced_wasserstein(jr.key(1), x, x + 1), 1.0, rtol=0.1)  # |a| / sqrt(d)
    ```
    """
    check_kinds(sliced_wasserstein, locals())
    x, y = _pair(x, y, mask)
    if num_projections < 1:
        raise ValueError(f"There must be at least one direction. Got num_projections={num_projections}.")
    normals = np.asarray(jax.random.normal(key, (num_projections, x.shape[1])), np.float64)
    directions = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).T
    columns = max(1, _BLOCK // (len(x) + len(y)))
    blocks = (directions[:, i : i + columns] for i in range(0, num_projections, columns))
    costs = np.concatenate([_transport_cost(x @ block, y @ block, p) for block in blocks])
    return float(costs.mean() ** (1 / p))


@_keyed
def c2st(
    key: PRNGKey, x: Sample, y: Sample, *, folds: int = 5, classifier: PyTree = None, mask: Mask | None = None
) -> float:
    """Classifier two-sample test: how often a classifier separates the samples, from 1/2 (never) to 1.

    The accuracy on held-out points, averaged over `folds` stratified folds drawn by `key`; the larger sample
    is cut by `key` to the size `n` of the smaller. Under equal laws it is about `N(1/2, 1/(8n))`; well below
    1/2, the samples share points. `classifier` is any of scikit-learn's, by default a network with one layer
    of 64 ReLUs on standardised inputs, trained by Adam for 100 epochs. Needs scikit-learn.

    Args:
        key: Decides the folds and the network.
        x: A sample, shape `(n, *event)`.
        y: Another sample of events of the same shape.
        folds: The number of folds.
        classifier: A classifier of scikit-learn in place of the network.
        mask: As in `energy_distance`.

    Source: Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests, arXiv:1610.06545, section 3.

    ```python
    x = jr.normal(jr.key(0), (20, 2))
    assert jf.metrics.c2st(jr.key(1), x, x + 10, folds=2) == 1.0
    ```
    """
    check_kinds(c2st, locals())
    with from_extra("jflow.metrics.c2st"):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    x, y = _pair(x, y, mask)
    n = min(len(x), len(y))
    if not 2 <= folds <= n:
        raise ValueError(f"There must be at least two folds, each with a point of both samples. Got {folds} for {n}.")
    seed = int(jax.random.bits(key, dtype=jnp.uint32))
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.permutation(x)[:n], rng.permutation(y)[:n]])
    if classifier is None:
        network = MLPClassifier((64,), max_iter=100, random_state=seed)
        classifier = make_pipeline(StandardScaler(), network)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 epochs are the rule, not a failure
        scores = cross_val_score(classifier, points, np.repeat([0, 1], n), cv=split)
    return float(scores.mean())


@_keyed
def c2st_power(
    key: PRNGKey, n: int, size: int, *, accuracy: float | int = 0.6, folds: int = 5, classifier: PyTree = None
) -> float:
    """The score of `c2st` on a pair whose best score is known: how much a score of 1/2 on your own pair says.

    The pair is `n` points each of `N(0, I)` and `N(mu, I)` of `size` components, with `|mu| = 2 Phi^-1(accuracy)`
    spread evenly over these, so that the best classifier has the `accuracy`, `Phi(|mu| / 2)`. A score near `accuracy`
    says that the test sees such a difference; a score near 1/2 that it does not, with so few points of so many
    components: then a `c2st` of 1/2 is no sign of equal laws.

    Args:
        key: Decides the points, and what it decides in `c2st`.
        n: The number of points of each sample, as of yours.
        size: The number of components, as of yours.
        accuracy: The accuracy of the best classifier, between 1/2 and 1.
        folds: As in `c2st`.
        classifier: As in `c2st`.

    Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545, section 3.1, on the power of the test.

    ```python
    score = jf.metrics.c2st_power(jr.key(0), 50, 1, accuracy=0.999)
    assert score > 0.9
    ```
    """
    check_kinds(c2st_power, locals())
    check_count(n=n, size=size)
    if not 0.5 < accuracy < 1:
        raise ValueError(f"accuracy must be between 1/2 and 1. Got {accuracy}.")
    key_points, key_test = jax.random.split(key)
    x, y = np.array(jax.random.normal(key_points, (2, n, size)))
    y += 2 * statistics.NormalDist().inv_cdf(accuracy) / math.sqrt(size)
    return c2st(key_test, x, y, folds=folds, classifier=classifier)


def frechet_distance(
    x: Sample, y: Sample, features: Callable[[ArrayLike], ArrayLike] | None = None, *, mask: Mask | None = None
) -> float:
    """Squared Fréchet distance between the Gaussians with the moments of two samples; in squared units.

    `|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`, `m` the means and `C` the covariances (divided by n - 1) of
    the components, or of `features(x)`, any function of a sample `(n, *event)` to vectors `(n, k)`: with
    those of an Inception network this is FID. Biased upwards, by about k^2 / n where all scales are equal: compare only
    figures of one n. Warns where a sample has fewer than 2 k points, and raises `ValueError` for a sample of one point.

    Args:
        x: A sample, shape `(n, *event)`.
        y: Another sample of events of the same shape.
        features: A function from a sample `(n, *event)` to vectors `(n, k)`.
        mask: As in `energy_distance`.

    Source: Dowson and Landau 1982, The Fréchet distance between multivariate normal distributions,
    J. Multivariate Analysis 12; Heusel et al. 2017, arXiv:1706.08500, equation 6.

    ```python
    x = jr.normal(jr.key(0), (50, 2))
    assert np.isclose(jf.metrics.frechet_distance(x, x + 3), 18.0)  # |m - m'|^2
    ```
    """
    check_kinds(frechet_distance, locals())
    x, y = _features(x, y, features, mask)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"A covariance must have at least two points. Got samples of {len(x)} and {len(y)}.")
    least, k = min(len(x), len(y)), x.shape[1]
    if least < 2 * k:
        warnings.warn(
            f"A Fréchet distance of {k} components needs {2 * k} points of each sample at least, and is biased far "
            f"upwards below. Got samples of {len(x)} and {len(y)}; draw more, or use jflow.metrics.kid.",
            stacklevel=2,
        )
    # With C = R'R and C' = S'S, tr (C C')^(1/2) is the sum of the singular values of R S'. This keeps the
    # full precision where the root of a product, nearly singular or not symmetric, loses half of the digits.
    root_x, root_y = (np.asarray(np.linalg.qr((z - z.mean(0)) / math.sqrt(len(z) - 1), mode="r")) for z in (x, y))
    overlap = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    shift = x.mean(0) - y.mean(0)
    return float(shift @ shift + (root_x**2).sum() + (root_y**2).sum() - 2 * overlap)


def transport_cost(x0: Sample, x1: Sample, *, mask: Mask | None = None) -> float:
    """The mean squared distance of pairs, `E |x1 - x0|^2`, row `i` of one sample with row `i` of the other.

    Squared units of the data, summed over the components. It is at least the squared Wasserstein distance of order 2
    between the samples, and equal to it for pairs of an optimal plan.

    Args:
        x0: The first of each pair, shape `(n, *event)`.
        x1: The second of each pair, as many.
        mask: A pair `(mask_x0, mask_x1)` of what is there in padded events, as the module says.

    Raises `ValueError` for samples that are not pairs.

    Source: Villani 2003, Topics in Optimal Transportation, introduction.

    ```python
    x = jr.normal(jr.key(0), (50, 2))
    assert np.isclose(jf.metrics.transport_cost(x, x + 3), 18.0)
    ```
    """
    check_kinds(transport_cost, locals())
    x0, x1 = _pair(x0, x1, mask)
    if len(x0) != len(x1):
        raise ValueError(f"Pairs must be as many on both sides. Got {len(x0)} and {len(x1)} points.")
    return float(((x1 - x0) ** 2).sum(axis=1).mean())


def straightness(xs: Sample, ts: Num[ArrayLike, "..."] | None = None) -> float:
    """How far trajectories are from straight lines at constant speed: `E int_0^1 |x'(t) - (x(1) - x(0))|^2 dt`.

    Zero for straight ones alone, of which one step of Euler is exact. With each piece between saved times taken as
    straight it is the mean of `sum_k |x_(k+1) - x_k|^2 / (t_(k+1) - t_k) - |x_n - x_0|^2 / T`, `T` the time in all.
    In squared units of the data, over time, summed over the components: over `transport_cost(xs[:, 0], xs[:, -1])` it
    has no unit.

    Args:
        xs: Trajectories of shape `(n, times, *event)`, as `jf.generate(..., saveat=SaveAt(t0=True, steps=True)).xs`.
        ts: Their times, `(times,)` or `(n, times)`, increasing; by default evenly spaced over [0, 1].

    Raises `ValueError` for fewer than two times, times that do not increase, and values that are not finite.

    Source: Liu et al. 2023, arXiv:2209.03003, section 2.2.

    ```python
    t = np.linspace(0, 1, 101)
    line = np.stack([3 * t, 4 * t], axis=1)
    assert np.isclose(jf.metrics.straightness(line[None]), 0.0, atol=1e-9)
    assert np.isclose(jf.metrics.straightness((line * t[:, None])[None]), 25 / 3, rtol=1e-3)  # of speed 10 t
    ```
    """
    check_kinds(straightness, locals())
    shape = np.shape(xs)
    if len(shape) < 2 or shape[1] < 2:
        raise ValueError(
            "Trajectories must have an axis of samples, then one of at least two times. "
            f"Got shape {shape}: pass one trajectory as xs[None]."
        )
    xs = _matrix(xs, "trajectories").reshape(*shape[:2], -1)
    if ts is not None and np.shape(ts) not in (shape[1:2], shape[:2]):
        raise ValueError(f"Times must be as many as states. Got shape {np.shape(ts)} for trajectories of {shape}.")
    ts = np.linspace(0, 1, shape[1])[None] if ts is None else _matrix(ts, "times").reshape(-1, shape[1])
    gaps = np.broadcast_to(np.diff(ts), (len(xs), shape[1] - 1))
    if not (gaps > 0).all():
        raise ValueError(f"Times must increase. Got a step of {gaps.min():g}.")
    pieces = (np.diff(xs, axis=1) ** 2).sum(axis=2)
    whole = ((xs[:, -1] - xs[:, 0]) ** 2).sum(axis=1)
    return float(((pieces / gaps).sum(axis=1) - whole / gaps.sum(axis=1)).mean())


def kid(
    x: Sample, y: Sample, features: Callable[[ArrayLike], ArrayLike] | None = None, *, mask: Mask | None = None
) -> float:
    """Kernel distance of two samples: the squared MMD of the kernel `k(a, b) = (a.b / d + 1)^3`, without bias.

    `sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean k(x_i, y_j)`, a
    U-statistic: its mean over samples of equal laws is 0 at any n, and a single value may be negative. `a`, `b` are
    the components or `features(x)`, `d` of them: with those of an Inception network this is KID. All pairs are taken,
    not subsets. Raises `ValueError` for a sample of one point.

    Args:
        x: A sample, shape `(n, *event)`.
        y: Another sample of events of the same shape.
        features: A function from a sample `(n, *event)` to vectors `(n, d)`.
        mask: As in `energy_distance`.

    Source: Bińkowski, Sutherland, Arbel and Gretton 2018, Demystifying MMD GANs, arXiv:1801.01401, section 4.

    ```python
    x = jr.normal(jr.key(0), (200, 2))
    assert abs(jf.metrics.kid(x[:100], x[100:])) < 1 < jf.metrics.kid(x[:100], x[100:] + 3)
    ```
    """
    check_kinds(kid, locals())
    x, y = _features(x, y, features, mask)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"A kernel distance must have at least two points. Got samples of {len(x)} and {len(y)}.")

    def total(a, b):
        rows = max(1, _BLOCK // len(b))
        blocks = (a[i : i + rows] for i in range(0, len(a), rows))
        return sum(((block @ b.T / a.shape[1] + 1) ** 3).sum() for block in blocks)

    def within(a):
        own = (((a * a).sum(axis=1) / a.shape[1] + 1) ** 3).sum()
        return (total(a, a) - own) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y)))


def precision_recall(
    x: Sample,
    reference: Sample,
    k: int = 3,
    features: Callable[[ArrayLike], ArrayLike] | None = None,
    *,
    mask: Mask | None = None,
) -> tuple[float, float]:
    """How many draws look real, and how much of the real is drawn: precision and recall of draws, each in [0, 1].

    Precision is the share of draws that lie in a ball around a point of `reference` whose radius is the distance to its
    `k`-th nearest other point of `reference`; recall the same with draws and reference exchanged. Distances are those
    of the components, or of `features(x)`. Both depend on n and k: compare figures of equal ones.

    Args:
        x: The draws, shape `(n, *event)`.
        reference: A sample of real events of the same shape, held out from training.
        k: Which neighbour the radius reaches.
        features: A function from a sample `(n, *event)` to vectors.
        mask: As in `energy_distance`.

    Raises `ValueError` where a sample has no `k + 1` points.

    Source: Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing generative models,
    arXiv:1904.06991, equations 1 and 2.

    ```python
    x = jr.normal(jr.key(0), (50, 2))
    assert jf.metrics.precision_recall(x, x) == (1.0, 1.0)
    assert jf.metrics.precision_recall(x, x + 100) == (0.0, 0.0)
    ```
    """
    check_kinds(precision_recall, locals())
    check_count(k=k)
    x, reference = _centred(*_features(x, reference, features, mask))
    if min(len(x), len(reference)) <= k:
        raise ValueError(f"Each sample must have at least k + 1 = {k + 1} points. Got {len(x)} and {len(reference)}.")

    def share(points, centres):
        # a point is the nearest to itself, so that its k-th nearest other has the index k
        radii = np.concatenate([np.partition(block, k, axis=1)[:, k] for block in _square_distances(centres, centres)])
        radii += 1e-13 * max((sample**2).sum(axis=1).max() for sample in (points, centres))  # equal ones, rounded
        near = np.concatenate([(block <= radii).any(axis=1) for block in _square_distances(points, centres)])
        return float(near.mean())

    return share(x, reference), share(reference, x)


def nearest_distance(x: Sample, reference: Sample, *, mask: Mask | None = None) -> Float[np.ndarray, "n"]:
    """Euclidean distance of each point of `x` to the nearest of `reference`, shape `(n,)`; 0 for a copy.

    Draws that lie closer to the training set than held-out data do are memorised: compare the medians.

    Args:
        x: A sample, shape `(n, *event)`.
        reference: Another sample of events of the same shape, as the training set.
        mask: As in `energy_distance`.

    ```python
    reference = np.zeros((4, 2))
    assert jf.metrics.nearest_distance(np.array([[3.0, 4.0], [0.0, 0.0]]), reference).tolist() == [5.0, 0.0]
    ```
    """
    check_kinds(nearest_distance, locals())
    x, reference = _centred(x, reference, mask)
    nearest = np.concatenate([block.argmin(axis=1) for block in _square_distances(x, reference)])
    return np.linalg.norm(x - reference[nearest], axis=1)


def class_accuracy(
    x: Sample, label: Integer[ArrayLike, "_"], classifier: Callable[[ArrayLike], Int[ArrayLike, "_"]]
) -> float:
    """The share of draws that a classifier puts into the class that they were drawn for.

    Args:
        x: The draws, shape `(n, *event)`.
        label: The classes that they were drawn for, shape `(n,)`.
        classifier: A function from a sample to its labels.

    Raises `ValueError` where labels, predictions and draws are not as many.

    ```python
    x, label = np.array([[-1.0], [2.0], [3.0]]), np.array([0, 1, 0])
    accuracy = jf.metrics.class_accuracy(x, label, lambda x: (x[:, 0] > 0).astype(int))
    assert np.isclose(accuracy, 2 / 3)
    ```
    """
    check_kinds(class_accuracy, locals())
    predicted, label = np.asarray(classifier(x)), np.asarray(label)
    if not (predicted.shape == label.shape == np.shape(x)[:1]) or not np.ndim(x):
        raise ValueError(
            "There must be one label and one prediction for each draw. Got labels of shape "
            f"{label.shape} and predictions of shape {predicted.shape} for draws of shape {np.shape(x)}."
        )
    return float((predicted == label).mean())


def _unpadded(x: Any, y: Any, mask: Any) -> tuple[Any, Any]:
    """Both samples with zeros for their padding."""
    if mask is None:
        return x, y
    if not (isinstance(mask, (tuple, list)) and len(mask) == 2):
        raise ValueError(f"mask must be a pair, (mask_x, mask_y), one for each sample. Got {type(mask).__name__}.")

    def filled(sample, here):
        sample, here = np.asarray(sample), np.asarray(here) != 0
        if not here.ndim or here.shape != sample.shape[: here.ndim]:
            raise ValueError(
                "A mask must have the first axes of its sample, as (n, points) for clouds (n, points, d). "
                f"Got shape {here.shape} for a sample of shape {sample.shape}."
            )
        return np.where(here.reshape(here.shape + (1,) * (sample.ndim - here.ndim)), sample, 0)

    return filled(x, mask[0]), filled(y, mask[1])


def _pair(x: Sample, y: Sample, mask: Mask | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Both samples as float64 matrices `(n, d)`."""
    x, y = _unpadded(x, y, mask)
    x, y = _matrix(x, "first sample"), _matrix(y, "second sample")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"Two samples must have events of one shape. Got {x.shape[1:]} and {y.shape[1:]}; the first axis counts "
            "the points."
        )
    return x.reshape(len(x), -1), y.reshape(len(y), -1)


def _matrix(sample: Any, which: str) -> np.ndarray:
    """A sample in float64, the points along its first axis."""
    if isinstance(sample, jax.core.Tracer):
        raise ValueError(f"A metric must have values, for it computes on the host. Got the traced {which}.")
    array = np.asarray(sample)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"A sample must have at least one point. Got the {which} of shape {array.shape}.")
    if array.dtype == np.uint8:
        raise ValueError(
            f"A sample must be in the units of the draws, pictures from -1 to 1. Got the {which} in bytes: take "
            'data[:]["x"] in the place of data.x, or x / 127.5 - 1.'
        )
    array = array.astype(np.float64)
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"Samples must be finite. Got {(~finite).sum()} of {len(array)} points of the {which} that are not, "
            f"the first at index {finite.argmin()}; leave failed draws out and report their number."
        )
    return array


def _features(x: Any, y: Any, features: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """The features of both samples as matrices, or the samples themselves."""
    x, y = _unpadded(x, y, mask)
    return _pair(x, y) if features is None else _pair(features(x), features(y))


def _centred(x: Sample, y: Sample, mask: Mask | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Both samples as matrices, moved together to the origin: the product below then loses fewer digits."""
    x, y = _pair(x, y, mask)
    centre = (x.mean(axis=0) + y.mean(axis=0)) / 2
    return x - centre, y - centre


def _square_distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """The squared distances `|x_i - y_j|^2`, in blocks of rows."""
    y_norms = (y * y).sum(axis=1)
    rows = max(1, _BLOCK // len(y))
    for block in (x[i : i + rows] for i in range(0, len(x), rows)):
        squares = block @ (-2 * y.T)
        squares += (block * block).sum(axis=1)[:, None]
        squares += y_norms[None]
        yield np.maximum(squares, 0, out=squares)  # a square below 0 is rounding


def _mean(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """`function` of the squared distance, averaged over all pairs."""
    return float(sum(function(block).sum() for block in _square_distances(x, y)) / (len(x) * len(y)))


def _transport_cost(x: np.ndarray, y: np.ndarray, p: float | int) -> np.ndarray:
    """`W_p^p` between the columns of `x` and those of `y`: sorted points are matched by mass from below."""
    if not 1 <= p < math.inf:
        raise ValueError(f"The order must be at least 1 and finite. Got p={p}.")
    n, m = len(x), len(y)
    # masses at which either distribution function jumps, in units of 1 / (n m)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    mass = np.diff(ends, prepend=0) / (n * m)
    gaps = np.abs(np.sort(x, axis=0)[(ends - 1) // m] - np.sort(y, axis=0)[(ends - 1) // n])
    return mass @ gaps**p
