"""Trained networks against the exact worlds they are trained on (closed forms N)."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import jflow as jf

pytestmark = pytest.mark.slow

HEUN = jf.FixedSteps(jf.UniformGrid(50), dfx.Heun())


def matching(field, key, x):
    return jf.matching_loss(field, key, x)


def trained(d, draw, *, steps, batch=256, width=64, depth=3):
    """An MLP along CondOT after some steps on fresh draws; its average field."""
    net = jf.nn.MLP(d, rngs=nnx.Rngs(0), width=width, depth=depth)
    field = jf.Field(net, jf.CondOT(), predicts="velocity")
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = jf.train.init(field, optimizer, ema=0.99)
    draws = jax.jit(lambda key: jax.vmap(draw)(jr.split(key, batch)))
    for step in range(steps):
        key_batch, key_loss = jr.split(jr.fold_in(jr.key(0), step))
        state, _ = jf.train.step(state, matching, key_loss, draws(key_batch))
    return state.ema


def validation(field, draw, n=100_000):
    """The loss summed over the event, as the closed forms have it."""
    key_data, key_loss = jr.split(jr.key(99))
    xs = jax.vmap(draw)(jr.split(key_data, n))
    losses = eqx.filter_jit(eqx.filter_vmap(matching, in_axes=(None, 0, 0)))(field, jr.split(key_loss, n), xs)
    return losses.mean() * xs[0].size


def drawn(field, n, shape, sampler):
    return jf.generate(field, jr.key(5), n, shape, sampler, batch_size=n, progress=False).x


def test_N1_a_small_network_learns_a_gaussian():
    """N(1, 1/4): the least loss is pi/4; samples have mean 1 and standard deviation 1/2."""
    world = jf.distributions.Gaussian(jnp.asarray([1.0]), std=0.5)
    field = trained(1, world.sample, steps=1500)
    np.testing.assert_allclose(validation(field, world.sample), np.pi / 4, rtol=0.05)
    x = drawn(field, 10_000, (1,), HEUN)
    assert abs(x.mean() - 1) < 0.05 and abs(x.std() - 0.5) < 0.05


@pytest.fixture(scope="module")
def five_modes():
    """The course's mixture: five modes on a circle of radius 10, of standard deviation 1."""
    angles = 2 * np.pi * np.arange(5) / 5
    means = 10 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    world = jf.distributions.GaussianMixture(means, stds=np.ones(5))
    return world, means, trained(2, world.sample, steps=4000, batch=512)


def test_the_velocity_is_that_of_the_mixture(five_modes):
    """The root mean square of `u_net - u` over that of `u`, `t` uniform on [0.05, 0.95] and `x ~ p_t`."""
    world, _, field = five_modes
    exact = world.field(jf.CondOT())

    def squares(key):
        key_time, key_data, key_noise = jr.split(key, 3)
        t = jr.uniform(key_time, minval=0.05, maxval=0.95)
        x = field.path.interpolate(t, jr.normal(key_noise, (2,)), world.sample(key_data))
        u = exact.velocity(t, x)
        return jnp.sum((field.velocity(t, x) - u) ** 2), jnp.sum(u**2)

    off, whole = jax.jit(jax.vmap(squares))(jr.split(jr.key(6), 20_000))
    assert jnp.sqrt(off.mean() / whole.mean()) < 0.05


def test_N2_every_mode_gets_its_share(five_modes):
    """Least loss 18.21 (from the exact field, 0.07 of Monte Carlo error); 20 percent of the samples a mode."""
    world, means, field = five_modes
    assert validation(field, world.sample) < 1.1 * 18.21
    x = drawn(field, 5000, (2,), HEUN)
    nearest = np.argmin(np.linalg.norm(x[:, None] - means[None], axis=-1), axis=1)
    shares = np.bincount(nearest, minlength=5) / 5000
    assert (abs(shares - 0.2) < 0.04).all(), shares


def test_N4_ode_and_sde_of_one_network_agree(five_modes):
    _, _, field = five_modes
    ode = drawn(field, 5000, (2,), jf.UniformGrid(200))
    sde = drawn(field, 5000, (2,), jf.FixedSteps(jf.UniformGrid(200), eta=1.0))
    np.testing.assert_allclose(sde.mean(0), ode.mean(0), atol=0.6)
    np.testing.assert_allclose(np.cov(sde.T), np.cov(ode.T), atol=5.0)


def test_N3_most_samples_fall_into_the_squares():
    """The exact field puts all of them there, a uniform draw half."""
    world = jf.distributions.checkerboard()
    field = trained(2, world.sample, steps=5000, batch=512, width=128)
    x = drawn(field, 5000, (2,), HEUN)
    cells = np.floor((x + 5) / 2.5).astype(int)
    inside = ((cells >= 0) & (cells < 4)).all(1) & (cells.sum(1) % 2 == 0)
    assert inside.mean() > 0.8, inside.mean()
