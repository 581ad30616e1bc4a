"""Whether residuals rank flow maps as their samples do: `python benchmarks/rank_residuals.py`, about five minutes.

First eight maps that are wrong by known amounts, from a minute's sum; then eight of equal training time on eight
Gaussians, `--seconds` of the processor each, by other objectives or of other widths. A residual is the mean of those of
`jf.testing.diagnose` for jumps from noise to eight times up to 1, against the exact field: the integral of the
Lagrangian one over the time bounds the distance of one jump's draws to the data (Boffi et al. 2025, arXiv:2505.18825,
proposition 1). The semigroup's sets two jumps beside one. The energy distance is that of one jump's draws to fresh
data. The last line has Spearman's correlations of each residual with it.
"""

import argparse
import functools as ft

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from few_step import EVERY, map_loss, planar
from flax import nnx
from scipy.stats import spearmanr

import jflow as jf
from jflow import few_step as fs

GAUSSIANS = jf.distributions.GaussianMixture(
    5 * np.stack([np.cos(np.pi / 4 * np.arange(8)), np.sin(np.pi / 4 * np.arange(8))], axis=1), stds=np.full(8, 0.5)
)
TIMES = np.arange(1, 9) / 8
TRAINED = {
    "ImprovedMeanFlow, width 8": (8, fs.ImprovedMeanFlow(), EVERY),
    "ImprovedMeanFlow, width 16": (16, fs.ImprovedMeanFlow(), EVERY),
    "ImprovedMeanFlow, width 32": (32, fs.ImprovedMeanFlow(), EVERY),
    "ImprovedMeanFlow, width 128": (128, fs.ImprovedMeanFlow(), EVERY),
    "MeanFlow, width 64": (64, fs.MeanFlow(), EVERY),
    "Lagrangian, width 64": (64, fs.Lagrangian(), None),
    "Semigroup, width 64": (64, fs.Semigroup(), EVERY),
    "Shortcut, width 64": (64, fs.Shortcut(), None),
}


def rank(maps, key, data, teacher=None):
    """Prints the residuals of each map of a dictionary, the energy distance of one jump's draws to `data`, and
    Spearman's correlations.
    """
    shape, sampler = data.shape[1:], jf.FixedSteps(np.array([0.0, 1.0]), jf.Jump())
    print("| map | Lagrangian | Eulerian | semigroup | energy distance |\n|---|---|---|---|---|")
    rows = []
    for name, flow_map in maps.items():
        found = [jf.testing.diagnose(flow_map, key, shape, (0.0, t), teacher=teacher) for t in TIMES]
        draws = jf.generate(flow_map, key, len(data), shape, sampler, progress=False).x
        residuals = np.mean([[r.lagrangian.mean(), r.eulerian.mean(), r.semigroup.mean()] for r in found], axis=0)
        rows.append((*residuals, jf.metrics.energy_distance(np.asarray(draws), data)))
        print(f"| {name} | {' | '.join(f'{value:.2e}' for value in rows[-1])} |", flush=True)
    columns = np.array(rows).T
    correlations = [spearmanr(column, columns[-1])[0] for column in columns[:-1]]
    print(f"| Spearman's correlation | {' | '.join(f'{value:.2f}' for value in correlations)} | |\n", flush=True)


def wrong(off):
    """The exact average velocity to `N(0, 1/4)`, and `off` beside it."""

    def width(t):
        return jnp.sqrt(t**2 / 4 + (1 - t) ** 2)

    def net(s, t, x, args):
        slope = ((t + s) / 4 - (2 - t - s)) / (width(t) + width(s)) / width(s)
        return slope * x + off * jnp.cos(x) * (1 + t)

    return jf.FlowMap(net, jf.CondOT())


def trained(width, objective, law, seconds):
    net = jf.nn.MLP(2, width=width, depth=4, times=2, rngs=nnx.Rngs(0))
    loss = ft.partial(map_loss, objective=objective, law=law, weight=None)
    return planar("eight Gaussians", jf.FlowMap(net, jf.CondOT()), loss, seconds / 120, 2e-3)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the processor, for each trained map")
    seconds = parser.parse_args().seconds
    data = np.random.default_rng(0).normal(0, 0.5, (4096, 2)).astype("float32")
    rank({f"off by {off}": wrong(off) for off in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)}, jr.key(0), data)
    maps = {name: trained(*how, seconds) for name, how in TRAINED.items()}
    rank(maps, jr.key(0), np.asarray(jf.data.eight_gaussians(jr.key(1), 10_000)), GAUSSIANS.field(jf.CondOT()))
