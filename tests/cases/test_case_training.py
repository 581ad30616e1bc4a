"""Training at its limits: what is trained, what a loss returns, what an optimiser reads, and keys used twice."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx
from references import unchecked

import jflow as jf


def loss(field, key, x):
    return jf.matching_loss(field, key, x)


def network():
    return jf.Field(jf.nn.MLP(2, width=8, depth=1, rngs=nnx.Rngs(0)), jf.CondOT(), predicts="velocity")


class TwoNetworks(jf.AbstractField):
    """A user's field: an encoder beside the network."""

    net: jf.nn.MLP
    encoder: eqx.nn.Linear
    path: jf.CondOT
    predicts: str = eqx.field(static=True, default="velocity")

    def predict(self, targets, t, x, args=None):
        value = self.net(t, self.encoder(x), args)
        return jf.given(self.path, t, x, (value,), ("velocity",), targets, args)


@pytest.mark.slow
def test_network_beside_the_network():
    """Every network of a user's field is trained, whatever its name, and `matching_loss` takes the field."""
    encoder = eqx.nn.Linear(2, 2, key=jr.key(0))
    field = TwoNetworks(jf.nn.MLP(2, width=8, depth=1, rngs=nnx.Rngs(0)), encoder, jf.CondOT())
    assert all(jax.tree.leaves(jf.trainable(field).encoder))
    grads = eqx.filter_grad(lambda field: jf.matching_loss(field, jr.key(0), jnp.ones(2)))(field)
    assert (grads.encoder.weight != 0).any()


class Standardised(nnx.Module):
    """A network with a constant of the data."""

    def __init__(self, rngs):
        self.mean = nnx.Variable(jnp.array([5.0, 5.0]))
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, t, x, args):
        return self.linear(jnp.concatenate([x - self.mean[...], t[None]]))


class Centred(nnx.Module):
    """A network with a constant that is no variable at all."""

    def __init__(self, rngs):
        self.mean = nnx.data(jnp.array([5.0, 5.0]))
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs)])

    def __call__(self, t, x, args):
        return self.layers[0](x - self.mean)


def test_arrays_of_a_flax_module():
    """An array of a flax module that is no variable is not trained."""
    mask = jf.trainable(jf.Field(Centred(nnx.Rngs(0)), jf.CondOT(), predicts="velocity"))
    assert not mask.net.mean and mask.net.layers[0].kernel.get_value()


@pytest.mark.slow
def test_constants_of_a_network():
    """A flax variable that is no parameter is neither trained nor decayed."""
    field = jf.Field(Standardised(nnx.Rngs(0)), jf.CondOT(), predicts="velocity")
    state = jf.train.init(field, optax.adamw(0.1, weight_decay=0.5))
    before = np.array(state.field.net.linear.kernel[...])
    for i in range(3):
        state, _ = jf.train.step(state, loss, jr.key(i), jr.normal(jr.key(i), (8, 2)))
    assert (state.field.net.mean[...] == 5.0).all()
    assert (state.field.net.linear.kernel[...] != before).all()


@pytest.mark.slow
def test_loss_that_returns_a_pair():
    """A loss that returns a pair is taken as loss and metrics, or raises in words that name the tuple."""

    def pair(field, key, x):
        value = jf.matching_loss(field, key, x)
        return value, {"squared": value**2}

    try:
        with unchecked():
            _, info = jf.train.step(jf.train.init(network(), optax.adam(1e-3)), pair, jr.key(0), jnp.ones((4, 2)))
    except (ValueError, TypeError) as error:
        assert type(error) in (ValueError, TypeError) and "tuple" in str(error)
    else:
        assert jnp.isfinite(info.loss)


WRONG = {
    "three": (lambda value: (value, {}, {}), "tuple of 3"),
    "a dictionary": (lambda value: {"loss": value}, "a dict"),
    "nothing": (lambda value: None, "a NoneType"),
    "complex": (lambda value: value + 1j, "complex"),
    "a word beside it": (lambda value: (value, {"name": "squared"}), r"str at metrics\['name'\]"),
    "an array": (lambda value: (value[None], {}), "shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_loss_that_returns_something_else(name):
    """What is neither a scalar nor a pair with metrics raises in words that say what it is."""
    wrong, says = WRONG[name]

    def bad(field, key, x):
        return wrong(jnp.sum(field.net.out.bias[...]))

    with unchecked(), pytest.raises((ValueError, TypeError), match=says) as caught:
        jf.train.step(jf.train.init(network(), optax.sgd(0.1)), bad, jr.key(0), jnp.ones((4, 2)))
    assert "must" in str(caught.value)


@pytest.mark.slow
def test_metrics_beside_the_loss(tmp_path):
    """Metrics are means over the batch, change nothing of the step, and are logged."""

    def pair(field, key, x):
        value = loss(field, key, x)
        return value, {"squared": value**2, "first": x[0] > 0, "x": x, "loss": 0}

    batch = np.asarray([[1.0, 2.0], [-3.0, 4.0]], np.float32)
    optimizer = optax.sgd(0.1)
    plain, info = jf.train.step(jf.train.init(network(), optimizer), loss, jr.key(0), batch)
    state, with_metrics = jf.train.step(jf.train.init(network(), optimizer), pair, jr.key(0), batch)
    assert info.metrics is None and info.loss == with_metrics.loss
    assert all(map(np.array_equal, state.params, plain.params))
    metrics = with_metrics.metrics
    np.testing.assert_allclose(metrics["x"], [-1.0, 3.0])
    assert metrics["first"] == 0.5 and metrics["squared"] >= info.loss**2
    jf.train.fit(state, pair, lambda i: batch, steps=2, key=jr.key(1), run_dir=tmp_path, log_every=1, progress=False)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(line) == {"step", "squared", "first", "metrics.loss", "loss", "grad_norm", "seconds"}
    assert line["first"] == 0.5 and line["loss"] > 0 == line["metrics.loss"]


def plateau(field, key, x):
    """A loss of 1 wherever it is taken."""
    return 1.0 + 0.0 * jnp.sum(field.net.out.bias[...])


@pytest.mark.slow
def test_optimizer_that_reads_the_loss():
    """An optimiser that reads the loss is handed it: a plateau halves the learning rate, Polyak's steps run."""
    optimizer = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=2, cooldown=0))
    state = jf.train.init(network(), optimizer)
    for i in range(6):
        state, _ = jf.train.step(state, plateau, jr.key(i), jnp.ones((4, 2)))
    assert state.opt_state[1].scale < 1
    state = jf.train.init(network(), optax.polyak_sgd(1e-2))
    state, info = jf.train.step(state, loss, jr.key(0), jnp.ones((4, 2)))
    assert info.finite


def quadratic(field, key, x):
    """A loss with its least value, 0, at a bias of 3."""
    return jnp.sum((field.net.out.bias[...] - 3.0) ** 2)


def own(init, update):
    return optax.GradientTransformationExtraArgs(init, update)


# all that optax has of the kind, and two as users write them
READERS = {
    "Polyak": optax.polyak_sgd(1.0),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)),
    "L-BFGS": optax.lbfgs(),
    "accumulated": optax.MultiSteps(optax.polyak_sgd(1.0), 1),
    "by name": own(lambda p: (), lambda g, s, p, *, value: (jax.tree.map(lambda g: -g * value / (4 * value), g), s)),
    "no reader": optax.sgd(0.25),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_every_optimizer_that_reads_the_loss(name):
    """Value, gradient and function are those of the step: on a quadratic each of them goes to the least value."""
    state = jf.train.init(network(), READERS[name])
    for i in range(12):
        state, info = jf.train.step(state, quadratic, jr.key(i), jnp.ones((4, 2)))
    np.testing.assert_allclose(state.field.net.out.bias[...], 3.0, atol=1e-2)
    assert info.finite


@pytest.mark.slow
def test_one_key_for_data_and_fit():
    """Data drawn by the key of `fit`, as people draw them, are independent of the draws of training."""
    world = jf.distributions.GaussianMixture(jnp.asarray([[-2.0, 0.0], [2.0, 1.0]]), stds=jnp.asarray([0.5, 0.8]))
    exact = world.field(jf.CondOT())
    net = jax.tree_util.Partial(lambda w, t, x, args: exact.velocity(t, x) + 0 * w, jnp.zeros(2))
    draw = jax.jit(lambda key, i: jax.vmap(world.sample)(jr.split(jr.fold_in(key, i), 512)))

    def mean_loss(key):
        """That of the exact field, which does not move."""
        state = jf.train.init(jf.Field(net, jf.CondOT(), "velocity"), optimizer, ema=None)
        return jf.train.fit(state, loss, lambda i: draw(key, i), steps=20, key=jr.key(0), progress=False)[1].mean()

    optimizer = optax.sgd(0.1)
    same, other = mean_loss(jr.key(0)), mean_loss(jr.key(1))
    assert abs(same / other - 1) < 0.1


@pytest.mark.slow
def test_one_key_for_everything():
    """What is drawn from one key, data, noise, starts and samples, is independent."""
    key, n = jr.key(0), 4000
    unit = jf.distributions.Gaussian(jnp.zeros(1), std=1.0)
    pair = jf.distributions.GaussianMixture(jnp.zeros((2, 1)), stds=jnp.ones(2))
    field = jf.Field(lambda t, x, args: 0 * x, jf.CondOT(), "velocity")
    keys = jr.split(key, n)
    draws = {
        "normal": jax.vmap(lambda k: jr.normal(k, (1,)))(keys),
        "source": jax.vmap(lambda k: jf.Normal().sample(jr.fold_in(k, 1), jnp.zeros(1)))(keys),
        "Gaussian": jax.vmap(unit.sample)(keys),
        "mixture": jax.vmap(pair.sample)(keys),
        "sample": jax.vmap(lambda k: jf.sample(field, k, (1,), jf.UniformGrid(1)).x)(keys),
        "generate": jf.generate(field, key, n, (1,), jf.UniformGrid(1), progress=False).x,
        "moons": jf.data.moons(key, n)[:, :1],
        "circles": jf.data.circles(key, n)[:, :1],
    }
    names = [name for name in draws if name != "generate"]  # its key of sample i is fold_in(key, i), as split gives it
    table = np.abs(np.corrcoef(np.concatenate([np.asarray(draws[name]) for name in names], 1).T))
    assert (table - np.eye(len(names))).max() < 0.08  # five standard errors


@pytest.mark.slow
def test_batch_of_raw_pixels():
    """A batch of raw uint8 pixels raises, or is scaled to [-1, 1]: nothing is trained on numbers up to 255."""
    try:
        _, info = jf.train.step(
            jf.train.init(network(), optax.adam(1e-3)), loss, jr.key(0), np.full((8, 2), 255, np.uint8)
        )
    except (ValueError, TypeError) as error:
        assert "must" in str(error) and "data.from_array" in str(error)
    else:
        assert info.loss < 100
