"""Properties of the public surface: a right answer, or an error in words.

Examples are drawn by hypothesis with a fixed seed, few of them here and more in the slow tier. The calls with one bad
argument run in a process of their own, without run-time type checking, as a user's do.
"""

import os
import subprocess
import sys
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

import jflow as jf

FEW = settings(max_examples=6, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=60)
SHAPES = [(), (1,), (2,), (2, 3), (1, 1, 1)]
EMPTY = [(0,), (2, 0)]
DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32]
KEYS = [jr.key(0), jr.key(0, impl="rbg"), jr.key(0, impl="unsafe_rbg"), jr.PRNGKey(0), jr.split(jr.key(0), 2), 0, None]
PATHS = [jf.CondOT(), jf.Cosine(), jf.LinearVP(), jf.VP(), jf.VE(0.05, 20.0)]
GRIDS = [
    jf.UniformGrid(3), jf.UniformGrid(3, 0.1, 0.9), jf.CosineGrid(3), jf.RatioGrid(3), jf.EasedGrid(3),
    jf.KarrasGrid(3, 0.1, 5.0), jf.LogSNRGrid(3, -4.0, 4.0), jf.ShiftedGrid(jf.UniformGrid(3, 0.1, 0.9), 2.0),
    np.linspace(0.0, 1.0, 4), np.array([0.1, 0.4, 0.8]), [0.0, 0.5, 1.0], np.array([0.2, 0.2, 0.9]), np.zeros(0),
]  # fmt: skip


class Net(eqx.Module):
    """A network of any event."""

    weight: jax.Array

    def __call__(self, t, x, args):
        return jtu.tree_map(lambda leaf: (self.weight * leaf).astype(leaf.dtype), x)


@st.composite
def events(draw):
    """An event, an array or a pytree, of a type that may be narrow, wide or an integer's."""

    def one():
        shape, dtype = draw(st.sampled_from(SHAPES + EMPTY)), draw(st.sampled_from([*DTYPES, jnp.int32]))
        return jnp.full(shape, 0.5, dtype) if dtype != jnp.int32 else jnp.ones(shape, dtype)

    return {"a": one(), "b": one()} if draw(st.booleans()) else one()


def field(path):
    return jf.Field(Net(jnp.asarray(-0.5)), path, "data")


def allowed(call):
    """What a call gives, `None` for an error in words."""
    try:
        return call()
    except TypeCheckError:  # raised by the types that tests check at run time, before jflow's own words
        return None
    except (ValueError, TypeError) as error:
        assert "must" in str(error), error
        return None


def right(solution, like, dtype=None):
    """A solution is finite with status 0, of the event's shape and of type float32, wider, or that asked for."""
    assert solution.status == 0
    assert jtu.tree_structure(solution.x) == jtu.tree_structure(like)
    for leaf, given_leaf in zip(jtu.tree_leaves(solution.x), jtu.tree_leaves(like), strict=True):
        assert leaf.shape == given_leaf.shape and bool(jnp.isfinite(leaf).all())
        assert leaf.dtype == (jnp.float32 if dtype is None else dtype)


def fair(event):
    """Whether every leaf is floating and the event has components."""
    leaves = jtu.tree_leaves(event)
    return sum(leaf.size for leaf in leaves) > 0 and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


def verbs(event, path, grid, dtype):
    known = field(path)
    shapes = jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), event)
    drawn = allowed(lambda: jf.sample(known, jr.key(0), shapes, grid, dtype=dtype))
    carried = allowed(lambda: jf.decode(known, event, grid, dtype=dtype))
    for solution in (drawn, carried):
        assert fair(event) or solution is None
        if solution is not None:
            right(solution, event, dtype)
            times = jf.FixedSteps(grid).times
            times = times if isinstance(times, jax.Array) else times.times(path)
            assert solution.t == times[-1].astype(solution.t.dtype)
    return drawn, carried


DRAWN = given(events(), st.sampled_from(PATHS), st.sampled_from(GRIDS), st.sampled_from([None, jnp.float16]))


@pytest.mark.slow
@MANY
@DRAWN
def test_sampling_gives_a_finite_event_or_an_error_in_words(event, path, grid, dtype):
    verbs(event, path, grid, dtype)


@pytest.mark.slow
def test_most_of_what_is_drawn_has_an_answer():
    """The properties above hold for a call that always raises, so this one counts what does not."""
    answered = [allowed(lambda g=g: jf.sample(field(jf.CondOT()), jr.key(0), (2,), g)) for g in GRIDS]
    assert [i for i, solution in enumerate(answered) if solution is None] == [11, 12]


@FEW
@given(events(), st.sampled_from(PATHS[:3]))
def test_losses_are_finite_scalars_or_errors_in_words(event, path):
    loss = allowed(lambda: jf.matching_loss(field(path), jr.key(0), event))
    assert fair(event) == (loss is not None)
    assert loss is None or (loss.shape == () and bool(jnp.isfinite(loss)))


@FEW
@given(st.sampled_from(SHAPES), st.floats(0.1, 2.0))
def test_a_density_is_that_of_the_exact_flow(shape, std):
    """A field that predicts zero data carries N(0, I) to a Gaussian with the standard deviation sigma(t1)."""
    x = jnp.full(shape, 0.1 * std)
    known = jf.Field(Net(jnp.asarray(0.0)), jf.CondOT(), "data")
    grid = jf.FixedSteps(jf.UniformGrid(40, 0.0, 0.5), dfx.Heun())
    solution = jf.log_prob(known, x, grid)
    exact = jnp.sum(jax.scipy.stats.norm.logpdf(x, scale=0.5))
    assert solution.status == 0 and jnp.allclose(solution.log_prob, exact, atol=1e-2 * max(x.size, 1))


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS, ids=lambda key: str(getattr(key, "dtype", key)) + str(np.shape(key)))
def test_a_key_of_every_implementation_draws_or_raises_in_words(key):
    typed = key is KEYS[0] or key is KEYS[1] or key is KEYS[2]
    assert (allowed(lambda: jf.sample(field(PATHS[0]), key, (2,), jf.UniformGrid(2))) is not None) == (key is KEYS[0])
    assert (allowed(lambda: jf.matching_loss(field(PATHS[0]), key, jnp.ones(2))) is not None) == typed
    assert (allowed(lambda: jf.data.moons(key, 2)) is not None) == typed


@FEW
@given(st.integers(-1, 5), st.integers(-1, 3), st.sampled_from([*SHAPES, *EMPTY]))
def test_many_samples_are_as_many_as_asked_for(n, batch_size, shape):
    solution = allowed(
        lambda: jf.generate(
            field(jf.CondOT()), jr.key(0), n, shape, jf.UniformGrid(2), batch_size=batch_size, progress=False
        )
    )
    assert (solution is None) == (n < 1 or batch_size < 1 or 0 in shape)
    assert solution is None or (solution.x.shape == (n, *shape) and np.isfinite(solution.x).all())


@FEW
@given(st.integers(0, 4), st.integers(1, 3), st.floats(-0.5, 1.5))
def test_training_moves_or_raises_in_words(rows, width, ema):
    known = jf.Field(Net(jnp.asarray(0.3)), jf.CondOT(), "velocity")
    state = allowed(lambda: jf.train.init(known, optax.sgd(0.1), ema=ema))
    assert (state is None) == (not 0 <= ema < 1)
    if state is not None:
        batch = jnp.ones((rows, width))
        out = allowed(lambda: jf.train.step(state, lambda f, k, x: jf.matching_loss(f, k, x), jr.key(0), batch))
        assert (out is None) == (rows == 0)
        assert out is None or (bool(out[1].finite) and bool(jnp.isfinite(out[1].loss)))


FINITE = st.floats(allow_nan=True, allow_infinity=True, width=32)
NOUNS = {
    "VP": (jf.VP, lambda a, b: a > 0 and b > 0),
    "VE": (jf.VE, lambda a, b: 0 < a < b),
    "Uniform": (jf.laws.Uniform, lambda a, b: 0 <= a < b <= 1),
    "LogitNormal": (jf.laws.LogitNormal, lambda a, b: b > 0),
    "LogSNRGrid": (lambda a, b: jf.LogSNRGrid(3, a, b), lambda a, b: a < b),
    "UniformGrid": (lambda a, b: jf.UniformGrid(3, a, b), lambda a, b: a != b),
}


@pytest.mark.parametrize("name", NOUNS)
@settings(MANY, max_examples=40)
@given(a=FINITE, b=FINITE)
def test_a_noun_takes_the_numbers_that_its_rule_names(name, a, b):
    make, rule = NOUNS[name]
    made = allowed(lambda: make(a, b))
    if not (np.isfinite(a) and np.isfinite(b)):
        assert made is None
    elif name not in ("VP", "VE"):  # whose rules name more than the order
        assert (made is not None) == rule(a, b)
    else:
        assert rule(a, b) or made is None


@FEW
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=5), st.floats(-2, 2, width=32))
def test_metrics_see_a_shift(points, shift):
    x = np.asarray(points)
    assert jf.metrics.wasserstein_1d(x, x + shift, 1) == pytest.approx(abs(shift), abs=1e-6)
    assert jf.metrics.energy_distance(x, x) == pytest.approx(0, abs=1e-9)


def answers(calls: int, seed: int) -> list[list[str]]:
    """The outcomes of that many calls with one bad argument: outcome, callable, argument, kind of value, message."""
    script = Path(__file__).parent / "bad_arguments.py"
    env = os.environ | {"PYTHONPATH": str(script.parents[1]), "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, str(script), str(calls), str(seed)], env=env, capture_output=True, text=True, check=True
    )
    lines = [line.split("\t") for line in out.stdout.splitlines()]
    assert len(lines) == calls, out.stderr[-2000:]
    return lines


@pytest.mark.slow
def test_bad_arguments_are_answered_in_words():
    calls = 1600
    lines = answers(calls, seed=1)
    assert not [line for line in lines if line[0] == "nan"]
    raw = [line[1:] for line in lines if line[0] in ("raw", "own")]
    assert len(raw) <= 0.01 * calls, raw
