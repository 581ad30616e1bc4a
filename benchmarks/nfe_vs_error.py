"""Error against network calls, for every deterministic sampler: `python benchmarks/nfe_vs_error.py [--run FOLDER]`.

On the exact mixtures of `_mixtures.py` (d = 1, 2, 16, 256), in float64, from shared starts to the converged flow, with
the best rules of four torch libraries beside (`peers.json`, written by `peers.py`); with `--run`, a folder of the
`digits` recipe, on its trained network too. Prints tables, and draws docs/images/nfe_vs_error.png with `--plot`.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _mixtures import MIXTURES, SHARP, noises

import jflow as jf

HERE = Path(__file__).parent
BUDGETS = (5, 10, 20, 40)
SAMPLES = {1: 512, 2: 512, 16: 512, 256: 64}
PATH = jf.CondOT()  # on which `sigma/(alpha + sigma) = 1 - t`

UNIFORM = {
    "uniform": lambda n: jf.UniformGrid(n).times(),
    "eased": lambda n: jf.EasedGrid(n).times(PATH),
    "eased (1, 1.3)": lambda n: jf.EasedGrid(n, 1.0, 1.3).times(PATH),
}
NOISE = {
    f"{name} {low:g}-{high:g}": lambda n, make=make, low=low, high=high: make(n, low, high)
    for low, high in ((0.002, 80.0), (0.01, 50.0), (0.03, 15.0))
    for name, make in {
        "Karras": lambda n, low, high: jf.KarrasGrid(n, low, high).times(PATH),
        "log-SNR": lambda n, low, high: jnp.append(
            jf.LogSNRGrid(max(n - 1, 1), -2 * np.log(high), -2 * np.log(low)).times(PATH)[-n:], 1.0
        ),
    }.items()
}


class Sampler(NamedTuple):
    """A solver and a clock, with the grids to try, network calls a step, and calls that a grid takes besides."""

    solver: Any
    clock: Any
    grids: dict[str, Any] = UNIFORM
    calls: int = 1
    last: int = 0
    """Calls of the whole beyond `calls` for each step: -1 where the last of two-call steps is one call."""
    end: Any = "stop"

    def steps(self, budget: int) -> int:
        """As many as the calls allow."""
        return (budget - self.last) // self.calls


RATIO, SIGMA, ANGLE = jf.RatioClock(), jf.SigmaClock(), jf.AngleClock()
ANGLES = {
    "angle": lambda n: jax.vmap(lambda a: ANGLE.path_time(PATH, a))(jnp.pi / 2 * jf.UniformGrid(n).times()),
    **UNIFORM,
}
EVERY = {**ANGLES, **NOISE}
SAMPLERS = {
    "Adams PC 3": Sampler(jf.Adams(3, corrector=True), RATIO),
    "Adams PC 5": Sampler(jf.Adams(5, corrector=True), RATIO),
    "Adams PC 6, angle": Sampler(jf.Adams(6, corrector=True), ANGLE, ANGLES),
    "Euler (DDIM)": Sampler(dfx.Euler(), RATIO, EVERY),
    "Heun": Sampler(dfx.Heun(), RATIO, calls=2),
    "Heun (EDM)": Sampler(dfx.Heun(), SIGMA, NOISE, calls=2, last=-1, end="denoise"),
    "DPM++ 2M": Sampler(jf.DPMpp(2, "midpoint"), None, EVERY, end="denoise"),
    "UniPC 3": Sampler(jf.UniPC(3), None, EVERY, end="denoise"),
    "Adams 3": Sampler(jf.Adams(3), RATIO),
    "Adams 3, angle": Sampler(jf.Adams(3), ANGLE, ANGLES),
    "Adams 4, angle": Sampler(jf.Adams(4), ANGLE, ANGLES),
    "Euler, angle": Sampler(dfx.Euler(), ANGLE, ANGLES),
    "DEIS 3": Sampler(jf.DEIS(3), None, NOISE),
    "Adams 2": Sampler(jf.Adams(2), RATIO),
    "Adams PC 2": Sampler(jf.Adams(2, corrector=True), RATIO),
    "Adams PC 4": Sampler(jf.Adams(4, corrector=True), RATIO),
    "Midpoint": Sampler(dfx.Midpoint(), RATIO, calls=2),
    "Bosh3": Sampler(dfx.Bosh3(), RATIO, calls=3, last=1),
    "DPM++ 2S": Sampler(jf.DPMppSinglestep(2), None, NOISE, calls=2, last=-1, end="denoise"),
    "Adams 4 (LMS)": Sampler(jf.Adams(4), SIGMA, NOISE),
}
"""By name; without a clock, the solver brings it along."""
DEFAULT = "default"
CHOICE = {
    5: ("Adams PC 2", "eased (1, 1.3)"),
    10: ("Adams PC 5", "eased"),
    20: ("Adams PC 6, angle", "eased"),
    40: ("Adams PC 6, angle", "eased"),
}
"""The documented default of each budget, a sampler and a grid."""
DRAWN = ("Euler (DDIM)", "Heun", "Heun (EDM)", "DPM++ 2M", "UniPC 3", "Adams 3", DEFAULT)
MULTISTEP = (
    "Euler (DDIM)",
    "Adams 2",
    "Adams 3",
    "Adams 3, angle",
    "Adams PC 2",
    "Adams PC 3",
    "Adams PC 4",
    "Adams PC 5",
    "Adams PC 6, angle",
)
PEER = "best rule of four torch libraries"


@eqx.filter_jit
def ends(field, x0, grids, args, solver, clock, end):
    """Ends of one sampler from `sigma x0`, for a stack of grids of one length."""

    def one(times, x, args):
        sampler = jf.FixedSteps(times, solver, clock=clock, end=end)
        sol = jf.decode(field, (1 - times[0]) * x, sampler, args=args)
        return sol.x, sol.nfe

    over_starts = jax.vmap(one, (None, 0, None if args is None else jax.tree.map(lambda _: 0, args)))
    return jax.vmap(over_starts, (0, None, None))(grids, x0, args)


def errors(x, reference):
    """Median and root mean square over samples of the distance a coordinate."""
    square = np.mean((np.asarray(x, float) - reference).reshape(len(x), -1) ** 2, 1)
    return float(np.median(np.sqrt(square))), float(np.sqrt(square.mean()))


def mixture_rows(mixture, samplers=SAMPLERS):
    """`(sampler, budget, grid, calls, median, rms)` for every sampler, budget and grid on one mixture."""
    d, flows = mixture.means.shape[1], {}
    x0 = noises(d, SAMPLES[d])
    field = mixture.world().field(PATH)
    for t in (0.0, 0.3, 0.9):  # the field in numpy, which the libraries are given, is jflow's
        exact = jax.vmap(lambda x, t=t: field.data(t, x, None))(jnp.asarray(x0[:8]))
        assert np.abs(exact - mixture.moments(t, 1 - t, x0[:8])[0]).max() < 1e-10
    for name, sampler in samplers.items():
        for budget in BUDGETS:
            if (n := sampler.steps(budget)) < 1:
                continue
            grids = jnp.stack([jnp.asarray(make(n), jnp.float64) for make in sampler.grids.values()])
            x, nfe = ends(field, jnp.asarray(x0), grids, None, sampler.solver, sampler.clock, sampler.end)
            assert int(nfe.max()) <= budget, (name, budget, nfe)
            for grid, start, end, calls in zip(sampler.grids, 1 - grids[:, 0], x, nfe[:, 0], strict=True):
                if float(start) not in flows:
                    flows[float(start)] = mixture.flow(float(start) * x0, float(start))
                yield name, budget, grid, int(calls), *errors(end, flows[float(start)])


def best(rows):
    """The best row of each sampler and budget, and the default's."""
    chosen, rows = {}, list(rows)
    defaults = [(DEFAULT, *row[1:]) for row in rows if (row[0], row[2]) == CHOICE[row[1]]]
    for row in rows + defaults:
        if np.isfinite(row[4]) and (row[:2] not in chosen or row[4] < chosen[row[:2]][4]):
            chosen[row[:2]] = row
    return chosen


def network_rows(folder: Path):
    """Median and rms errors on a trained network: one class in turn, plain and at guidance scale 2."""
    from jflow.recipes import load

    run, n = load(folder), 50
    field, label = jf.Guided(run.field, run.recipe.num_classes), jnp.arange(n) % run.recipe.num_classes
    x0 = jr.normal(jr.key(1), (n, *run.recipe.shape))
    for scale, cost in ((None, 1), (jnp.full(n, 2.0), 2)):
        args, fine = jf.Args(label, scale=scale), jf.UniformGrid(60).times()[None]
        reference = np.asarray(ends(field, x0, fine, args, dfx.Dopri5(), RATIO, "stop")[0][0], float)
        for name in ("Heun", *MULTISTEP):
            sampler = SAMPLERS[name]
            for budget in BUDGETS:
                if (steps := sampler.steps(budget // cost)) < 2:
                    continue
                grids = jnp.stack([make(steps).astype(x0.dtype) for make in UNIFORM.values()])
                x = ends(field, x0, grids, args, sampler.solver, sampler.clock, sampler.end)[0]
                for end, grid in zip(x, UNIFORM, strict=True):
                    yield name, 1 if scale is None else 2, budget, grid, *errors(end, reference)


def peers():
    """The rows of the four libraries, where `peers.py` was run: `(library and rule, d, budget, grid, median, rms)`."""
    if not (HERE / "peers.json").exists():
        print("No benchmarks/peers.json: run benchmarks/peers.py in its own environment to set the libraries beside.")
        return []
    rows = json.loads((HERE / "peers.json").read_text())["rows"]
    return [(f"{peer} {rule}", d, budget, grid, median, rms) for peer, rule, grid, d, budget, _, median, rms in rows]


def plot(ours, theirs, file: Path):
    """One panel a dimension: median error against calls."""
    import matplotlib.pyplot as plt

    colours = ["#9aa0a6", "#56b4e9", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#d55e00"]
    figure, axes = plt.subplots(1, len(ours), figsize=(3.1 * len(ours), 3.6), sharey=True, layout="constrained")
    for axis, (d, chosen) in zip(axes, ours.items(), strict=True):
        for name, colour in zip(DRAWN, colours, strict=True):
            points = [(b, chosen[name, b][4]) for b in BUDGETS if (name, b) in chosen]
            width = 2.4 if name == DEFAULT else 1.3
            axis.plot(
                *zip(*points, strict=True),
                "o-",
                color=colour,
                lw=width,
                ms=3.5,
                label="default (Adams PC)" if name == DEFAULT else name,
            )
        if theirs:
            low = [min(row[4] for row in theirs if row[1:3] == (d, b)) for b in BUDGETS]
            axis.plot(BUDGETS, low, "s--", color="black", lw=1.3, ms=3.5, label=PEER)
        axis.set(xscale="log", yscale="log", title=f"mixture, d = {d}", xlabel="network calls")
        axis.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("median error to the converged flow")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=150)


def summary(names, worlds):
    """Median errors of samplers, the geometric mean over worlds, as a table."""
    print("| sampler | " + " | ".join(map(str, BUDGETS)) + " |\n" + "|---" * (len(BUDGETS) + 1) + "|")
    for name in names:
        cells = [[world[name, b][4] for world in worlds if (name, b) in world] for b in BUDGETS]
        print(f"| {name} | " + " | ".join(f"{np.exp(np.mean(np.log(c))):.1e}" if c else "-" for c in cells) + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="a folder of the digits recipe")
    parser.add_argument("--plot", type=Path, help="where the picture goes, as docs/images/nfe_vs_error.png")
    options = parser.parse_args()
    theirs, multistep = peers(), {name: SAMPLERS[name]._replace(grids=UNIFORM) for name in MULTISTEP}
    with jax.enable_x64(True):
        ours = {d: best(mixture_rows(mixture)) for d, mixture in MIXTURES.items()}
        sharp = best(mixture_rows(SHARP, multistep))
    print("\nMedian error, geometric mean over d = 1, 2, 16, each cell with its best grid\n")
    summary((DEFAULT, *SAMPLERS), [ours[d] for d in (1, 2, 16)])
    print("\nNarrow modes, d = 16\n")
    summary(multistep, [sharp])
    if theirs:
        table(ours, theirs)
    if options.run:
        print(
            "\nTrained network: median (rms) error\n\n| sampler | scale | calls | grid | error |\n" + "|---" * 5 + "|"
        )
        for name, scale, budget, grid, median, rms in network_rows(options.run):
            print(f"| {name} | {scale} | {budget} | {grid} | {median:.1e} ({rms:.1e}) |", flush=True)
    else:
        print("\nNo --run: `jflow train digits --out FOLDER`, then --run FOLDER, for the trained network.")
    if options.plot:
        plot(ours, theirs, options.plot)


def table(ours, theirs):
    """The default and the best of each side, a cell a row; the summary under it."""
    print("\n| d | calls | the libraries' best | error | jflow's default | ratio | jflow's best | error |")
    print("|---|---|---|---|---|---|---|---|")
    for d, chosen in ours.items():
        for budget in BUDGETS:
            peer = min((row for row in theirs if row[1:3] == (d, budget)), key=lambda row: row[4])
            mine = min((row for key, row in chosen.items() if key[1] == budget), key=lambda row: row[4])
            error = chosen[DEFAULT, budget][4]
            print(
                f"| {d} | {budget} | {peer[0]}, {peer[3]} | {peer[4]:.1e} | {error:.1e} | {error / peer[4]:.2f} "
                f"| {mine[0]}, {mine[2]} | {mine[4]:.1e} |"
            )
    own_path = [row for row in theirs if not row[3].startswith("cosine") or not row[0].startswith("flow_matching")]
    for what, rows in (("every rule", theirs), ("without flow_matching's cosine path", own_path)):
        low = {(d, b): min(row[4] for row in rows if row[1:3] == (d, b)) for d in (1, 2, 16) for b in BUDGETS}
        ratios = [ours[d][DEFAULT, b][4] / error for (d, b), error in low.items()]
        print(
            f"\nd = 1, 2, 16, {what}: geometric mean {np.exp(np.mean(np.log(ratios))):.3f}, largest {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
