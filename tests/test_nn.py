"""The networks: shapes, sizes, conditions, types, and what they are at the start and after one step."""

import functools as ft
import json
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

import jflow as jf
from jflow import nn
from jflow.nn._arguments import rebuilt, to_words

SHAPE = (4, 4, 2)
CLASSES = 3


def rngs(seed):
    """Keys whose generator compiles in no time."""
    return nnx.Rngs(jr.key(seed, impl="unsafe_rbg"))


def mlp(seed=0, streams=None, **options):
    return nn.MLP(32, width=16, depth=2, rngs=streams or rngs(seed), **options)


def unet(seed=0, streams=None, **options):
    sizes = {"channels": (6, 8), "layers": 1, "embedding": 6, "attention": (1,), "heads": 2}
    return nn.UNet(SHAPE, rngs=streams or rngs(seed), **sizes | options)


def dit(seed=0, streams=None, **options):
    sizes = {"patch": 2, "dim": 16, "layers": 1, "heads": 2}
    return nn.DiT(SHAPE, rngs=streams or rngs(seed), **sizes | options)


# what is compiled here runs once or twice
jit = ft.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

NETWORKS = {"mlp": mlp, "unet": unet, "dit": dit}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def normal(numbers, *shape):
    return jnp.asarray(numbers.standard_normal(shape), jnp.float32)


def draw(shape=SHAPE, n=None, seed=1):
    """Times and events: one, or a batch of n."""
    lead, numbers = () if n is None else (n,), np.random.default_rng(seed)
    return jnp.asarray(numbers.uniform(size=lead), jnp.float32), normal(numbers, *lead, *shape)


def abstract(make, **options):
    """The network without its numbers: nothing is drawn, nothing compiled."""
    return nnx.eval_shape(lambda: make(**options))


def filled(make, seed=7, **options):
    """The network with every parameter drawn from a normal, so that nothing in it is zero."""
    numbers = np.random.default_rng(seed)

    def draw(leaf):
        return normal(numbers, *leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))

    return jtu.tree_map(draw, abstract(make, **options))


def parameters(make):
    """The number of parameters of a network that is never made."""
    return sum(math.prod(leaf.shape) for leaf in jtu.tree_leaves(abstract(make)))


@jit
def apply(net, t, x, args):
    return net(t, x, args)


@jit
def apply_batch(net, t, x, args):
    return jax.vmap(net)(t, x, args)


@jit
def apply_two(net, s, t, x, args):
    return net(s, t, x, args)


# Shapes, batches, sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.MLP(2, rngs=nnx.Rngs(0)), (2,)),
        (lambda: nn.MLP(1, rngs=nnx.Rngs(0)), ()),
        (lambda: nn.MLP((3, 4, 2), rngs=nnx.Rngs(0)), (3, 4, 2)),
        (lambda: nn.UNet((32, 32, 1), rngs=nnx.Rngs(0)), (32, 32, 1)),
        (lambda: nn.UNet((4, 12, 3), channels=(20, 7, 30), layers=1, attention=(0,), rngs=nnx.Rngs(0)), (4, 12, 3)),
        (lambda: nn.UNet((5, 7, 1), channels=(8,), rngs=nnx.Rngs(0)), (5, 7, 1)),
        (lambda: nn.DiT((32, 32, 1), rngs=nnx.Rngs(0)), (32, 32, 1)),
        (lambda: nn.DiT((6, 9, 2), patch=3, dim=8, layers=1, heads=2, rngs=nnx.Rngs(0)), (6, 9, 2)),
    ],
)
def test_L1_output_has_the_shape_of_the_event(make, shape):
    net = abstract(make)
    t, x = jnp.zeros(5), jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    out = jax.eval_shape(lambda net, t, x: jax.vmap(net)(t, x), net, t, x)
    assert out.shape == (5, *shape)
    assert out.dtype == jnp.float32


@pytest.mark.slow
@every_network
def test_K1_a_batch_is_its_examples_and_a_batched_time_raises(make):
    net = filled(make, num_classes=CLASSES)
    t, x = draw(n=4)
    labels = jnp.array([0, 3, 1, 2])
    batched = apply_batch(net, t, x, labels)
    single = jnp.stack([apply(net, t[i], x[i], labels[i]) for i in range(4)])
    np.testing.assert_allclose(batched, single, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="vmap"):
        net(t, x[0], 0)
    with pytest.raises(ValueError, match="vmap"):
        net(t[0], x, 0)
    with pytest.raises(ValueError, match="vmap"):
        net(t[0], x[0], labels)


def test_K1_the_convolutions_of_a_batch_are_batched():
    t, x = draw(n=5)
    lowered = jax.jit(lambda net, t, x: jax.vmap(net)(t, x)).lower(abstract(unet), t, x).as_text()
    convolutions = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) == 10
    assert all("feature_group_count = 1" in line and "tensor<5x" in line for line in convolutions)


@pytest.mark.slow
def test_L6_the_numbers_of_parameters_are_those_of_the_lecture():
    assert parameters(lambda: nn.MLP(2, rngs=nnx.Rngs(0))) == 12_866
    assert parameters(lambda: nn.MLP(2, width=100, rngs=nnx.Rngs(0))) == 30_902
    assert parameters(lambda: nn.UNet((32, 32, 1), num_classes=10, rngs=nnx.Rngs(0))) == 1_233_325
    assert parameters(lambda: nn.DiT((32, 32, 1), num_classes=10, rngs=nnx.Rngs(0))) == 9_918_843


@every_network
def test_every_leaf_is_a_float32_parameter(make):
    net = abstract(make, num_classes=CLASSES, dtype=jnp.bfloat16)
    leaves = jtu.tree_leaves(net)
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    assert len(leaves) == len(jtu.tree_leaves(nnx.state(net, nnx.Param)))


def test_two_networks_of_one_kind_share_their_program():
    traces = []

    @jit
    def call(net, t, x):
        traces.append(None)
        return net(t, x)

    for make in (mlp, unet, dit):
        a, b = abstract(make, seed=0), abstract(make, seed=1)
        assert jtu.tree_structure(a) == jtu.tree_structure(b)
    t, x = draw()
    assert not np.allclose(call(filled(mlp, seed=0), t, x), call(filled(mlp, seed=1), t, x))
    assert len(traces) == 1


def test_a_network_works_inside_an_equinox_module():
    class Holder(eqx.Module):
        net: Any
        scale: float

        def __call__(self, t, x, args):
            return self.scale * self.net(t, x, args)

    net = filled(mlp, num_classes=CLASSES)
    t, x = draw(n=4)
    labels = jnp.array([0, 3, 1, 2])

    @eqx.filter_jit
    def run(holder):
        loss = eqx.filter_grad(lambda holder: jnp.sum(eqx.filter_vmap(holder)(t, x, labels)))
        return eqx.filter_vmap(holder)(t, x, labels), loss(holder)

    out, gradient = run(Holder(net, 2.0))
    np.testing.assert_allclose(out, 2 * apply_batch(net, t, x, labels), rtol=1e-5)
    assert jtu.tree_structure(gradient.net) == jtu.tree_structure(net)
    assert all(jnp.any(leaf != 0) for leaf in jtu.tree_leaves(gradient.net))


# At the start, and after one step


@pytest.mark.parametrize("make", [unet, dit], ids=["unet", "dit"])
def test_the_numbers_of_a_network_are_drawn_by_one_program(make, caplog):
    streams = nnx.Rngs(0)
    streams.params(), streams.params()  # what a key compiles
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        net = make(num_classes=CLASSES + 1, streams=streams)  # of a size that no other test has
    compiled = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
    compiled = [message for message in compiled if "ShapedArray(int32[]" not in message]  # the stream's own count
    assert len(compiled) == 1 and "jit(_draw)" in compiled[0], compiled
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jtu.tree_leaves(net))


def test_a_network_draws_from_the_streams_it_is_given_and_the_same_inside_jit():
    """Each network takes one key; nested in a module of one's own, beside its layers, and traced."""

    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.first, self.linear = mlp(streams=rngs), nnx.Linear(2, 3, rngs=rngs)
            self.second = mlp(streams=rngs)

    streams, again = nnx.Rngs(3), nnx.Rngs(3)
    pair, traced = Pair(streams), nnx.jit(Pair)(again)
    assert int(streams.params.count[...]) == int(again.params.count[...]) == 4  # a linear layer of flax takes two
    for a, b in zip(jtu.tree_leaves(pair), jtu.tree_leaves(traced), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    first, second = (np.asarray(net.hidden[0].kernel[...]) for net in (pair.first, pair.second))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.2
    other = jtu.tree_leaves(mlp(streams=nnx.Rngs(4)))
    assert not np.allclose(other[1], jtu.tree_leaves(mlp(streams=nnx.Rngs(3)))[1])


def test_the_laws_of_the_first_numbers():
    """Kernels: normals cut at two of their own deviations, of variance `1/fan_in`; tables normal; no bias."""
    net = nn.MLP(100, width=200, depth=2, num_classes=99, embedding=40, rngs=nnx.Rngs(0))
    for layer in (*net.hidden, net.out):
        kernel = np.asarray(layer.kernel[...])
        std = kernel.shape[0] ** -0.5
        cut = 2 * std / stats.truncnorm(-2, 2).std()
        assert np.abs(kernel).max() <= cut * (1 + 1e-6)
        assert stats.kstest(kernel.ravel() / (cut / 2), stats.truncnorm(-2, 2).cdf).pvalue > 1e-3
        np.testing.assert_array_equal(layer.bias[...], np.zeros(kernel.shape[1]))
    assert stats.kstest(np.asarray(net.condition.table[...]).ravel(), "norm").pvalue > 1e-3
    drawn = np.concatenate([np.asarray(layer.kernel[...]).ravel() for layer in (*net.hidden, net.out)])
    assert len(np.unique(drawn)) > 0.99 * len(drawn)  # no two layers share their numbers
    unet = nn.UNet((4, 4, 16), channels=(48,), layers=1, rngs=nnx.Rngs(0))
    layer = unet.middle[0]
    np.testing.assert_array_equal(layer.first.norm.norm.scale[...], np.ones(48))
    for conv, variance in ((layer.first.conv, 1.0), (layer.second.conv, 0.01), (unet.head, 0.0)):
        found = np.asarray(conv.kernel[...])
        np.testing.assert_allclose(found.var() * 9 * 48, variance, rtol=0.05)


def test_L2_an_adaln_zero_block_is_the_identity_at_the_start():
    def make():
        return nn.DiTBlock(8, 2, rngs=rngs(0))

    c, x = jnp.linspace(-1, 1, 8), draw((5, 8))[1]
    run = jit(lambda block: block(x, c))
    np.testing.assert_array_equal(run(jit(make)()), x)
    assert float(jnp.abs(run(filled(make)) - x).max()) > 0.1


@pytest.mark.parametrize("make", [mlp, *(pytest.param(make, marks=pytest.mark.slow) for make in (unet, dit))])
def test_L7_after_one_step_the_output_depends_on_time_and_label(make):
    t, x = draw(n=4)
    labels, target = jnp.arange(4) % (CLASSES + 1), draw(n=4, seed=5)[1]
    optimiser = optax.adam(1e-2)

    @jit
    def start_and_step():
        net = make(num_classes=CLASSES, dtype=jnp.bfloat16)
        gradient = jax.grad(lambda net: jnp.mean((jax.vmap(net)(t, x, labels) - target) ** 2))(net)
        updates, _ = optimiser.update(gradient, optimiser.init(net), net)
        return net, gradient, optax.apply_updates(net, updates)

    start, gradient, net = start_and_step()
    for tree in (gradient, net):  # computed in half precision, kept in single
        assert all(leaf.dtype == jnp.float32 and jnp.isfinite(leaf).all() for leaf in jtu.tree_leaves(tree))
    single = jtu.tree_structure(abstract(make, num_classes=CLASSES))
    start, net = (jtu.tree_unflatten(single, jtu.tree_leaves(tree)) for tree in (start, net))
    if make is unet:  # its head starts at zero, and so does its output
        np.testing.assert_array_equal(apply(start, t[0], x[0], labels[0]), jnp.zeros(SHAPE))
    base = apply(net, jnp.float32(0.3), x[0], labels[0])
    assert float(jnp.abs(apply(net, jnp.float32(0.8), x[0], labels[0]) - base).max()) > 1e-5
    for label in labels[1:]:
        assert float(jnp.abs(apply(net, jnp.float32(0.3), x[0], label) - base).max()) > 1e-5


# Two times


@pytest.mark.parametrize("make", [mlp, *(pytest.param(make, marks=pytest.mark.slow) for make in (unet, dit))])
def test_a_network_of_two_times_starts_as_the_one_of_the_first(make):
    """At the start `net(s, t, x, args)` is `net(s, x, args)` bit for bit; filled, it depends on s, on t and on args."""
    (s, t, other), x = jnp.asarray([0.2, 0.7, 0.9]), draw()[1]
    one, two = make(num_classes=CLASSES), make(num_classes=CLASSES, times=2)
    np.testing.assert_array_equal(apply_two(two, s, t, x, 1), apply(one, s, x, 1))
    net = filled(make, num_classes=CLASSES, times=2)
    base = apply_two(net, s, t, x, 1)
    for changed in ((other, t, x, 1), (s, other, x, 1), (s, t, x, 2)):
        assert float(jnp.abs(apply_two(net, *changed) - base).max()) > 1e-4
    for given in ((s, x), (s, t, x, 1, None)):
        with pytest.raises(TypeError, match=r"net\(s, t, x, args\)"):
            net(*given)
    with pytest.raises(TypeError, match=r"net\(t, x, args\)"):
        one(s, t, x, 1)
    with pytest.raises(ValueError, match="Got 3"):
        make(times=3)
    again = rebuilt(type(two), json.loads(json.dumps(to_words(two.arguments))))
    assert again.times == 2 and jtu.tree_structure(again) == jtu.tree_structure(two)


def tangent(s, t, x, v, **options):
    """The derivative of a DiT's average velocity along `(1, v)` in `(s, x)`, and that function."""
    flow_map = jf.FlowMap(filled(dit, num_classes=CLASSES, times=2, **options), jf.CondOT())
    run = jit(lambda s, x: jax.jvp(lambda s, x: flow_map.average(s, t, x, 1), (s, x), (jnp.ones_like(s), v)))
    return run(s, x)[1], lambda h: run(s + h, x + h * v)[0]


def test_attention_has_a_jvp_along_time_and_state():
    """The tangent that the objectives of flow maps need, against central differences."""
    (_, x), (_, v) = draw(), draw(seed=2)
    rate, along = tangent(jnp.float32(0.2), jnp.float32(0.7), x, v)
    h = 3e-3
    assert rate.dtype == jnp.float32
    error = jnp.linalg.norm(rate - (along(h) - along(-h)) / (2 * h))
    assert error < 0.01 * jnp.linalg.norm(rate)


@pytest.mark.slow
def test_the_tangent_of_a_network_in_bfloat16_is_float32():
    (_, x), (_, v) = draw(), draw(seed=2)
    exact, _ = tangent(jnp.float32(0.2), jnp.float32(0.7), x, v)
    rate, _ = tangent(jnp.float32(0.2), jnp.float32(0.7), x, v, dtype=jnp.bfloat16)
    assert rate.dtype == jnp.float32
    assert jnp.linalg.norm(rate - exact) < 0.1 * jnp.linalg.norm(exact)


# Patches, features, attention


def test_L3_depatchify_inverts_patchify():
    x = jnp.arange(1024.0).reshape(32, 32, 1)
    tokens = nn.patchify(x, 4)
    assert tokens.shape == (64, 16)
    np.testing.assert_array_equal(tokens[9], x[4:8, 4:8].ravel())
    np.testing.assert_array_equal(nn.depatchify(tokens, 4, x.shape), x)
    x = jnp.arange(72.0).reshape(4, 6, 3)
    np.testing.assert_array_equal(nn.depatchify(nn.patchify(x, 2), 2, x.shape), x)
    with pytest.raises(ValueError, match="24 numbers"):
        nn.depatchify(nn.patchify(x, 2), 2, (4, 6, 6))


def test_L4_time_features_have_the_norm_of_the_lecture():
    module = nn.FourierFeatures(40, rngs=nnx.Rngs(0))
    for t in (0, 0.37, 1.0, jnp.float32(-3.2)):
        features = module(t)
        assert features.shape == (40,)
        np.testing.assert_allclose(jnp.sum(features**2), 40, rtol=1e-5)
        fixed = nn.fourier_features(t, jnp.geomspace(0.1, 10.0, 20)) / math.sqrt(40)
        np.testing.assert_allclose(jnp.sum(fixed**2), 1, rtol=1e-5)
    np.testing.assert_allclose(nn.fourier_features(0.25, jnp.ones(1)), [math.sqrt(2), 0], atol=1e-6)
    assert nn.fourier_features(jnp.bfloat16(0.5), jnp.ones(1, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="vmap"):
        module(jnp.zeros(3))


def test_L5_attention_rows_sum_to_one_and_commute_with_permutations():
    attention = filled(lambda: nn.SelfAttention(8, 2, rngs=nnx.Rngs(0)))
    run = jit(lambda net, x: net(x))
    x, order = draw((6, 8))[1], np.array([3, 0, 5, 1, 2, 4])
    out = run(attention, x)
    np.testing.assert_allclose(run(attention, x[order]), out[order], atol=1e-5)
    assert float(jnp.abs(out[order] - out).max()) > 0.01
    # the same value at every token: what comes out is that value times the sum of the row
    value = jnp.linspace(-1, 1, 8)
    attention.qkv.kernel[...] = attention.qkv.kernel[...].at[:, 16:].set(0)
    attention.qkv.bias[...] = attention.qkv.bias[...].at[16:].set(value)
    expected = value @ attention.out.kernel[...] + attention.out.bias[...]
    np.testing.assert_allclose(run(attention, x), jnp.tile(expected[None], (6, 1)), atol=1e-5)


# Types


@pytest.mark.slow
@every_network
def test_K4_bfloat16_compute_is_close_to_float32(make):
    t, x = draw(n=4)
    labels = jnp.array([0, 3, 1, 2])
    half = apply_batch(filled(make, num_classes=CLASSES, dtype=jnp.bfloat16), t, x, labels)
    full = apply_batch(filled(make, num_classes=CLASSES), t, x, labels)
    assert half.dtype == jnp.bfloat16
    assert full.dtype == jnp.float32
    assert float(jnp.linalg.norm((half - full).ravel()) / jnp.linalg.norm(full.ravel())) < 0.03


@every_network
def test_K4_the_type_of_the_output_follows_the_event(make, x64):
    net = abstract(make, condition_size=5)
    assert all(leaf.dtype == jnp.float32 for leaf in jtu.tree_leaves(net))
    t, condition = jnp.float32(0.5), jnp.zeros(5)
    for given, wanted in ((jnp.float64, jnp.float64), (jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32)):
        assert jax.eval_shape(apply, net, t, jnp.zeros(SHAPE, given), condition).dtype == wanted


# Conditions


@every_network
def test_a_label_out_of_range_raises_or_is_nan(make):
    net = filled(make, num_classes=CLASSES)
    t, x = draw()
    for label in (-1, CLASSES + 1, np.int64(-1), jnp.array(CLASSES + 1), 2**40):
        with pytest.raises(ValueError, match="from 0 to 3"):
            net(t, x, label)
    labels = jnp.array([-1, 0, CLASSES, CLASSES + 1])
    out = apply_batch(net, jnp.full(4, t), jnp.tile(x[None], (4, 1, 1, 1)), labels)
    np.testing.assert_array_equal(jnp.isfinite(out).all((1, 2, 3)), [False, True, True, False])
    assert bool(jnp.isnan(out[0]).all() & jnp.isnan(out[3]).all())


@pytest.mark.parametrize("label", [None, 1.0, True, "dog", (1, 2.0), np.zeros(()), jnp.zeros(2, int)], ids=repr)
def test_what_is_no_label_raises(label):
    t, x = draw()
    with pytest.raises(ValueError, match="integer label from 0 to 3"):
        filled(mlp, num_classes=CLASSES)(t, x, label)


def test_I5_the_null_label_is_a_choice():
    assert abstract(mlp).null is None
    assert abstract(mlp, condition_size=2).null is None
    for make in NETWORKS.values():
        assert abstract(make, num_classes=CLASSES).null == CLASSES
        net = abstract(make, num_classes=CLASSES, null=0)
        assert net.null == 0
        assert [leaf.shape[0] for leaf in jtu.tree_leaves(net.condition)] == [CLASSES + 1]
    with pytest.raises(ValueError, match="from 0 to 3"):
        mlp(num_classes=CLASSES, null=CLASSES + 1)
    with pytest.raises(ValueError, match="null"):
        mlp(null=0)


@every_network
def test_a_vector_condition_reaches_the_output(make):
    net = filled(make, condition_size=5)
    t, x = draw()
    a, b = (apply(net, t, x, c) for c in (jnp.zeros(5), jnp.ones(5)))
    assert float(jnp.abs(a - b).max()) > 1e-3
    for bad in (None, 3, jnp.zeros(4), jnp.zeros((2, 5))):
        with pytest.raises(ValueError, match=r"vector of shape \(5,\)"):
            net(t, x, bad)
    with pytest.raises(ValueError, match="takes no condition"):
        filled(make)(t, x, jnp.zeros(5))


# Bad input


@every_network
def test_an_event_of_another_shape_raises(make):
    net = filled(make)
    for shape in ((3,), (4, 4, 1), (2, 4, 4, 2), (1, 4, 4, 2, 2)):
        with pytest.raises(ValueError, match="one event of"):
            net(0.5, jnp.zeros(shape))


def test_an_event_shape_is_stricter_than_its_size():
    net = filled(lambda: nn.MLP((2, 3), depth=1, rngs=nnx.Rngs(0)))
    assert net(0.5, jnp.zeros((2, 3))).shape == (2, 3)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        net(0.5, jnp.zeros(6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MLP(0, rngs=nnx.Rngs(0)), "in_size must be a positive integer. Got 0"),
        (lambda: nn.MLP((2, 0), rngs=nnx.Rngs(0)), "positive integer. Got 0"),
        (lambda: mlp(num_classes=0), "num_classes must be a positive integer"),
        (lambda: mlp(condition_size=-1), "condition_size must be a positive integer"),
        (lambda: mlp(num_classes=3, condition_size=2), "not both"),
        (lambda: nn.MLP(2, depth=0, rngs=nnx.Rngs(0)), "depth must be a positive integer"),
        (lambda: nn.UNet((30, 32, 1), rngs=nnx.Rngs(0)), "multiples of 4.*pad or resize to 32 x 32"),
        (lambda: nn.UNet((32, 32), rngs=nnx.Rngs(0)), r"\(H, W, C\).*\(32, 32\)"),
        (lambda: nn.UNet((32, 32, 0), rngs=nnx.Rngs(0)), "positive integer. Got 0"),
        (lambda: unet(channels=()), "one level at least"),
        (lambda: unet(attention=(2,)), "0 to 1.*attention="),
        (lambda: unet(heads=3), "3 heads, 8 channels"),
        (lambda: unet(embedding=7), "even. Got 7"),
        (lambda: unet(layers=0), "layers must be a positive integer"),
        (lambda: dit(patch=3), "multiples of 3.*6 x 6"),
        (lambda: dit(patch=0), "patch must be a positive integer"),
        (lambda: dit(heads=5), "5 heads, 16 channels"),
        (lambda: dit(dim=15), "even. Got 15"),
        (lambda: dit(condition_size=0), "condition_size must be a positive integer"),
        (lambda: nn.patchify(jnp.zeros((4, 5, 1)), 2), "multiples of 2"),
    ],
)
def test_an_impossible_network_raises(make, message):
    with pytest.raises(ValueError, match=message):
        abstract(make)


# A sequence as condition


def test_a_dit_reads_a_sequence_as_far_as_its_mask_goes():
    """Tokens that are not there have no effect, nor has the order of those that are; an empty mask leaves nothing."""
    net = filled(dit, token_size=3)
    (t, x), numbers = draw(), np.random.default_rng(5)
    tokens, mask = normal(numbers, 5, 3), jnp.asarray([1, 1, 0, 1, 0])
    out = apply(net, t, x, {"tokens": tokens, "mask": mask})
    padding = jnp.where(mask[:, None] != 0, tokens, jnp.nan)
    assert (apply(net, t, x, {"tokens": padding, "mask": mask}) == out).all()
    turned = apply(net, t, x, {"tokens": tokens[::-1], "mask": mask[::-1]})
    short = apply(net, t, x, {"tokens": tokens[jnp.asarray([0, 1, 3])], "mask": jnp.ones(3, bool)})
    np.testing.assert_allclose(turned, out, atol=1e-5)
    np.testing.assert_allclose(short, out, atol=1e-5)
    other = apply(net, t, x, {"tokens": tokens.at[1].add(1), "mask": mask})
    assert jnp.abs(other - out).max() > 1e-3
    null = {"tokens": tokens, "mask": jnp.zeros(5)}
    none = apply(net, t, x, null)
    assert jnp.isfinite(none).all() and (apply(net, t, x, {**null, "tokens": tokens + 1}) == none).all()
    assert jnp.abs(none - out).max() > 1e-3


@pytest.mark.slow
def test_a_dit_starts_without_its_sequence_and_attends_by_softmax():
    net, numbers = dit(token_size=3), np.random.default_rng(6)
    reading = net.readings[0]
    assert (reading.out.kernel[...] == 0).all()
    reading = filled(lambda: dit(token_size=3).readings[0])
    x, tokens, mask = normal(numbers, 4, 16), normal(numbers, 3, 16), jnp.asarray([True, False, True])
    q = reading.q(x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)).reshape(4, 2, 8)
    k, v = reading.kv(tokens).reshape(3, 2, 2, 8).transpose(1, 0, 2, 3)[:, mask]
    weights = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k) / math.sqrt(8))
    exact = reading.out(jnp.einsum("hts,shd->thd", weights, v).reshape(4, 16))
    np.testing.assert_allclose(reading(x, tokens, mask), exact, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (None, "Got None; an example without a condition has a mask of zeros"),
        (3, "Got 3"),
        ({"tokens": jnp.zeros((2, 3))}, r"Got {'tokens': \(2, 3\)}"),
        ({"tokens": jnp.zeros((2, 4)), "mask": jnp.ones(2)}, r"'tokens': \(2, 4\)"),
        ({"tokens": jnp.zeros((2, 3)), "mask": jnp.ones(3)}, r"'mask': \(3,\)"),
        ({"tokens": jnp.zeros((5, 2, 3)), "mask": jnp.ones((5, 2))}, "a batch goes through"),
    ],
)
def test_a_condition_that_is_no_sequence_raises(args, says):
    net = abstract(dit, token_size=3)
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(lambda net: net(0.5, jnp.zeros(SHAPE), args), net)
    with pytest.raises(ValueError, match=r"sequences \(token_size\). Got num_classes=3"):
        dit(token_size=3, num_classes=3)


POINTS = jnp.array([[-1.0, 1.0], [1.0, 0.5], [-1.0, -1.0]])  # on the bounds, and within


def test_bounds_leave_the_velocity_of_data_within_them_as_it_is():
    field = jf.distributions.PointSet(POINTS).field(jf.CondOT())
    bounded = nn.Bounded(lambda t, x, args: field.velocity(t, x))
    t, x = jnp.linspace(0.0, 0.99, 64), 2 * jr.normal(jr.key(0), (64, 2))
    ours, theirs = jax.vmap(lambda t, x: (bounded(t, x, None), field.velocity(t, x)))(t, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_bounds_leave_the_average_velocity_of_data_within_them_as_it_is(x64):
    field = jf.distributions.PointSet(POINTS).field(jf.CondOT())
    fine = jnp.linspace(0.0, 0.9, 901)

    def step(x, pair):
        t, h = pair
        return x + h * field.velocity(t, x), x

    end, before = jax.lax.scan(step, jnp.array([0.3, -0.8]), (fine[:-1], jnp.diff(fine)))  # Euler's method
    states, times = jnp.concatenate([before, end[None]])[::100], fine[::100]
    for i, s in enumerate(times):
        for j in range(i + 1, len(times)):
            u = (states[j] - states[i]) / (times[j] - s)
            ours = nn.Bounded(lambda s, t, x, args, u=u: u)(s, times[j], states[i], None)
            np.testing.assert_allclose(ours, u, atol=1e-6)


def test_beyond_a_bound_a_prediction_moves_a_twentieth_as_far():
    bounded = nn.Bounded(lambda s, t, x, args: args * jnp.ones_like(x), low=-1.0, high=3.0)
    x = jnp.array([0.5, -0.5])
    for s, u in ((0.0, 4.0), (0.5, -9.0), (0.5, 1.0)):
        end = x + (1 - s) * u
        nearest = jnp.clip(end, -1, 3)
        ours = x + (1 - s) * bounded(jnp.asarray(s), 1.0, x, u)
        np.testing.assert_allclose(ours, nearest + 0.05 * (end - nearest), rtol=1e-6)
    assert jnp.isfinite(bounded(jnp.asarray(1.0), 1.0, 9 * x, 0.0)).all()
    with pytest.raises(ValueError, match="low < high"):
        nn.Bounded(lambda t, x, args: x, 1.0, -1.0)
