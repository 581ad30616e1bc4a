"""Conditions that reach everywhere: the arguments of a sample, masks of padded events, dropout; and their errors."""

from pathlib import Path

import diffrax as dfx
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx
from references import refuses, tiers
from scipy import stats

import jflow as jf

KEY = jr.key(0)
DOCS = Path(__file__).parent.parent / "docs"
EULER = jf.UniformGrid(8)


@pytest.mark.parametrize(("name", "lines"), [("dropout", 40), ("molecules", 40), ("few_steps", 120)])
def test_a_page_is_short_and_linked(name, lines):
    assert len((DOCS / f"{name}.md").read_text().splitlines()) < lines
    assert f"(docs/{name}.md)" in (DOCS.parent / "README.md").read_text()


# --------------------------------------------------------------------------------------------------- dropout

RATE = 0.25


class WithNNX(nnx.Module):
    def __init__(self):
        self.w, self.drop = nnx.Param(jnp.ones(())), nnx.Dropout(RATE)

    def __call__(self, t, x, args, key=None):
        rngs = None if key is None else nnx.Rngs(key)
        return self.drop(self.w[...] * x, rngs=rngs, deterministic=key is None)


class WithEquinox(eqx.Module):
    w: jax.Array
    drop: eqx.nn.Dropout

    def __call__(self, t, x, args, key=None):
        return self.drop(self.w * x, key=key, inference=key is None)


class WithLinen(nn.Module):
    @nn.compact
    def __call__(self, t, x, args, key=None):
        w = self.param("w", lambda key: jnp.ones(()))
        return nn.Dropout(RATE, deterministic=key is None)(w * x, rng=key)


NETS = {
    "nnx": WithNNX,
    "equinox": lambda: WithEquinox(jnp.ones(()), eqx.nn.Dropout(RATE)),
    "linen": lambda: jax.tree_util.Partial(WithLinen().apply, {"params": {"w": jnp.ones(())}}),
}
PAIRS = jf.CondOT(source=jf.Normal(coupled=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_loss_drops_and_samplers_do_not(name):
    """With `x m / (1 - p)` for the network's `x` the loss has `x^2 p / (1 - p)` more, and new keys other gradients."""
    field = jf.Field(NETS[name](), PAIRS, "velocity", draws=True)
    x0, x1, t = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 0.3, -1.0]), 0.4

    @jax.jit
    def both(params, keys):
        def one(w, key):
            tree = jax.tree.map(lambda old, flag: w if flag else old, field, jf.trainable(field))
            return jf.matching_loss(tree, key, x1, x0=x0, t=t)

        return jax.vmap(jax.value_and_grad(one), (None, 0))(params, keys)

    values, grads = (np.asarray(a) for a in both(jnp.ones(()), jr.split(KEY, 4000)))
    state = (1 - t) * x0 + t * x1
    truth = float(jnp.mean((state - (x1 - x0)) ** 2 + state**2 * RATE / (1 - RATE)))
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values))
    assert len(set(grads.round(6).tolist())) == 8  # a pattern of three components each
    np.testing.assert_array_equal(field.velocity(t, x0), x0)
    assert sum(jax.tree.leaves(jf.trainable(field))) == 1


@pytest.mark.slow
def test_a_preconditioned_network_draws_too():
    field = jf.Preconditioned(NETS["equinox"](), jf.VE(), 0.5, draws=True)
    one, same, other = (jf.matching_loss(field, KEY, jnp.ones(64), t=0.5), *(
        field.conditional(0.5, jnp.ones(64), None, key) for key in (KEY, jr.key(1))
    ))  # fmt: skip
    assert jnp.isfinite(one) and (same != other).any()
    assert len(np.unique(np.asarray(field.data(0.5, jnp.ones(64))))) == 1
    still = jf.Preconditioned(NETS["equinox"](), jf.VE(), 0.5)
    np.testing.assert_array_equal(still.conditional(0.5, jnp.ones(64), None, KEY), still.data(0.5, jnp.ones(64)))
    guided = jf.Guided(field, null=0)
    assert (guided.conditional(0.5, jnp.ones(64), None, KEY) == same).all()


# --------------------------------------------------------------------------------------------------- the sample's args


class Shifted(jf.AbstractSource):
    """Normals around the sample's own condition."""

    coupled = False

    def sample(self, key, like, args=None):
        return args + jr.normal(key, like.shape)

    def log_prob(self, x, args=None):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, args))


def test_a_source_takes_the_condition_of_the_sample():
    field = jf.Field(lambda t, x, args: jnp.zeros_like(x), jf.CondOT(source=Shifted()), "velocity")
    shifts = jnp.array([0.0, 100.0])
    x = jf.generate(field, KEY, 2, (3,), EULER, args=shifts, args_in_axes=0, progress=False).x
    assert np.abs(x - np.asarray(shifts)[:, None]).max() < 6
    value = jf.log_prob(field, jnp.full(3, 100.5), EULER, args=shifts[1]).log_prob
    np.testing.assert_allclose(value, stats.norm.logpdf(0.5) * 3, rtol=1e-5)
    noise = jf.Field(lambda t, x, args: jnp.full_like(x, 7.0), jf.CondOT(source=Shifted()), "data")
    assert jnp.isfinite(jf.matching_loss(noise, KEY, jnp.ones(3), shifts[1]))


# --------------------------------------------------------------------------------------------------- masks

MASK = jnp.array([True, True, False, True, False])
HERE = np.asarray(MASK)
ARGS = jf.Args(None, mask=MASK)
SOURCES = {"white": jf.Normal(), "centred": jf.Normal(jf.ZeroCentre())}
SPREAD = 0.5


def junk(t, x, args):
    """A network that minds neither padding nor centre."""
    return jnp.tanh(x) + jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)


def gaussian(t, x, args):
    """The velocity of `N(0, s^2 P)` along CondOT from `N(0, P)`, whatever the space that P projects to."""
    return (t * SPREAD**2 - (1 - t)) / (t**2 * SPREAD**2 + (1 - t) ** 2) * x


def padded(x, n):
    return jnp.pad(x, [(0, n), (0, 0)], constant_values=jnp.nan)


SAMPLERS = {
    "ODE": EULER,
    "eta 1": jf.FixedSteps(jf.UniformGrid(200), eta=1.0),
    "DPM++ SDE": jf.FixedSteps(EULER, jf.DPMpp(2), eta=1.0),
    "g(t)": jf.FixedSteps(EULER, diffusion=lambda t: 1.0),
    "adaptive": jf.AdaptiveSteps(rtol=1e-3, atol=1e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", tiers(SOURCES, ["centred"]))
@pytest.mark.parametrize("sampler", tiers(SAMPLERS, ["ODE", "eta 1"]))
def test_samples_stay_in_their_space_whatever_the_network(sampler, source):
    field = jf.Field(junk, jf.CondOT(source=SOURCES[source]), "velocity")
    keys = jr.split(KEY, 8)
    x = jax.jit(jax.vmap(lambda k: jf.sample(field, k, (5, 2), SAMPLERS[sampler], args=ARGS).x))(keys)
    assert (x[:, ~HERE] == 0).all() and jnp.isfinite(x).all() and jnp.abs(x).max() > 0.1
    centre = np.abs(np.asarray(x, np.float64)[:, HERE].mean(1)).max()
    assert centre < 1e-6 if source == "centred" else centre > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_sample_with_its_density_is_that_sample(source):
    """The projection is of the field, not of the density alone."""
    field, sampler = jf.Field(junk, jf.CondOT(source=SOURCES[source]), "velocity"), jf.FixedSteps(EULER, dfx.Heun())
    alone, beside = jax.jit(
        lambda k: [jf.sample(field, k, (5, 2), sampler, args=ARGS, log_prob=flag) for flag in (False, True)]
    )(KEY)
    np.testing.assert_allclose(alone.x, beside.x, atol=1e-6)


@pytest.mark.parametrize("predicts", tiers(["data", "noise", "score", "v"], ["score"]))
def test_every_prediction_is_in_the_space(predicts):
    path = jf.CondOT(source=SOURCES["centred"])
    field, x = jf.Field(junk, path, predicts), jnp.where(MASK[:, None], jnp.ones((5, 2)), 0)
    x = path.source.map.apply(x + jnp.arange(5.0)[:, None], ARGS)
    for name in ("velocity", "data", "noise", "score"):
        value = getattr(field, name)(0.5, x, ARGS)
        assert (value[~HERE] == 0).all() and np.abs(value.sum(0)).max() < 1e-5 and np.abs(value).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("source", tiers(SOURCES, ["centred"]))
def test_the_likelihood_of_a_masked_gaussian_is_exact(source, x64):
    """In the dimension of what is there; the padding may hold anything, even NaN."""
    dimension = (3 - (source == "centred")) * 2
    field = jf.Field(gaussian, jf.CondOT(source=SOURCES[source]), "velocity")
    x = jf.Normal(SOURCES[source].map).sample(KEY, jnp.zeros((5, 2)), ARGS) * SPREAD
    truth = -jnp.sum(x**2) / (2 * SPREAD**2) - dimension / 2 * np.log(2 * np.pi * SPREAD**2)
    sampler = jf.FixedSteps(jf.UniformGrid(64), dfx.Dopri5())
    log_prob = jax.jit(lambda x, mask: jf.log_prob(field, x, sampler, args=jf.Args(None, mask=mask)).log_prob)
    np.testing.assert_allclose(log_prob(x, MASK), truth, rtol=1e-6)
    wider = jnp.where(jnp.pad(MASK, (0, 3))[:, None], padded(x, 3), jnp.nan)
    np.testing.assert_allclose(log_prob(wider, jnp.pad(MASK, (0, 3))), truth, rtol=1e-6)
    adaptive = jf.log_prob(field, wider, args=jf.Args(None, mask=jnp.pad(MASK, (0, 3))))  # the default sampler
    np.testing.assert_allclose(adaptive.log_prob, truth, rtol=1e-3)
    assert adaptive.status == 0 and (adaptive.x[4:] == 0).all()
    swap = jr.permutation(jr.key(5), 5)
    np.testing.assert_allclose(log_prob(x[swap], MASK[swap]), truth, rtol=1e-6)


@pytest.mark.slow
def test_the_draws_of_a_masked_gaussian_have_its_law():
    """The reverse SDE of the exact field: variance `s^2 (1 - 1/n)` a component and nothing in the padding."""
    field = jf.Field(gaussian, jf.CondOT(source=SOURCES["centred"]), "velocity")
    sampler = jf.FixedSteps(jf.UniformGrid(64), eta=1.0)
    keys = jr.split(jr.key(3), 4000)
    x = np.asarray(jax.jit(jax.vmap(lambda k: jf.sample(field, k, (5, 2), sampler, args=ARGS).x))(keys))
    truth = SPREAD**2 * (np.eye(3) - 1 / 3)
    got = np.cov(x[:, HERE, 0].T)
    np.testing.assert_allclose(got, truth, atol=5 * SPREAD**2 * np.sqrt(2 / len(x)) + 0.01)
    assert (x[:, ~HERE] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("source", tiers(SOURCES, ["centred"]))
def test_neither_padding_nor_order_counts(source):
    """Loss and states of a network that does not mind the order: with more padding, with other padding, permuted."""

    def net(t, x, args):
        return jnp.sin(x) + jnp.sum(jnp.where(args[:, None], x, 0) ** 2, axis=0, keepdims=True) * t

    path = jf.CondOT(source=jf.Normal(SOURCES[source].map, coupled=True))
    field, noisy = jf.Field(net, path, "velocity"), jf.Field(net, jf.CondOT(source=SOURCES[source]), "velocity")
    x0, x1 = jr.normal(KEY, (2, 5, 2))
    normals = jr.normal(jr.key(1), (8, 5, 2))
    start = jnp.where(MASK[:, None], noisy.path.source.sample(KEY, x0, ARGS), 0)

    def values(x0, x1, start, normals, mask):
        args = jf.Args(mask, mask=mask)
        loss = jf.matching_loss(field, KEY, x1, mask, x0=x0, t=0.3, mask=mask)
        same = jf.matching_loss(field, KEY, x1, args, x0=x0, t=0.3)
        sampler = jf.FixedSteps(EULER, eta=1.0)
        return loss, same, jf.decode(noisy, start, sampler, args=args, brownian=jf.Recorded(normals)).x

    run = jax.jit(values)
    loss, same, x = run(x0, x1, start, normals, MASK)
    assert loss == same
    wider = run(padded(x0, 3), padded(x1, 3), jnp.pad(start, [(0, 3), (0, 0)]),
                jnp.pad(normals, [(0, 0), (0, 3), (0, 0)], constant_values=9.0), jnp.pad(MASK, (0, 3)))  # fmt: skip
    swap = jr.permutation(jr.key(5), 5)
    moved = run(x0[swap], x1[swap], start[swap], normals[:, swap], MASK[swap])
    np.testing.assert_allclose([wider[0], moved[0]], loss, rtol=1e-5)
    np.testing.assert_allclose(wider[2][:5], x, atol=1e-5)
    np.testing.assert_allclose(moved[2], x[swap], atol=1e-5)


def test_a_mask_in_args_is_the_mask_of_the_loss():
    """Whatever its type, and with the condition beside it."""
    field = jf.Field(lambda t, x, args: args["scale"] * x, jf.CondOT(), "velocity")
    x1, condition = jr.normal(KEY, (5, 2)), {"scale": jnp.asarray(2.0)}
    truth = jf.matching_loss(field, KEY, x1, condition, mask=MASK)
    for mask in (MASK.astype(float), MASK.astype(jnp.uint8), 2 * MASK, MASK[:, None], jnp.tile(MASK[:, None], (1, 2))):
        assert jf.matching_loss(field, KEY, x1, jf.Args(condition, mask=mask)) == truth
    assert jf.matching_loss(field, KEY, x1, jf.Args(condition, mask=jnp.ones(5)), mask=MASK) == truth
    assert jf.matching_loss(field, KEY, x1, condition) != truth


def test_gradients_are_finite_where_the_padding_is_not():
    """NaN times a mask of zero would be NaN in the gradient."""
    path, x1 = jf.CondOT(source=SOURCES["centred"]), jnp.where(MASK[:, None], jnp.ones((5, 2)), jnp.nan)

    def loss(w):
        return jf.matching_loss(jf.Field(lambda t, x, args: w * x, path, "data"), KEY, x1, mask=MASK)

    assert jnp.isfinite(jax.grad(loss)(1.0))


def test_data_are_centred_as_their_source_is():
    """A cloud that was not centred trains as the one that was."""
    field, x1 = jf.Field(junk, jf.CondOT(source=SOURCES["centred"]), "velocity"), jr.normal(KEY, (5, 2))
    here = MASK[:, None]
    moved = jf.matching_loss(field, KEY, x1 + 3, mask=MASK)
    np.testing.assert_allclose(moved, jf.matching_loss(field, KEY, x1, mask=MASK), rtol=1e-5)
    centred = jnp.where(here, x1 - jnp.sum(jnp.where(here, x1, 0), 0, keepdims=True) / 3, 0)
    np.testing.assert_allclose(moved, jf.matching_loss(field, KEY, centred, mask=MASK), rtol=1e-5)


def test_coloured_noise_of_what_is_there_has_its_block(x64):
    cov = np.array([[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]])
    args, own = jf.Args(None, mask=jnp.array([1, 0, 1])), jf.Coloured(cov)
    factor = jax.vmap(lambda e: own.apply(e, args))(jnp.eye(3)).T
    block = np.where(np.outer([1, 0, 1], [1, 0, 1]), cov, 0)
    np.testing.assert_allclose(factor @ factor.T, block, atol=1e-15)
    x = jnp.array([0.4, jnp.nan, 0.7])
    truth = stats.multivariate_normal(np.zeros(2), cov[::2, ::2]).logpdf([0.4, 0.7])
    np.testing.assert_allclose(jf.Normal(own).log_prob(x, args), truth, rtol=1e-12)
    assert own.rank(x, args) == 2
    np.testing.assert_array_equal(own.project(x, args), [0.4, 0.0, 0.7])


def test_metrics_leave_out_the_padding():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5, 2)), rng.normal(size=(30, 5, 2))
    masks = rng.random((40, 5)) < 0.6, rng.random((30, 5)) < 0.6
    zeros, holes = (
        [np.where(m[..., None], z, fill) for z, m in zip((x, y), masks, strict=True)] for fill in (0.0, np.nan)
    )
    for metric in (
        jf.metrics.energy_distance,
        jf.metrics.mmd,
        jf.metrics.frechet_distance,
        jf.metrics.nearest_distance,
        lambda x, y, **mask: jf.metrics.sliced_wasserstein(KEY, x, y, 16, **mask),
        lambda x, y, **mask: jf.metrics.frechet_distance(x, y, lambda z: z.sum(1), **mask),
    ):
        np.testing.assert_array_equal(metric(*holes, mask=masks), metric(*zeros))
    refuses(lambda: jf.metrics.energy_distance(x, y, mask=masks[0]), r"must be a pair, \(mask_x, mask_y\)")
    refuses(lambda: jf.metrics.mmd(x, y, mask=masks[::-1]), r"first axes of its sample.* Got shape \(30, 5\)")


# --------------------------------------------------------------------------------------------------- errors


class OfBatches(eqx.Module):
    linear: eqx.nn.Linear
    columns: bool = eqx.field(static=True)

    def __call__(self, t, x, args):
        t = t if self.columns else t[:, None]
        return jax.vmap(self.linear)(jnp.concatenate([x, t], axis=-1))


def of_batches(columns=False):
    return OfBatches(eqx.nn.Linear(3, 2, key=KEY), columns)


def field_of(net, path=None, **options):
    return jf.Field(net, jf.CondOT() if path is None else path, "velocity", **options)


def drawn(net, **options):
    return lambda: jf.generate(field_of(net), KEY, 20, (2,), EULER, progress=False, **options)


def added(t, x, args):
    return jnp.concatenate([x, args])[:2]


def fitted(batches):
    state = jf.train.init(field_of(of_batches()), optax.sgd(0.1))
    return lambda: jf.train.fit(state, jf.matching_loss, batches, steps=1, key=KEY, progress=False)


PLAIN = field_of(lambda t, x, args: x)
ERRORS = {
    "batches in the loss": (lambda: jf.matching_loss(field_of(of_batches()), KEY, jnp.ones(2)), "takes a batch of it"),
    "batches in a sampler": (lambda: jf.sample(field_of(of_batches(True)), KEY, (2,), EULER), "must take one example"),
    "batches, edm": (lambda: jf.Preconditioned(of_batches(), jf.VE(), 0.5).data(0.5, jnp.ones(2)), "Got OfBatches"),
    "two arguments": (lambda: field_of(lambda x, t: x), r"must be callable as net\(t, x, args\). Got function"),
    "no key": (lambda: field_of(lambda t, x, args: x, draws=True), r"net\(t, x, args, key=key\), for it draws"),
    "a key too much": (lambda: field_of(lambda t, x, args, key: x), "and draws=True in its field"),
    "no function": (lambda: field_of(jnp.ones(2)), "must be callable"),
    "conditions not marked": (drawn(added, args=jnp.ones((20, 3))), r"must be marked by args_in_axes.*\(20, 3\)"),
    "a mask not marked": (drawn(PLAIN.net, args=jf.Args(None, mask=jnp.ones((20, 2)))), "must be marked by args_in"),
    "as few conditions": (
        drawn(added, args=jnp.ones((19, 3)), args_in_axes=0),
        "args_in_axes 0 must have a leading axis",
    ),
    "no condition": (drawn(added, args_in_axes=0), "args_in_axes must go with args"),
    "another axis": (drawn(added, args=jnp.ones((3, 20)), args_in_axes=1), "args_in_axes must hold 0"),
    "a flag for an axis": (drawn(added, args=jnp.ones((20, 3)), args_in_axes=False), "must hold 0 .* Got False"),
    "no prefix": (drawn(added, args=jnp.ones(20), args_in_axes=jf.Args(0)), "args_in_axes must be a pytree prefix"),
    "start=function": (lambda: jf.sample(PLAIN, KEY, (2,), EULER, start=lambda k: k), "start must be a distribution"),
    "start=class": (
        lambda: jf.sample(PLAIN, KEY, (2,), EULER, start=jf.distributions.Gaussian),
        "start must be a distribution",
    ),
    "start=function of log_prob": (
        lambda: jf.log_prob(PLAIN, jnp.ones(2), EULER, start=lambda x: 0.0),
        "with a method log_prob",
    ),
    "an iterator": (fitted(iter([jnp.ones((4, 2))])), r"batches must be a function of the step.* Got list_iterator"),
    "a batch": (fitted(jnp.ones((4, 2))), "batches must be a function of the step"),
    "a mask of another length": (
        lambda: jf.matching_loss(PLAIN, KEY, jnp.ones((5, 2)), mask=jnp.ones(4)),
        r"Got shape \(4,\) for an event of shape \(5, 2\)",
    ),
    "a mask of another structure": (
        lambda: jf.matching_loss(PLAIN, KEY, jnp.ones((5, 2)), mask={"a": jnp.ones(5)}),
        "Got dict for an event",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_gets_its_sentence(name):
    call, fragment = ERRORS[name]
    refuses(call, fragment, (TypeError, ValueError))


@pytest.mark.slow
def test_the_error_of_a_network_is_its_own():
    """Where a batch fails too, the network is at fault, and its message stands."""
    with pytest.raises(TypeError, match="contracting dimensions"):
        jf.matching_loss(field_of(lambda t, x, args: x @ jnp.ones((3, 3))), KEY, jnp.ones(2))
