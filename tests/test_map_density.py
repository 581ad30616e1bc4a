"""The density of what jumps sample: exact where the maps are injective, marked where they fold."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.stats import norm
from references import refuses
from test_few_step import WORLD, exact

import jflow as jf
from jflow import few_step as fs

GRIDS = {1: [0.0, 1.0], 2: [0.0, 0.2, 1.0], 4: [0.0, 0.1, 0.3, 0.8, 1.0]}


def jumps(grid):
    return jf.FixedSteps(grid, jf.Jump())


@pytest.mark.slow
@pytest.mark.parametrize("k", GRIDS)
def test_the_density_of_a_gaussian_is_exact(x64, k):
    """Of samples and of points, with the evaluations that each one needs alone."""
    flow_map, sampler = exact(), jumps(GRIDS[k])

    def of_draw(key):
        return jf.sample(flow_map, key, jax.ShapeDtypeStruct((2,), jnp.float64), sampler, log_prob=True)

    def of_point(x):
        return jf.log_prob(flow_map, x, sampler)

    drawn = jax.jit(jax.vmap(of_draw))(jr.split(jr.key(0), 8))
    found = jax.jit(jax.vmap(of_point))(drawn.x)
    for sol in (drawn, found):
        np.testing.assert_allclose(sol.log_prob, jax.vmap(WORLD.log_prob)(drawn.x), atol=1e-10)
        assert (sol.status == 0).all() and (sol.t == (1.0 if sol is drawn else 0.0)).all()
        assert sol.log_prob_se is None
    assert (drawn.nfe == k).all()
    # a search of an affine map takes three evaluations, a second preimage is sought, and its determinant costs one
    assert ((found.nfe >= 5 * k) & (found.nfe <= 29 * k)).all()
    alone = jax.jit(of_point)(drawn.x[3])
    np.testing.assert_allclose(alone.log_prob, found.log_prob[3], rtol=1e-12)
    assert alone.nfe == found.nfe[3]


class Sheet(eqx.Module):
    """One jump folds the first component, `x + a sin(2 x)/2` with the derivative `1 + a cos(2 x)`."""

    a: float = eqx.field(static=True)

    def __call__(self, s, t, x, args):
        return jnp.stack([self.a * jnp.sin(2 * x[0]) / 2, jnp.cos(x[0])]) * (1 + 0 * s * t)


@pytest.mark.slow
def test_a_fold_is_a_status_of_its_sample_alone(x64):
    """Points with more than one preimage, counted on a grid, have status 4; the others their exact density."""
    a = 1.6
    flow_map, sampler = jf.FlowMap(Sheet(a), jf.CondOT()), jumps(GRIDS[1])
    first = np.linspace(-4, 4, 81) + 0.013
    fine = np.linspace(-8, 8, 400_001)
    image = fine + a * np.sin(2 * fine) / 2
    preimages = ((image[None, :-1] - first[:, None]) * (image[None, 1:] - first[:, None]) < 0).sum(1)
    points = jnp.stack([jnp.asarray(first), jnp.zeros(81)], axis=1)
    sol = jax.jit(jax.vmap(lambda x: jf.log_prob(flow_map, x, sampler)))(points)
    assert set(preimages) == {1, 3}
    np.testing.assert_array_equal(sol.status, np.where(preimages == 1, 0, 4))
    assert np.isfinite(sol.log_prob).all()
    for i in np.flatnonzero(preimages == 1):
        x0 = fine[np.argmin(np.abs(image - first[i]))]
        truth = norm.logpdf(x0) + norm.logpdf(np.cos(x0)) - np.log(abs(1 + a * np.cos(2 * x0)))
        np.testing.assert_allclose(sol.log_prob[i], truth, atol=2e-3)  # by the grid's width

    draws = jax.jit(jax.vmap(lambda k: jf.sample(flow_map, k, (2,), sampler, log_prob=True)))(jr.split(jr.key(0), 4000))
    edge = np.arccos(-1 / a) / 2
    mass = sum(norm.cdf(m * np.pi - edge) - norm.cdf((m - 1) * np.pi + edge) for m in range(-3, 5))
    folded = np.asarray(draws.status == 4)
    assert set(np.unique(draws.status)) == {0, 4}
    assert abs(folded.mean() - mass) < 4 * math.sqrt(mass * (1 - mass) / 4000)


def narrow(key, d=2, width=16, slope=2.5):
    """A network whose Lipschitz constant is `slope`: a jump of length below `1/slope` is injective."""
    keys = jr.split(key, 3)
    inside, outside = jr.normal(keys[0], (width, d)), jr.normal(keys[1], (d, width))
    outside = slope * outside / jnp.linalg.norm(outside, 2) / jnp.linalg.norm(inside, 2)
    phase = jr.normal(keys[2], (width,))
    return jf.FlowMap(lambda s, t, x, args: outside @ jnp.tanh(inside @ x + phase + s - t), jf.CondOT())


UNEVEN = [0.0, 0.2, 0.3, 0.65, 1.0]


@pytest.mark.slow
def test_a_density_of_four_jumps_integrates_to_one_and_is_that_of_its_draws():
    """On a grid; and the mean over draws of log p is that of the logarithm of their histogram."""
    flow_map, sampler = narrow(jr.key(5)), jumps(UNEVEN)
    side = jnp.linspace(-6, 6, 101)
    points = jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)
    sol = jax.jit(jax.vmap(lambda x: jf.log_prob(flow_map, x, sampler)))(points)
    assert (sol.status == 0).all()
    assert abs(float(jnp.exp(sol.log_prob).sum()) * 0.12**2 - 1) < 0.01

    draws = jax.jit(jax.vmap(lambda k: jf.sample(flow_map, k, (2,), sampler, log_prob=True)))(
        jr.split(jr.key(1), 400_000)
    )
    assert (draws.status == 0).all() and (draws.nfe == 4).all()
    counts, *_ = np.histogram2d(*np.asarray(draws.x).T, bins=100, range=[[-6, 6], [-6, 6]])
    share = counts[counts > 0] / counts.sum()
    estimate = (share * np.log(share / 0.12**2)).sum()
    assert abs(float(draws.log_prob.mean()) - estimate) < 0.05

    again = jax.jit(jax.vmap(lambda x: jf.log_prob(flow_map, x, sampler)))(draws.x[:64])
    np.testing.assert_allclose(again.log_prob, draws.log_prob[:64], atol=1e-4)


@pytest.mark.slow
def test_jumps_are_inverted_and_their_density_has_a_gradient(x64):
    flow_map, sampler, x = narrow(jr.key(2)), jumps(UNEVEN), jnp.array([0.4, -1.2])
    back = jf.encode(flow_map, x, sampler)
    assert back.status == 0 and 4 * 3 <= back.nfe <= 4 * 12
    np.testing.assert_allclose(jf.decode(flow_map, back.x, sampler).x, x, atol=1e-12)
    steps = jf.stepper(flow_map, sampler)
    after, _ = steps.step(steps.row(2), x, None)
    np.testing.assert_allclose(steps.inverse(steps.row(2), after), x, atol=1e-12)

    @jax.jit
    def value(x, scale):
        moved = jf.FlowMap(lambda s, t, x, args: args * flow_map.net(s, t, x, None), jf.CondOT())
        return jf.log_prob(moved, x, sampler, args=scale).log_prob

    slopes, h = jax.grad(value, (0, 1))(x, 0.8), 1e-5
    along = jnp.array([0.6, 0.8])
    finite = (value(x + h * along, 0.8) - value(x - h * along, 0.8)) / (2 * h)
    np.testing.assert_allclose(slopes[0] @ along, finite, rtol=1e-6)
    np.testing.assert_allclose(slopes[1], (value(x, 0.8 + h) - value(x, 0.8 - h)) / (2 * h), rtol=1e-6)


@pytest.mark.slow
def test_an_estimate_is_unbiased_and_its_standard_error_is_honest():
    """Of two affine jumps of 40 components, `x + h A x`: 400 trials of four probes."""
    matrix = 0.9 * jr.normal(jr.key(0), (40, 40)) / math.sqrt(40)
    flow_map = jf.FlowMap(lambda s, t, x, args: (1 + 0 * s * t) * (matrix @ x), jf.CondOT())
    x0, grid = jr.normal(jr.key(1), (40,)), [0.0, 0.4, 1.0]

    @jax.jit
    @jax.vmap
    def trials(key):
        out = jf.decode(flow_map, x0, jumps(grid), log_prob=True, divergence=jf.Hutchinson(4), key=key)
        return out.log_prob, out.log_prob_se, out.nfe

    values, errors, nfe = trials(jr.split(jr.key(2), 400))
    wide = np.asarray(matrix, float)
    dets = [np.linalg.slogdet(np.eye(40) + h * wide)[1] for h in (0.4, 0.6)]
    truth = float(norm.logpdf(x0).sum()) - sum(dets)
    assert abs(values.mean() - truth) < 4 * values.std() / 20
    assert 0.91 < np.mean(np.abs(values - truth) <= 3.18 * errors) < 0.99
    assert (nfe == 2).all()
    exactly = jf.decode(flow_map, x0, jumps(grid), log_prob=True).log_prob
    np.testing.assert_allclose(exactly, truth, atol=1e-4)
    point = jf.decode(flow_map, x0, jumps(grid)).x
    back = jf.log_prob(flow_map, point, jumps(grid), divergence=jf.Hutchinson(4), key=jr.key(4))
    assert abs(back.log_prob - truth) < 4 * values.std() and back.status == 0 and back.nfe < 12


@pytest.mark.slow
def test_an_estimate_has_a_gradient(x64):
    matrix, x0 = jr.normal(jr.key(0), (6, 6)) / 4, jr.normal(jr.key(1), (6,))
    flow_map = jf.FlowMap(lambda s, t, x, args: jnp.tanh(args * matrix @ x) * (1 + s * t), jf.CondOT())

    @jax.jit
    def value(scale):
        estimate = {"divergence": jf.Hutchinson(2), "key": jr.key(2)}
        return jf.decode(flow_map, x0, jumps([0.0, 0.4, 1.0]), args=scale, log_prob=True, **estimate).log_prob

    slope, h = jax.grad(value)(0.7), 1e-5
    np.testing.assert_allclose(slope, (value(0.7 + h) - value(0.7 - h)) / (2 * h), rtol=1e-6)


@pytest.mark.slow
def test_a_large_event_is_inverted_without_its_matrix():
    """200 components: more than the size up to which a system is solved by its matrix."""
    matrix = jr.normal(jr.key(0), (200, 200)) / math.sqrt(200)
    flow_map = jf.FlowMap(lambda s, t, x, args: jnp.tanh(matrix @ x) * (1 + s * t), jf.CondOT())
    x, sampler = jr.normal(jr.key(1), (200,)), jumps([0.0, 0.4, 1.0])
    back = jf.encode(flow_map, x, sampler)
    assert back.status == 0 and back.nfe < 40
    np.testing.assert_allclose(jf.decode(flow_map, back.x, sampler).x, x, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["velocity", "data"])
def test_the_determinant_is_that_within_the_space_of_the_source(predicts):
    """Clouds with their centre at zero: a jump scales by `c`, on the space of `(5 - 1) 2` dimensions."""
    path = jf.CondOT(source=jf.Normal(jf.ZeroCentre()))
    flow_map = jf.FlowMap(lambda s, t, x, args: -0.6 * x * (1 + 0 * s * t), path, predicts)
    c = 1 - 0.5 * 0.6 if predicts == "velocity" else 0.5 * -0.6 + 0.5  # x + u/2; (data + noise)/2 with x the noise
    x = path.source.sample(jr.key(0), jnp.zeros((5, 2)))
    sol = jf.log_prob(flow_map, x, jumps([0.0, 0.5]))
    np.testing.assert_allclose(sol.log_prob, path.source.log_prob(x / c) - 8 * np.log(c), atol=1e-4)
    assert sol.status == 0


@pytest.mark.slow
def test_any_rule_that_says_so_is_a_map(x64):
    """Euler's steps of a linear field: the density of what three of them sample, not that of the ODE."""

    class Euler(jf.AbstractStepRule):
        is_map = True

        def step(self, field, row, x, state, noise, args):
            return jax.tree.map(lambda a, v: a + (row.t1 - row.t0) * v, x, field.velocity(row.t0, x, args)), state

    field, grid = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT()), np.array([0.0, 0.3, 0.5, 1.0])
    sol = jf.log_prob(field, jnp.array([0.4, -0.3]), jf.FixedSteps(grid, Euler()))
    s, h = grid[:-1], np.diff(grid)
    factor = np.prod(1 + h * (0.25 * s - (1 - s)) / (0.25 * s**2 + (1 - s) ** 2))
    np.testing.assert_allclose(sol.log_prob, norm.logpdf(np.array([0.4, -0.3]), scale=abs(factor)).sum(), atol=1e-9)
    assert sol.nfe > 9


class Turned(fs.AbstractPairLaw):
    """A law whose times are in the wrong order."""

    diagonal = 0.5

    def sample(self, key, path=None):
        t = jr.uniform(key)
        return fs.Pair(jnp.ones(()), t, jnp.zeros((), bool))


def test_bad_maps_say_the_rule():
    x, key = jnp.ones(2), jr.key(0)
    good = jf.FlowMap(lambda s, t, x, args: s * t * x, jf.CondOT())
    broken = jf.FlowMap(lambda s, t, x, args: jnp.sqrt(s - 2) * t * x, jf.CondOT())
    with pytest.raises(ValueError, match=r"A jump must be forward, s <= t. Got 0.75 to 0.25: jflow.encode"):
        good.jump(0.75, 0.25, x)
    refuses(lambda: jf.decode(good, x, jumps([1.0, 0.5])), "must increase from noise.*Got decreasing")
    refuses(lambda: jf.log_prob(good, x, jf.FixedSteps([0.0, 1.0], jf.Jump(0.5))), r"step that is a map.*Jump\(renoise")
    refuses(lambda: jf.encode(good, x, jf.FixedSteps([0.0, 1.0], jf.Jump(), end="denoise")), "Got end='denoise'")
    refuses(lambda: jf.sample(good, key, (2,), jf.FixedSteps([0.0, 1.0], jf.Jump(0.5)), log_prob=True), "which draws")
    moved = jf.change_path(good, jf.Cosine())
    with pytest.raises(TypeError, match=r"Jump\(\) must have a flow map.*which has one time"):
        jf.decode(moved, x, jumps([0.0, 1.0]))
    refuses(lambda: fs.flow_map_loss(good, key, x, law=Turned()), "must give s <= t. Got s = 1 and t = 0")
    refuses(lambda: jax.jit(lambda k: fs.flow_map_loss(good, k, x, law=Turned()))(key), "must give s <= t")
    refuses(lambda: fs.flow_map_loss(broken, key, x), "must be finite. Got another at s = 0")
    refuses(
        lambda: jf.testing.diagnose(broken, key, (2,), (0.0, 0.5, 1.0), n=2), "finite. Got others from t = 0 to 0.5"
    )
