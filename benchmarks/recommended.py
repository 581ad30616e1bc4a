"""The default sampler beside every fixed rule: `python benchmarks/recommended.py [--run FOLDER] [--all]`.

At 6, 10, 20 and 32 network evaluations, on the exact mixtures of `_mixtures.py` in float64 and, with a folder of the
`digits` recipe, on its trained network at guidance scales 1 and 5: the median distance a coordinate to the converged
flow from the same starts. Prints the error of `jflow.recommended`, the best of all fixed rules for that very cell, and
their ratio; `--all` prints every rule. `--cell d:nfe` or `--cell scale:nfe` measures one cell.
"""

import argparse
import json
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _mixtures import MIXTURES, noises

import jflow as jf

BUDGETS = (6, 10, 20, 32)
SAMPLES = {1: 512, 2: 512, 16: 512, 256: 64}
PATH = jf.CondOT()
RATIO, ANGLE, SIGMA = jf.RatioClock(), jf.AngleClock(), jf.SigmaClock()


def angle_times(n):
    """Equal steps in the angle."""
    return jax.vmap(lambda a: ANGLE.path_time(PATH, a))(jnp.pi / 2 * jnp.linspace(0.0, 1.0, n + 1))


SMOOTH = {
    "uniform": lambda n: jf.UniformGrid(n).times(),
    "angle": angle_times,
    **{
        f"eased ({first:g}, {last:g})": lambda n, first=first, last=last: jf.EasedGrid(n, first, last).times(PATH)
        for first in (1.0, 1.2)
        for last in (1.0, 1.15, 1.3, 1.5)
    },
}
NOISE = {
    f"{name} {low:g}-{high:g}": lambda n, make=make, low=low, high=high: make(n, low, high)
    for low, high in ((0.002, 80.0), (0.01, 50.0), (0.03, 15.0))
    for name, make in {
        "Karras": lambda n, low, high: jf.KarrasGrid(n, low, high).times(PATH),
        "log-SNR": lambda n, low, high: jnp.append(
            jf.LogSNRGrid(max(n - 1, 1), -2 * float(np.log(high)), -2 * float(np.log(low))).times(PATH)[-n:], 1.0
        ),
    }.items()
}
# name: solver, clock, grids, calls a step, calls beyond these, end
RULES = {
    "Euler, ratio": (dfx.Euler(), RATIO, SMOOTH | NOISE, 1, 0, "stop"),
    **{f"Adams {p}, ratio": (jf.Adams(p), RATIO, SMOOTH, 1, 0, "stop") for p in (2, 3, 4)},
    **{f"Adams {p}, angle": (jf.Adams(p), ANGLE, SMOOTH, 1, 0, "stop") for p in (2, 3, 4)},
    **{f"Adams PC {p}, ratio": (jf.Adams(p, corrector=True), RATIO, SMOOTH, 1, 0, "stop") for p in (2, 3, 4, 5, 6)},
    **{f"Adams PC {p}, angle": (jf.Adams(p, corrector=True), ANGLE, SMOOTH, 1, 0, "stop") for p in (2, 3, 4, 5, 6)},
    "Heun, ratio": (dfx.Heun(), RATIO, SMOOTH, 2, 0, "stop"),
    "Midpoint, ratio": (dfx.Midpoint(), RATIO, SMOOTH, 2, 0, "stop"),
    "Heun, sigma": (dfx.Heun(), SIGMA, NOISE, 2, -1, "denoise"),
    "DPM++ 2M": (jf.DPMpp(2, "midpoint"), None, SMOOTH | NOISE, 1, 0, "denoise"),
    "UniPC 2": (jf.UniPC(2), None, SMOOTH | NOISE, 1, 0, "denoise"),
    "UniPC 3": (jf.UniPC(3), None, SMOOTH | NOISE, 1, 0, "denoise"),
    "DEIS 3": (jf.DEIS(3), None, NOISE, 1, 0, "denoise"),
}


@eqx.filter_jit
def ends(field, x0, grids, args, solver, clock, end):
    """Ends and status of one rule from `sigma x0`, for a stack of grids of one length."""

    def one(times, x, args):
        sol = jf.decode(field, (1 - times[0]) * x, jf.FixedSteps(times, solver, clock=clock, end=end), args=args)
        return sol.x, sol.status

    axes = None if args is None else jf.Args(0, **dict.fromkeys(args.entries, 0)) if isinstance(args, jf.Args) else 0
    return jax.vmap(jax.vmap(one, (None, 0, axes)), (0, None, None))(grids, x0, args)


def median(x, reference):
    """Median over samples of the distance a coordinate."""
    square = np.mean((np.asarray(x, float) - reference).reshape(len(x), -1) ** 2, 1)
    return float(np.median(np.sqrt(square)))


def rows(field, x0, args, nfe, cost, flow):
    """`(rule, grid, median)` of every rule that takes at most `nfe` evaluations, and of the default one."""
    for name, (solver, clock, grids, calls, last, end) in RULES.items():
        n = (nfe // cost - last) // calls
        if n < 2:
            continue
        stack = jnp.stack([make(n).astype(x0.dtype) for make in grids.values()])
        x, _ = ends(field, x0, stack, args, solver, clock, end)
        for grid, start, end_ in zip(grids, np.asarray(1 - stack[:, 0]), x, strict=True):
            yield name, grid, median(end_, flow(float(start)))
    one = None if args is None else jax.tree.map(lambda leaf: leaf[0], args)
    sampler = jf.recommended(field, nfe, one)
    times = sampler.times.times(PATH).astype(x0.dtype)[None]
    x, status = ends(field, x0, times, args, sampler.solver, sampler.clock, sampler.end)
    yield "recommended", repr(sampler), median(x[0], flow(1.0)) if (status == 0).all() else float("inf")


def mixture_cell(d, nfe):
    """The rows of a mixture."""
    with jax.enable_x64(True):
        mixture, x0, flows = MIXTURES[d], noises(d, SAMPLES[d]), {}

        def flow(start):
            if start not in flows:
                flows[start] = mixture.flow(start * x0, start)
            return flows[start]

        return list(rows(mixture.world().field(PATH), jnp.asarray(x0), None, nfe, 1, flow))


def network_cell(folder, scale, nfe, n=50):
    """The rows of the digits network at a guidance scale; at 1 it is not guided."""
    from jflow.recipes import load

    run = load(folder)
    label = jnp.arange(n, dtype=jnp.int32) % run.recipe.num_classes
    x0 = jr.normal(jr.key(1), (n, *run.recipe.shape))
    field = jf.Guided(run.field, run.recipe.num_classes)
    args = jf.Args(label) if scale == 1 else jf.Args(label, scale=jnp.full(n, float(scale)))
    fine = jf.UniformGrid(80).times()[None]
    reference = np.asarray(ends(field, x0, fine, args, dfx.Dopri5(), RATIO, "stop")[0][0], float)
    flow = lambda start: reference if start > 0.999 else np.nan * reference  # noqa: E731
    return list(rows(field, x0, args, nfe, 1 if scale == 1 else 2, flow))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of the digits recipe")
    parser.add_argument("--all", action="store_true", help="print every rule")
    parser.add_argument("--cell", help="one cell, as 16:10 for d = 16 or scale5:10, at 10 evaluations; prints JSON")
    options = parser.parse_args()
    names = [f"{d}:{nfe}" for d in MIXTURES for nfe in BUDGETS]
    names += [f"scale{w}:{nfe}" for w in (1, 5) for nfe in BUDGETS] if options.run else []
    for name in [options.cell] if options.cell else names:
        what, nfe = name.split(":")
        scale = what.removeprefix("scale")
        measured = (
            network_cell(options.run, int(scale), int(nfe)) if scale != what else mixture_cell(int(what), int(nfe))
        )
        if options.cell:
            print(json.dumps({"cell": name, "rows": measured}))
            continue
        ours = measured[-1][2]
        best = min((row for row in measured[:-1] if np.isfinite(row[2])), key=lambda row: row[2])
        print(f"| {name} | {best[0]}, {best[1]} | {best[2]:.2e} | {ours:.2e} | {ours / best[2]:.2f} |", flush=True)
        for row in sorted(measured, key=lambda row: row[2]) if options.all else []:
            print(f"    {row[2]:.2e} {row[0]}, {row[1]}")


if __name__ == "__main__":
    main()
