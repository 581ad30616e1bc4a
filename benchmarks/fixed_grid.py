"""What a fixed grid costs beside a hand-written scan: `python benchmarks/fixed_grid.py`.

Each row is the median of paired ratios over interleaved runs in one process; the hand-written loops import nothing
of jflow.
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
from flax import nnx

import jflow as jf

RUNS = 15


def ode_row(solver: str):
    """100 Euler or Heun steps of an MLP 3 x 256 on 2-D data, batch 4096."""
    net = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3)
    field = jf.Field(net, jf.CondOT(), predicts="velocity")
    times, x0 = jf.UniformGrid(100).times(), jr.normal(jr.key(0), (4096, 2))
    method = {"Euler": dfx.Euler(), "Heun": dfx.Heun()}[solver]

    @eqx.filter_jit
    def ours(field, x0, times):
        return jax.vmap(lambda x: jf.decode(field, x, jf.FixedSteps(times, method)).x)(x0)

    @eqx.filter_jit
    def theirs(net, x0, times):
        def one(x0):
            def step(x, pair):
                t, h = pair[0], pair[1] - pair[0]
                k = net(t, x, None)
                return (x + h * k if solver == "Euler" else x + h / 2 * (k + net(t + h, x + h * k, None))), None

            return jax.lax.scan(step, x0, (jnp.stack([times[:-1], times[1:]], 1)))[0]

        return jax.vmap(one)(x0)

    assert jnp.allclose(ours(field, x0, times), theirs(net, x0, times), atol=1e-5)
    return paired_ratio(lambda: ours(field, x0, times), lambda: theirs(net, x0, times), RUNS)


def sde_rows(d: int, batch: int, n: int = 200):
    """Euler-Maruyama on an Ornstein-Uhlenbeck process: beside the same normals, and beside one batched draw a step."""
    times, x0, keys = jf.UniformGrid(n).times(), jnp.zeros((batch, d)), jr.split(jr.key(0), batch)
    folded = jax.vmap(lambda key: jr.fold_in(key, np.uint32(zlib.crc32(b"solve"))))(keys)  # solve's own stream
    block = max(1, min(20, 64 // d))

    @jax.jit
    def ours(keys, x0, times):
        def one(key, x):
            return jf.solve(lambda t, x, a: -x, x, times, diffusion=lambda t, x, a: 1.0, key=key).x

        return jax.vmap(one)(keys, x0)

    def walk(x, steps):
        def step(x, slices):
            (start, stop), z = slices
            h = stop - start
            return x - h * x + jnp.sqrt(h) * z, None

        return jax.lax.scan(step, x, steps)[0]

    @jax.jit
    def same_normals(keys, x0, times):
        pairs = jnp.stack([times[:-1], times[1:]], 1).reshape(n // block, block, 2)

        def one(key, x):
            def outer(x, slices):
                i, pair = slices
                z = jr.normal(jr.fold_in(key, i), (block, d))
                return walk(x, (pair, z)), None

            return jax.lax.scan(outer, x, (jnp.arange(n // block), pairs))[0]

        return jax.vmap(one)(keys, x0)

    @jax.jit
    def batched_draw(key, x0, times):
        def step(x, slices):
            (start, stop), key = slices
            h = stop - start
            return x - h * x + jnp.sqrt(h) * jr.normal(key, x.shape), None

        return jax.lax.scan(step, x0, (jnp.stack([times[:-1], times[1:]], 1), jr.split(key, n)))[0]

    @jax.jit
    def tree(keys, x0, times):
        def one(key, x):
            path = dfx.VirtualBrownianTree(0.0, 1.0, 1e-3, (d,), key)
            return jf.solve(lambda t, x, a: -x, x, times, diffusion=lambda t, x, a: 1.0, brownian=path).x

        return jax.vmap(one)(keys, x0)

    assert jnp.allclose(ours(keys, x0, times), same_normals(folded, x0, times), atol=1e-5)
    run = lambda: ours(keys, x0, times)  # noqa: E731
    yield "the same normals", paired_ratio(run, lambda: same_normals(folded, x0, times), RUNS)
    yield "one batched draw", paired_ratio(run, lambda: batched_draw(keys[0], x0, times), RUNS)
    yield "diffrax's tree", paired_ratio(run, lambda: tree(keys, x0, times), 3)
    yield from torchsde_row(run, d, batch, n)


def torchsde_row(run, d, batch, n):
    """torchsde's Euler on the same equation, where it is installed."""
    try:
        import torch
        import torchsde
    except ImportError:
        print("torchsde is not installed: no row for it", file=sys.stderr)
        return

    class OU(torch.nn.Module):
        sde_type, noise_type = "ito", "diagonal"

        def f(self, t, y):
            return -y

        def g(self, t, y):
            return torch.ones_like(y)

    x0, ts = torch.zeros(batch, d), torch.linspace(0, 1, 2)
    yield "torchsde", paired_ratio(run, lambda: torchsde.sdeint(OU(), x0, ts, method="euler", dt=1 / n).numpy(), 5)


def main():
    print("| program | beside | ratio | jflow, ms | other, ms |\n|---|---|---|---|---|")
    for solver in ("Euler", "Heun"):
        ratio, a, b = ode_row(solver)
        label = f"{solver}, 100 steps, MLP 3 x 256, batch 4096"
        print(f"| {label} | a scan | {ratio:.3f} | {a * 1e3:.1f} | {b * 1e3:.1f} |")
    for d, batch in ((2, 4096), (3072, 64)):
        for name, (ratio, a, b) in sde_rows(d, batch):
            label = f"Euler-Maruyama, 200 steps, d = {d}, batch {batch}"
            print(f"| {label} | {name} | {ratio:.3f} | {a * 1e3:.1f} | {b * 1e3:.1f} |")


if __name__ == "__main__":
    main()
