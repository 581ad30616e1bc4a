"""Every rule of four torch libraries on the exact mixtures of `_mixtures.py`: `python benchmarks/peers.py`.

It runs in an environment of its own (torch, azula, k-diffusion, diffusers, flow_matching, scipy, tqdm; jflow is not
needed) and writes `benchmarks/peers.json`, which `nfe_vs_error.py` sets beside jflow's samplers.

A rule gets `budget` network calls and takes as many steps as these allow; its own grids are tried, each at each
budget, and the best one of a cell counts. It starts at its own first noise level, at `sigma x0` with the shared `x0`,
and is compared with the converged flow from that start to its own last level, both divided by `alpha + sigma` there:
what counts is the error of discretisation and nothing else. A way that ends where `sigma/(alpha + sigma)` is above
0.03 is half a way and does not count. The network is the exact field in float64.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import torch
from _mixtures import MIXTURES, noises
from _peer_rules import RULES

BUDGETS = (5, 10, 20, 40)
SAMPLES = {1: 512, 2: 512, 16: 512, 256: 64}
PACKAGES = ("torch", "azula", "k-diffusion", "diffusers", "flow_matching", "torchdiffeq")


class Network:
    """The exact field of a mixture as a network that counts its calls and notes its noise levels."""

    def __init__(self, mixture):
        self.mixture, self.levels = mixture, []

    def __call__(self, alpha, sigma, x):
        """Predictions of data and noise."""
        alpha, sigma = float(alpha), float(sigma)
        self.levels.append((alpha, sigma))
        return map(torch.from_numpy, self.mixture.moments(alpha, sigma, x.double().numpy()))


PARITY = {
    ("k-diffusion", "euler"), ("k-diffusion", "heun"), ("k-diffusion", "dpmpp_2m"), ("k-diffusion", "lms (order 4)"),
    ("k-diffusion", "dpmpp_2s"), ("k-diffusion", "dpmpp_2m_sde (eta 0, heun)"), ("k-diffusion", "dpmpp_3m_sde (eta 0)"),
    ("azula", "vAB-3"), ("azula", "zAB-3"), ("azula", "xEAB-2"), ("azula", "Heun"),
    ("diffusers", "UniPC (order 2, bh2)"), ("diffusers", "DEIS (order 2)"), ("diffusers", "FlowMatch Euler"),
    ("flow_matching", "heun3"),
}  # fmt: skip
"""Rules that jflow has too: for these the grid, four starts and four ends are written down."""


def ratio(level):
    alpha, sigma = map(float, level)
    return sigma / (alpha + sigma)


def main(only: str = ""):
    rows, parity, flows, failed = [], [], {}, {}
    for rules in RULES:
        for peer, rule, grid, run in rules():
            if not f"{peer} {rule}".startswith(only):
                continue
            for d, mixture in MIXTURES.items():
                x0 = noises(d, SAMPLES[d])
                for budget in BUDGETS:
                    network = Network(mixture)
                    try:
                        with torch.no_grad():
                            x, first, last = run(network, torch.from_numpy(x0), budget)
                    except Exception as error:
                        failed[f"{peer} {rule} {grid} {budget}"] = f"{type(error).__name__}: {error}"[:200]
                        continue
                    assert len(network.levels) <= budget, (peer, rule, grid, budget, len(network.levels))
                    start, stop = ratio(first), ratio(last)
                    if stop > 0.03:
                        continue
                    if (d, start, stop) not in flows:
                        flows[d, start, stop] = mixture.flow(start * x0, start, stop)
                    end = x.numpy() / (float(last[0]) + float(last[1]))
                    error = np.sqrt(((end - flows[d, start, stop]) ** 2).mean(1))
                    rms = np.sqrt((error**2).mean())
                    rows.append([peer, rule, grid, d, budget, len(network.levels), float(np.median(error)), float(rms)])
                    if d == 2 and budget == 10 and (peer, rule) in PARITY:
                        levels = [*network.levels, tuple(map(float, last))]
                        parity.append([peer, rule, grid, levels, x0[:4].tolist(), x[:4].tolist()])
        print(peer, len(rows), len(flows), flush=True)
    for name, reason in failed.items():
        print("failed:", name, reason)
    best = {}
    for row in rows:
        key = row[0], row[1], row[3], row[4]
        if np.isfinite(row[6]) and (key not in best or row[6] < best[key][6]):
            best[key] = row
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    result = {"versions": versions, "grids": len(rows), "rows": list(best.values()), "parity": parity}
    text = json.dumps(result, default=float).replace(' ["', '\n["').replace(", [[", ",\n[[")
    Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
