"""Adaptive sampling: a sample beside diffrax by hand, and many in lanes that refill beside chunks of the largest step.

The field of the pool is the exact one of a mixture of narrow Gaussians plus zero times a dense network of about
1 MFLOP, so that the flow is known and a call costs what a small network does.
"""

import zlib

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from baselines.diffrax_solve import solve
from flax import nnx

import jflow as jf

from . import timed

N, LANES, TOLERANCE, WIDTH = 4096, 512, 1e-4, 408
MEANS, STDS = np.float32([[-2.0, 0.5], [1.0, 1.0], [0.5, -1.5]]), np.float32([0.05, 0.08, 0.06])
SAMPLER = jf.AdaptiveSteps(dfx.Tsit5(), rtol=TOLERANCE, atol=TOLERANCE)


def rows():
    net = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3)
    yield one_batch("an untrained MLP 3 x 256", jf.Field(net, jf.CondOT(), predicts="velocity"))
    yield one_batch("the flow of a mixture, 1 MFLOP a call", costly())
    yield pool()


def one_batch(name, field):
    """A batch of samples, each with steps of its own."""
    x0 = jr.normal(jr.key(0), (1024, 2))

    @eqx.filter_jit
    def ours(field, x0):
        return jax.vmap(lambda x: jf.decode(field, x, SAMPLER))(x0)

    @eqx.filter_jit
    def theirs(field, x0):
        return jax.vmap(lambda x: solve(field.net, x, TOLERANCE))(x0)

    out, (x, steps) = ours(field, x0), theirs(field, x0)
    assert jnp.median(jnp.abs(out.x - x).max(1)) < 10 * TOLERANCE
    calls = f"{int(out.nfe.max())} calls of its network for the slowest, {6 * int(steps.max()) + 1} by hand"
    program = f"Tsit5 at {TOLERANCE:g}, {name}, batch 1024 ({calls})"
    return timed(program, "`diffeqsolve` by hand", lambda: ours(field, x0), lambda: theirs(field, x0), 1.03)


class Costly(eqx.Module):
    """The exact velocity plus `zero` times a network of three hidden layers' products, 1.0 MFLOP a call."""

    exact: jf.AbstractField
    layers: list[jax.Array]
    zero: jax.Array

    def __call__(self, t, x, args):
        h = x
        for layer in self.layers[:-1]:
            h = jnp.tanh(h @ layer)
        return self.exact.velocity(t, x, args) + self.zero * (h @ self.layers[-1])


def costly():
    exact = jf.distributions.GaussianMixture(jnp.asarray(MEANS), stds=jnp.asarray(STDS)).field(jf.CondOT())
    widths = [2, WIDTH, WIDTH, WIDTH, WIDTH, 2]
    shapes = list(zip(widths[:-1], widths[1:], strict=True))
    layers = [jr.normal(k, s) / s[0] ** 0.5 for k, s in zip(jr.split(jr.key(1), len(shapes)), shapes, strict=True)]
    return jf.Field(Costly(exact, layers, jnp.zeros(())), jf.CondOT(), "velocity")


def starts(key):
    """The starts of the samples of `generate`."""
    own = np.uint32(zlib.crc32(b"sample 0"))  # sample's own stream
    return jax.vmap(lambda i: jr.normal(jr.fold_in(jr.fold_in(key, i), own), (2,)))(jnp.arange(N))


def pool():
    """`generate`, whose lanes take the next sample where one is done, beside chunks that wait for their slowest."""
    field, key = costly(), jr.key(0)
    x0 = starts(key)

    @eqx.filter_jit
    def chunk(field, x0):
        return jax.vmap(lambda x: solve(field.velocity, x, TOLERANCE, dt0=0.01))(x0)

    def ours():
        return jf.generate(field, key, N, (2,), SAMPLER, batch_size=LANES, progress=False)

    def theirs():
        return [jax.tree.map(np.asarray, chunk(field, x0[i : i + LANES])) for i in range(0, N, LANES)]

    out, (xs, steps) = ours(), (np.concatenate(part) for part in zip(*theirs(), strict=True))
    assert np.median(np.abs(out.x - xs).max(1)) < 10 * TOLERANCE
    slowest = sum(part.max() for part in np.split(steps, N // LANES)) * LANES
    program = (
        f"`generate`, {N} samples in {LANES} lanes, Tsit5 at {TOLERANCE:g}, 1 MFLOP a call "
        f"({out.nfe.sum() / 6 / slowest:.2f} of the evaluations)"
    )
    return timed(program, "`diffeqsolve` in chunks", ours, theirs, 0.65)
