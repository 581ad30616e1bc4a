"""Divergences: exact for every shape and chunk, unbiased with probes."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import refuses

import jflow as jf

D = 12
MATRIX = jr.normal(jr.key(0), (D, D))


def linear(x):
    return MATRIX @ x


def curved(x):
    """An image field whose divergence is the sum of the cosines."""
    return {"image": jnp.sin(x["image"]), "vector": x["vector"] ** 2}


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 5, 12, 64])
def test_exact_is_the_trace_in_any_chunk(chunk):
    y, divergence = jf.ExactDivergence(chunk)(linear, jnp.ones(D), None)
    np.testing.assert_allclose(y, MATRIX.sum(1), rtol=1e-5)
    np.testing.assert_allclose(divergence, jnp.trace(MATRIX), rtol=1e-5)


def test_exact_takes_pytrees_of_any_shape():
    x = {"image": jr.normal(jr.key(1), (3, 4, 2)), "vector": jr.normal(jr.key(2), (5,))}
    _, divergence = jf.ExactDivergence(7)(curved, x, None)
    np.testing.assert_allclose(divergence, jnp.sum(jnp.cos(x["image"])) + 2 * jnp.sum(x["vector"]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimate",
    [jf.Hutchinson(3), jf.Hutchinson(3, law="gaussian"), jf.HutchPlusPlus(4, 3)],
    ids=["rademacher", "gaussian", "hutch++"],
)
def test_estimates_are_unbiased_and_come_one_a_probe(estimate):
    def one(key):
        return estimate(linear, jnp.ones(D), estimate.probes(key, jnp.ones(D)))[1]

    values = jax.jit(jax.vmap(one))(jr.split(jr.key(3), 4000))
    assert values.shape == (4000, 3)
    mean = values.mean(1)
    assert abs(mean.mean() - jnp.trace(MATRIX)) < 4 * mean.std() / np.sqrt(4000)


def test_rademacher_probes_have_their_exact_variance():
    """Var(v . A v) = 2 (||S||^2 - sum of S_ii^2) with S the symmetric part, for Rademacher v."""
    estimate = jf.Hutchinson(1)
    values = jax.vmap(lambda k: estimate(linear, jnp.ones(D), estimate.probes(k, jnp.ones(D)))[1][0])(
        jr.split(jr.key(4), 20_000)
    )
    symmetric = (MATRIX + MATRIX.T) / 2
    exact = 2 * (jnp.sum(symmetric**2) - jnp.sum(jnp.diag(symmetric) ** 2))
    np.testing.assert_allclose(values.var(), exact, rtol=0.06)


def test_hutch_plus_plus_is_exact_on_the_range_of_its_sketch():
    low_rank = MATRIX[:, :3] @ MATRIX[:3]
    estimate = jf.HutchPlusPlus(3, 2)
    _, values = estimate(lambda x: low_rank @ x, jnp.ones(D), estimate.probes(jr.key(5), jnp.ones(D)))
    np.testing.assert_allclose(values, jnp.trace(low_rank) * jnp.ones(2), rtol=1e-4)


def test_hutch_plus_plus_has_a_gradient_where_the_rank_is_below_the_sketch(x64):
    """Of `log N(e^-a x) - a`, the density for the velocity `a e_1 e_1^T x`."""
    x = jnp.arange(6.0) / 5

    def log_prob(a):
        field = jf.Field(lambda t, x, args: args * x * jnp.eye(6)[1], jf.CondOT(), "velocity")
        sampler = jf.FixedSteps(jf.UniformGrid(16), dfx.Heun())
        return jf.log_prob(field, x, sampler, args=a, divergence=jf.HutchPlusPlus(4, 2), key=jr.key(6)).log_prob

    slope = jax.jit(jax.grad(log_prob))(jnp.asarray(0.5))
    np.testing.assert_allclose(slope, 0.2**2 * np.exp(-1.0) - 1, rtol=1e-4)


def test_probes_are_not_the_normals_of_another_purpose():
    """A key that serves for data and for probes alike gives independent draws."""
    key = jr.key(0)
    probes = jf.Hutchinson(1, law="gaussian").probes(key, jnp.zeros(5))[0]
    assert (probes != jr.normal(key, (5,))).all()


def test_bad_arguments_say_the_rule():
    refuses(lambda: jf.Hutchinson(0), "probes must be an integer of at least 1. Got 0")
    refuses(lambda: jf.Hutchinson(law="uniform"), "must be 'rademacher' or 'gaussian'. Got 'uniform'")
    refuses(lambda: jf.HutchPlusPlus(True), "sketch must be an integer of at least 1. Got True")
    refuses(lambda: jf.ExactDivergence(2.5), "chunk must be an integer of at least 1. Got 2.5")
    refuses(lambda: jf.HutchPlusPlus(5, 1).probes(jr.key(0), jnp.ones(3)), "at most as many columns.*ExactDivergence")
    refuses(lambda: jf.Hutchinson(2).probes(None, jnp.ones(3)), "must have a key")
