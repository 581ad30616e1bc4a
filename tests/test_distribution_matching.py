"""Distribution matching: its gradient against a simulation of the formula, what reaches whom, and where it ends."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from references import refuses

import jflow as jf
from jflow import few_step as fs

MEAN, STD = 1.0, 0.5
PATH = jf.CondOT()
TEACHER = jf.distributions.Gaussian(jnp.full(2, MEAN), std=STD).field(PATH)


class Affine(eqx.Module):
    """The straight map from the noise to `N(mean, std^2)`, of two times."""

    mean: jax.Array
    std: jax.Array

    def __call__(self, s, t, x, args):
        return self.mean + (self.std - 1) * x + 0 * (s + t)


class Velocity(eqx.Module):
    """The velocity of `N(mean, std^2)` along CondOT."""

    mean: jax.Array
    std: jax.Array

    def __call__(self, t, x, args):
        var = t**2 * self.std**2 + (1 - t) ** 2
        return self.mean + (t * self.std**2 - (1 - t)) / var * (x - t * self.mean)


def pair(mean, std):
    """A map, and the field of what it draws."""
    numbers = jnp.asarray(mean), jnp.asarray(std)
    return jf.FlowMap(Affine(*numbers), PATH), jf.Field(Velocity(*numbers), PATH, "velocity")


def gradients(models, keys, teacher=TEACHER):
    """The gradient of each key's loss in `(mean, std)` of the map and of the field."""

    def loss(models, key):
        return fs.distribution_matching_loss(models, key, jnp.zeros(2), teacher=teacher)

    grads = jax.jit(jax.vmap(eqx.filter_grad(loss), (None, 0)))(models, keys)
    return [np.stack([g.net.mean, g.net.std], axis=1) for g in grads]


def test_the_gradient_is_that_of_the_formula():
    mean, std, n = 0.2, 1.5, 40_000
    ours, _ = gradients(pair(mean, std), jr.split(jr.key(0), n))
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, n, 2))
    d, t = mean + std * x0, rng.uniform(0.02, 0.98, (n, 1))
    x = t * d + (1 - t) * noise

    def data(mean, std):  # E[x1 | x_t]
        return mean + t * std**2 / (t**2 * std**2 + (1 - t) ** 2) * (x - t * mean)

    g = (data(mean, std) - data(MEAN, STD)) / np.abs(d - data(MEAN, STD)).mean(axis=1, keepdims=True)
    theirs = np.stack([g.mean(axis=1), (g * x0).mean(axis=1)], axis=1)
    error = np.sqrt(ours.var(axis=0) / n + theirs.var(axis=0) / n)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()
    assert (np.abs(theirs.mean(axis=0)) > 10 * error).all()
    assert theirs.mean(axis=0)[0] < 0 < theirs.mean(axis=0)[1]  # a step down it moves the mean up, the spread down


def test_a_map_with_the_teachers_law_has_no_gradient():
    ours, _ = gradients(pair(MEAN, STD), jr.split(jr.key(1), 64))
    np.testing.assert_allclose(ours, 0, atol=2e-5)


def test_the_field_learns_the_draws_alone_and_the_map_learns_nothing_from_that():
    keys, models = jr.split(jr.key(2), 64), pair(0.2, 0.8)
    other = jf.distributions.Gaussian(jnp.zeros(2), std=2.0).field(PATH)
    map_one, field_one = gradients(models, keys)
    map_two, field_two = gradients(models, keys, other)
    np.testing.assert_array_equal(field_one, field_two)
    assert np.abs(map_one - map_two).max() > 0.1
    _, away = gradients((models[0], pair(-1.0, 0.8)[1]), jr.split(jr.key(3), 4096))
    assert away.mean(axis=0)[0] < 0  # matching alone: towards the mean of the draws, 0.2


@pytest.mark.slow
def test_training_ends_at_the_teachers_law():
    def loss(models, key, x1):
        return fs.distribution_matching_loss(models, key, x1, teacher=TEACHER)

    steps = 600
    state = jf.train.init(pair(-0.5, 1.5), optax.adam(optax.cosine_decay_schedule(1e-2, steps)), ema=None)
    for i in range(steps):
        state, _ = jf.train.step(state, loss, jr.fold_in(jr.key(4), i), jnp.zeros((256, 2)))
    for net in (state.field[0].net, state.field[1].net):
        np.testing.assert_allclose([net.mean, net.std], [MEAN, STD], atol=0.05)


def test_masked_components_are_left_out():
    args = jf.Args(mask=jnp.array([1.0, 0.0]))
    flow_map = jf.FlowMap(lambda s, t, x, args: jnp.array([1.0, 1e3]) - 0.5 * x + 0 * (s + t), PATH)
    teacher = jf.Field(lambda t, x, args: jnp.array([0.0, -1e4]) + 0 * x, PATH, "velocity")
    fake = jf.Field(lambda t, x, args: jnp.array([0.1, 1e4]) + 0 * x, PATH, "velocity")
    loss = fs.distribution_matching_loss((flow_map, fake), jr.key(5), jnp.zeros(2), args, teacher=teacher)
    assert loss < 100


def test_parts_that_do_not_go_together_raise():
    flow_map, fake = pair(0.0, 1.0)
    other = jf.distributions.Gaussian(jnp.zeros(2), std=1.0).field(jf.Cosine())

    def loss(models, teacher=TEACHER):
        return lambda: fs.distribution_matching_loss(models, jr.key(0), jnp.zeros(2), teacher=teacher)

    refuses(loss(flow_map), "pair must be a sequence", TypeError)
    refuses(loss((fake, fake)), "a pair", TypeError)
    refuses(loss((flow_map, lambda t, x, args: x)), "fake must be a field", TypeError)
    refuses(loss((flow_map, other)), "fake must be a field along the map's own path")
    refuses(loss((flow_map, fake), other), "teacher must be a field along the map's own path")
