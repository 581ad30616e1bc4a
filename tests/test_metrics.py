"""Metrics against exact values, invariances, and bad input."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jflow import data, metrics
from jflow.data._binary import _DEBIAN
from jflow.data._folder import fit
from jflow.metrics import _distances, _features

KEY = jr.key(0)
FASHION = any(Path(d).is_dir() for d in (_DEBIAN, Path(os.environ.get("JFLOW_DATA_DIR", "."), "fashion-mnist")))
CLOUD = np.random.default_rng(0).standard_normal((300, 5))
OTHER = np.random.default_rng(1).standard_normal((200, 5)) @ np.diag([1, 2, 3, 0.5, 1]) + 0.5


@pytest.fixture
def rng():
    return np.random.default_rng(2)


# every distance between two samples, as a function of the samples alone
DISTANCES = {
    "energy_distance": metrics.energy_distance,
    "mmd": lambda x, y: metrics.mmd(x, y, bandwidth=2.0),
    "sliced_wasserstein": lambda x, y: metrics.sliced_wasserstein(KEY, x, y, 64),
    "frechet_distance": metrics.frechet_distance,
    "wasserstein_1d": lambda x, y: metrics.wasserstein_1d(x[:, :1], y[:, :1]),
}
each = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


@each
def test_M2_zero_for_identical_and_positive_for_shifted(distance, rng):
    assert abs(distance(CLOUD, CLOUD)) < 1e-12
    assert abs(distance(CLOUD, rng.permutation(CLOUD))) < 1e-12
    assert distance(CLOUD, CLOUD + 0.1) > 1e-4


@each
def test_symmetry_and_invariance_under_translation(distance):
    value = distance(CLOUD, OTHER)
    assert distance(OTHER, CLOUD) == pytest.approx(value, rel=1e-12)
    assert distance(CLOUD + 100, OTHER + 100) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", ["energy_distance", "mmd", "sliced_wasserstein", "wasserstein_1d"])
def test_only_the_weights_of_points_count(name):
    distance = DISTANCES[name]
    value = distance(CLOUD, OTHER)
    assert distance(np.tile(CLOUD, (2, 1)), np.tile(OTHER, (3, 1))) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize(
    ("name", "degree"), [("energy_distance", 1), ("sliced_wasserstein", 1), ("frechet_distance", 2)]
)
def test_units(name, degree):
    distance = DISTANCES[name]
    assert distance(3 * CLOUD, 3 * OTHER) == pytest.approx(3**degree * distance(CLOUD, OTHER), rel=1e-10)


def test_events_of_any_shape_and_type(rng):
    images = CLOUD.astype(np.float32)[:, :4].reshape(-1, 2, 2, 1)
    value = metrics.energy_distance(images, images + 1)
    assert metrics.energy_distance(jnp.asarray(images), jnp.asarray(images + 1)) == value
    assert metrics.energy_distance(images.reshape(-1, 4), (images + 1).reshape(-1, 4)) == value
    bytes_ = rng.integers(0, 255, (50, 3, 3, 1))
    assert metrics.energy_distance(bytes_, bytes_) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r'first sample in bytes: take data\[:\]\["x"\]'):
        metrics.energy_distance(bytes_.astype(np.uint8), bytes_ / 127.5 - 1)
    with pytest.raises(ValueError, match=r"events of one shape\. Got \(2, 2, 1\) and \(1, 2, 2\)"):
        metrics.energy_distance(images, images.transpose(0, 3, 1, 2))


def test_M1_exact_W2_of_two_gaussians(rng):
    # x = N(0, 1), y = N(1, 0.25): W2^2 = (0 - 1)^2 + (1 - 0.5)^2
    n, exact = 20_000, np.sqrt(1.25)
    x, y = rng.standard_normal(n), 1 + 0.5 * rng.standard_normal(n)
    # the potentials of W2^2 are z^2/2 - 2z and z - z^2/4 in standard normals z, of variances 4.5 and 1.125
    se = np.sqrt((4.5 + 1.125) / n) / (2 * exact)
    assert metrics.wasserstein_1d(x, y) == pytest.approx(exact, abs=4 * se)


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_wasserstein_1d_by_hand(p):
    # quantile functions 0 | 1 on halves, and 0 | 2 | 5 on thirds: gaps 0, 2, 1, 4 on 1/3, 1/6, 1/6, 1/3
    value = metrics.wasserstein_1d(np.array([1.0, 0.0]), np.array([5.0, 0.0, 2.0]), p)
    assert value == pytest.approx((2**p / 6 + 1 / 6 + 4**p / 3) ** (1 / p), rel=1e-12)


def test_wasserstein_1d_against_scipy(rng):
    from scipy.stats import wasserstein_distance

    x, y = rng.standard_normal(101), rng.standard_normal(77) ** 2
    assert metrics.wasserstein_1d(x, y, 1) == pytest.approx(wasserstein_distance(x, y), rel=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_M3_sliced_W2_of_a_shift(dim, rng):
    x, shift = rng.standard_normal((500, dim)), rng.standard_normal(dim)
    value = metrics.sliced_wasserstein(KEY, x, x + shift, 4096)
    assert value == pytest.approx(np.linalg.norm(shift) / np.sqrt(dim), rel=0.05)


def test_sliced_wasserstein_is_a_function_of_its_key():
    first = metrics.sliced_wasserstein(KEY, CLOUD, OTHER, 16)
    assert metrics.sliced_wasserstein(KEY, CLOUD, OTHER, 16) == first
    assert metrics.sliced_wasserstein(jr.key(1), CLOUD, OTHER, 16) != first


def test_energy_distance_against_the_double_sum():
    from scipy.spatial.distance import cdist

    value = 2 * cdist(CLOUD, OTHER).mean() - cdist(CLOUD, CLOUD).mean() - cdist(OTHER, OTHER).mean()
    assert metrics.energy_distance(CLOUD, OTHER) == pytest.approx(value, abs=1e-9)


def test_energy_distance_of_two_points():
    # x always 0, y always 3: 2 * 3 - 0 - 0
    assert metrics.energy_distance(np.zeros(4), np.full(7, 3.0)) == pytest.approx(6, rel=1e-12)


def test_mmd_of_two_points_and_its_default_bandwidth():
    # k(0, 3) = exp(-9 / 8) at bandwidth 2
    assert metrics.mmd(np.zeros(4), np.full(7, 3.0), 2.0) == pytest.approx(2 - 2 * np.exp(-9 / 8), rel=1e-12)
    from scipy.spatial.distance import pdist

    median = float(np.median(pdist(np.concatenate([CLOUD, OTHER]))))
    assert metrics.mmd(CLOUD, OTHER) == pytest.approx(metrics.mmd(CLOUD, OTHER, median), rel=1e-9)


def test_blocks_do_not_change_a_value(monkeypatch):
    values = [DISTANCES[name](CLOUD, OTHER) for name in ("energy_distance", "mmd", "sliced_wasserstein")]
    near = metrics.nearest_distance(CLOUD, OTHER)
    monkeypatch.setattr(_distances, "_BLOCK", 1000)
    again = [DISTANCES[name](CLOUD, OTHER) for name in ("energy_distance", "mmd", "sliced_wasserstein")]
    np.testing.assert_allclose(again, values, rtol=1e-10)
    np.testing.assert_allclose(metrics.nearest_distance(CLOUD, OTHER), near, rtol=1e-12)


def gaussian_sample(rng, mean, cov, n):
    """`n` points whose sample mean and covariance are exactly those given."""
    z = rng.standard_normal((n, len(mean)))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return z @ np.linalg.cholesky(cov).T + mean


def test_frechet_distance_is_exact_for_given_moments(rng):
    from scipy.linalg import sqrtm

    factors = rng.standard_normal((2, 6, 6))
    covs = factors @ factors.transpose(0, 2, 1)
    means = rng.standard_normal((2, 6))
    root = sqrtm(covs[0] @ covs[1]).real
    exact = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0] + covs[1] - 2 * root)
    x, y = (gaussian_sample(rng, m, c, n) for m, c, n in zip(means, covs, (50, 80), strict=True))
    assert metrics.frechet_distance(x, y) == pytest.approx(exact, rel=1e-9)


def test_frechet_distance_with_fewer_points_than_components():
    # both covariances have rank 4 and commute: (1 - 2)^2 on each axis they share
    x = np.concatenate([np.eye(5), np.zeros((5, 20))], axis=1)
    variance = np.var(x, axis=0, ddof=1).sum()
    with pytest.warns(UserWarning, match="25 components needs 50 points"):
        assert metrics.frechet_distance(x, 2 * x) == pytest.approx(variance + 5 * (1 / 5) ** 2, rel=1e-12)


def test_frechet_distance_over_features():
    def features(x):
        return np.stack([x.sum(axis=1), (x**2).sum(axis=1)], axis=1)

    value = metrics.frechet_distance(features(CLOUD), features(OTHER))
    assert metrics.frechet_distance(CLOUD, OTHER, features) == value


def test_kid_is_unbiased_and_its_mean_the_closed_value(rng):
    """For numbers, `(a b + 1)^3` compares moments: `3 (m1 - m1')^2 + 3 (m2 - m2')^2 + (m3 - m3')^2`."""

    def values(mean, std):
        pairs = rng.standard_normal((200, 2, 10))
        return np.array([metrics.kid(x, mean + std * y) for x, y in pairs])

    same, other = values(0.0, 1.0), values(0.3, 1.2)
    assert (same < 0).any()
    mean, second, third = 0.3, 0.3**2 + 1.2**2, 0.3**3 + 3 * 0.3 * 1.2**2
    for found, exact in ((same, 0.0), (other, 3 * mean**2 + 3 * (second - 1) ** 2 + third**2)):
        assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(len(found))


def test_kid_is_the_sum_over_pairs(monkeypatch):
    def gram(x, y):
        return (x @ y.T / 5 + 1) ** 3

    def within(x):
        return gram(x, x)[~np.eye(len(x), dtype=bool)].mean()

    exact = within(CLOUD) + within(OTHER) - 2 * gram(CLOUD, OTHER).mean()
    assert metrics.kid(CLOUD, OTHER) == pytest.approx(exact, rel=1e-12)
    assert metrics.kid(CLOUD[:, :, None], OTHER, lambda x: x.reshape(len(x), -1)) == metrics.kid(CLOUD, OTHER)
    monkeypatch.setattr(_distances, "_BLOCK", 1000)
    assert metrics.kid(CLOUD, OTHER) == pytest.approx(exact, rel=1e-12)


def test_precision_and_recall_by_balls(rng, monkeypatch):
    from scipy.spatial.distance import cdist

    x, y = CLOUD[:120], OTHER[:90]

    def share(points, centres, k):
        radii = np.sort(cdist(centres, centres), axis=1)[:, k]
        return (cdist(points, centres) <= radii).any(axis=1).mean()

    for k in (1, 3, 7):
        found = metrics.precision_recall(x, y, k)
        assert found == (share(x, y, k), share(y, x, k)) and 0 < found[0] < 1 and 0 < found[1] < 1
        turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
        assert metrics.precision_recall(3 * x @ turn + 1, 3 * y @ turn + 1, k) == found
        assert metrics.precision_recall(y, x, k) == found[::-1]
    monkeypatch.setattr(_distances, "_BLOCK", 1000)
    assert metrics.precision_recall(x, y, 7) == found
    whole = [rng.integers(0, 3, (n, 8)).astype(float) for n in (40, 50)]  # many distances are the same
    exact = [
        ((a[:, None] - b) ** 2).sum(-1) for a, b in ((whole[0], whole[1]), (whole[0], whole[0]), (whole[1], whole[1]))
    ]
    balls = [np.sort(own, axis=1)[:, 3] for own in exact[1:]]
    expected = (exact[0] <= balls[1]).any(1).mean(), (balls[0] >= exact[0].T).any(1).mean()
    assert metrics.precision_recall(*whole) == expected


def test_precision_and_recall_tell_a_missing_mode_from_a_wrong_one(rng):
    real = np.concatenate([rng.standard_normal((200, 2)), rng.standard_normal((200, 2)) + 50])
    precision, recall = metrics.precision_recall(real[:200], real)
    assert precision == 1 and recall == 0.5
    precision, recall = metrics.precision_recall(np.concatenate([real, rng.standard_normal((100, 2)) - 50]), real)
    assert precision == 0.8 and recall == 1


def test_precision_of_uniform_draws_around_two_points(rng):
    """The gaps of uniform points are exchangeable: a draw is beyond balls of radius `|a - b|` with probability 1/3."""
    found = np.array([metrics.precision_recall(rng.random(30), rng.random(2), 1)[0] for _ in range(150)])
    assert abs(found.mean() - 2 / 3) < 4 * found.std() / np.sqrt(150)


def test_frechet_distance_warns_where_points_are_few(rng):
    x, y = rng.standard_normal((2, 40, 20))
    metrics.frechet_distance(x, y)
    with pytest.warns(UserWarning, match=r"of 20 components needs 40 points .* Got samples of 39 and 40; .*kid"):
        metrics.frechet_distance(x[:39], y)


@pytest.mark.slow
def test_the_bias_of_the_frechet_distance_falls_as_one_over_n(rng):
    """Extrapolated in 1/n, it is the closed value of the laws: `sum (std - std')^2 + |m - m'|^2`."""
    std, shift = np.array([1.0, 2.0, 0.5, 1.5]), np.array([0.5, 0.0, 0.0, -0.5])

    def mean(n, runs):
        pairs = rng.standard_normal((runs, 2, n, 4))
        return np.mean([metrics.frechet_distance(x, std * y + shift) for x, y in pairs])

    exact, few, many = ((std - 1) ** 2).sum() + (shift**2).sum(), mean(100, 400), mean(400, 400)
    assert few > many > exact
    assert (4 * many - few) / 3 == pytest.approx(exact, rel=0.02)


def test_c2st_power_is_that_of_the_best_classifier_where_it_is_used():
    """Fisher's discriminant is the best one of two shifted Gaussians."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    for accuracy in (0.6, 0.9):
        score = metrics.c2st_power(KEY, 3000, 4, accuracy=accuracy, classifier=LinearDiscriminantAnalysis())
        assert score == pytest.approx(accuracy, abs=4 * np.sqrt(accuracy * (1 - accuracy) / 6000))
    blind = metrics.c2st_power(KEY, 60, 100, accuracy=0.6, classifier=LinearDiscriminantAnalysis())
    assert blind < 0.6
    for wrong in (0.5, 1.0):
        with pytest.raises(ValueError, match="accuracy must be between 1/2 and 1"):
            metrics.c2st_power(KEY, 10, 2, accuracy=wrong)


def test_nearest_distance():
    from scipy.spatial.distance import cdist

    far = metrics.nearest_distance(CLOUD, OTHER)
    np.testing.assert_allclose(far, cdist(CLOUD, OTHER).min(axis=1), rtol=1e-12)
    assert (metrics.nearest_distance(OTHER[:50] + 1e6, OTHER + 1e6) == 0).all()


@pytest.mark.slow
def test_transport_cost_is_that_of_the_pairs(rng):
    assert metrics.transport_cost(CLOUD, CLOUD + 3) == pytest.approx(9 * 5, rel=1e-12)
    assert metrics.transport_cost(3 * CLOUD, CLOUD) == pytest.approx(4 * (CLOUD**2).sum(1).mean(), rel=1e-12)
    # N(0, 1) and N(m, s^2): m^2 + (1 - s)^2 for the optimal pairs, m^2 + 1 + s^2 for independent ones
    x, y, m, s = rng.standard_normal(20_000), rng.standard_normal(20_000), 2.0, 0.5
    assert metrics.transport_cost(x, m + s * x) == pytest.approx(m**2 + (1 - s) ** 2, rel=0.02)
    assert metrics.transport_cost(x, m + s * y) == pytest.approx(m**2 + 1 + s**2, rel=0.03)
    ordered = metrics.transport_cost(np.sort(x), np.sort(m + s * y))  # the optimum on the line
    assert ordered == pytest.approx(metrics.wasserstein_1d(x, m + s * y) ** 2, rel=1e-12)
    clouds, here = np.zeros((2, 3, 2)), np.array([[1, 1, 0], [1, 0, 0]])
    garbage = np.where(here[..., None] == 1, clouds + 2, np.nan)
    assert metrics.transport_cost(clouds, garbage, mask=(here, here)) == pytest.approx((4 * 4 + 2 * 4) / 2)


def test_straightness_has_its_closed_forms(rng):
    t, n = np.linspace(0, 1, 41), 40
    way = rng.standard_normal((7, 1, 3))
    assert metrics.straightness(1 + t[:, None] * way) == pytest.approx(0, abs=1e-12)
    # along a line with x = t^2 w: the pieces have the speeds (2 k + 1) w / n, of variance (1 - 1/n^2) |w|^2 / 3
    squares = (way**2).sum(2).mean()
    bent = metrics.straightness(t[:, None] ** 2 * way)
    assert bent == pytest.approx(squares * (1 - 1 / n**2) / 3, rel=1e-9)
    # a circle of radius 2 through the angle a: n chords, and the one over all
    a, radius = 2.0, 2.0
    circle = radius * np.stack([np.cos(a * t), np.sin(a * t)], axis=1)[None]
    exact = (2 * n * radius * np.sin(a / n / 2)) ** 2 - (2 * radius * np.sin(a / 2)) ** 2
    assert metrics.straightness(circle) == pytest.approx(exact, rel=1e-9)
    # other times of the same states; the time in all; an event of another shape
    uneven = np.sort(rng.uniform(size=(7, 41)), axis=1)
    lines = uneven[..., None] * way
    assert metrics.straightness(lines, uneven) == pytest.approx(0, abs=1e-9) != metrics.straightness(lines)
    assert metrics.straightness(circle, 4 * t) == pytest.approx(exact / 4, rel=1e-9)
    assert metrics.straightness(circle.reshape(1, 41, 2, 1)) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.transport_cost(CLOUD, OTHER), "as many on both sides. Got 300 and 200"),
        (lambda: metrics.straightness(CLOUD[:, 0]), "at least two times"),
        (lambda: metrics.straightness(CLOUD[:, :1]), "at least two times"),
        (lambda: metrics.straightness(CLOUD, np.arange(4)), "as many as states"),
        (lambda: metrics.straightness(CLOUD, np.array([0, 1, 2, 2, 3])), "must increase. Got a step of 0"),
        (lambda: metrics.straightness(np.full((2, 3), np.nan)), "must be finite"),
    ],
)
def test_bad_trajectories(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_c2st_separates_and_does_not(rng):
    x, y = rng.standard_normal((2, 300, 4))
    se = np.sqrt(1 / (8 * 300))
    assert metrics.c2st(KEY, x, y) == pytest.approx(0.5, abs=4 * se)
    assert metrics.c2st(KEY, x, y[:200] + 6) > 0.99
    # the Bayes classifier of N(0, 1) and N(2, 1) is right with probability Phi(1)
    value = metrics.c2st(KEY, x[:, 0], y[:, 0] + 2)
    assert value == pytest.approx(0.8413, abs=4 * se)
    assert metrics.c2st(KEY, x[:, 0], y[:, 0] + 2) == value


@pytest.mark.parametrize("name", ["sliced_wasserstein", "c2st", "c2st_power"])
def test_a_missing_key_is_named(name):
    with pytest.raises(ValueError, match=rf"first argument of {name} must be a typed key: {name}\(key, .*seed"):
        getattr(metrics, name)(CLOUD, OTHER)


def test_c2st_with_another_classifier(rng):
    from sklearn.neighbors import KNeighborsClassifier

    x = rng.standard_normal((60, 2))
    # a point and its copy: the nearest neighbour always has the other label, or the fold lacks it
    assert metrics.c2st(KEY, x, x, classifier=KNeighborsClassifier(1)) < 0.3


def test_class_accuracy():
    x, label = np.array([[0.1], [0.9], [0.4], [0.6]]), np.array([0, 1, 1, 1])
    assert metrics.class_accuracy(x, label, lambda x: (x[:, 0] > 0.5).astype(int)) == 0.75
    with pytest.raises(ValueError, match=r"one label and one prediction .* \(4, 1\)"):
        metrics.class_accuracy(x, label, lambda x: (x > 0.5).astype(int))
    with pytest.raises(ValueError, match="one label and one prediction"):
        metrics.class_accuracy(x, label[:3], lambda x: (x[:, 0] > 0.5).astype(int))


PAIRS = {
    **DISTANCES,
    "c2st": lambda x, y: metrics.c2st(KEY, x, y),
    "nearest": metrics.nearest_distance,
    "kid": metrics.kid,
    "precision_recall": metrics.precision_recall,
}


@pytest.mark.parametrize("function", PAIRS.values(), ids=PAIRS)
def test_bad_samples(function):
    bad = CLOUD.copy()
    bad[7] = np.nan
    with pytest.raises(ValueError, match=r"1 of 300 points of the second sample .* index 7"):
        function(CLOUD, bad)
    with pytest.raises(ValueError, match="at least one point"):
        function(CLOUD[:0], CLOUD)
    if function is not DISTANCES["wasserstein_1d"]:
        with pytest.raises(ValueError, match=r"Got \(5,\) and \(4,\)"):
            function(CLOUD, CLOUD[:, :4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.wasserstein_1d(CLOUD, OTHER), "5 components; use sliced_wasserstein"),
        (lambda: metrics.wasserstein_1d(CLOUD[:, 0], OTHER[:, 0], 0.5), "at least 1 and finite. Got p=0.5"),
        (lambda: metrics.sliced_wasserstein(KEY, CLOUD, OTHER, 0), "num_projections=0"),
        (lambda: metrics.mmd(CLOUD, OTHER, 0.0), "bandwidth must be positive"),
        (lambda: metrics.mmd(np.zeros(9), np.zeros(9)), "most points coincide"),
        (lambda: metrics.frechet_distance(CLOUD[:1], OTHER), "at least two points"),
        (lambda: metrics.c2st(KEY, CLOUD, OTHER, folds=1), "at least two folds"),
        (lambda: metrics.kid(CLOUD[:1], OTHER), "at least two points"),
        (lambda: metrics.precision_recall(CLOUD[:3], OTHER), "at least k \\+ 1 = 4 points. Got 3 and 200"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_on_the_host_in_float64():
    assert not jax.config.jax_enable_x64
    x = 1e4 + np.linspace(0, 1, 500)  # float32 would not tell neighbours apart
    # 2 int (F - G)^2, where F - G is 1/500 on 500 intervals of length 1e-3
    assert metrics.energy_distance(x, x + 1e-3) == pytest.approx(4e-6, rel=1e-6)


def test_the_feature_network_comes_with_the_package(tmp_path):
    judge = metrics.features("fashion")
    assert judge.name == f"fashion-{_features._SHA256[:8]}" and metrics.features("fashion") is judge
    assert _features.FASHION.stat().st_size < 2**20
    changed = bytearray(_features.FASHION.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "fashion.safetensors").write_bytes(changed)
    with pytest.raises(ValueError, match=r"must be those of this version. Got .*fashion.safetensors of sha256"):
        _features._read(tmp_path / "fashion.safetensors", _features._SHA256)
    with pytest.raises((TypeError, ValueError), match="fashion"):
        metrics.features("fashio")


def test_features_are_those_of_one_image_at_a_time_at_any_size():
    judge = metrics.features("fashion")
    x = np.random.default_rng(0).uniform(-1, 1, (5, 28, 28, 1)).astype(np.float32)
    vectors = judge(x)
    assert vectors.shape == (5, 64) and (vectors >= 0).all() and (vectors.std(0) > 0).any()
    np.testing.assert_allclose(judge(x[3:4])[0], vectors[3], rtol=1e-5, atol=1e-5)
    by_hand = [_by_hand(judge.weights, one) for one in x]
    np.testing.assert_allclose(vectors, [vector for vector, _ in by_hand], rtol=1e-4, atol=1e-4)
    assert judge.classes(x).tolist() == [logits.argmax() for _, logits in by_hand]
    smooth = np.broadcast_to(np.float32([-0.5, 0.5]).reshape(2, 1, 1, 1), (2, 28, 28, 1))
    np.testing.assert_allclose(judge(smooth[:, :16, :16]), judge(smooth), rtol=1e-4, atol=1e-4)


def _by_hand(weights, x):
    """The network in numpy: convolutions as sums over shifted images, zeros around them as XLA's SAME has them."""
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    h = x.astype(np.float64)
    for i, stride in enumerate((2, 1, 2, 1, 1)):
        kernel, side = weights[f"kernel{i}"], len(h)
        out = -(-side // stride)
        around = max((out - 1) * stride + 3 - side, 0)
        h = np.pad(h, ((around // 2, around - around // 2),) * 2 + ((0, 0),))
        last = (out - 1) * stride + 1
        h = sum(h[a : a + last : stride, b : b + last : stride] @ kernel[a, b] for a in range(3) for b in range(3))
        h = np.maximum(h + weights[f"bias{i}"], 0)
    vector = h.mean((0, 1))
    return vector, vector @ weights["kernel"] + weights["bias"]


@pytest.mark.parametrize(
    ("x", "rule"),
    [
        (np.zeros((2, 28, 28, 1), np.uint8), r"must be numbers in \[-1, 1\]"),
        (np.full((2, 28, 28, 1), 1.5), r"must be numbers in \[-1, 1\]"),
        (np.full((2, 28, 28, 1), np.nan), r"must be numbers in \[-1, 1\]"),
        (np.zeros((2, 28, 28, 3)), r"must have shape \(n, H, W, 1\)"),
        (np.zeros((2, 28, 28)), r"must have shape \(n, H, W, 1\)"),
        (np.zeros((0, 28, 28, 1)), r"must have shape \(n, H, W, 1\)"),
    ],
)
def test_a_feature_network_takes_images_only(x, rule):
    for function in (metrics.features("fashion"), metrics.features("fashion").classes):
        with pytest.raises(ValueError, match=rule):
            function(x)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION, reason="Fashion-MNIST is not there")
def test_the_judge_of_clothes_is_right_on_nine_of_ten_test_images():
    test = data.fashion_mnist("test")
    assert metrics.class_accuracy(test[:]["x"], test.label, metrics.features("fashion").classes) >= 0.91
    small = fit(test.x, 16, True) / np.float32(127.5) - 1
    assert metrics.class_accuracy(small, test.label, metrics.features("fashion").classes) >= 0.9
