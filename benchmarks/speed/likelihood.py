"""Likelihood by Euler steps beside hand-written scans: exact by `jax.linearize`, Hutchinson's by `jax.vjp`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from baselines import loops
from flax import nnx

import jflow as jf

from . import timed

BATCH, STEPS = 1024, 20


def rows():
    net = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3)
    field = jf.Field(net, jf.CondOT(), predicts="velocity")
    times, x, keys = jf.UniformGrid(STEPS).times(), jr.normal(jr.key(0), (BATCH, 2)), jr.split(jr.key(1), BATCH)
    label = f"{{}} log-density, {STEPS} Euler steps, MLP 3 x 256, d = 2, batch {BATCH}"

    @eqx.filter_jit
    def ours(field, x, times, keys, divergence):
        return jax.vmap(
            lambda x, key: jf.log_prob(field, x, jf.FixedSteps(times), key=key, divergence=divergence).log_prob
        )(x, keys)

    @eqx.filter_jit
    def exact(net, x, times):
        return jax.vmap(lambda x: loops.exact_log_prob(lambda t, x: net(t, x, None), x, times))(x)

    @eqx.filter_jit
    def estimated(net, x, times, probes):
        def one(x, probe):
            return loops.hutchinson_log_prob(lambda t, x: net(t, x, None), x, times, probe)

        return jax.vmap(one)(x, probes)

    probes = jax.vmap(lambda key: jf.Hutchinson().probes(key, x[0])[0])(keys)
    known, guess = jf.ExactDivergence(), jf.Hutchinson()
    assert jnp.allclose(ours(field, x, times, keys, known), exact(net, x, times), atol=1e-4)
    assert jnp.allclose(ours(field, x, times, keys, guess), estimated(net, x, times, probes), atol=1e-4)
    yield timed(
        label.format("exact"), "a scan by linearize",
        lambda: ours(field, x, times, keys, known), lambda: exact(net, x, times), 1.03,
    )  # fmt: skip
    yield timed(
        label.format("Hutchinson's"), "a scan by vjp",
        lambda: ours(field, x, times, keys, guess), lambda: estimated(net, x, times, probes), 1.03,
    )  # fmt: skip
