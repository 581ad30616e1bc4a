"""No seed of the digits' flow map diverges: `python benchmarks/few_step_seeds.py --seeds 20`.

Trains the recipe `digits-meanflow` for 300 steps from each seed and prints the mean loss of the last 50 steps, the
largest gradient norm, and the accuracy and the energy distance of draws of one call, as the recipe's report has them.
"""

import argparse

import jax.random as jr
import numpy as np
from sklearn.svm import SVC

import jflow as jf
from jflow.recipes import DigitsMeanflow


def run(seed, steps, draws, judge):
    recipe = DigitsMeanflow(steps=steps, seed=seed)
    state, key, infos = recipe.init(), jr.key(seed), []
    for i in range(steps):
        state, info = jf.train.step(state, loss, jr.fold_in(key, i), recipe.batch(i))
        infos.append(info)
    losses, norms = (np.asarray([getattr(info, name) for info in infos]) for name in ("loss", "grad_norm"))
    assert np.isfinite(losses).all() and np.isfinite(norms).all(), f"seed {seed} is not finite"
    x = recipe.draw(state.ema, recipe.sampler(steps=1), draws, seed=seed)
    return losses[-50:].mean(), norms.max(), *judge(x)


def loss(field, key, example):
    return DigitsMeanflow().loss(field, key, example)  # one function for all seeds compiles once


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--draws", type=int, default=500)
    options = parser.parse_args()
    train, test = jf.data.digits("train"), jf.data.digits("test")
    svm, label = SVC(C=10).fit(train.x.reshape(len(train), -1), train.label), np.arange(options.draws) % 10
    real = jf.metrics.energy_distance(train.x[: options.draws], test.x)

    def judge(x):
        accuracy = (svm.predict(x.reshape(len(x), -1)) == label).mean()
        return accuracy, jf.metrics.energy_distance(x, test.x) / real

    print("| seed | loss | largest gradient | accuracy, one call | energy distance over that of training |")
    print("|---|---|---|---|---|")
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        rows.append(run(seed, options.steps, options.draws, judge))
        print(f"| {seed} | " + " | ".join(f"{value:.3f}" for value in rows[-1]) + " |", flush=True)
    for name, value in (("mean", np.mean(rows, 0)), ("standard deviation", np.std(rows, 0))):
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in value) + " |")


if __name__ == "__main__":
    main()
