"""Sources: white, projected and coloured noise, pairs, and what needs a score of the path's own."""

import functools as ft

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import refuses
from scipy import stats

import jflow as jf
from jflow._validate import streams

KEY = jr.key(0)
COV = np.array([[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]])  # of the noise
DATA = np.array([[0.6, -0.2, 0.1], [-0.2, 0.3, 0.0], [0.1, 0.0, 1.4]])  # of the data
MEAN = np.array([1.0, -0.5, 0.3])
MASK = np.array([1.0, 1.0, 1.0, 0.0])
POINTS, D = 4, 2


def projection(mask=None):
    """The matrix of `ZeroCentre` on four points of the plane, those of the mask."""
    mask = np.ones(POINTS) if mask is None else mask
    centred = np.diag(mask) - np.outer(mask, mask) / mask.sum()
    return np.kron(centred, np.eye(D))


class GaussNet(eqx.Module):
    """The exact prediction for data `N(mean, data)` and noise `N(0, noise)`, covariances that may be singular."""

    path: jf.AbstractAffinePath
    mean: jax.Array
    data: jax.Array
    noise: jax.Array
    predicts: str = eqx.field(static=True)

    def __call__(self, t, x, args):
        shape, flat = x.shape, x.reshape(-1)
        data_cov, noise_cov, mean = (a.astype(x.dtype) for a in (self.data, self.noise, self.mean))
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        gap = jnp.linalg.pinv(alpha**2 * data_cov + sigma**2 * noise_cov, hermitian=True) @ (flat - alpha * mean)
        data, noise = mean + alpha * data_cov @ gap, sigma * noise_cov @ gap
        s, a, b = self.path.velocity_row(t)
        values = {
            "data": data,
            "noise": noise,
            "score": -gap,
            "velocity": (a * data + b * noise) / s,
            "v": alpha * noise - sigma * data,
        }
        return values[self.predicts].reshape(shape)


def exact(path, predicts="velocity", mean=MEAN, data=DATA, noise=COV):
    return jf.Field(GaussNet(path, *map(jnp.asarray, (mean, data, noise)), predicts), path, predicts)


def coloured(kind=jf.CondOT, **parameters):
    return kind(source=jf.Normal(jf.Coloured(COV)), **parameters)


def centred(kind=jf.CondOT, **parameters):
    return kind(source=jf.Normal(jf.ZeroCentre()), **parameters)


# --------------------------------------------------------------------------------------------------- the maps


def test_a_white_source_is_a_standard_normal(x64):
    x, tree = jnp.array([[0.3, -1.0], [0.2, 2.0]]), {"a": jnp.array([0.5]), "b": jnp.array([[1.0, -2.0]])}
    source = jf.Normal()
    np.testing.assert_allclose(source.log_prob(x), stats.norm.logpdf(x).sum(), rtol=1e-12)
    flat = np.array([0.5, 1.0, -2.0])
    np.testing.assert_allclose(source.log_prob(tree), stats.norm.logpdf(flat).sum(), rtol=1e-12)
    assert source.dimension(tree) == 3
    drawn = source.sample(KEY, tree)
    assert jax.tree.map(jnp.shape, drawn) == {"a": (1,), "b": (1, 2)} and drawn["a"].dtype == "float64"
    many = jax.vmap(lambda key: source.sample(key, jax.ShapeDtypeStruct((2,), jnp.float32)))(jr.split(KEY, 4000))
    assert many.dtype == "float32"
    np.testing.assert_allclose(np.cov(many.T), np.eye(2), atol=5 * np.sqrt(2 / 4000))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_zero_centre_is_the_projection(mask, x64):
    """Symmetric, of its rank, its own square: with a mask on the points there are."""
    args = jf.Args(None, mask=mask)
    own, like = jf.ZeroCentre(), jnp.zeros((POINTS, D))
    matrix = jax.jacfwd(lambda x: own.apply(x, args))(like).reshape(8, 8)
    np.testing.assert_allclose(matrix, projection(mask), atol=1e-15)
    np.testing.assert_allclose(
        jax.jacfwd(lambda x: own.solve(x, args))(like).reshape(8, 8), np.linalg.pinv(matrix), atol=1e-14
    )
    count = POINTS if mask is None else 3
    assert own.rank(like, args) == (count - 1) * D == np.linalg.matrix_rank(matrix) and own.log_det(like, args) == 0
    x = jf.Normal(own).sample(KEY, like, args)
    assert np.abs(x.sum(0)).max() < 1e-14 and (mask is None or (x[3] == 0).all())
    cloud = {"here": jnp.ones((3, 2)), "there": jnp.arange(8.0).reshape(4, 2)}
    assert np.abs(jf.ZeroCentre().apply(cloud)["here"]).max() == 0 and jf.ZeroCentre().rank(cloud) == 2 * 2 + 3 * 2


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_the_density_of_a_projected_source_is_that_in_its_subspace(mask, x64):
    """In coordinates of an orthonormal basis the draw is a standard normal; the type of a mask does not matter."""
    values, vectors = np.linalg.eigh(projection(mask))
    basis = vectors[:, values > 0.5]
    source = jf.Normal(jf.ZeroCentre())
    for kind in (float, int, bool):
        args = None if mask is None else jf.Args("condition", mask=mask.astype(kind))
        x = source.sample(KEY, jnp.zeros((POINTS, D)), args)
        truth = stats.norm.logpdf(basis.T @ np.ravel(x)).sum()
        np.testing.assert_allclose(source.log_prob(x, args), truth, rtol=1e-12)
        assert source.dimension(x, args) == basis.shape[1]


def test_coloured_noise_has_its_covariance(x64):
    """By its linear map: what it makes of the identity."""
    own, x = jf.Coloured(COV), jnp.array([0.4, -1.0, 0.7])
    factor = jax.vmap(own.apply)(jnp.eye(3)).T
    np.testing.assert_allclose(factor @ factor.T, COV, atol=1e-15)
    np.testing.assert_allclose(own.solve(own.apply(x)), x, rtol=1e-13)
    np.testing.assert_allclose(own.log_det(x), np.log(np.linalg.det(COV)) / 2, rtol=1e-13)
    truth = stats.multivariate_normal(np.zeros(3), COV).logpdf(x)
    np.testing.assert_allclose(jf.Normal(own).log_prob(x), truth, rtol=1e-12)
    tree = {"a": x[:1], "b": x[1:].reshape(2, 1)}  # an event as one vector
    np.testing.assert_allclose(jf.Normal(own).log_prob(tree), truth, rtol=1e-12)
    drawn, white = jf.Normal(own).sample(KEY, x), jf.Normal().sample(KEY, x)
    np.testing.assert_allclose(drawn, factor @ white, rtol=1e-13)
    assert own.rank(x) == 3 and jf.Normal(own).dimension(tree) == 3


def test_maps_keep_the_type_of_the_state():
    for path in (coloured(), centred()):
        with jax.enable_x64(True):
            like = jax.ShapeDtypeStruct((3,) if path == coloured() else (3, 1), jnp.float32)
            drawn = jax.eval_shape(lambda k, path=path, like=like: path.source.sample(k, like), jr.key(0))
            assert drawn.dtype == "float32"


# --------------------------------------------------------------------------------------------------- the score


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["velocity", "data", "noise", "score", "v"])
def test_the_score_is_the_gradient_of_the_log_density(predicts, x64):
    """Of `N(alpha m, alpha^2 S + sigma^2 C)`, the law of the state for data `N(m, S)` and noise `N(0, C)`."""
    x = jnp.array([0.4, -1.0, 0.7])

    def both(path, t):
        alpha, sigma = path.alpha(t), path.sigma(t)

        def log_density(x):
            return jax.scipy.stats.multivariate_normal.logpdf(x, alpha * MEAN, alpha**2 * DATA + sigma**2 * COV)

        field = exact(path, predicts)
        others = {name: getattr(field, name)(t, x) for name in ("data", "noise", "velocity")}
        truth = {name: exact(path, name).net(t, x, None) for name in others}
        return field.score(t, x), jax.grad(log_density)(x), others, truth

    paths = {kind.__name__: coloured(kind) for kind in (jf.CondOT, jf.VP, jf.VE)}
    times = jnp.array([0.1, 0.5, 0.9])
    every = jax.jit(lambda times: {k: jax.vmap(lambda t, p=p: both(p, t))(times) for k, p in paths.items()})(times)
    for name, (score, gradient, others, truth) in every.items():
        np.testing.assert_allclose(score, gradient, rtol=1e-7, atol=1e-9, err_msg=name)
        for other, value in others.items():
            np.testing.assert_allclose(value, truth[other], rtol=1e-6, atol=1e-8, err_msg=f"{name} {other}")


def test_the_target_of_a_score_is_that_of_the_conditional_density(x64):
    """`grad log N(x; alpha x1, sigma^2 C)` at `x = alpha x1 + sigma x0`."""
    path, t, x0, x1 = coloured(), 0.3, jnp.array([0.4, -1.0, 0.7]), jnp.array([1.0, 2.0, -0.5])
    x = path.interpolate(t, x0, x1)

    def log_density(x):
        return jax.scipy.stats.multivariate_normal.logpdf(x, t * x1, (1 - t) ** 2 * COV)

    pinned = jf.Field(lambda t, x, args: jax.grad(log_density)(x), path, "score")
    losses = [
        jf.matching_loss(jf.Field(lambda t, x, args, f=f: f, path, "score"), KEY, x1, t=t)
        for f in (jnp.zeros(3), jnp.ones(3))
    ]
    drawn = path.source.sample(streams(KEY, "matching_loss", 4)[1], x1)
    target = -np.linalg.solve(COV, drawn) / (1 - t)
    np.testing.assert_allclose(losses[0], np.mean(target**2), rtol=1e-9)
    np.testing.assert_allclose(losses[1], np.mean((1 - target) ** 2), rtol=1e-9)
    np.testing.assert_allclose(pinned.score(t, x), -np.linalg.solve(COV, x0) / (1 - t), rtol=1e-9)


def test_a_change_of_path_keeps_the_source_of_the_new_one(x64):
    x = jnp.array([0.4, -1.0, 0.7])
    moved = jf.change_path(exact(coloured(jf.VP)), coloured(jf.CondOT))
    truth = exact(coloured(jf.CondOT))
    for name in ("data", "noise", "score", "velocity"):
        np.testing.assert_allclose(getattr(moved, name)(0.6, x), getattr(truth, name)(0.6, x), rtol=1e-6, err_msg=name)


# ----------------------------------------------------------------------------------------------------- densities


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_the_likelihood_of_a_gaussian_in_the_subspace_is_exact(mask, x64):
    """Of `s P e`: `N(0, s^2)` in `(points - 1) d` dimensions, in the path's own time, a clock, and on a grid."""
    s, project = 0.7, projection(mask)
    field = exact(centred(jf.Cosine), mean=np.zeros(8), data=s**2 * project, noise=project)
    args = None if mask is None else jf.Args(None, mask=jnp.asarray(mask))
    x = s * jf.ZeroCentre().apply(jr.normal(KEY, (POINTS, D)), args)
    rank = round(np.trace(project))
    truth = -jnp.sum(x**2) / (2 * s**2) - rank * np.log(2 * np.pi * s**2) / 2
    samplers = {
        "adaptive": jf.AdaptiveSteps(rtol=1e-9, atol=1e-9),
        "ratio": jf.AdaptiveSteps(clock=jf.RatioClock(), rtol=1e-9, atol=1e-9),
        "grid": jf.FixedSteps(jf.UniformGrid(40), dfx.Dopri8(), clock=jf.AngleClock()),
    }
    outs = jax.jit(lambda x: {name: jf.log_prob(field, x, each, args=args) for name, each in samplers.items()})(x)
    for name, out in outs.items():
        np.testing.assert_allclose(out.log_prob, truth, atol=1e-6, err_msg=name)
        assert np.abs(out.x.sum(0)).max() < 1e-6 and out.status == 0


@pytest.mark.slow
def test_a_part_of_the_velocity_that_leaves_the_subspace_does_not_count(x64):
    """The density is that of the projected flow, and its divergence the one within the subspace."""
    project = projection()
    inside = exact(centred(), mean=np.zeros(8), data=project / 4, noise=project)

    def leaves(t, x, args):
        return inside.net(t, x, args) + 3.0 + x.mean(0, keepdims=True) * jnp.ones_like(x)

    x = jf.ZeroCentre().apply(jr.normal(KEY, (POINTS, D))) / 2
    sampler = jf.FixedSteps(jf.UniformGrid(20), dfx.Dopri5())
    values = [jf.log_prob(field, x, sampler).log_prob for field in (inside, jf.Field(leaves, centred(), "velocity"))]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)


@pytest.mark.slow
def test_the_likelihood_with_coloured_noise(x64):
    x, field = jnp.array([0.4, -1.0, 0.7]), exact(coloured())
    tight = {"rtol": 1e-9, "atol": 1e-9}
    samplers = (jf.AdaptiveSteps(**tight), jf.AdaptiveSteps(clock=jf.RatioClock(), **tight))
    for out in jax.jit(lambda x: [jf.log_prob(field, x, sampler) for sampler in samplers])(x):
        np.testing.assert_allclose(out.log_prob, stats.multivariate_normal(MEAN, DATA).logpdf(x), atol=1e-6)
    start = jnp.array([0.3, 0.1, -0.2])  # at a later start the noise has the size sigma
    path = coloured(jf.VE, sigma_min=0.1, sigma_max=5.0)
    truth = stats.multivariate_normal(np.zeros(3), 25 * COV).logpdf(start)
    np.testing.assert_allclose(path.start_log_prob(0.0, start), truth, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ the SDE


@ft.cache
def linear_map(kind, n):
    """Start and normals to the sample, for `eta = 1`: an affine map, so that its Jacobian is all."""
    path, mean, data, noise, shape = WORLDS[kind]
    field = exact(path, "data", mean, data, noise)
    sampler = jf.FixedSteps(jf.UniformGrid(n), eta=1.0)

    @jax.jit
    def jacobians(x0, normals):
        def run(x0, normals):
            return jf.decode(field, x0, sampler, brownian=jf.Recorded(normals)).x.reshape(-1)

        return run(x0, normals), jax.jacfwd(run, (0, 1))(x0, normals)

    value, (by_start, by_noise) = jacobians(jnp.zeros(shape), jnp.zeros((n, *shape)))
    size = int(np.prod(shape))
    return np.asarray(value), by_start.reshape(size, size), by_noise.reshape(size, n, size)


S = 0.7
WORLDS = {  # path, mean, data, noise, shape of an event
    "centred": (centred(), np.zeros(8), S**2 * projection(), projection(), (POINTS, D)),
    "coloured": (coloured(), MEAN, DATA, COV, (3,)),
    "alike": (coloured(), np.zeros(3), S**2 * COV, COV, (3,)),
    "white": (jf.CondOT(), np.zeros(1), S**2 * np.eye(1), np.eye(1), (1,)),
}


def covariance(kind, n):
    """Of the sample, for a start of the source: no random number is drawn."""
    noise = WORLDS[kind][3]
    _, by_start, by_noise = linear_map(kind, n)
    return by_start @ noise @ by_start.T + np.einsum("ink,jnk->ij", by_noise, by_noise)


@pytest.mark.slow
def test_the_sde_has_the_covariance_of_its_source(x64):
    """Data and noise alike up to a factor are white noise in other coordinates: the sampler's error is one number."""
    scalar = covariance("white", 12)[0, 0]
    np.testing.assert_allclose(covariance("centred", 12), scalar * projection(), atol=1e-12)
    np.testing.assert_allclose(covariance("alike", 12), scalar * COV, atol=1e-12)
    assert 0 < scalar < S**2


@pytest.mark.slow
def test_the_sde_converges_to_the_law_of_the_data(x64):
    """The error of the covariance halves with the steps; the mean is exact."""
    errors = []
    for n in (16, 32, 64):
        np.testing.assert_allclose(linear_map("coloured", n)[0], MEAN, atol=1e-12)
        errors.append(np.abs(covariance("coloured", n) - DATA).max())
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < 0.12 and ((slopes > 0.8) & (slopes < 1.2)).all(), errors


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_the_sde_keeps_the_centre_of_mass(mask):
    """In float32, with the mask in `args`: start, increments and data prediction stay in the subspace."""
    project = projection(mask)
    field = exact(centred(), "data", np.zeros(8), S**2 * project, project)
    args = None if mask is None else jf.Args(None, mask=jnp.asarray(mask))
    for sampler in (
        jf.FixedSteps(jf.UniformGrid(30), eta=1.0),
        jf.FixedSteps(jf.UniformGrid(8), jf.DPMpp(2), eta=0.7),
        jf.FixedSteps(jf.UniformGrid(8), clock=jf.ThetaClock(), eta=jf.Ancestral(0.5)),
        jf.FixedSteps(jf.UniformGrid(8, 0.1, 0.9), diffusion=lambda t: 0.3),
    ):
        xs = jax.jit(jax.vmap(lambda k, s=sampler: jf.sample(field, k, (POINTS, D), s, args=args).x))(jr.split(KEY, 64))
        assert np.abs(xs.sum(1)).max() / POINTS < 1e-6 and xs.std() > 0.1
        assert mask is None or (xs[:, 3] == 0).all()


def test_a_mask_may_differ_between_samples():
    masks = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], np.float32)
    net = jf.Field(lambda t, x, args: jnp.zeros_like(x), centred(), "data")
    sampler = jf.FixedSteps(jf.UniformGrid(4, t1=0.5), eta=1.0)
    out = jf.generate(net, KEY, 3, (POINTS, D), sampler, args=jf.Args(None, mask=masks), args_in_axes=0)
    assert np.abs(out.x.sum(1)).max() < 1e-6
    np.testing.assert_array_equal((out.x == 0).all(-1), masks == 0)


# ---------------------------------------------------------------------------------- pairs, and sources of one's own


class Box(jf.AbstractSource):
    """Uniform noise: no normals, a density that is known."""

    coupled = False

    def sample(self, key, like, args=None):
        return jr.uniform(key, like.shape, minval=-1.0, maxval=1.0)

    def log_prob(self, x, args=None):
        return jnp.where((jnp.abs(x) <= 1).all(), -x.size * jnp.log(2.0), -jnp.inf)


class Silent(jf.AbstractSource):
    """A source whose density is not known."""

    coupled = False

    def sample(self, key, like, args=None):
        return jr.rademacher(key, like.shape, float)


PAIRED = {
    "coupled": (jf.Normal(coupled=True), "is coupled to the data"),
    "GIVEN": (jf.GIVEN, "is not Gaussian"),
    "box": (Box(), "is not Gaussian"),
}
GRID = jf.UniformGrid(4)


def pull(t, x, args):
    return 0.5 - x


@pytest.mark.parametrize("name", PAIRED)
def test_what_needs_the_score_of_the_path_raises(name):
    """`score`, `eta`, a noise rule, churn, `diffusion=` without a score head, renoised jumps: before tracing."""
    source, why = PAIRED[name]
    path, x = jf.CondOT(source=source), jnp.ones(2)
    field, jumps = jf.Field(pull, path, "velocity"), jf.FlowMap(lambda s, t, x, args: -x, path)
    ancestral = jf.FixedSteps(GRID, clock=jf.ThetaClock(), eta=jf.Ancestral(0.5))

    tree = dfx.VirtualBrownianTree(0.0, 1.0, 1e-2, (2,), KEY)

    def decode(sampler, field=field, **noise):
        return lambda: jf.decode(field, x, sampler, key=KEY, **noise)

    for call in (
        lambda: field.score(0.5, x),
        lambda: jf.Field(pull, path, "score").velocity(0.5, x),
        lambda: jf.convert(path, 0.5, x, x, "score", "data"),
        lambda: jf.matching_loss(jf.Field(pull, path, "score"), KEY, x, x0=None if name == "box" else x, t=0.5),
        decode(jf.FixedSteps(GRID, eta=1.0)),
        decode(jf.FixedSteps(GRID, eta=0.0)),
        decode(jf.FixedSteps(GRID, jf.DPMpp(2), eta=1.0)),
        decode(ancestral),
        decode(jf.AdaptiveSteps(eta=1.0, t0=0.1, t1=0.9)),
        decode(jf.FixedSteps(jf.UniformGrid(4, 0.1, 0.9), jf.EDMChurn(1.0))),
        decode(jf.FixedSteps(GRID, diffusion=lambda t: 0.5)),
        decode(jf.AdaptiveSteps(diffusion=lambda t: 0.5, t0=0.1, t1=0.9), brownian=tree),
        decode(jf.FixedSteps(GRID, jf.Jump(0.5)), jumps),
        lambda: jf.stepper(field, jf.FixedSteps(GRID, eta=1.0)),
    ):
        refuses(call, f"independent of the data, .*{why}")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRED)
def test_what_needs_no_score_holds(name):
    """Velocity, data, noise, every clock and ODE solver; a field that gives a score of its own takes `diffusion=`."""
    path, x = jf.CondOT(source=PAIRED[name][0]), jnp.array([0.3, -0.8])
    field, white = jf.Field(pull, path, "velocity"), jf.Field(pull, jf.CondOT(), "velocity")
    for kind in ("velocity", "data", "noise"):
        np.testing.assert_array_equal(getattr(field, kind)(0.5, x), getattr(white, kind)(0.5, x))
    samplers = (
        GRID,
        jf.FixedSteps(GRID, jf.DPMpp(2)),
        jf.FixedSteps(GRID, dfx.Heun(), clock=jf.RatioClock()),
        jf.AdaptiveSteps(rtol=1e-3),
    )
    run = jax.jit(lambda x: [[jf.decode(f, x, s).x for s in samplers] + [jf.encode(f, x).x] for f in (field, white)])
    for own, theirs in zip(*run(x), strict=True):
        np.testing.assert_array_equal(own, theirs)
    two = jf.Field(lambda t, x, args: (0.5 - x, -x), path, ("velocity", "score"))
    noisy = jf.FixedSteps(GRID, diffusion=lambda t: 1.0 + t)
    normals, h, truth = np.asarray(jr.normal(KEY, (4, 2))), 0.25, np.asarray(x)
    for i in range(4):
        g = 1 + i * h
        truth = truth + h * (0.5 - truth - g**2 / 2 * truth) + g * np.sqrt(h) * normals[i]
    np.testing.assert_allclose(jf.decode(two, x, noisy, brownian=jf.Recorded(jnp.asarray(normals))).x, truth, rtol=1e-5)
    np.testing.assert_array_equal(two.score(0.5, x), -x)


def test_given_pairs_ask_for_a_start_and_for_x0():
    path = jf.CondOT(source=jf.GIVEN)
    field, x = jf.Field(pull, path, "velocity"), jnp.ones(2)
    start = jf.distributions.Gaussian(jnp.zeros(2), std=0.3)
    for call in (lambda: jf.sample(field, KEY, (2,), GRID), lambda: jf.matching_loss(field, KEY, x)):
        refuses(call, "With the source GIVEN, x0 must come with the data. Got none: pass x0=")
    assert jf.sample(field, KEY, (2,), GRID, start=start).status == 0
    loss = jf.matching_loss(field, KEY, x, x0=2 * x, t=0.25)
    state = 0.75 * 2 + 0.25 * 1
    np.testing.assert_allclose(loss, (0.5 - state - (1 - 2)) ** 2, rtol=1e-6)
    refuses(lambda: jf.log_prob(field, x, GRID), "A density must be known at the noise end. Got the source Given")
    known = jf.log_prob(field, x, GRID, start=start)
    assert np.isfinite(known.log_prob)
    refuses(lambda: jf.matching_loss(jf.Field(pull, jf.CondOT(), "velocity"), KEY, x, x0=x), "source that says so")
    coupled = jf.Field(pull, jf.CondOT(source=jf.Normal(coupled=True)), "velocity")
    np.testing.assert_array_equal(jf.matching_loss(coupled, KEY, x, x0=2 * x, t=0.25), loss)


def test_a_source_of_ones_own_with_a_density():
    path, x = jf.CondOT(source=Box()), jnp.array([0.2, 0.6])
    field = jf.Field(lambda t, x, args: -x, path, "velocity")
    drawn = jf.sample(field, KEY, (2,), GRID, saveat=dfx.SaveAt(t0=True)).xs[0]
    assert (np.abs(drawn) <= 1).all()
    out = jf.log_prob(field, jnp.exp(-1.0) * x, jf.FixedSteps(jf.UniformGrid(20), dfx.Dopri5()))
    np.testing.assert_allclose(out.log_prob, -2 * np.log(2) + 2, rtol=1e-5)
    np.testing.assert_allclose(path.start_log_prob(0.5, x / 2), -2 * np.log(2) - 2 * np.log(0.5), rtol=1e-6)
    silent = jf.Field(lambda t, x, args: -x, jf.CondOT(source=Silent()), "velocity")
    refuses(lambda: jf.log_prob(silent, x, GRID), "Got the source Silent, which has none")
    assert jf.sample(silent, KEY, (2,), GRID).status == 0


def test_the_arrays_of_a_source_are_frozen():
    field = exact(coloured())
    assert not jax.tree.leaves(jf.trainable(field.path))[0] and any(jax.tree.leaves(jf.trainable(field.net.mean)))
    moved = jax.jit(lambda path, key: path.source.sample(key, jnp.zeros(3)))(coloured(), KEY)
    assert moved.shape == (3,)


def test_bad_sources_say_what_they_must_be():
    mask = jf.Args(None, mask=jnp.ones(3))
    for call, kind, fragment in [
        (lambda: jf.Normal(COV), TypeError, "map must be AbstractNoiseMap"),
        (lambda: jf.Normal(jf.ZeroCentre), TypeError, "map must be AbstractNoiseMap"),
        (lambda: jf.Coloured(np.ones(3)), ValueError, r"symmetric positive definite .* Got shape \(3,\)"),
        (lambda: jf.Coloured(np.ones((3, 2))), ValueError, r"Got shape \(3, 2\)"),
        (lambda: jf.Coloured(-np.eye(2)), ValueError, "eigenvalue that is not positive"),
        (lambda: jf.Coloured(np.ones((2, 2))), ValueError, "eigenvalue that is not positive"),
        (lambda: jf.Coloured(np.array([[1.0, 0.5], [-0.5, 1.0]])), ValueError, "one that is not symmetric"),
        (lambda: jf.Coloured(np.eye(2)).apply(jnp.ones(3)), ValueError, "as many components .* rows, 2. Got 3"),
        (
            lambda: jf.ZeroCentre().apply(jnp.ones((4, 2)), mask),
            ValueError,
            r"one entry for each of its points.* Got shape \(3,\) for an event of shape \(4, 2\)",
        ),
        (lambda: jf.CondOT(source=jf.Coloured(COV)), TypeError, "source"),
    ]:
        refuses(call, fragment, kind)
