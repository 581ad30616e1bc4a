"""A stochastic interpolant between two data sets: its laws by the ODE and by the SDE are the second one's."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class Interpolant(jf.AbstractDifferentiablePath):
    """`x_t = (1 - t) x0 + t x1 + gamma(t) z`, `gamma = sqrt(2) width t (1 - t)`, for pairs that come with the data."""

    width: jax.Array = jf.frozen(converter=jnp.asarray)
    source: jf.AbstractSource = jf.frozen(default=jf.GIVEN)

    def gamma(self, t):
        return jnp.sqrt(2) * self.width * t * (1 - t)

    def latent(self, key, like, args=None):
        return jr.normal(key, like.shape, like.dtype)

    def interpolate(self, t, x0, x1, z=None):
        return (1 - t) * x0 + t * x1 + self.gamma(t) * z


class LatentScore(jf.AbstractPrediction):
    """`grad log p_t(x) = -E[z | x_t = x] / gamma(t)`, whatever the law of the pairs."""

    name = "score"

    def target(self, path, t, x0, x1, z=None, args=None):
        return -z / path.gamma(t)


def two_heads(net, path):
    """A field whose network returns a velocity and a score."""
    return jf.Field(net, path, ("velocity", LatentScore()))


# The law -------------------------------------------------------------------------------------------------------------

# independent ends x0 ~ N(M0, S0^2) and x1 ~ N(M1, S1^2): x_t is N(mean(t), spread(t)), and everything linear
M0, S0, M1, S1 = -1.0, 0.5, 2.0, 1.5
PATH = Interpolant(0.7)


def mean(t):
    return (1 - t) * M0 + t * M1


def spread(t):
    return ((1 - t) * S0) ** 2 + (t * S1) ** 2 + PATH.gamma(t) ** 2


def exact(t, x, args):
    """`velocity = mean' + (spread'/2) (x - mean)/spread`, `score = -(x - mean)/spread`."""
    scaled = (x - mean(t)) / spread(t)
    return M1 - M0 + jax.grad(spread)(t) / 2 * scaled, -scaled


FIELD = two_heads(exact, PATH)


@pytest.mark.slow
def test_the_ode_carries_one_gaussian_to_the_other(x64):
    sampler = jf.AdaptiveSteps(rtol=1e-9, atol=1e-9)
    x = jax.vmap(lambda x: jf.decode(FIELD, x, sampler).x)(jnp.array([M0, M0 + S0])[:, None])
    np.testing.assert_allclose(x[:, 0], [M1, M1 + S1], atol=1e-7)  # the flow is affine


@pytest.mark.slow
def test_the_sde_carries_one_gaussian_to_the_other(x64):
    """Its end is linear in the start and in the noise of each step, so the derivatives give its law."""

    def moments(n):
        sampler = jf.FixedSteps(jf.UniformGrid(n), diffusion=lambda t: 1 + t)

        def end(x0, normals):
            return jf.decode(FIELD, x0, sampler, brownian=jf.Recorded(normals)).x[0]

        value, slopes = jax.value_and_grad(end, (0, 1))(jnp.array([M0]), jnp.zeros((n, 1)))
        return value, jnp.sqrt(jnp.sum(slopes[0] ** 2) * S0**2 + jnp.sum(slopes[1] ** 2)), slopes[0][0]

    (*few, _), (*many, kept) = moments(100), moments(400)
    off = np.abs(np.array([few, many]) - [M1, S1])
    assert off[1].max() < 0.01 and (off[1] < 0.3 * off[0] + 1e-12).all()  # Euler's error, of order one
    assert kept < 0.9 * S1 / S0  # the noise is there: the start is partly forgotten


@pytest.mark.slow
def test_sampling_from_a_distribution_of_starts():
    start = jf.distributions.Gaussian(jnp.array([M0]), std=S0)
    sampler = jf.FixedSteps(jf.UniformGrid(50), diffusion=lambda t: 1.0)
    x = jax.jit(jax.vmap(lambda k: jf.sample(FIELD, k, (1,), sampler, start=start).x))(jr.split(jr.key(0), 4000))
    assert abs(x.mean() - M1) < 4 * S1 / np.sqrt(4000) + 0.02 and abs(x.std() - S1) < 4 * S1 / np.sqrt(8000) + 0.02


@pytest.mark.slow
def test_training_regresses_velocity_and_score():
    """At the exact field the gradient of the loss of each head vanishes in the mean."""

    def loss(a, key):
        key0, key1, key_loss = jr.split(key, 3)
        x0, x1 = M0 + S0 * jr.normal(key0, (1,)), M1 + S1 * jr.normal(key1, (1,))

        def moved(t, x, args):
            velocity, score = exact(t, x, args)
            return velocity + a[0] * jnp.sin(x), score + a[1] * x + a[2] * t

        return jf.matching_loss(two_heads(moved, PATH), key_loss, x1, x0=x0, law=jf.laws.Uniform(0.1, 0.9))

    grads = np.asarray(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(jnp.zeros(3), jr.split(jr.key(1), 20000)))
    error = grads.std(0) / np.sqrt(len(grads))
    assert (np.abs(grads.mean(0)) < 4 * error).all() and (error < 0.2).all()


def test_a_score_head_is_taken_along_an_affine_path_too():
    """One step of `x + h (velocity + g^2/2 score)`, where the path would give another score."""
    field, x = two_heads(lambda t, x, args: (x, 3 * x), jf.CondOT()), jnp.ones(1)
    sampler = jf.FixedSteps(jnp.array([0.25, 0.5]), diffusion=lambda t: 2.0)
    sol = jf.decode(field, x, sampler, brownian=jf.Recorded(jnp.zeros((1, 1))))
    np.testing.assert_allclose(sol.x, 1 + 0.25 * (1 + 2 * 3), rtol=1e-6)


@pytest.mark.slow
def test_what_is_missing_raises():
    sde, x = jf.FixedSteps(jf.UniformGrid(4), diffusion=lambda t: 1.0), jnp.zeros(1)
    velocity = jf.Field(lambda t, x, args: exact(t, x, args)[0], PATH, "velocity")
    with pytest.raises(ValueError, match="score"):
        jf.decode(velocity, x, sde, key=jr.key(0))  # no head gives it
    assert jf.decode(velocity, x, jf.FixedSteps(jf.UniformGrid(4))).status == 0  # the ODE needs none
    with pytest.raises(ValueError, match="affine path"):
        jf.decode(FIELD, x, jf.FixedSteps(jf.UniformGrid(4), eta=1.0), key=jr.key(0))  # eta is for affine paths
    with pytest.raises(ValueError, match="start="):
        jf.sample(FIELD, jr.key(0), (1,), jf.FixedSteps(jf.UniformGrid(4)))
    with pytest.raises(ValueError, match="x0="):
        jf.matching_loss(FIELD, jr.key(0), x)
