"""Many samples: sample i is a function of the key and of i alone, by one compilation (closed form K5)."""

from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import Counter, gaussian, refuses

import jflow as jf
from jflow import _batched

KEY = jr.key(3)
TIMES = jf.UniformGrid(5)


class Shifted(eqx.Module):
    """A network with a parameter and a condition."""

    weight: jax.Array

    def __call__(self, t, x, label):
        return self.weight * label - x * (1 - t)


def conditional(weight=1.0):
    return jf.Field(Shifted(jnp.asarray(weight)), jf.CondOT(), "velocity")


@pytest.fixture(scope="module")
def alone():
    """Samples drawn one by one, with and without noise."""
    field = gaussian(jf.CondOT())

    def draw(sampler):
        one = jax.jit(lambda i: jf.sample(field, jr.fold_in(KEY, i), (2,), sampler, saveat=STEPS))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *[one(i) for i in range(7)])

    return {kind: draw(sampler) for kind, sampler in SAMPLERS.items()}


STEPS = dfx.SaveAt(t0=True, steps=True)
SAMPLERS = {"ode": TIMES, "sde": jf.FixedSteps(TIMES, eta=1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [3, "mesh", *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8))])
def test_K5_sample_i_depends_on_the_key_and_on_i_alone(alone, batch_size):
    mesh, size = (jax.make_mesh((8,), ("data",)), 8) if batch_size == "mesh" else (None, batch_size)
    for kind in ("sde",) if batch_size in (1, 8) else ("ode", "sde"):
        out = jf.generate(gaussian(jf.CondOT()), KEY, 7, (2,), SAMPLERS[kind], batch_size=size, mesh=mesh, saveat=STEPS)
        assert isinstance(out.x, np.ndarray) and out.x.shape == (7, 2) and out.xs.shape == (7, 6, 2)
        np.testing.assert_array_equal(out.xs[:, 0], alone[kind].xs[:, 0])  # the noise is the same bit for bit
        np.testing.assert_allclose(out.xs, alone[kind].xs, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(out.x, out.xs[:, -1])
        np.testing.assert_array_equal(out.nfe, np.full(7, 5))
        np.testing.assert_array_equal(out.status, np.zeros(7))
        np.testing.assert_array_equal(out.t, np.ones(7))
        assert out.log_prob is None


def test_one_compilation_for_new_keys_parameters_scales_grids_and_numbers():
    """The network is a pytree: with a plain function in the field each eager call would be compiled anew."""
    net = Traced()
    field = jf.Guided(jf.Field(net, jf.CondOT(), "velocity"), null=0.0)

    def run(key, n, labels, scale, times, eta):
        args, axes = jf.Args(labels, scale=scale), jf.Args(0, scale=None)
        sampler = jf.FixedSteps(times, eta=eta)
        return jf.generate(field, key, n, (2,), sampler, args=args, args_in_axes=axes, batch_size=4).x

    grid = TIMES.times()
    first = run(KEY, 10, jnp.arange(10.0), 2.0, grid, 1.0)  # the last chunk is partial
    traces = Traced.traces
    assert traces > 0
    run(jr.key(9), 10, np.ones(10), 3.0, grid**2, 0.5)
    run(KEY, 23, np.ones(23, np.float32), jnp.asarray(1.5), np.asarray(grid), 2)
    for number in (np.float64(0.5), np.float32(2.0), jnp.float32(0.5)):
        run(KEY, 4, jnp.ones(4), number, grid.tolist(), number)
    assert Traced.traces == traces
    again = run(KEY, 10, jnp.arange(10.0), 2.0, grid, 1.0)
    np.testing.assert_array_equal(first, again)


class Traced(eqx.Module):
    """A network that counts how often Python runs it."""

    traces: ClassVar[int] = 0

    def __call__(self, t, x, args):
        type(self).traces += 1
        return x * args


def test_new_parameters_do_not_retrace():
    counts = []

    class Net(eqx.Module):
        weight: jax.Array

        def __call__(self, t, x, label):
            counts.append(1)
            return -self.weight * x

    for weight in (1.0, 2.0):
        field = jf.Field(Net(jnp.asarray(weight)), jf.VE(0.01, 20.0 * weight), "velocity")
        jf.generate(field, KEY, 4, (2,), TIMES, batch_size=2)
        assert len(counts) == 1


@pytest.mark.parametrize(
    ("shape", "devices", "size", "on_cpu"),
    [
        ((2,), 1, 1024, 1024),
        ((64,), 1, 1024, 256),
        ((64, 64), 1, 1024, 32),
        ((64, 64, 3), 1, 341, 32),
        ((64, 64, 3), 8, 336, 32),
        ((2**23,), 8, 8, 8),
        ((2,), 3, 1023, 1023),
    ],
)
@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_a_chunk_is_by_default_of_1024_samples_and_of_at_most_4_million_numbers(
    monkeypatch, shape, devices, size, on_cpu, platform
):
    """A multiple of the devices, at least a sample each; less on a CPU; a batch size of one's own stays."""
    sizes, size = [], on_cpu if platform == "cpu" else size
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(
        _batched, "_drive", lambda chunk, mapped, n, size, *rest: sizes.append(size) or jf.Solution(None)
    )
    mesh = None if devices == 1 else jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    field = gaussian(jf.CondOT())
    for batch_size in (None, 24 * devices):
        jf.generate(field, KEY, 5000, shape, TIMES, mesh=mesh, batch_size=batch_size)
    assert sizes == [size, 24 * devices]


@pytest.mark.slow
def test_conditions_are_split_or_shared():
    labels, field = np.arange(5.0), conditional()
    split = jf.generate(field, KEY, 5, (2,), TIMES, args=labels, args_in_axes=0, batch_size=2)
    for i in (0, 3, 4):
        one = jf.sample(field, jr.fold_in(KEY, i), (2,), TIMES, args=labels[i])
        np.testing.assert_allclose(split.x[i], one.x, rtol=1e-5)
    shared = jf.generate(field, KEY, 5, (2,), TIMES, args=2.0, batch_size=2)
    np.testing.assert_allclose(shared.x[2], split.x[2], rtol=1e-6)


@pytest.mark.slow
def test_guided_conditions_are_split_or_shared():
    guided = jf.Guided(conditional(), 0.0)
    labels, scales = jnp.arange(5.0), np.linspace(0, 4, 5)

    def run(scale, axes):
        args = jf.Args(labels, scale=scale)
        return jf.generate(guided, KEY, 5, (2,), TIMES, args=args, args_in_axes=axes, batch_size=5)

    one_for_all = jf.Args(0, scale=None)
    both, one, none = run(scales, 0), run(2.0, one_for_all), run(None, one_for_all)
    np.testing.assert_allclose(both.x[2], one.x[2], rtol=1e-6)
    np.testing.assert_array_equal(both.nfe, 10)
    np.testing.assert_array_equal(none.nfe, 5)
    np.testing.assert_allclose(none.x, run(1.0, one_for_all).x, rtol=1e-5)

    def net(t, x, args):
        return x * args["a"] + args["b"]["c"].sum()

    tree = {"a": np.arange(5.0), "b": {"c": np.ones((5, 3))}}
    field = jf.Field(net, jf.CondOT(), "velocity")
    out = jf.generate(field, KEY, 5, (2,), TIMES, args=tree, args_in_axes=0, batch_size=2)
    same = jf.generate(field, KEY, 5, (2,), TIMES, args=tree, args_in_axes={"a": 0, "b": 0}, batch_size=5)
    np.testing.assert_allclose(out.x, same.x, rtol=1e-6)


@pytest.mark.slow
def test_labels_keep_their_type():
    def net(t, x, label):
        assert jnp.asarray(label).dtype == jnp.int32
        return x * jax.nn.one_hot(label, 10).sum()

    field = jf.Field(net, jf.CondOT(), "velocity")
    for labels in (np.arange(4), jnp.arange(4)):
        assert jf.generate(field, KEY, 4, (2,), TIMES, args=labels, args_in_axes=0).x.shape == (4, 2)
    assert jf.generate(field, KEY, 2, (2,), TIMES, args=3).x.shape == (2, 2)


def test_any_number_of_samples_on_a_mesh():
    field, mesh = gaussian(jf.CondOT()), jax.make_mesh((4, 2), ("data", "model"))
    few = jf.generate(field, KEY, 3, (2,), TIMES, mesh=mesh)
    many = jf.generate(field, KEY, 9, (2,), TIMES, mesh=mesh, batch_size=4)
    assert few.x.shape == (3, 2) and many.x.shape == (9, 2)
    np.testing.assert_allclose(few.x, many.x[:3], rtol=1e-5)


@pytest.mark.slow
def test_events_may_be_pytrees_and_lists_of_sizes():
    tree = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jax.ShapeDtypeStruct((3, 1), jnp.float32)}
    zero = jf.Field(lambda t, x, args: jax.tree.map(jnp.zeros_like, x), jf.CondOT(), "velocity")
    out = jf.generate(zero, KEY, 3, tree, TIMES, batch_size=2)
    assert jax.tree.map(np.shape, out.x) == {"a": (3, 2), "b": (3, 3, 1)}
    assert jf.generate(zero, KEY, 2, [4, 4, 1], TIMES).x.shape == (2, 4, 4, 1)


@pytest.mark.slow
def test_adaptive_samples_do_not_depend_on_the_batch(x64):
    field, shape = gaussian(jf.Cosine()), jax.ShapeDtypeStruct((2,), jnp.float64)
    tight = jf.AdaptiveSteps(rtol=1e-6, atol=1e-6)
    out = jf.generate(field, KEY, 7, shape, tight, batch_size=3)
    for i in (0, 6):
        one = jf.sample(field, jr.fold_in(KEY, i), shape, tight)
        np.testing.assert_allclose(out.x[i], one.x, rtol=1e-8)
        assert out.nfe[i] == one.nfe and out.x.dtype == np.float64


@pytest.mark.slow
def test_the_default_is_the_recommended_sampler():
    field = gaussian(jf.CondOT())
    for guide, args, steps in ((field, None, 32), (jf.Guided(field, 0.0), jf.Args(1.0, scale=2.0), 16)):
        out = jf.generate(guide, KEY, 2, (2,), args=args)
        same = jf.generate(guide, KEY, 2, (2,), jf.recommended(guide, args=args), args=args)
        np.testing.assert_array_equal(out.x, same.x)
        np.testing.assert_array_equal(out.nfe, 32)
        assert jf.recommended(guide, args=args).n == steps


def test_what_sample_raises_generate_raises_before_tracing():
    net = Counter(lambda t, x, args: x)
    noise = jf.Field(net, jf.CondOT(), "noise")
    for sampler, fragment in [
        (TIMES, "Got t = 0, .*start a little later"),
        (TIMES.times()[::-1], "increase"),
        (jf.UniformGrid(5, 0.1, 1000.0), r"lie in \[0, 1\]"),
        (jf.AdaptiveSteps(t1=0.9), "Got t = 0, .*start a little later"),
        (jf.FixedSteps(jf.UniformGrid(5, 0.1), dfx.SRA1()), "SRA1 must have an SDE"),
        (jf.AdaptiveSteps(t0=0.1, t1=0.9, eta=1.0), "must have a Brownian path known at every time"),
    ]:
        with pytest.raises(ValueError, match=fragment):
            jf.generate(noise, KEY, 4, (2,), sampler)
    assert net.traces == 0


def test_generate_owns_its_loop():
    field = gaussian(jf.CondOT())
    for fn in (
        lambda k: jf.generate(field, k, 4, (2,), TIMES).x,
        lambda _: jf.generate(field, KEY, 4, (2,), TIMES).x,
    ):
        refuses(lambda fn=fn: jax.jit(fn)(KEY), "generate must be called outside of transformations")
    refuses(
        lambda: jax.grad(lambda w: jf.generate(conditional(w), KEY, 4, (2,), TIMES, args=1.0).x.sum())(1.0),
        "call it outside, or map there",
    )


def test_bad_input_raises_with_a_reason():
    field, mesh = gaussian(jf.CondOT()), jax.make_mesh((8,), ("data",))
    cases = [
        ({"n": 0}, ValueError, "n must be an integer of at least 1"),
        ({"n": 2.5}, ValueError, "n must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1"),
        ({"key": jr.PRNGKey(0)}, ValueError, "typed key"),
        ({"key": jr.key(0, impl="rbg")}, ValueError, "rbg"),
        ({"key": jr.split(KEY)}, ValueError, "vmap over them"),
        ({"mesh": mesh, "batch_size": 12, "n": 100}, ValueError, "multiple of the devices"),
        ({"mesh": 3}, TypeError, "mesh must be .*Mesh"),
        ({"args": np.arange(3.0), "args_in_axes": 0}, ValueError, "leading axis of length n = 4"),
        ({"args": 2.0, "args_in_axes": 0}, ValueError, "leading axis of length n = 4"),
        ({"args": np.arange(4.0), "args_in_axes": 1}, ValueError, "must hold 0"),
        ({"args": (np.arange(4.0), 1.0), "args_in_axes": (0,)}, ValueError, "args_in_axes"),
        ({"shape": 2}, ValueError, "that of one event"),
        ({"field": lambda t, x, args: x}, TypeError, "field must be AbstractField"),
        ({"step": 3}, TypeError, "step"),
        ({"log_prob": True}, TypeError, "log_prob"),
    ]
    for options, kind, fragment in cases:
        call = {"field": field, "key": KEY, "n": 4, "shape": (2,), "sampler": TIMES, **options}
        refuses(lambda call=call: jf.generate(**call), fragment, kind)
