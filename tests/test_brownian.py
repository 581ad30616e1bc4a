"""Noise on a fixed grid: its law, and what it may depend on (closed forms B1 to B7)."""

import functools as ft

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import refuses, within
from scipy import stats

import jflow as jf
from jflow._engine.count import levy_kinds
from jflow._engine.noise import step_path
from jflow._engine.solver_rule import SolverRule

KEY = jr.key(0)
STEPS = dfx.SaveAt(t0=True, steps=True)


def still(t, x, args):
    """No drift."""
    return jax.tree.map(jnp.zeros_like, x)


def unit(t, x, args):
    return 1.0


def walk(key, x0, sampler, **options):
    """A Brownian motion started at `x0`."""
    return jf.solve(still, x0, sampler, diffusion=unit, key=key, saveat=STEPS, **options)


def rule(solver):
    """The steps of a solver of an SDE."""
    return SolverRule(solver, jf.PathClock(), 1.0, None)


@ft.cache
def paths():
    """Two-dimensional Brownian motions at 0, 0.3, 0.8 and 1: (paths, times, 2)."""
    grid = jnp.array([0.0, 0.3, 0.8, 1.0])
    return np.asarray(jax.jit(jax.vmap(lambda k: walk(k, jnp.zeros(2), grid).xs))(jr.split(KEY, 100_000)))


def test_B1_the_key_decides_the_path_and_is_mandatory():
    grid = jf.UniformGrid(5)
    run = jax.jit(lambda key: walk(key, jnp.zeros(3), grid).xs)
    first = run(KEY)
    np.testing.assert_array_equal(first, run(jr.key(0)))
    assert (first[1:] != run(jr.key(1))[1:]).all()
    with pytest.raises(ValueError, match="pass key="):
        walk(None, jnp.zeros(3), grid)


def test_B2_an_increment_is_gaussian():
    z = paths()[:, 1].ravel() / np.sqrt(0.3)
    assert within(stats.kurtosis(z, fisher=False), 3, np.sqrt(24 / z.size))  # noise multiplied twice has 9
    assert within(stats.skew(z), 0, np.sqrt(6 / z.size))
    assert stats.kstest(z, "norm").pvalue > 1e-4


def test_B3_increments_have_the_length_of_the_step_as_variance():
    increments = np.diff(paths(), axis=1)
    n = len(increments)
    for i, h in enumerate((0.3, 0.5, 0.2)):
        assert within(increments[:, i].mean(0), 0, np.sqrt(h / n))
        assert within(increments[:, i].var(0), h, h * np.sqrt(2 / n))


def test_B4_covariance_is_the_earlier_time():
    w = paths()
    n = len(w)
    assert within((w[:, 1] * w[:, 2]).mean(0), 0.3, np.sqrt((0.3 * 0.8 + 0.3**2) / n))


def test_B5_disjoint_increments_and_components_are_uncorrelated():
    increments = np.diff(paths(), axis=1).reshape(len(paths()), -1)
    correlation = np.corrcoef(increments.T) - np.eye(6)
    assert within(correlation, 0, 1 / np.sqrt(len(increments)))


def test_B6_quadratic_variation():
    xs = jax.jit(lambda key: walk(key, jnp.zeros(2), jf.UniformGrid(10_000)).xs)(KEY)
    assert within((np.diff(np.asarray(xs, float), axis=0) ** 2).sum(0), 1, 0.01414)


def test_B7_a_tree_gives_one_path_at_several_step_counts():
    tree = dfx.VirtualBrownianTree(0.0, 1.0, tol=1e-3, shape=(2,), key=KEY)
    coarse, fine = (
        jax.jit(lambda n=n: walk(None, jnp.zeros(2), jf.UniformGrid(n), brownian=tree).xs)() for n in (4, 16)
    )
    np.testing.assert_allclose(coarse, fine[::4], atol=1e-4)
    assert np.abs(coarse[-1]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(jnp.zeros(2), id="d2"),
        pytest.param(jnp.zeros(40), id="d40"),
        pytest.param({"a": jnp.zeros(2), "b": jnp.zeros((2, 2))}, id="tree", marks=pytest.mark.slow),
    ],
)
def test_noise_of_a_step_depends_on_its_index_alone(shape):
    """Not on the number of steps, and under vmap not on the batch: bit for bit."""
    short, long = (jnp.arange(n + 1.0) for n in (7, 45))  # steps of length one: the state is the sum of the normals
    keys = jr.split(KEY, 5)
    run = jax.jit(lambda k: walk(k, shape, long).xs)
    few, many = jax.jit(lambda k: walk(k, shape, short).xs)(KEY), run(KEY)
    alone, batch = run(keys[3]), jax.jit(jax.vmap(lambda k: walk(k, shape, long).xs))(keys)
    for a, b, c, d in zip(*map(jax.tree.leaves, (few, many, alone, batch)), strict=True):
        np.testing.assert_array_equal(a, b[: len(a)])
        np.testing.assert_array_equal(c, d[3])


def test_steps_and_leaves_never_share_a_normal():
    shape = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    normals = [rule(dfx.SPaRK()).draw(jr.fold_in(KEY, block), 20, shape) for block in range(3)]
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(normals)])
    assert len(np.unique(values)) == len(values)


@pytest.mark.parametrize(("size", "block"), [(1, 20), (2, 20), (3, 20), (4, 16), (32, 2), (64, 1), (3072, 1)])
def test_block_length_is_a_fixed_function_of_the_size(size, block):
    assert rule(dfx.Euler()).block(jnp.zeros(size)) == block


def test_levy_areas_have_their_variances():
    kinds = {dfx.Euler(): 1, dfx.Heun(): 1, dfx.SEA(): 2, dfx.SRA1(): 2, dfx.ShARK(): 2, dfx.SPaRK(): 2}
    assert {solver: levy_kinds(solver) for solver in kinds} == kinds
    h, n = 0.3, 20_000

    def areas(key):
        normals = tuple(jr.normal(k, (1,)) for k in jr.split(key, 3))
        path = step_path(0.2, 0.2 + h, jnp.asarray(h), normals)
        levy = path.evaluate(path.t0, path.t1, use_levy=True)
        return jnp.concatenate([levy.W, levy.H, levy.K]), levy.dt, path.evaluate(path.t0, path.t1)

    values, dt, w = jax.jit(jax.vmap(areas))(jr.split(KEY, n))
    np.testing.assert_allclose(dt, h, rtol=1e-6)
    np.testing.assert_allclose(w[:, 0], values[:, 0], rtol=1e-6)  # but for the rounding of one program
    variances = np.array([h, h / 12, h / 720])
    assert within(values.var(0), variances, variances * np.sqrt(2 / n))
    assert within(np.corrcoef(values.T) - np.eye(3), 0, 1 / np.sqrt(n))


def test_recorded_noise_is_used_as_it_is():
    normals, times = jr.normal(KEY, (4, 3)), jnp.array([0.0, 0.1, 0.4, 0.5, 1.0])
    xs = walk(None, jnp.ones(3), times, brownian=jf.Recorded(normals)).xs
    expected = 1 + np.cumsum(np.sqrt(np.diff(times))[:, None] * np.asarray(normals), axis=0)
    np.testing.assert_allclose(xs[1:], expected, rtol=1e-5, atol=1e-6)
    tree = {"a": normals, "b": normals[:, :1]}
    out = walk(None, {"a": jnp.ones(3), "b": jnp.ones(1)}, times, brownian=jf.Recorded(tree)).x
    np.testing.assert_allclose(out["b"], expected[-1, :1], rtol=1e-5)


@pytest.mark.slow
def test_noise_is_cast_to_the_type_of_the_state(x64):
    normals, tree = jr.normal(KEY, (4, 3)), dfx.VirtualBrownianTree(0.0, 1.0, tol=1e-3, shape=(3,), key=KEY)
    for noise, total in ((jf.Recorded(normals), normals.sum(0) / 2), (tree, tree.evaluate(0.0, 1.0))):
        x = walk(None, jnp.zeros(3, jnp.float32), jf.UniformGrid(4), brownian=noise).xs[-1]
        assert total.dtype == jnp.float64 and x.dtype == jnp.float32
        np.testing.assert_allclose(x, total, rtol=1e-5)


ENDS = [(jf.ThetaClock(), jf.CondOT(), 0.0), (jf.RatioClock(), jf.Cosine(), 0.001), (jf.AngleClock(), jf.VP(), 0.001)]


@pytest.mark.slow
@pytest.mark.parametrize(("clock", "path", "start"), ENDS, ids=["theta", "ratio", "angle"])
def test_a_tree_on_the_noise_times_of_the_ends_is_known_at_every_step(clock, path, start):
    """On a grid and adaptively, though these times are computed again from those of the clock, which rounds them.

    An adaptive SDE starts where alpha > 0 in `ThetaClock`.
    """
    field = jf.distributions.Gaussian(jnp.zeros(2), std=1.0).field(path)

    @jax.jit
    def run(stop, s0, s1):
        tree = dfx.VirtualBrownianTree(s0, s1, tol=0.1, shape=(2,), key=KEY)
        noise = {"eta": 1.0, "clock": clock}
        steps = jf.AdaptiveSteps(dfx.Heun(), dfx.PIDController(0.1, 0.1), t0=max(start, 1e-3), t1=stop, **noise)
        adaptive = jf.decode(field, jnp.ones(2), steps, brownian=tree)
        grid = start + (stop - start) * jnp.linspace(0.0, 1.0, 5)
        fixed = jf.FixedSteps(grid.at[-1].set(stop), end="stop", **noise)
        return adaptive.status, jf.decode(field, jnp.ones(2), fixed, brownian=tree).status

    for stop in (0.6, 0.81, 0.9, 0.95):
        stop = jnp.asarray(stop)
        assert run(stop, clock.noise_time(path, jnp.asarray(start), 1.0), clock.noise_time(path, stop, 1.0)) == (0, 0)


@pytest.mark.slow
def test_dyadic_noise_is_one_path_on_finer_and_finer_grids():
    """Two steps of `2 n` add up to the step of `n`, in every leaf; test_sde_family.py has its law."""
    shape = {"a": jax.ShapeDtypeStruct((3,), jnp.float32), "b": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    coarse, fine = (jf.dyadic_noise(KEY, n, shape).normals for n in (8, 16))
    for a, b in zip(*map(jax.tree.leaves, (coarse, fine)), strict=True):
        np.testing.assert_allclose((b[::2] + b[1::2]) / np.sqrt(2), a, atol=1e-6)
    assert (jf.dyadic_noise(KEY, 1, (3,)).normals[0] != jr.normal(KEY, (3,))).all()  # a stream of its own


@pytest.mark.parametrize(
    ("n", "message"), [(0, "n must be an integer"), (6, "a power of two"), (2.0, "must be an integer")]
)
def test_dyadic_noise_halves_its_steps(n, message):
    refuses(lambda: jf.dyadic_noise(KEY, n, (3,)), message)


@pytest.mark.slow
def test_bad_noise_raises_with_a_reason():
    grid, x0 = jf.UniformGrid(4), jnp.zeros(3)
    cases = [
        (lambda: walk(jr.PRNGKey(0), x0, grid), "typed key"),
        (lambda: walk(jr.split(KEY), x0, grid), "vmap over them"),
        (lambda: walk(jr.key(0, impl="rbg"), x0, grid), "rbg"),
        (lambda: walk(jr.key(0, impl="unsafe_rbg"), x0, grid), "rbg"),
        (lambda: walk(None, x0, grid, brownian=jf.Recorded(jnp.zeros((3, 3)))), "one normal event for each step: 4"),
        (lambda: walk(None, x0, grid, brownian=jf.Recorded(jnp.zeros((4, 1)))), "shape"),
        (lambda: walk(None, x0, grid, brownian=jf.Recorded(jnp.zeros((4, 2)))), "shape"),
        (lambda: walk(None, x0, grid, brownian=jf.Recorded({"a": jnp.zeros((4, 3))})), "structure"),
        (lambda: walk(None, x0, jf.FixedSteps(grid, dfx.SEA()), brownian=jf.Recorded(jnp.zeros((4, 3)))), "Lévy"),
        (lambda: walk(KEY, x0, jf.FixedSteps(grid, dfx.HalfSolver(dfx.Euler()))), "brownian_tree"),
        (
            lambda: jf.solve(still, x0, jf.AdaptiveSteps(), diffusion=unit, brownian=jf.Recorded(jnp.zeros((4, 3)))),
            "fixed grid",
        ),
        (lambda: jf.solve(still, x0, jf.AdaptiveSteps(), diffusion=unit, key=KEY), "brownian_tree"),
    ]
    for call, fragment in cases:
        refuses(call, fragment)
