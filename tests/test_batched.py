"""A function of one example over many: one program, what it closes over in its arguments, devices."""

import io

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flax import nnx
from references import gaussian, refuses

import jflow as jf
from jflow import _batched

ROWS = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)


class Scaled(eqx.Module):
    """A module as a function."""

    weight: jax.Array

    def __call__(self, x):
        return self.weight * x.sum()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_it_is_the_function_of_each_row(batch_size):
    field = gaussian(jf.CondOT())
    got = jf.batched(lambda x: jf.encode(field, x, jf.UniformGrid(4)).x, ROWS, batch_size=batch_size)
    assert isinstance(got, np.ndarray) and got.dtype == np.float32
    np.testing.assert_allclose(got, [jf.encode(field, x, jf.UniformGrid(4)).x for x in ROWS], rtol=1e-5)


def test_many_mapped_pytrees_and_results():
    """Arrays of numpy and of jax, in containers, of other types, with nothing in places; keys are arrays too."""
    keys, labels = jr.split(jr.key(0), 7), jnp.arange(7)
    tree = {"a": ROWS, "b": (labels, None)}

    def one(tree, flag, key):
        return {
            "sum": tree["a"].sum() + jnp.where(flag, 1, 0),
            "label": tree["b"][0],
            "noise": jr.normal(key, (3,)),
            "number": 2.5,
            "none": None,
        }

    flags = labels % 2 == 0
    got = jf.batched(one, tree, flags, keys, batch_size=3)
    np.testing.assert_allclose(got["sum"], ROWS.sum(1) + np.asarray(flags), rtol=1e-6)
    np.testing.assert_array_equal(got["label"], labels)
    np.testing.assert_array_equal(got["noise"], jax.vmap(lambda key: jr.normal(key, (3,)))(keys))
    np.testing.assert_array_equal(got["number"], np.full(7, 2.5))
    assert got["none"] is None and got["label"].dtype == labels.dtype


def test_samples_with_their_density_are_those_of_each_key():
    field = gaussian(jf.CondOT())
    keys = jr.split(jr.key(1), 5)

    def one(key):
        return jf.sample(field, key, (2,), jf.UniformGrid(4), log_prob=True)

    got = jf.batched(one, keys, batch_size=2)
    for i in (0, 4):
        alone = one(keys[i])
        np.testing.assert_allclose(got.x[i], alone.x, rtol=1e-5)
        np.testing.assert_allclose(got.log_prob[i], alone.log_prob, rtol=1e-4)
    assert got.status.shape == (5,) and got.xs is None


def test_what_a_function_closes_over_is_an_argument_of_the_program(monkeypatch):
    """A network of 40,000 numbers is not in the text of the program; it is in what the program is given."""
    prepared, table = [], jr.uniform(jr.key(0), (20_000, 2))
    own = _batched.prepare

    def spy(*args):
        prepared.append(own(*args))
        return prepared[-1]

    monkeypatch.setattr(_batched, "prepare", spy)
    got = jf.batched(lambda x: (table @ x).sum(), ROWS, batch_size=7)
    np.testing.assert_allclose(got, (np.asarray(table).sum(0) * ROWS).sum(1), rtol=1e-4)
    ((program, given),) = prepared
    arrays = [leaf for leaf in jax.tree.leaves(given) if isinstance(leaf, jax.Array)]
    assert any(leaf.shape == table.shape for leaf in arrays)
    text = program.lower(*given, (jnp.arange(7), (ROWS,))).as_text()
    assert len(text) < 20_000 and "tensor<20000x2xf32>" in text


def test_modules_of_equinox_and_flax_are_functions_too():
    np.testing.assert_allclose(jf.batched(Scaled(jnp.asarray(2.0)), ROWS, batch_size=2), 2 * ROWS.sum(1), rtol=1e-5)
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jf.batched(linear, ROWS, batch_size=3), linear(jnp.asarray(ROWS)), rtol=1e-5)
    bound = jf.batched(gaussian(jf.CondOT()).data, np.full(7, 0.5, np.float32), ROWS, batch_size=3)
    assert bound.shape == (7, 2)


@pytest.mark.parametrize("make", [lambda s: Scaled(s), lambda s: lambda x: s * x.sum()], ids=["module", "closure"])
def test_a_mesh_changes_nothing(make):
    mesh = jax.make_mesh((8,), ("data",))
    fn = make(jnp.asarray(1.5))
    alone = jf.batched(fn, ROWS, batch_size=7)
    for size in (8, 16, 1024):
        np.testing.assert_array_equal(jf.batched(fn, ROWS, batch_size=size, mesh=mesh), alone)
    many = np.arange(40, dtype=np.float32).reshape(20, 2)
    spread = jf.batched(fn, many, batch_size=8, mesh=jax.make_mesh((4, 2), ("data", "model")))
    np.testing.assert_array_equal(spread, jf.batched(fn, many, batch_size=20))


def test_a_mesh_takes_keys_and_likelihoods():
    mesh, field = jax.make_mesh((8,), ("data",)), gaussian(jf.CondOT())

    def one(x, key):
        return jf.log_prob(field, x, jf.UniformGrid(4), key=key, divergence=jf.Hutchinson(2)).log_prob

    keys = jr.split(jr.key(0), 7)
    with_mesh, without = (jf.batched(one, ROWS, keys, batch_size=8, mesh=m) for m in (mesh, None))
    np.testing.assert_allclose(with_mesh, without, rtol=1e-5)


def test_in_double_precision(x64):
    rows = ROWS.astype(np.float64)
    got = jf.batched(lambda x: x / 3, rows, batch_size=3)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, rows / 3, rtol=1e-15)
    with jax.enable_x64(False):
        assert jf.batched(lambda x: x / 3, rows, batch_size=3).dtype == np.float32


def test_bad_input_raises_with_a_reason():
    mesh = jax.make_mesh((8,), ("data",))
    cases = [
        (lambda: jf.batched(3, ROWS), TypeError, "fn must be a function. Got 3"),
        (lambda: jf.batched(jnp.sum), ValueError, "must share a leading axis"),
        (lambda: jf.batched(lambda x: x, 3.0), ValueError, r"must share a leading axis, of at least 1\. Got lengths"),
        (lambda: jf.batched(lambda x: x, np.ones((0, 2))), ValueError, r"Got lengths \['0'\]"),
        (lambda: jf.batched(lambda x, y: x, ROWS, ROWS[:3]), ValueError, r"Got lengths \['3', '7'\]"),
        (lambda: jf.batched(lambda x: x, {"a": ROWS, "b": ROWS[:3]}), ValueError, "must share a leading axis"),
        (
            lambda: jf.batched(lambda x: x, ROWS, batch_size=0),
            ValueError,
            "batch_size must be an integer of at least 1",
        ),
        (lambda: jf.batched(lambda x: x, ROWS, batch_size=2.5), ValueError, "batch_size must be an integer"),
        (lambda: jf.batched(lambda x: x, np.ones((100, 2)), batch_size=12, mesh=mesh), ValueError, "batch_size=16"),
        (lambda: jf.batched(lambda x: x, ROWS, mesh=3), TypeError, "mesh must be .*Mesh"),
        (lambda: jf.batched(lambda x: x, ROWS, workers=3), TypeError, "workers"),
        (lambda: jf.batched(lambda x, y: x, ROWS), TypeError, "y"),
        (
            lambda: jax.jit(lambda x: jf.batched(lambda y: x + y, ROWS))(1.0),
            ValueError,
            "batched must be called outside",
        ),
        (lambda: jax.jit(lambda x: jf.batched(lambda y: y, x))(ROWS), ValueError, "batched must be called outside"),
        (
            lambda: jax.grad(lambda w: jf.batched(Scaled(w), ROWS).sum())(1.0),
            ValueError,
            "call it outside, or map there",
        ),
    ]
    for call, kind, fragment in cases:
        refuses(call, fragment, kind)


def test_the_bar_says_that_it_compiles_and_counts_its_rate_from_the_second_chunk(monkeypatch):
    """By a clock: the first chunk of 2 takes 50 s, the other five 1 s each."""
    now, seen = [0.0], []

    class Bar(_batched.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"disable": False, "file": io.StringIO()})
            self._time, self.start_t, self.last_print_t = lambda: now[0], 0.0, 0.0

        def refresh(self, *args, **kwargs):
            seen.append((self.desc, dict(self.format_dict)))
            return super().refresh(*args, **kwargs)

    def chunk(index, part):
        now[0] += 50.0 if index[0] == 0 else 1.0
        return index

    monkeypatch.setattr(_batched, "tqdm", Bar)
    out = _batched._drive(chunk, None, 12, 2, np.arange(2), "generate", "sample", True)
    np.testing.assert_array_equal(out, np.arange(12))
    assert seen[0][0].startswith("generate, compiling") and seen[-1][0].startswith("generate: ")
    last = seen[-1][1]
    assert last["n"] == last["total"] == 12 and last["initial"] == 2
    assert (last["n"] - last["initial"]) / last["elapsed"] == 2.0 and last["rate"] == 2.0
