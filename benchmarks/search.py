"""What fitted samplers gain at equal network calls: `python benchmarks/search.py [RUN]`, RUN a trained run of digits.

Two tables. On exact mixtures a grid for one solver a budget is fitted on 384 noises and judged on 1000 others, by the
distance from the converged flow, beside the best rule of four torch libraries (`peers.json`). On the network of digits
(`jflow train digits`) the best fixed rule of jflow's own list, the same with its grid fitted, and `best_sampler` are
judged by the distance from a solve of 200 calls, on noises and labels that were not used in the fit.
"""

import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _mixtures import MIXTURES, noises

import jflow as jf

DIMENSIONS = (1, 2, 16)
SMOOTH = {"solver": jf.Adams(6, corrector=True), "clock": jf.AngleClock()}
SOLVERS = {
    5: {"solver": jf.Adams(3, corrector=True), "clock": jf.RatioClock()},
    10: {"solver": jf.Adams(5, corrector=True), "clock": jf.RatioClock()},
    20: SMOOTH,
    40: SMOOTH,
}


@eqx.filter_jit
def decoded(field, x, args, sampler):
    """Many states at the sampler's first time, carried to data."""
    return jax.vmap(lambda x, a: jf.decode(field, x, sampler, args=a).x)(x, args)


def errors(x, target):
    """Median and root mean square of the errors of many samples, each a root mean square over its components."""
    each = np.sqrt(np.mean((np.asarray(x) - np.asarray(target)).reshape(len(x), -1) ** 2, axis=1))
    return np.array([np.median(each), np.sqrt(np.mean(each**2))])


def mixtures():
    """Rows of the first table."""
    rows = json.loads((Path(__file__).parent / "peers.json").read_text())["rows"]
    print("| d | calls | best of the libraries | its median | its rms | fitted: median | rms | of medians | of rms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for d in DIMENSIONS:
        field, x0 = MIXTURES[d].world().field(jf.CondOT()), noises(d, 1000)
        target = MIXTURES[d].flow(x0)
        for calls, options in SOLVERS.items():
            peer = min((row for row in rows if row[3:5] == [d, calls]), key=lambda row: row[6])
            name, theirs = " ".join(peer[:2]) + f", {peer[2]}", np.array(peer[6:8])
            times = jf.search.optimize_times(field, jr.key(0), calls, (d,), num=384, dtype=jnp.float64, **options)
            ours = errors(decoded(field, x0, None, jf.FixedSteps(times, **options)), target)
            figures = " | ".join(f"{value:.2e}" for value in (*theirs, *ours))
            ratios = " | ".join(f"{ratio:.3f}" for ratio in ours / theirs)
            print(f"| {d} | {calls} | {name} | {figures} | {ratios} |", flush=True)


def digits(folder):
    """Rows of the second table."""
    from jflow.recipes import load

    run = load(folder)
    field, shape, num = jf.Guided(run.field, run.recipe.num_classes), run.recipe.shape, 384
    key_x, key_label = jr.split(jr.key(1))
    x0, held_out = jr.normal(key_x, (500, *shape)), jr.randint(key_label, (500,), 0, 10)
    search = {"args": jnp.arange(num) % 10, "args_in_axes": 0, "num": num}
    fine = jf.FixedSteps(jf.UniformGrid(200), jf.Adams(4, corrector=True), clock=jf.RatioClock())
    target = decoded(field, x0, held_out, fine)
    print("| calls | sampler | median | rms | best fixed / it: of medians | of rms |\n|---|---|---|---|---|---|")
    for calls in (6, 10):
        fixed = jf.search.best_sampler(field, jr.key(0), calls, shape, fit=0, **search)
        rest = {name: getattr(fixed.sampler, name) for name in ("solver", "clock", "end")}
        times = jf.search.optimize_times(field, jr.key(2), fixed.sampler.n, shape, **search, **rest)
        best = jf.search.best_sampler(field, jr.key(0), calls, shape, fit=1, **search)
        reference = None
        for name, sampler in (
            (f"best fixed: {fixed.name}", fixed.sampler),
            ("its grid by optimize_times", jf.FixedSteps(times, **rest)),
            (f"best_sampler: {best.name}", best.sampler),
        ):
            found = errors(decoded(field, x0, held_out, sampler), target)
            reference = found if reference is None else reference
            cells = [f"{value:.2e}" for value in found] + [f"{ratio:.2f}" for ratio in reference / found]
            print(f"| {calls} | {name} | {' | '.join(cells)} |", flush=True)


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    if folder is None:
        print("no run of digits given: no table for it", file=sys.stderr)
    else:
        digits(folder)
    jax.config.update("jax_enable_x64", True)
    mixtures()


if __name__ == "__main__":
    main()
