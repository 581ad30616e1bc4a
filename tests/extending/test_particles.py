"""Particles: weights by `log_ratio` of the steps, and the estimate of a normalising constant that is known."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


def systematic(key, log_weights):
    """Indices of particles, each about as often as its weight says; one uniform number for all."""
    n = log_weights.shape[0]
    positions = (jr.uniform(key) + jnp.arange(n)) / n
    index = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(log_weights)), positions)
    return jnp.minimum(index, n - 1)  # the sum may round to less than one


def particles(key, proposal, target, sampler, reward, n, shape):
    """Samples of `p(x1) exp(reward(x1)) / Z`, `p` the law of the steps of `target`, and an estimate of `log Z`.

    Each step is the proposal's, with the ratio of the densities of both as a weight. They are resampled where the
    effective number of particles is under a half.
    """
    st, base = jf.stepper(proposal, sampler), jf.stepper(target, sampler)
    key_start, key_noise, key_choice = jr.split(key, 3)
    like = jax.ShapeDtypeStruct(shape, jnp.float32)
    x = jax.vmap(lambda k: proposal.path.source.sample(k, like))(jr.split(key_start, n))
    x = jax.vmap(lambda x0: proposal.path.start(st.times[0], x0))(x)

    def advance(carry, i):
        (x, state, base_state), log_w, log_z = carry
        row = st.row(i)

        def one(k, x, state, base_state):
            noise = st.noise(k, i, x)
            x1, new = st.step(row, x, state, noise)
            _, base_new = base.step(row, x, base_state, noise)  # the target's own memory
            return (x1, new, base_new), st.log_ratio(target, row, x, x1, None, state, base_state)

        moved, ratio = jax.vmap(one)(jr.split(key_noise, n), x, state, base_state)
        log_w = log_w + ratio
        w = jax.nn.softmax(log_w)
        few = 1 / jnp.sum(w**2) < n / 2
        index = jnp.where(few, systematic(jr.fold_in(key_choice, i), log_w), jnp.arange(n))
        moved = jax.tree.map(lambda leaf: leaf[index], moved)
        mean = jax.nn.logsumexp(log_w) - jnp.log(n)
        return (moved, jnp.where(few, 0, log_w), log_z + jnp.where(few, mean, 0)), None

    carry = (x, jax.vmap(st.init)(x), jax.vmap(base.init)(x)), jnp.zeros(n), 0.0
    ((x, *_), log_w, log_z), _ = jax.lax.scan(advance, carry, jnp.arange(st.steps))
    x = jax.vmap(base.finish)(x)
    log_w = log_w + jax.vmap(reward)(x)
    return x, log_w, log_z + jax.nn.logsumexp(log_w) - jnp.log(n)


# The law -------------------------------------------------------------------------------------------------------------

PATH, MEAN, STD, B = jf.CondOT(), np.array([0.5, -0.5]), 0.8, np.array([1.0, 0.5])
TARGET = jf.distributions.Gaussian(MEAN, std=STD).field(PATH)
# tilted by exp(b.x): N(mean + std^2 b, std^2), and log Z = b.mean + std^2 |b|^2 / 2. The proposal goes half of the way.
PROPOSAL = jf.distributions.Gaussian(MEAN + 0.5 * STD**2 * B, std=STD).field(PATH)
SAMPLERS = {
    "euler": jf.FixedSteps(jf.UniformGrid(16), eta=1.0),
    "two steps": jf.FixedSteps(jf.UniformGrid(10), jf.DPMpp(2), eta=1.0),
    "many steps": jf.FixedSteps(jf.UniformGrid(60), diffusion=lambda t: 1.0, end="denoise"),
}


def reward(x):
    return jnp.dot(jnp.asarray(B, x.dtype), x)


def exact_of(sampler):
    """`log Z` and the mean of the tilted law of the *chain* of the target, which is linear: its end's derivatives
    give the law."""

    def end(x, normals):
        return jf.decode(TARGET, x, sampler, brownian=jf.Recorded(normals)).x

    start = jnp.zeros(2), jnp.zeros((sampler.n, 2))
    mean, slopes = jax.jit(lambda *a: (end(*a), jax.jacobian(end, (0, 1))(*a)))(*start)
    slopes = np.concatenate([slope.reshape(2, -1) for slope in slopes], axis=1)
    cov = slopes @ slopes.T
    return float(B @ mean + B @ cov @ B / 2), mean + cov @ B


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("euler", marks=pytest.mark.slow), "two steps", "many steps"])
def test_the_estimate_is_that_of_the_chain_and_the_exact_one_for_many_steps(name):
    n, runs = 250, 20
    many = jax.jit(jax.vmap(lambda k: particles(k, PROPOSAL, TARGET, SAMPLERS[name], reward, n, (2,))))
    x, log_w, log_z = many(jr.split(jr.key(0), runs))
    z = np.exp(np.asarray(log_z, float))
    error = z.std() / np.sqrt(runs)
    chain, tilted = exact_of(SAMPLERS[name])
    assert abs(z.mean() - np.exp(chain)) < 2 * error < 0.05 * z.mean()  # unbiased, whatever the number of steps
    if name == "many steps":
        assert abs(z.mean() - np.exp(B @ MEAN + STD**2 * B @ B / 2)) < 2 * error
    means = np.sum(np.asarray(jax.nn.softmax(log_w, axis=1))[..., None] * np.asarray(x), axis=1)
    np.testing.assert_allclose(means.mean(0), tilted, atol=4 * means.std(0).max() / np.sqrt(runs) + 4 / n)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [{"eta": jf.Ancestral(0.5)}, {"diffusion": lambda t: 0.7}], ids=list)
def test_the_ratio_is_that_of_the_gaussians_of_a_step(noise):
    """The densities from the step itself: its value without noise, and its derivative in the noise."""
    path = jf.CondOT(source=jf.Normal(jf.Coloured(jnp.array([[2.0, 0.5], [0.5, 1.0]]))))
    fields = [jf.Field(lambda t, x, args, f=f: f(x), path, "velocity") for f in (jnp.sin, jnp.cos)]
    own, target = (jf.stepper(field, jf.FixedSteps(jf.UniformGrid(5), end="denoise", **noise)) for field in fields)
    row, x, z = own.row(2), jnp.array([0.3, -0.4]), jnp.array([0.5, 1.0])

    @jax.jit
    def both(z):
        def log_prob(st):
            factor = jax.jacobian(lambda z: st.step(row, x, None, (z,))[0])(z)
            mean = st.step(row, x, None, (jnp.zeros(2),))[0]
            return jax.scipy.stats.multivariate_normal.logpdf(x1, mean, factor @ factor.T)

        x1 = own.step(row, x, None, (z,))[0]
        return own.log_ratio(target.field, row, x, x1), log_prob(target) - log_prob(own)

    np.testing.assert_allclose(*both(z), rtol=1e-5)


@pytest.mark.slow
def test_what_is_no_gaussian_step_raises():
    for sampler in (jf.UniformGrid(4), jf.FixedSteps(jf.UniformGrid(4), dfx.Heun(), eta=1.0)):
        st = jf.stepper(TARGET, sampler)
        with pytest.raises(ValueError, match="Gaussian step"):
            st.log_ratio(PROPOSAL, st.row(1), jnp.zeros(2), jnp.zeros(2))
