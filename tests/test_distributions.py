"""Exact worlds: closed forms, an independent quadrature, and one grid of laws over all worlds and paths."""

import itertools

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import PATHS as SHARED
from references import refuses, tiers

import jflow as jf
from jflow import distributions as worlds
from jflow._prediction import Row, as_prediction, prediction_row

PATHS = {
    "CondOT": jf.CondOT(),
    "Cosine": jf.Cosine(),
    "LinearVP": jf.LinearVP(),
    "VP": jf.VP(),
    "VE": jf.VE(),
    "quadratic": SHARED["quadratic"],
    "root": jf.CustomPath(lambda t: t, lambda t: jnp.sqrt(1 - t)),  # the lecture's labs
}
SCHEDULES = ("CondOT", "root", "Cosine", "LinearVP", "quadratic")  # those of the closed forms
COV = [[1.0, 0.6], [0.6, 0.5]]
RNG = np.random.default_rng(0)
MIX1 = worlds.GaussianMixture([-2.0, 1.0], stds=[0.5, 0.8], weights=[0.3, 0.7])
RING = np.stack([np.cos(2 * np.pi * np.arange(5) / 5), np.sin(2 * np.pi * np.arange(5) / 5)], axis=1)
MIX5 = worlds.GaussianMixture(10 * RING, stds=np.ones(5))
TWO = worlds.PointSet([-1.0, 1.0])
# every kind of world, its condition, and how far from the support its density is asked for
WORLDS = {
    "gaussian": (worlds.Gaussian([1.0, -2.0], std=0.5), None),
    "gaussian, diagonal": (worlds.Gaussian(np.ones((2, 3)), std=RNG.uniform(0.2, 1.0, (2, 3))), None),
    "gaussian, full": (worlds.Gaussian([1.0, -2.0], cov=COV), None),
    "mixture": (MIX1, None),
    "mixture, images": (worlds.GaussianMixture(RNG.normal(size=(7, 4, 4, 1)), stds=np.full(7, 0.3)), None),
    "mixture, full": (worlds.GaussianMixture([[1.0, 0.0], [-1.0, 1.0]], covs=[COV, np.eye(2)], weights=[1, 3]), None),
    "points": (worlds.PointSet(RNG.normal(size=(11, 3))), None),
    "boxes": (worlds.checkerboard(), None),
    "boxes, weighted": (worlds.Boxes([[-2.0], [1.0]], [[-1.0], [4.0]], weights=[3, 1]), None),
    "labelled": (worlds.LabelledMixture(MIX5, labels=[0, 1, 1, 0, 2]), 1),
    "hierarchical": (worlds.HierarchicalGaussian(0.5, (2,)), jnp.asarray([1.0, jnp.nan])),
    "circles": (worlds.circles(components=64), None),
}
KINDS = ("gaussian, full", "mixture", "mixture, images", "points", "boxes", "labelled", "hierarchical")


def event(world, args, key, path, t):
    """One draw of `p_t`, given the condition."""
    world = world.at(path, t)
    if isinstance(world, worlds.LabelledMixture):
        world = world.given(args)
    if isinstance(world, worlds.HierarchicalGaussian):
        known = jnp.nan_to_num(args)
        spread = jnp.sqrt(world.variance + jnp.where(jnp.isnan(args), world.gain**2, 0))
        return world.gain * known + spread * jr.normal(key, world.shape)
    return world.sample(key)


NAMES = ("velocity", "data", "noise", "score")


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(None, None, 0, None))
def predictions(field, t, x, args):
    """All predictions, from one evaluation."""
    rows = tuple(prediction_row(field.path, name, t) for name in NAMES)
    return dict(zip(NAMES, field.predict(rows, t, x, args), strict=True))


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(None, None, 0, None))
def marginals(field, t, x, args):
    """Log-density, its gradient, and score of the marginal distribution."""
    marginal = field.distribution.at(field.path, t)
    return *jax.value_and_grad(marginal.log_prob)(x, args), marginal.score(x, args)


@eqx.filter_jit
def moments(world, alpha, sigma, x, args=None):
    return world.moments(alpha, sigma, x, args)


@eqx.filter_jit
def samples(world, n, key=0):
    return jax.vmap(world.sample)(jr.split(jr.key(key), n))


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(None, 0, None))
def log_probs(world, x, args=None):
    return world.log_prob(x, args)


def draws(world, args, path, t, n, key=0):
    t = jnp.asarray(t, jnp.float32)  # a Python number would be compiled for
    return eqx.filter_jit(eqx.filter_vmap(event, in_axes=(None, None, 0, None, None)))(
        world, args, jr.split(jr.key(key), n), path, t
    )


def relative(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)


# --- one grid of laws over the family -------------------------------------------------------------------------


def laws(world, args, path):
    """What holds of every world along every path, in float32."""
    field = world.field(path)
    for t in jnp.asarray([0.2, 0.6, 0.9]):
        x = draws(world, args, path, t, 4, key=1)
        out = predictions(field, t, x, args)
        alpha, sigma, alpha_dot, sigma_dot = (getattr(path, f)(t) for f in ("alpha", "sigma", "alpha_dot", "sigma_dot"))
        scale = float(jnp.abs(out["data"]).max() + jnp.abs(out["noise"]).max())
        fast = scale * max(1, float(jnp.abs(sigma_dot)), float(jnp.abs(alpha_dot)))
        np.testing.assert_allclose(alpha * out["data"] + sigma * out["noise"], x, atol=2e-5 * scale)
        np.testing.assert_allclose(
            alpha_dot * out["data"] + sigma_dot * out["noise"], out["velocity"], atol=2e-5 * fast
        )
        np.testing.assert_allclose(-sigma * out["score"], out["noise"], rtol=1e-5, atol=1e-6)
        log_prob, gradient, score = marginals(field, t, x, args)
        tight = 1e-4 * float(jnp.abs(out["score"]).max()) + 1e-5 / float(sigma)
        np.testing.assert_allclose(gradient, out["score"], atol=tight)
        np.testing.assert_allclose(score, out["score"], atol=tight)
        assert jnp.isfinite(log_prob).all()
    for t in jnp.asarray([0.0, 1e-4, 1 - 1e-4, 1.0]):
        x = draws(world, args, path, t, 4, key=2)
        if t == 1 and isinstance(world, worlds.PointSet) and path.ends_at_data:
            continue
        values = predictions(field, t, x, args).values()
        assert all(jnp.isfinite(value).all() and value.dtype == jnp.float32 for value in values)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(WORLDS, KINDS))
def test_laws(name):
    laws(*WORLDS[name], PATHS["CondOT"])


@pytest.mark.slow
@pytest.mark.parametrize("path", tiers(PATHS, ["VP", "VE", "root"]))
def test_laws_along_every_path(path):
    laws(*WORLDS["mixture, full"], PATHS[path])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path"), list(zip(WORLDS, itertools.cycle(name for name in PATHS if name != "CondOT"), strict=False))
)
def test_laws_of_every_world_along_another_path(name, path):
    """With the two above: every world along two paths, every path with three worlds."""
    laws(*WORLDS[name], PATHS[path])


def test_without_noise_the_data_of_boxes_is_the_nearest_point():
    """The limit of little noise, outside of every box; the density is zero there, and the score undefined."""
    world = worlds.Boxes([[-3.0, 0.0], [1.0, 0.0]], [[-1.0, 2.0], [2.0, 1.0]])
    points = jnp.asarray([[-4.0, 1.0], [-5.0, 3.0], [0.5, 0.5], [0.5, 1.6], [1.5, 0.5], [-1.0, 2.0], [0.9999999, 0.5]])
    nearest = [[-3.0, 1.0], [-3.0, 2.0], [1.0, 0.5], [1.0, 1.0], [1.5, 0.5], [-1.0, 2.0], [1.0, 0.5]]
    inside = jnp.asarray([False, False, False, False, True, True, False])

    @jax.jit
    @jax.vmap
    def both(x):
        field = world.field(jf.CondOT())
        return world.moments(1.0, 0.0, x), world.moments(1.0, 1e-3, x), field.data(1.0, x)

    limit, close, data = both(points)
    np.testing.assert_allclose(limit.data, nearest, rtol=1e-6)
    np.testing.assert_allclose(close.data[:4], nearest[:4], atol=4e-3)
    np.testing.assert_array_equal(data, limit.data)
    np.testing.assert_allclose(limit.log_prob[inside], -np.log(5), rtol=1e-6)
    assert (limit.log_prob[~inside] == -np.inf).all()
    np.testing.assert_array_equal(jnp.isnan(limit.score).all(1), ~inside)
    np.testing.assert_array_equal(limit.score[inside], 0)
    wide = worlds.checkerboard().field(jf.CondOT())
    out = jf.decode(wide, jnp.asarray([7.0, 7.0]), jf.FixedSteps(jnp.asarray([0.999, 1.0]), end="denoise"))
    np.testing.assert_allclose(out.x, [5.0, 5.0], atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(WORLDS, ["mixture, full", "boxes, weighted", "points", "hierarchical"]))
def test_moments_of_samples_and_of_marginals(name):
    """`at(path, t)` is the law of `alpha z + sigma eps`: first two moments, and the mean of the posterior means."""
    world, args = WORLDS[name]
    path, t, n = jf.CondOT(), 0.6, 20_000
    z = draws(world, args, path, 1.0, n, key=3)
    x = path.interpolate(t, jr.normal(jr.key(4), z.shape), z)
    direct = draws(world, args, path, t, n, key=5)
    means = predictions(world.field(path), jnp.asarray(t), direct[:2000], args)["data"]
    for a, b in ((x, direct), (x**2, direct**2), (z[:2000], means)):
        error = np.sqrt(np.var(a, axis=0) / len(a) + np.var(b, axis=0) / len(b))
        assert (np.abs(np.mean(a, axis=0) - np.mean(b, axis=0)) <= 5 * error + 1e-6).all()


# --- against an independent formula ----------------------------------------------------------------------------


def test_full_covariances_against_solves_of_matrices():
    """The mixture in numpy, from the marginal's own covariance matrices."""
    rng = np.random.default_rng(1)
    means, roots, weights = rng.normal(size=(3, 4)), rng.normal(size=(3, 4, 4)), np.array([0.2, 0.5, 0.3])
    covs = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(4)
    with jax.enable_x64(True):
        field = worlds.GaussianMixture(means, covs=covs, weights=weights).field(jf.Cosine())
        for t in (0.0, 0.3, 0.7, 1.0):
            x = rng.normal(size=4)
            alpha, sigma = np.sin(np.pi * t / 2), np.cos(np.pi * t / 2)
            logs, data, score = [], [], []
            for m, c, w in zip(means, covs, weights, strict=True):
                v = alpha**2 * c + sigma**2 * np.eye(4)
                solved = np.linalg.solve(v, x - alpha * m)
                logs.append(np.log(w) - (x - alpha * m) @ solved / 2 - np.linalg.slogdet(2 * np.pi * v)[1] / 2)
                data.append(m + alpha * c @ solved)
                score.append(-solved)
            p = np.exp(logs)
            data, score = (np.einsum("k,kd->d", p / p.sum(), q) for q in (data, score))
            velocity = np.pi / 2 * (sigma * data + alpha * sigma * score)
            out = predictions(field, jnp.asarray(t), jnp.asarray(x)[None], None)
            log_prob = marginals(field, jnp.asarray(t), jnp.asarray(x)[None], None)[0][0]
            np.testing.assert_allclose(log_prob, np.log(p.sum()), rtol=1e-11)
            for name, value in (("data", data), ("score", score), ("velocity", velocity)):
                np.testing.assert_allclose(out[name][0], value, rtol=1e-9, atol=1e-11)


def posterior(density, support, alpha, sigma, x):
    """`(log p_t(x), E[z | x])` in one dimension, by Gauss-Legendre rules on the pieces of the support."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    z = np.concatenate([(b - a) / 2 * nodes + (a + b) / 2 for a, b in support])
    w = np.concatenate([(b - a) / 2 * weights for a, b in support])
    joint = w * density(z) * np.exp(-((x - alpha * z) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi) / sigma
    return np.log(joint.sum()), (joint * z).sum() / joint.sum()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", tiers(SCHEDULES, ["root"]))
@pytest.mark.parametrize("name", ["mixture", "boxes, weighted"])
def test_P6_marginalisation_by_quadrature(name, schedule, x64):
    """The posterior averages of `u_t(x | z)` and of the conditional score are the marginal ones."""

    def normal(z, m, s):
        return np.exp(-(((z - m) / s) ** 2) / 2) / np.sqrt(2 * np.pi) / s

    world, density, support = {
        "mixture": (
            worlds.GaussianMixture([-2.0, 1.0], stds=[0.5, 0.8], weights=[0.3, 0.7]),
            lambda z: 0.3 * normal(z, -2, 0.5) + 0.7 * normal(z, 1, 0.8),
            [(-7, -2), (-2, 1), (1, 7)],
        ),
        "boxes, weighted": (
            worlds.Boxes([-2.0, 1.0], [-1.0, 4.0], weights=[3, 1]),
            lambda z: np.where(z < 0, 0.75, 0.25 / 3),
            [(-2, -1), (1, 4)],
        ),
    }[name]
    path = PATHS[schedule]
    field = world.field(path)
    for t, x in ((0.05, 1.3), (0.3, -0.4), (0.7, 0.6), (0.9, -1.2)):
        t, x = jnp.asarray(t), jnp.asarray(x)
        alpha, sigma, alpha_dot, sigma_dot = (
            float(getattr(path, name)(t)) for name in ("alpha", "sigma", "alpha_dot", "sigma_dot")
        )
        log_prob, mean = posterior(density, support, alpha, sigma, float(x))
        noise = (float(x) - alpha * mean) / sigma
        out = predictions(field, t, x[None], None)
        assert moments(world, jnp.asarray(alpha), jnp.asarray(sigma), x).log_prob == pytest.approx(log_prob, abs=1e-10)
        assert out["data"] == pytest.approx(mean, abs=1e-9)
        assert out["score"] == pytest.approx(-noise / sigma, abs=1e-8)
        assert out["velocity"] == pytest.approx(alpha_dot * mean + sigma_dot * noise, abs=1e-8)


# --- closed forms: distributions -------------------------------------------------------------------------------


def test_E1_samples_of_the_standard_normal():
    x = np.asarray(samples(worlds.Gaussian(np.zeros(3), std=1.0), 40_000))
    assert (np.abs(x.mean(0)) < 4 / np.sqrt(len(x))).all()
    assert (np.abs(np.cov(x.T) - np.eye(3)) < 4 * np.sqrt(2 / len(x))).all()


def test_E2_log_density():
    normal = worlds.Gaussian(np.zeros(2), std=1.0)
    assert normal.log_prob(jnp.zeros(2)) == pytest.approx(-1.83787707, abs=1e-6)
    assert normal.log_prob(jnp.asarray([1.0, -2.0])) == pytest.approx(-4.33787707, abs=1e-6)


def test_E3_density_may_exceed_one():
    assert np.exp(worlds.Gaussian(0.0, std=0.1).log_prob(jnp.zeros(()))) == pytest.approx(3.98942280, rel=1e-5)


def test_E4_cov_means_covariance():
    mixture = worlds.GaussianMixture(np.zeros((2, 2)), covs=[0.2 * np.eye(2)] * 2)
    x = np.asarray(samples(mixture, 20_000))
    assert x.var() == pytest.approx(0.2, abs=4 * 0.2 * np.sqrt(2 / x.size))


def test_E5_score_is_the_gradient_of_the_log_density():
    x = jnp.asarray([0.7, -0.8])
    log_prob, gradient, score = marginals(MIX1.field(jf.CondOT()), jnp.asarray(1.0), x, None)
    np.testing.assert_allclose(gradient, [0.46874614, 0.33034242], atol=1e-5)
    np.testing.assert_allclose(score, gradient, atol=1e-6)
    assert log_prob[0] == pytest.approx(-1.12278208, abs=1e-6)


def test_E6_empirical_distribution_of_its_own_array():
    first, second = (worlds.PointSet(k + np.arange(10.0)[:, None]) for k in (0, 100))
    x = np.asarray(samples(first, 20_000))[:, 0]
    counts = np.bincount(x.astype(int), minlength=10) / len(x)
    assert set(x) == set(range(10)) and len(counts) == 10
    assert (np.abs(counts - 0.1) < 4 * np.sqrt(0.09 / len(x))).all()
    assert second.sample(jr.key(0)) >= 100


@pytest.mark.slow
def test_E7_geometry():
    n = 20_000
    board = worlds.checkerboard()
    x = np.asarray(samples(board, n))
    assert ((np.floor((x + 5) / 2.5).sum(1) % 2) == 0).all()
    norms = (x**2).sum(1)
    assert norms.mean() == pytest.approx(50 / 3, abs=4 * norms.std() / np.sqrt(len(x)))
    out = log_probs(board, jnp.asarray([x[0], x[1], [-4.0, 4.0], [6.0, 6.0]]), None)
    np.testing.assert_allclose(out, [-3.91202301, -3.91202301, -np.inf, -np.inf], atol=1e-6)
    radius = np.linalg.norm(samples(worlds.circles(), n), axis=1)
    for centre in (5.0, 2.5):
        ring = radius[np.abs(radius - centre) < 1.25]
        assert len(ring) / len(x) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(x)))
        assert ring.std() == pytest.approx(0.25, rel=0.05) and ring.mean() == pytest.approx(centre, rel=0.01)
    norms = (np.asarray(samples(MIX5, n)) ** 2).sum(1)
    assert norms.mean() == pytest.approx(102, abs=4 * norms.std() / np.sqrt(len(x)))


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(["moons", "circles", "spirals"], ["circles"]))
def test_planar_mixtures_have_the_law_of_the_data_sets(name):
    world = getattr(worlds, name)()
    ours, theirs = np.asarray(samples(world, 4000)), np.asarray(getattr(jf.data, name)(jr.key(1), 4000))
    for a, b in ((ours, theirs), (ours**2, theirs**2)):
        assert (np.abs(a.mean(0) - b.mean(0)) < 4 * np.sqrt((a.var(0) + b.var(0)) / 4000)).all()
    a, b = (np.asarray(log_probs(world, x, None)) for x in (ours, theirs))
    assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / 4000)
    if name == "spirals":  # a quarter of a turn: each arm stays in its quadrant
        assert (np.prod(np.asarray(worlds.spirals(turns=0.25).means), axis=1) >= -1e-6).all()
    if name == "circles":  # the trapezoid rule of a closed curve has converged
        finer = log_probs(worlds.circles(components=1024), ours[:50], None)
        np.testing.assert_allclose(finer, a[:50], atol=1e-4)


# --- closed forms: marginal fields -----------------------------------------------------------------------------


def test_P1_mixture(x64):
    world = worlds.GaussianMixture([-2.0, 1.0], stds=[0.5, 0.8], weights=[0.3, 0.7])
    out = predictions(world.field(jf.CondOT()), jnp.asarray(0.5), jnp.asarray([0.7]), None)
    log_prob = marginals(world.field(jf.CondOT()), jnp.asarray(0.5), jnp.asarray([0.7]), None)[0]
    assert np.exp(log_prob) == pytest.approx(0.41746714, abs=1e-8)
    for name, value in (("velocity", 0.88727191), ("score", -0.51272809), ("data", 1.14363595)):
        assert out[name] == pytest.approx(value, abs=1e-8)


def test_P2_gaussian():
    field = worlds.Gaussian(1.0, std=0.5).field(jf.CondOT())
    out = predictions(field, jnp.asarray(0.5), jnp.asarray([0.7]), None)
    assert [float(out[name][0]) for name in NAMES] == pytest.approx([0.76, 1.08, 0.32, -0.64], abs=1e-6)


def test_P3_two_points():
    field = TWO.field(jf.CondOT())
    out = predictions(field, jnp.asarray(0.5), jnp.asarray([0.2]), None)
    assert [float(out[name][0]) for name in NAMES] == pytest.approx(
        [0.35989792, 0.37994896, 0.02005104, -0.04010208], abs=1e-6
    )


def test_P4_ring_of_five():
    out = predictions(MIX5.field(jf.CondOT()), jnp.asarray(0.5), jnp.asarray([[1.0, 2.0]]), None)
    np.testing.assert_allclose(out["velocity"][0], [3.09020782, 9.51051285], atol=1e-4)
    np.testing.assert_allclose(out["score"][0], [1.09020782, 5.51051285], atol=1e-4)


def test_P7_one_euler_step_from_noise_is_the_mean():
    x = jnp.asarray([-30.0, -1.0, 0.0, 2.0, 7.0])
    out = predictions(MIX1.field(jf.CondOT()), jnp.asarray(0.0), x, None)
    np.testing.assert_allclose(x + out["velocity"], 0.1, atol=1e-5)
    np.testing.assert_allclose(out["data"], 0.1, atol=1e-5)


@pytest.mark.parametrize("schedule", tiers(SCHEDULES, ["LinearVP"]))
def test_P8_P9_continuity_and_fokker_planck(schedule, x64):
    """`d log p/dt + div u + u s = 0`, and with noise, for the drift `u + g^2 s/2`, it is `g^2 (div s + s^2)/2`."""
    world = worlds.GaussianMixture([-2.0, 1.0], stds=[0.5, 0.8], weights=[0.3, 0.7])
    path = PATHS[schedule]
    field = world.field(path)

    @jax.jit
    @jax.vmap
    def residuals(t, x):
        change = jax.grad(lambda t: world.at(path, t).log_prob(x))(t)
        s, div_s = jax.value_and_grad(lambda x: field.score(t, x))(x)

        def flow(drift):
            value, slope = jax.value_and_grad(drift)(x)
            return change + slope + value * s

        def noisy(g):
            return flow(lambda x: field.velocity(t, x) + g**2 / 2 * field.score(t, x)) - g**2 / 2 * (div_s + s**2)

        return flow(lambda x: field.velocity(t, x)), noisy(0.8), noisy(path.sigma(t))

    x = jnp.linspace(-4.0, 4.0, 41)
    for t in (0.3, 0.7):
        for residual in residuals(jnp.full_like(x, t), x):
            np.testing.assert_allclose(residual, 0, atol=1e-9)


@pytest.mark.parametrize("schedule", tiers(SCHEDULES, ["Cosine"]))
def test_P11_P12_flow_maps(schedule, x64):
    """The flow of a Gaussian is affine; in one dimension it is the monotone rearrangement, whatever the schedule."""
    starts = jnp.asarray([-1.0, 0.0, 1.0])

    @eqx.filter_jit
    def ends(world):
        velocity = world.field(PATHS[schedule]).velocity
        sampler = jf.FixedSteps(jf.UniformGrid(1000), dfx.Ralston())
        return jax.vmap(lambda x: jf.solve(velocity, x, sampler).x)(starts)

    mixture = worlds.GaussianMixture([-2.0, 1.0], stds=[0.5, 0.8], weights=[0.3, 0.7])
    np.testing.assert_allclose(ends(mixture), [-1.96411897, 0.54724112, 1.59993887], atol=2e-6)
    single = worlds.GaussianMixture([1.0, 1.0], stds=[0.5, 0.5])
    np.testing.assert_allclose(ends(single), 1 + 0.5 * starts, atol=1e-6)


def test_P14_bias_of_euler(x64):
    """`X_1` over the start is `prod (1 + h A(t_i))`, `A = v'/(2v)`."""
    expected = {1.0: {1: 0.0, 2: 0.5, 5: 0.77050019, 10: 0.87898438, 100: 0.98722784}}
    expected[0.5] = {10: 0.43078260, 100: 0.49264548}

    def ends(std, n):
        field = worlds.Gaussian(0.0, std=std).field(jf.CondOT())
        return jf.decode(field, jnp.asarray(1.0), jf.UniformGrid(n)).x

    got = jax.jit(lambda: {std: {n: ends(std, n) for n in table} for std, table in expected.items()})()
    for std, table in expected.items():
        for n, ratio in table.items():
            assert got[std][n] == pytest.approx(ratio, abs=1e-8)


def test_P15_finite_data_sets():
    path, x = jf.CondOT(), jnp.asarray([0.3, -0.2])
    point = jnp.asarray([1.0, 2.0])
    one = worlds.PointSet(point[None]).field(path)
    for t in (0.0, 0.4, 0.95):
        velocity = predictions(one, jnp.asarray(t), x[None], None)["velocity"][0]
        np.testing.assert_allclose(velocity, (point - x) / (1 - t), rtol=1e-5)
    points = RNG.normal(size=(6, 2))
    field = worlds.PointSet(points).field(path)
    logits = -((np.asarray(x) - 0.4 * points) ** 2).sum(1) / (2 * 0.6**2)
    weights = np.exp(logits) / np.exp(logits).sum()
    data = predictions(field, jnp.asarray(0.4), x[None], None)["data"][0]
    np.testing.assert_allclose(data, weights @ points, atol=1e-6)
    nearest = points[((np.asarray(x) - points) ** 2).sum(1).argmin()]
    np.testing.assert_allclose(predictions(field, jnp.asarray(1 - 1e-3), x[None], None)["data"][0], nearest, atol=1e-6)
    np.testing.assert_allclose(field.data(1.0, x), nearest, atol=1e-6)


@pytest.mark.slow
def test_P16_moments_of_the_score():
    """`E[s] = 0` and `E[x s] = -d` (Stein), at every time."""
    for world, args in (WORLDS["mixture, full"], WORLDS["boxes"]):
        for t in (0.1, 0.5, 0.8):
            x = draws(world, args, jf.CondOT(), t, 20_000)
            score = predictions(world.field(jf.CondOT()), jnp.asarray(t), x, args)["score"]
            stein = np.asarray(jnp.sum(x * score, axis=1))
            assert (np.abs(score.mean(0)) < 4 * score.std(0) / np.sqrt(len(x))).all()
            assert stein.mean() == pytest.approx(-2, abs=4 * stein.std() / np.sqrt(len(x)))


# --- closed forms: losses and guidance ---------------------------------------------------------------------------


@eqx.filter_jit
def losses(field, world, key, n, law):
    def one(key):
        key_data, key_loss = jr.split(key)
        x = world.sample(key_data)
        return x.size * jf.matching_loss(field, key_loss, x, law=law)

    return jax.vmap(one)(jr.split(key, n))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "predicts", "std", "minimum"),
    [
        ("CondOT", "velocity", 0.5, np.pi / 2 * 0.5),
        ("CondOT", "velocity", 2.0, np.pi),
        ("Cosine", "velocity", 1.0, np.pi**2 / 4),
        ("CondOT", "noise", 2.0, 0.64481598),
        ("CondOT", "data", 1.0, 0.5),
    ],
)
def test_G2_G3_minimum_losses(path, predicts, std, minimum):
    """The loss of the exact field is the mean posterior variance of its target."""
    world = worlds.Gaussian(np.full(2, 3.0), std=std)
    loss = np.asarray(losses(world.field(PATHS[path], predicts=predicts), world, jr.key(0), 40_000, jf.laws.Uniform()))
    assert loss.mean() == pytest.approx(2 * minimum, abs=4 * loss.std() / np.sqrt(len(loss)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "path", "law", "minimum", "error"),
    [
        (MIX5, "CondOT", jf.laws.Uniform(), 18.21, 0.07),
        (MIX5, "root", jf.laws.Uniform(0.0, 0.999), 20.35, 0.07),
        (worlds.checkerboard(), "CondOT", jf.laws.Uniform(), 8.45, 0.03),
    ],
    ids=["ring", "ring, root", "board"],
)
def test_G4_minimum_losses_of_toy_data(world, path, law, minimum, error):
    loss = np.asarray(losses(world.field(PATHS[path]), world, jr.key(0), 200_000, law))
    assert loss.mean() == pytest.approx(minimum, abs=4 * np.hypot(error, loss.std() / np.sqrt(len(loss))))


def test_G12_loss_of_a_single_point_is_zero(x64):
    world = worlds.PointSet([[1.0, -2.0]])
    for predicts in ("data", "velocity"):
        field = world.field(jf.CondOT(), predicts=predicts)
        assert losses(field, world, jr.key(0), 100, jf.laws.Uniform(0.0, 0.999)).max() < 1e-8


SIGNS = worlds.LabelledMixture(worlds.GaussianMixture([-1.0, 1.0], stds=[1e-4, 1e-4]))


def test_I4_I6_guided_two_points():
    """O2 as a world with the labels 0 and 1: the guided velocity, and the classifier's gradient."""
    field = jf.Guided(SIGNS.field(jf.CondOT()), null=SIGNS.null)
    x = jnp.asarray(0.2)
    velocity = jax.jit(lambda weight: field.velocity(jnp.asarray(0.5), x, jf.Args(1, scale=weight)))
    for weight, value in ((0.0, 0.35989792), (1.0, 1.6), (3.0, 4.08020415)):
        assert velocity(weight) == pytest.approx(value, abs=1e-5)
    marginal = SIGNS.at(jf.CondOT(), 0.5)
    gradient = jax.jit(jax.grad(lambda x: marginal.log_prob(x, 1) - marginal.log_prob(x)))(x)
    assert gradient == pytest.approx(1.24010208, abs=1e-5)
    assert gradient == pytest.approx(float(velocity(1.0) - velocity(0.0)), abs=1e-5)


def test_I10_guidance_sharpens_exactly(x64):
    """Ends of the guided flow: standard deviation `s^w S^(1-w)`."""
    world = worlds.HierarchicalGaussian(0.5)
    field = jf.Guided(world.field(jf.CondOT()), null=world.null)

    @jax.jit
    @jax.vmap
    def ends(weight):
        args = jf.Args(jnp.asarray(1.0), scale=weight)
        return jax.vmap(lambda x: jf.decode(field, x, jf.UniformGrid(2000), args=args).x)(jnp.asarray([-1.0, 0.0, 1.0]))

    x = ends(jnp.asarray([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(x[:, 1], [0, 1, 1.32280671], atol=2e-3)
    np.testing.assert_allclose((x[:, 2] - x[:, 0]) / 2, [1.11803399, 0.5, 0.22360680], atol=2e-3)


# --- conditions ---------------------------------------------------------------------------------------------------


def test_labels_select_their_components():
    world, _ = WORLDS["labelled"]
    assert (world.classes, world.null) == (3, 3)
    x = jnp.asarray([[-3.0, 4.0]])
    direct = worlds.GaussianMixture(10 * RING[[1, 2]], stds=[1.0, 1.0])
    assert log_probs(world, x, jnp.asarray(1))[0] == pytest.approx(float(log_probs(direct, x, None)[0]), rel=1e-6)
    assert log_probs(world, x, jnp.asarray(3)) == log_probs(world, x, None) == log_probs(MIX5, x, None)
    z, labels = samples(world, 2000)
    nearest = np.argmin(np.linalg.norm(np.asarray(z)[:, None] - 10 * RING, axis=-1), axis=1)
    assert (np.asarray([0, 1, 1, 0, 2])[nearest] == np.asarray(labels)).all()
    field, t = world.field(jf.CondOT()), jnp.asarray(0.5)
    together = jax.jit(jax.vmap(lambda label: field.velocity(t, x[0], label)))(jnp.arange(4))
    for label in range(4):
        np.testing.assert_allclose(
            together[label], predictions(field, t, x, jnp.asarray(label))["velocity"][0], rtol=1e-5
        )


def test_hierarchical_conditions():
    world = worlds.HierarchicalGaussian(0.5, (2,))
    x, y = jnp.asarray([[0.3, -1.0]]), jnp.asarray([1.0, 2.0])
    wide, given = worlds.Gaussian(np.zeros(2), std=np.sqrt(1.25)), worlds.Gaussian(y, std=0.5)
    assert log_probs(world, x, None)[0] == pytest.approx(float(log_probs(wide, x, None)[0]), rel=1e-6)
    assert log_probs(world, x, world.null) == log_probs(world, x, None)
    assert log_probs(world, x, y)[0] == pytest.approx(float(log_probs(given, x, None)[0]), rel=1e-6)
    z, y = samples(world, 20_000)
    assert np.var(z - y) == pytest.approx(0.25, rel=0.03) and np.var(z) == pytest.approx(1.25, rel=0.03)


# --- numbers: float32 at the ends, memory, blocks ------------------------------------------------------------------


def wide_mixture(k, d, dtype, seed=0):
    rng = np.random.default_rng(seed)
    means, stds = rng.standard_normal((k, d)), rng.uniform(0.05, 0.5, k)
    return worlds.GaussianMixture(*(np.asarray(v, np.float32).astype(dtype) for v in (means, stds)))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_bar_float32_against_float64(path):
    """1,000 components in 64 dimensions: velocity, score and data to 1e-5 at every time, finite everywhere."""
    path = PATHS[path]
    world = wide_mixture(1000, 64, np.float32)
    with jax.enable_x64(True):
        exact = wide_mixture(1000, 64, np.float64)
    for t in np.float32([0, 1e-4, 0.5, 1 - 1e-4, 1]):
        x = draws(world, None, path, jnp.asarray(t), 256)
        values = predictions(world.field(path), jnp.asarray(t), x, None)
        with jax.enable_x64(True):
            truth = predictions(exact.field(path), jnp.float64(t), jnp.asarray(np.asarray(x, np.float64)), None)
        for name in NAMES:
            a, b = values[name], truth[name]
            assert (a.dtype, b.dtype) == (jnp.float32, jnp.float64) and jnp.isfinite(a).all()
            assert relative(a, b) <= 1e-5, (name, t)


def test_bar_memory_of_ten_thousand_components():
    world = wide_mixture(10_000, 64, np.float32)
    shape = jax.ShapeDtypeStruct((256, 64), jnp.float32)

    def velocities(world, x):
        return jax.vmap(lambda x: world.field(jf.CondOT()).velocity(0.5, x))(x)

    memory = jax.jit(velocities).lower(world, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**27


def test_blocks_of_components_change_nothing(monkeypatch):
    world = wide_mixture(50, 3, np.float32)
    x = jnp.asarray([0.1, -0.4, 0.8])

    def values(world):
        moments = world.moments(0.6, 0.4, x)
        slope = jax.jacfwd(lambda x: world.moments(0.6, 0.4, x).score)(x)
        back = jax.grad(lambda w: w.moments(0.6, 0.4, x).score.sum())(world)
        return [*moments, slope, back.means, back.log_weights]

    whole = jax.jit(values)(world)
    monkeypatch.setattr("jflow.distributions._mixing.BLOCK", 21)  # 8 blocks of 7, the last one padded
    for a, b in zip(jax.jit(lambda w: values(w))(world), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_intervals_in_their_tails():
    """Truncated normals keep their digits where the box is far, thin or wide beside the noise."""
    from jflow.distributions._truncated import interval_moments

    ratios, places = np.meshgrid([1e-6, 1e-3, 0.1, 0.99, 1.01, 4.0, 1e3], [0.0, 0.3, 1.0, 5.0, 25.0])
    std, alpha, low = 0.5, 0.8, -0.2
    half = ratios * std / alpha
    x = alpha * (low + half) + alpha * half * (places > 0) + (places - 1) * (places > 0) * std

    def moments(dtype):
        arguments = [jnp.asarray(np.float32(v).astype(dtype)) for v in (x, alpha, std, low, low + 2 * half)]
        return [np.asarray(v, np.float64) for v in jax.jit(interval_moments)(*arguments)]

    single = moments(np.float32)
    with jax.enable_x64(True):
        double = moments(np.float64)
    np.testing.assert_allclose(single[0], double[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose((single[1] - low) / half, (double[1] - low) / half, atol=2e-6 + 2e-7 / half.min())
    np.testing.assert_allclose(single[2], double[2], rtol=2e-5, atol=2e-5)
    assert (single[1] >= low - 1e-6).all() and (single[1] <= low + 2 * half + 1e-6).all()


def test_float64_is_kept_and_bfloat16_computed_in_float32(x64):
    field, t = MIX1.field(jf.CondOT()), jnp.asarray(0.5)
    for dtype, error in ((jnp.bfloat16, 1e-2), (jnp.float32, 1e-6), (jnp.float64, 2e-7)):
        velocity = predictions(field, t, jnp.asarray([0.7], dtype), None)["velocity"]
        assert velocity.dtype == dtype and float(velocity[0]) == pytest.approx(0.88727191, rel=error)


# --- fields with the rest of the package ---------------------------------------------------------------------------


def test_rows_that_are_singular_at_the_data():
    """Where sigma' is infinite the rows of the path's clock give the limits."""
    world, _ = WORLDS["mixture, full"]
    x = jnp.asarray([0.3, 0.2])
    for path in (jf.VP(), jf.LinearVP()):
        field = world.field(path)

        @jax.jit
        def limits(path=path, field=field):
            rows = (jf.PathClock().rhs(path, 1.0), prediction_row(path, "score", 1.0))
            expected = path.alpha_dot(1.0) * x - path.sigma_sigma_dot(1.0) * world.score(x)
            return field.predict(rows, 1.0, x), field.velocity(1.0, x), expected, world.score(x)

        (velocity, score), direct, expected, truth = limits()
        np.testing.assert_allclose(velocity, expected, rtol=1e-5)
        np.testing.assert_allclose(direct, expected, rtol=1e-5)
        np.testing.assert_allclose(score, truth, rtol=1e-6)
    data = field.predict((Row(jnp.ones(()), jnp.ones(()), None),), 1.0, x)[0]
    np.testing.assert_allclose(data, x, rtol=1e-6)


@pytest.mark.slow
def test_samples_of_exact_fields():
    """Every world is sampled by its field; a point set ends on its points."""
    points = worlds.PointSet(np.array([[-2.0, 0.0], [0.0, 3.0], [2.0, -1.0], [4.0, 2.0]]))
    out = jf.generate(points.field(jf.CondOT()), jr.key(0), 200, (2,), jf.UniformGrid(20), progress=False)
    gaps = np.abs(np.asarray(out.x)[:, None] - np.asarray(points.points)).max(-1).min(1)
    assert gaps.max() < 1e-5 and (out.status == 0).all()
    board = worlds.checkerboard()
    out = jf.generate(board.field(jf.CondOT()), jr.key(0), 500, (2,), jf.UniformGrid(50), progress=False)
    inside = np.isfinite(log_probs(board, out.x, None)).mean()
    assert inside > 0.97


def test_exact_fields_hold_nothing_to_train():
    field = MIX5.field(jf.VP())
    assert not any(jax.tree_util.tree_leaves(jf.trainable(field)))
    assert field.evaluations() == 1 and field.predicts == "velocity" and TWO.field(jf.CondOT()).predicts == "data"


def test_targets_are_names_predictions_and_rows():
    """All of them from one evaluation, and alike."""
    world, _ = WORLDS["mixture, full"]
    field, t, x = world.field(jf.Cosine()), jnp.asarray(0.3), jnp.asarray([0.3, 0.2])
    as_names = field.predict((*NAMES, "v"), t, x)
    as_objects = field.predict(tuple(map(as_prediction, (*NAMES, "v"))), t, x)
    as_rows = field.predict(tuple(prediction_row(field.path, name, t) for name in (*NAMES, "v")), t, x)
    alone = tuple(getattr(field, name)(t, x) for name in NAMES)
    for values in zip(as_names, as_objects, as_rows, strict=True):
        np.testing.assert_allclose(values[1], values[0], rtol=1e-6)
        np.testing.assert_allclose(values[2], values[0], rtol=1e-5, atol=1e-6)
    for value, name in zip(alone, as_names[:4], strict=True):
        np.testing.assert_allclose(value, name, rtol=1e-6)


def test_an_exact_field_gets_the_bare_condition():
    world, _ = WORLDS["labelled"]
    field, t, x = world.field(jf.CondOT()), jnp.asarray(0.4), jnp.asarray([0.3, 0.2])
    np.testing.assert_array_equal(field.data(t, x, jf.Args(1)), field.data(t, x, 1))
    np.testing.assert_array_equal(world.log_prob(x, jf.Args(1, scale=2.0)), world.log_prob(x, 1))
    refuses(lambda: field.data(t, x, jf.Args(1, scale=2.0)), "Got scale")


@pytest.mark.parametrize(
    "source", [jf.GIVEN, jf.Normal(jf.ZeroCentre()), jf.Normal(coupled=True)], ids=["given", "map", "coupled"]
)
def test_exact_worlds_start_at_white_noise(source):
    path = jf.CondOT(source=source)
    refuses(lambda: MIX5.field(path), "white noise.*leave out source=")
    refuses(lambda: MIX5.at(path, 0.5), "white noise")


def test_exact_worlds_take_affine_paths():
    class Bent(jf.AbstractPath):
        source: jf.AbstractSource = jf.Normal()

        def interpolate(self, t, x0, x1, z=None):
            return x0

    refuses(lambda: MIX5.field(Bent()), "affine path.*Got .*Bent")
    refuses(lambda: MIX5.field(None), "path must be AbstractPath", TypeError)


def test_new_numbers_do_not_retrace():
    count = 0

    @eqx.filter_jit
    def velocity(field, t, x):
        nonlocal count
        count += 1
        return field.velocity(t, x)

    for std in (0.3, 0.7):
        velocity(worlds.GaussianMixture([[0.0], [std]], stds=[std, 1.0]).field(jf.CondOT()), 0.3, jnp.ones(1))
    assert count == 1


# --- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "a missing vmap": (lambda: MIX5.log_prob(jnp.zeros((7, 2))), "vmap"),
    "a batched time": (lambda: MIX5.field(jf.CondOT()).velocity(jnp.zeros(3), jnp.zeros(2)), "scalar|f32.3."),
    "no width": (lambda: worlds.Gaussian(0.0), "either std= or cov="),
    "two widths": (lambda: worlds.Gaussian(np.zeros(2), std=1.0, cov=np.eye(2)), "both"),
    "a zero width": (lambda: worlds.GaussianMixture(np.zeros((2, 2)), stds=[1.0, 0.0]), "PointSet"),
    "too many widths": (lambda: worlds.GaussianMixture(np.zeros((2, 2)), stds=np.ones(3)), "shape"),
    "a covariance of images": (lambda: worlds.Gaussian(np.zeros((2, 2)), cov=np.eye(4)), "vector"),
    "no symmetry": (lambda: worlds.Gaussian(np.zeros(2), cov=[[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
    "no definiteness": (lambda: worlds.Gaussian(np.zeros(2), cov=[[1.0, 2.0], [2.0, 1.0]]), "eigenvalue"),
    "a non-finite mean": (lambda: worlds.Gaussian([np.nan], std=1.0), "finite"),
    "negative weights": (lambda: worlds.GaussianMixture([0.0, 1.0], stds=[1, 1], weights=[-1, 2]), "at least 0"),
    "too few weights": (lambda: worlds.GaussianMixture([0.0, 1.0], stds=[1, 1], weights=[1]), "2 components"),
    "no points": (lambda: worlds.PointSet(np.zeros((0, 2))), "at least 1"),
    "an infinite velocity": (lambda: TWO.field(jf.CondOT()).velocity(1.0, jnp.asarray(0.3)), "t = 1.*end='denoise'"),
    "an infinite score": (lambda: TWO.field(jf.VP()).score(1.0, jnp.asarray(0.3)), "infinite"),
    "an inverted box": (lambda: worlds.Boxes([[0.0, 1.0]], [[1.0, 0.0]]), "below"),
    "corners that differ": (lambda: worlds.Boxes([[0.0]], [[1.0, 0.0]]), "same shape"),
    "a board without cells": (lambda: worlds.checkerboard(0), "cells must be an integer of at least 1. Got 0"),
    "a label out of range": (lambda: WORLDS["labelled"][0].log_prob(jnp.zeros(2), 4), "0 to 2"),
    "a batch of labels": (lambda: WORLDS["labelled"][0].log_prob(jnp.zeros(2), jnp.arange(2)), "one integer|i32.2."),
    "a missing label": (lambda: worlds.LabelledMixture(MIX1, labels=[0, 2]), "every class"),
    "a condition of another shape": (
        lambda: worlds.HierarchicalGaussian(1.0).log_prob(jnp.zeros(()), jnp.ones(2)),
        "()",
    ),
    "one curve": (lambda: worlds.moons(components=1), "components must be an integer of at least 2. Got 1"),
    "an unknown prediction": (lambda: worlds.ExactField(MIX1, jf.CondOT(), "x0"), "'x0-prediction' is 'data'"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(Exception, match=message) as info:
        call()
    assert isinstance(info.value, ValueError) or "Type-check" in str(info.value)
