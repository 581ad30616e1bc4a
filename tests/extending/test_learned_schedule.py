"""A noise schedule that is trained: it is marked and moves, and its defaults have the exact gradients."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class LearnedPath(jf.AbstractAffinePath):
    """`alpha = s(t)`, `sigma = 1 - s(t)` with `s = t + tanh(bend) t (1 - t)`, increasing for every `bend`."""

    bend: jax.Array
    source: jf.AbstractSource = jf.frozen(default=jf.Normal())

    def alpha(self, t):
        return t + jnp.tanh(self.bend) * t * (1 - t)

    def sigma(self, t):
        return 1 - self.alpha(t)


# The law -------------------------------------------------------------------------------------------------------------

PATH = LearnedPath(jnp.asarray(0.3))


def field(path=PATH):
    return jf.Field(jf.nn.MLP(2, width=16, depth=1, rngs=nnx.Rngs(0)), path, "velocity")


def loss(field, key, x1):
    return jf.matching_loss(field, key, x1)


@pytest.mark.slow
def test_training_marks_and_moves_it():
    assert jf.trainable(field()).path.bend
    assert not any(jax.tree.leaves(jf.trainable(jf.VP())))  # a built-in one is not
    state = jf.train.init(field(), optax.sgd(0.1))
    batch = jr.normal(jr.key(0), (64, 2)) + 1
    for i in range(3):
        state, info = jf.train.step(state, loss, jr.key(i), batch)
        assert info.finite
    assert abs(state.field.path.bend - 0.3) > 1e-3 and jnp.isfinite(state.field.path.bend)


@pytest.mark.slow
def test_the_gradient_of_the_loss_is_the_derivative(x64):
    """Through `x_t` and through the target: against central differences."""

    @jax.jit
    def value(bend):
        return jf.matching_loss(field(LearnedPath(bend)), jr.key(1), jnp.array([1.0, -1.0]))

    found, step = jax.grad(value)(0.3), 1e-5
    assert abs(found) > 1e-3
    np.testing.assert_allclose(found, (value(0.3 + step) - value(0.3 - step)) / (2 * step), rtol=1e-6)


@pytest.mark.slow
def test_the_defaults_have_gradients(x64):
    """`log_snr_inverse` is a bisection: `s(t) = c` gives `dt/da = -t (1 - t)/(1 + a (1 - 2 t))`, `a = tanh(bend)`."""
    bend, a, level, times = 0.3, np.tanh(0.3), 0.8, jnp.array([0.0, 0.4, 1.0])

    @jax.jit
    def numbers(bend):
        path = LearnedPath(bend)
        t, slope = jax.value_and_grad(lambda bend: LearnedPath(bend).log_snr_inverse(level))(bend)
        grid = jax.grad(lambda bend: jnp.sum(jf.LogSNRGrid(4, lo=-3.0, hi=3.0).times(LearnedPath(bend))))(bend)
        return t, path.log_snr(t), slope, grid, jax.vmap(path.alpha_dot)(times), jax.vmap(path.sigma_dot)(times)

    t, back, slope, grid, alpha_dot, sigma_dot = numbers(bend)
    np.testing.assert_allclose(back, level, atol=1e-12)
    np.testing.assert_allclose(slope, -t * (1 - t) / (1 + a * (1 - 2 * t)) * (1 - a**2), rtol=1e-8)
    assert np.isfinite(grid) and grid < -0.1  # a grid follows its path
    np.testing.assert_allclose(alpha_dot, 1 + a * (1 - 2 * times), rtol=1e-12)
    np.testing.assert_allclose(sigma_dot, -alpha_dot, rtol=1e-12)


@pytest.mark.slow
def test_samplers_and_densities_take_it(x64):
    world = jf.distributions.Gaussian(jnp.array([1.0]), std=0.5)
    exact = world.field(LearnedPath(jnp.asarray(-0.8)))
    x = jnp.array([1.7])
    np.testing.assert_allclose(jf.log_prob(exact, x).log_prob, world.log_prob(x), atol=1e-4)
    sampler = jf.FixedSteps(jf.UniformGrid(64), dfx.Heun(), clock=jf.RatioClock())
    np.testing.assert_allclose(jf.decode(exact, jnp.array([1.0]), sampler).x, 1.5, atol=1e-3)
    moved = jf.change_path(world.field(jf.VP()), PATH)
    found, wanted = jax.jit(lambda x: (moved.data(0.5, x), world.field(PATH).data(0.5, x)))(x)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
