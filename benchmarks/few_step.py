"""How good few steps are, beside a flow of equal training time: `python benchmarks/few_step.py --minutes 3`.

Every row is an MLP of one size on one planar data set, trained for so many minutes of two cores (processor seconds over
two), by `matching_loss` or by one of the objectives of `jf.few_step`. It is sampled in 1, 2, 4 and 8 steps, the flow by
Euler's method in 32 as well. Consistency functions, which jump to the data alone, add the noise again between two
jumps. The figures are

- the energy distance between 10,000 draws and as many exact ones, squared as `jf.metrics` has it;
- KL(exact bin masses || histogram of all draws) on 100 x 100 bins over the data's square, one pseudo-count a bin.

The last row of a table is of exact draws. The bar: the best energy distance at one step is at most 1.5 times the sum of
the 32-step flow's and of two exact sets'.
"""

import argparse
import functools as ft
import time

import diffrax as dfx
import jax
import jax.random as jr
import numpy as np
import optax
from flax import nnx
from scipy import stats

import jflow as jf
from jflow import few_step as fs

BINS, STEPS, BATCH, NEAR = 100, (1, 2, 4, 8), 1024, 10_000
DATA = {"checkerboard": (jf.data.checkerboard, 5.0), "eight Gaussians": (jf.data.eight_gaussians, 7.0)}
EVERY, LONG = fs.TimePairs(jf.laws.Uniform()), fs.ToData(jf.laws.Uniform())
OBJECTIVES = {
    "MeanFlow": (fs.MeanFlow(), EVERY, None),
    "ImprovedMeanFlow": (fs.ImprovedMeanFlow(), EVERY, None),
    "Lagrangian": (fs.Lagrangian(), None, None),
    "Semigroup": (fs.Semigroup(), EVERY, None),
    "Shortcut": (fs.Shortcut(), None, None),
    "Consistency, 64 steps": (fs.Consistency(steps=64), LONG, fs.PseudoHuber()),
}


def masses(name):
    """The exact probabilities of the bins, which sum to 1 over the plane."""
    half = DATA[name][1]
    edges = np.linspace(-half, half, BINS + 1)
    if name == "checkerboard":  # 25 x 25 bins a square of the board
        cell = np.arange(BINS) * 4 // BINS
        return ((cell[:, None] + cell) % 2 == 0) / (8 * (BINS // 4) ** 2)
    angle = np.pi / 4 * np.arange(8)
    one = [np.diff(stats.norm.cdf(edges[:, None], 5 * f(angle), 0.5), axis=0) for f in (np.cos, np.sin)]
    return one[0] @ one[1].T / 8


def figures(name, draws, exact):
    """Energy distance and KL of draws."""
    half = DATA[name][1]
    counts = np.histogram2d(*draws.T, bins=BINS, range=[(-half, half)] * 2)[0] + 1
    p, q = masses(name), counts / (len(draws) + counts.size)
    kl = np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0))
    return float(jf.metrics.energy_distance(draws[:NEAR], exact[:NEAR])), float(kl)


def train(field, loss, batch, optimizer, seconds):
    """The averaged field after so many seconds, of the processor or of an accelerator's clock, and the number of steps.

    `batch(i)` is the batch of a step, `optimizer(steps)` the optimiser of so many. Each has a program of its own, whose
    compilation is not training: the clock starts after the first step.
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter

    def run(steps):
        state, start = jf.train.init(field, optimizer(steps), ema=0.999), 0.0
        for i in range(steps):
            state, info = jf.train.step(state, loss, jr.fold_in(jr.key(2), i), batch(i))
            if i == 0:
                jax.block_until_ready(info)
                start = clock()
        return jax.block_until_ready(state.ema), (clock() - start) / (steps - 1)

    steps = max(2, int(seconds / run(50 if clock is time.process_time else 500)[1]))
    return run(steps)[0], steps


def planar(name, field, loss, minutes, rate):
    """`train` on a planar data set, for so many minutes of two cores."""
    draw = jax.jit(DATA[name][0], static_argnums=1)

    def optimizer(steps):
        return optax.adam(optax.cosine_decay_schedule(rate, steps))

    return train(field, loss, lambda i: draw(jr.fold_in(jr.key(1), i), BATCH), optimizer, 120 * minutes)


def table(name, minutes, draws, width, depth, rate, objectives):
    def network(times):
        return jf.nn.MLP(2, width=width, depth=depth, times=times, rngs=nnx.Rngs(0))

    def judge(label, field, sampler):
        out = jf.generate(field, jr.key(3), draws, (2,), sampler, batch_size=min(draws, 50_000), progress=False)
        energy, kl = figures(name, out.x, exact)
        print(f"| {label} | {sampler.n} | {energy:.5f} | {kl:.4f} |", flush=True)
        return energy

    exact = np.asarray(DATA[name][0](jr.key(4), draws))
    print(f"\n{name}\n\n| trained by | steps | energy distance | KL, nats |\n|---|---|---|---|")
    flow, steps = planar(name, jf.Field(network(1), jf.CondOT(), "velocity"), jf.matching_loss, minutes, rate)
    label = f"matching_loss, {steps} batches; Euler"
    whole = [judge(label, flow, jf.FixedSteps(jf.UniformGrid(n), dfx.Euler(), end="stop")) for n in (*STEPS, 32)][-1]
    fields = {key: OBJECTIVES[key] for key in objectives}
    if "Lagrangian" in fields:
        fields["Lagrangian, distilled"] = (fs.Lagrangian(teacher=flow), EVERY, None)
    if "Consistency, 64 steps" in fields:  # the continuous one, whose optimum with a teacher is the flow map
        fields["Consistency, distilled"] = (fs.Consistency(teacher=flow), LONG, None)
    best = np.inf
    for key, (objective, law, weight) in fields.items():
        loss = ft.partial(map_loss, objective=objective, law=law, weight=weight)
        field, steps = planar(name, jf.FlowMap(network(2), jf.CondOT()), loss, minutes, rate)
        label = f"{key}, {steps} batches"
        jump = jf.Jump(renoise=1.0) if law is LONG else jf.Jump()
        rows = [judge(label, field, jf.FixedSteps(jf.UniformGrid(n), jump, end="stop")) for n in STEPS]
        best = min(best, rows[0])
    energy, kl = figures(name, np.asarray(DATA[name][0](jr.key(5), draws)), exact)
    print(f"| exact draws | | {energy:.5f} | {kl:.4f} |")
    print(f"\nbest at one step over (32 steps of the flow + exact draws): {best / (whole + energy):.2f}, at most 1.5")


def map_loss(flow_map, key, x1, *, objective, law, weight):
    return fs.flow_map_loss(flow_map, key, x1, objective=objective, law=law, weight=weight)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="of training on two cores, for each row")
    parser.add_argument("--draws", type=int, default=10**6, help="for each histogram")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    options = vars(parser.parse_args())
    for name in options.pop("data"):
        table(name, **options)
