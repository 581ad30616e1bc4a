"""Whether residuals rank flow maps as their samples do: `python benchmarks/rank_residuals.py`, about a minute.

`rank` trains nothing: it takes a list of maps along one path and draws of the data. Run as a script it ranks eight maps
that are wrong by known amounts.
"""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.stats import spearmanr

import jflow as jf


def rank(maps, key, data, times=(0.0, 1.0), *, args=None, teacher=None):
    """The Lagrangian residual of each map on the grid, the energy distance of its jumps' draws to `data`, and
    Spearman's correlation of the two.
    """
    shape, sampler = data.shape[1:], jf.FixedSteps(np.asarray(times), jf.Jump())
    residuals, distances = [], []
    for flow_map in maps:
        found = jf.testing.diagnose(flow_map, key, shape, times, args=args, teacher=teacher)
        draws = jf.generate(flow_map, key, len(data), shape, sampler, args=args).x
        residuals.append(float(found.lagrangian.mean()))
        distances.append(jf.metrics.energy_distance(np.asarray(draws), data))
    return residuals, distances, float(spearmanr(residuals, distances)[0])  # pyright: ignore


def wrong(off):
    """The exact average velocity to `N(0, 1/4)`, and `off` beside it."""

    def width(t):
        return jnp.sqrt(t**2 / 4 + (1 - t) ** 2)

    def net(s, t, x, args):
        slope = ((t + s) / 4 - (2 - t - s)) / (width(t) + width(s)) / width(s)
        return slope * x + off * jnp.cos(x) * (1 + t)

    return jf.FlowMap(net, jf.CondOT())


if __name__ == "__main__":
    data = np.random.default_rng(0).normal(0, 0.5, (4096, 2)).astype("float32")
    offs = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
    *columns, spearman = rank([wrong(off) for off in offs], jr.key(0), data)
    print("    off  Lagrangian  energy distance")
    for row in zip(offs, *columns, strict=True):
        print("{:7.2f}  {:10.2e}  {:15.2e}".format(*row))
    print(f"Spearman {spearman:.3f}")
