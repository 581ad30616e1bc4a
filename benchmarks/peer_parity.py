"""Rules that jflow shares with the torch libraries give what these give: `python benchmarks/peer_parity.py`.

`peers.json` holds, for d = 2 and ten calls, the noise levels at which each library called the network, four starts and
their ends; here the same grid is taken by jflow's rule. Prints the largest difference of each rule.
"""

import json
from pathlib import Path

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from _mixtures import MIXTURES

import jflow as jf

SIGMA, RATIO = jf.SigmaClock(), jf.RatioClock()
# rule: solver, clock (None: the solver brings it), end ("euler": a last step of Euler's), how many of the calls of a
# step come before the next grid point
RULES = {
    "k-diffusion euler": (dfx.Euler(), SIGMA, "stop", 1),
    "k-diffusion heun": (dfx.Heun(), SIGMA, "denoise", 2),
    "k-diffusion lms (order 4)": (jf.Adams(4), SIGMA, "stop", 1),
    "k-diffusion dpmpp_2s": (jf.DPMppSinglestep(2), None, "denoise", 2),
    "k-diffusion dpmpp_2m": (jf.DPMpp(2, "midpoint"), None, "denoise", 1),
    "k-diffusion dpmpp_2m_sde (eta 0, heun)": (jf.DPMpp(2), None, "denoise", 1),
    "k-diffusion dpmpp_3m_sde (eta 0)": (jf.DPMpp(3, "half_curvature"), None, "denoise", 1),
    "azula Heun": (dfx.Heun(), SIGMA, "stop", 2),
    "azula vAB-3": (jf.Adams(3), RATIO, "stop", 1),
    "azula zAB-3": (jf.Adams(3), SIGMA, "stop", 1),
    "azula xEAB-2": (jf.DPMpp(2), None, "stop", 1),
    "diffusers FlowMatch Euler": (dfx.Euler(), RATIO, "stop", 1),
    "diffusers UniPC (order 2, bh2)": (jf.UniPC(2), None, "denoise", 1),
    "diffusers DEIS (order 2)": (jf.DEIS(2), SIGMA, "euler", 1),  # its last step is one of order 1
}


def difference(name, levels, starts, ends):
    """The largest distance between the library's ends and jflow's, both divided by `alpha + sigma`."""
    solver, clock, end, calls = RULES[name]
    alphas, sigmas = np.asarray(levels[:-1:calls] + levels[-1:]).T
    times = jnp.asarray(alphas / (alphas + sigmas))  # on CondOT
    field = MIXTURES[2].world().field(jf.CondOT())
    if end == "euler":
        parts = [(times[:-1], solver, "stop"), (times[-2:], dfx.Euler(), "stop")]
    else:
        parts = [(times, solver, end)]
    x = (1 - times[0]) * jnp.asarray(starts)
    for grid, rule, last in parts:
        sampler = jf.FixedSteps(grid, rule, clock=clock, end=last)
        x = jax.jit(jax.vmap(lambda x, sampler=sampler: jf.decode(field, x, sampler).x))(x)
    return float(jnp.abs(x - jnp.asarray(ends) / (alphas[-1] + sigmas[-1])).max())


def main():
    rows = json.loads((Path(__file__).parent / "peers.json").read_text())["parity"]
    print("| rule | grid | largest difference |\n|---|---|---|")
    seen = set()
    with jax.enable_x64(True):
        for peer, name, grid, levels, starts, ends in rows:
            rule = f"{peer} {name}"
            if rule in RULES and rule not in seen:
                seen.add(rule)
                print(f"| {rule} | {grid} | {difference(rule, levels, starts, ends):.1e} |", flush=True)


if __name__ == "__main__":
    main()
