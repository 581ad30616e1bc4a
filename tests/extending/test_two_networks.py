"""A field with two networks, each for its half of the times: both are trained, and one is called at a time."""

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flax import nnx

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class Experts(jf.AbstractField):
    """One field where the noise is strong, another where the data are."""

    early: jf.AbstractField
    late: jf.AbstractField
    switch: float = 0.5
    predicts = "velocity"

    @property
    def path(self):
        return self.early.path

    def predict(self, targets, t, x, args=None):
        def of(field):
            return lambda: field.predict(targets, t, x, args)

        return lax.cond(t < self.switch, of(self.early), of(self.late))


# The law -------------------------------------------------------------------------------------------------------------


def networks(seed):
    return jf.nn.MLP(2, width=16, depth=1, rngs=nnx.Rngs(seed))


def experts():
    early, late = (jf.Field(networks(seed), jf.CondOT(), "velocity") for seed in (0, 1))
    return Experts(early, late)


def arrays(field):
    return [leaf for leaf in jax.tree.leaves(field) if hasattr(leaf, "shape")]


def test_both_are_trained():
    field = experts()
    flags = jf.trainable(field)
    assert all(jax.tree.leaves(flags.early.net)) and all(jax.tree.leaves(flags.late.net))
    state = jf.train.init(field, optax.sgd(0.1))
    state, info = jf.train.step(state, jf.matching_loss, jr.key(0), jr.normal(jr.key(1), (64, 2)))
    assert info.finite
    for part in ("early", "late"):
        pairs = zip(arrays(getattr(field, part)), arrays(getattr(state.field, part)), strict=True)
        assert all(np.abs(a - b).max() > 0 for a, b in pairs), part


def test_each_is_called_at_its_times():
    field, x = experts(), jnp.ones(2)
    for t, part in ((0.2, field.early), (0.8, field.late)):
        np.testing.assert_allclose(field.velocity(t, x), part.velocity(t, x), rtol=1e-6)
        np.testing.assert_allclose(field.data(t, x), part.data(t, x), rtol=1e-6)
    early = jax.grad(lambda f: jnp.sum(f.velocity(0.8, x)), allow_int=True)(field).early
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(early) if leaf.dtype == jnp.float32)


def test_two_exact_halves_are_the_exact_field():
    world = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
    exact = world.field(jf.CondOT())
    sol = jf.sample(Experts(exact, exact), jr.key(0), (2,), jf.UniformGrid(8))
    np.testing.assert_allclose(sol.x, jf.sample(exact, jr.key(0), (2,), jf.UniformGrid(8)).x, rtol=1e-5)
    assert sol.nfe == 8
