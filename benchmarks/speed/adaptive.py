"""Adaptive sampling in lanes that refill, beside `diffeqsolve` in chunks: `python benchmarks/continuous_batching.py`.

The field is the exact one of a mixture of narrow Gaussians plus zero times a dense network of about 1 MFLOP, so that
the flow is known and a call costs what a small network does. Both programs take the same lanes, solver and controller.
"""

import sys
import zlib

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _paired import paired_ratio

import jflow as jf

RUNS, N, LANES, TOLERANCE, WIDTH = 15, 4096, 512, 1e-4, 408
CONTROL = dfx.PIDController(TOLERANCE, TOLERANCE)


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


def field():
    means = jnp.asarray([[-2.0, 0.5], [1.0, 1.0], [0.5, -1.5]])
    exact = jf.distributions.GaussianMixture(means, stds=jnp.asarray([0.05, 0.08, 0.06])).field(jf.CondOT())
    widths = [2, WIDTH, WIDTH, WIDTH, WIDTH, 2]
    shapes = list(zip(widths[:-1], widths[1:], strict=True))
    layers = [jr.normal(k, s) / s[0] ** 0.5 for k, s in zip(jr.split(jr.key(1), len(shapes)), shapes, strict=True)]
    return jf.Field(Costly(exact, layers, jnp.zeros(())), jf.CondOT(), "velocity")


@eqx.filter_jit
def chunk(field, x0):
    """What one would write with diffrax alone."""

    def one(x):
        return dfx.diffeqsolve(
            dfx.ODETerm(lambda t, x, field: field.velocity(t, x, None)), dfx.Tsit5(), 0.0, 1.0, 0.01, x, field,
            stepsize_controller=CONTROL, throw=False, saveat=dfx.SaveAt(t1=True),
        )  # fmt: skip

    sol = jax.vmap(one)(x0)
    return sol.ys[:, -1], sol.stats["num_steps"]


def main(runs: int = RUNS) -> None:
    world, key, own = field(), jr.key(0), np.uint32(zlib.crc32(b"sample 0"))  # sample's own stream
    x0 = jax.vmap(lambda i: jr.normal(jr.fold_in(jr.fold_in(key, i), own), (2,)))(jnp.arange(N))
    sampler = jf.AdaptiveSteps(dfx.Tsit5(), CONTROL)

    def ours():
        return jf.generate(world, key, N, (2,), sampler, batch_size=LANES, progress=False)

    def theirs():
        return [jax.tree.map(np.asarray, chunk(world, x0[i : i + LANES])) for i in range(0, N, LANES)]

    out, (xs, steps) = ours(), (np.concatenate(part) for part in zip(*theirs(), strict=True))
    gap = np.abs(out.x - xs).max(1)
    slowest = sum(part.max() for part in np.split(steps, N // LANES)) * LANES
    ratio, own, other = paired_ratio(ours, theirs, runs)
    flops = 2 * sum(layer.size for layer in world.net.layers)
    print(
        "| samples | lanes | MFLOP a call | mean steps | most | evaluations | median gap | time | jflow, s | other, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {N} | {LANES} | {flops / 1e6:.2f} | {steps.mean():.1f} | {steps.max()} | {out.nfe.sum() / 6 / slowest:.3f} "
        f"| {np.median(gap):.1e} | {ratio:.3f} | {own:.2f} | {other:.2f} |"
    )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
