"""Positions and letters in one event: two paths beside each other, one network, one step for both."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class Masks(jf.AbstractSource):
    letter: int
    coupled = False

    def sample(self, key, like, args=None):
        return jnp.full(like.shape, self.letter, like.dtype)


class MixedSource(jf.AbstractSource):
    position: jf.AbstractSource
    letter: jf.AbstractSource
    coupled = False

    def sample(self, key, like, args=None):
        sources, keys = {"position": self.position, "letter": self.letter}, jr.split(key)
        return {name: s.sample(k, like[name], args) for k, (name, s) in zip(keys, sources.items(), strict=True)}


class Mixed(jf.AbstractPath):
    """Positions along an affine path, letters along a masked one; `z` decides which letters are seen."""

    position: jf.AbstractAffinePath
    source: MixedSource
    letters = True

    def latent(self, key, like, args=None):
        return jr.uniform(key, like["letter"].shape)

    def interpolate(self, t, x0, x1, z=None):
        position = self.position.interpolate(t, x0["position"], x1["position"])
        return {"position": position, "letter": jnp.where(z < t, x1["letter"], x0["letter"])}


class VelocityAndLogits(jf.AbstractPrediction):
    name = "both"

    def target(self, path, t, x0, x1, z=None, args=None):
        return {"position": path.position.velocity(t, x0["position"], x1["position"]), "letter": x1["letter"]}

    def output(self, value, x):
        return {name: head.output(value[name], x[name]) for name, head in HEADS.items()}

    def errors(self, value, target):
        return {name: head.errors(value[name], target[name]) for name, head in HEADS.items()}


HEADS = {"position": jf.Velocity(), "letter": jf.Logits()}


class MoveAndUnmask(jf.AbstractStepRule):
    noisy = True

    def draw(self, key, n, like):
        return jr.uniform(key, (n, *like["letter"].shape))

    def step(self, field, row, x, state, noise, args):
        (value,) = field.predict((VelocityAndLogits(),), row.t0, x, args)
        h, leaves = row.t1 - row.t0, (row.t1 - row.t0) / (1 - row.t0)
        below = jnp.cumsum(jax.nn.softmax(value["letter"]), axis=-1) * leaves
        letter = jnp.minimum(jnp.sum(noise[..., None] >= below, axis=-1), below.shape[-1] - 1)
        moves = (x["letter"] == field.path.source.letter.letter) & (noise < leaves)
        letter = jnp.where(moves, letter, x["letter"]).astype(x["letter"].dtype)
        return {"position": x["position"] + h * value["position"], "letter": letter}, state


# The law -------------------------------------------------------------------------------------------------------------

SHARES, MEANS, STD = np.array([0.5, 0.3, 0.2], np.float32), np.array([-2.0, 0.0, 3.0], np.float32), 0.5
MASK = 3
PATH = Mixed(jf.CondOT(), MixedSource(jf.Normal(), Masks(MASK)))
LIKE = {"position": jax.ShapeDtypeStruct((1,), jnp.float32), "letter": jax.ShapeDtypeStruct((), jnp.int32)}


def draw(key):
    """A letter, and a position around the mean of that letter."""
    key_letter, key_position = jr.split(key)
    letter = jr.choice(key_letter, 3, p=jnp.asarray(SHARES)).astype(jnp.int32)
    return {"position": jnp.asarray(MEANS)[letter] + STD * jr.normal(key_position, (1,)), "letter": letter}


def exact(t, x, args):
    """One network for both: what is seen of one tells of the other."""
    position, seen = x["position"][0], x["letter"]
    spread = t**2 * STD**2 + (1 - t) ** 2
    logits = jnp.log(SHARES) - (position - t * MEANS) ** 2 / (2 * spread)
    logits = jnp.where((seen == MASK) | (seen == jnp.arange(3)), logits, -1e4)
    # of each letter's own Gaussian: mean' + (spread'/2) (x - mean)/spread
    velocities = MEANS + (t * STD**2 - (1 - t)) * (position - t * MEANS) / spread
    return {"position": (jax.nn.softmax(logits) @ velocities)[None], "letter": logits}


FIELD = jf.Field(exact, PATH, VelocityAndLogits())
SAMPLER = jf.FixedSteps(jf.UniformGrid(64), MoveAndUnmask())


def test_samples_have_the_joint_law():
    n = 4000
    sol = jf.generate(FIELD, jr.key(0), n, LIKE, SAMPLER, batch_size=n)
    letter, position = sol.x["letter"], sol.x["position"][:, 0]
    assert letter.dtype == np.int32 and (sol.nfe == 64).all() and (sol.status == 0).all()
    for a in range(3):
        here = position[letter == a]
        assert abs(len(here) / n - SHARES[a]) < 4 * np.sqrt(SHARES[a] * (1 - SHARES[a]) / n) + 0.005
        assert abs(here.mean() - MEANS[a]) < 4 * STD / np.sqrt(len(here)) + 0.02
        assert abs(here.std() - STD) < 4 * STD / np.sqrt(2 * len(here)) + 0.02


@pytest.mark.slow
def test_training_regresses_both():
    """At the exact field the gradient of the loss vanishes in the mean, for both parts."""

    def loss(a, key):
        key_data, key_loss = jr.split(key)

        def moved(t, x, args):
            value = exact(t, x, args)
            seen = jax.nn.one_hot(x["letter"], 4)
            return {
                "position": value["position"] + a[:4] @ seen,
                "letter": value["letter"] + a[4:] * jnp.sin(x["position"]),
            }

        return jf.matching_loss(jf.Field(moved, PATH, VelocityAndLogits()), key_loss, draw(key_data))

    grads = np.asarray(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(jnp.zeros(7), jr.split(jr.key(1), 20000)))
    error = grads.std(0) / np.sqrt(len(grads))
    assert (np.abs(grads.mean(0)) < 4 * error).all() and (error > 0).all() and (error < 0.02).all()


@pytest.mark.slow
def test_a_network_is_trained_on_it():
    class Net(jf.Noun):
        w: jax.Array

        def __call__(self, t, x, args):
            seen = jax.nn.one_hot(x["letter"], 4)
            h = jnp.tanh(self.w[0] @ jnp.concatenate([t[None], x["position"], seen]))
            return {"position": (self.w[1] @ h)[:1], "letter": (self.w[2] @ h)[:3]}

    field = jf.Field(Net(0.1 * jr.normal(jr.key(0), (3, 6, 6))), PATH, VelocityAndLogits())
    state = jf.train.init(field, optax.adam(3e-2))
    batch = jax.vmap(draw)(jr.split(jr.key(1), 256))
    losses = []
    for i in range(60):
        state, info = jf.train.step(state, jf.matching_loss, jr.key(i), batch)
        losses.append(float(info.loss))
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.slow
def test_integers_elsewhere_raise():
    with pytest.raises(ValueError, match="floating-point"):
        jf.matching_loss(jf.Field(exact, jf.CondOT(), "velocity"), jr.key(0), draw(jr.key(0)))
