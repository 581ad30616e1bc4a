"""Digits in one call beside a flow of equal training time: `python benchmarks/few_step_mnist.py --minutes 20`.

Two U-Nets of one size, on patches of 2 x 2 and conditional on the class, learn MNIST's digits at 16 x 16 pixels, each
for so many minutes of the processor: one the velocity, by `matching_loss`, the other a flow map, by `ImprovedMeanFlow`.
A row is the Fréchet distance of 10,000 draws, the classes in turn, to the 10,000 images, by
`jf.metrics.features("fashion")`. The flow takes 16 steps of Heun's method, 32 calls; the map 1, 2 and 4 calls. The bar:
one call is at most 1.5 times as far as the flow. `--model` trains one of the two, so that each may have its own core.
"""

import argparse
import functools as ft
import time

import diffrax as dfx
import jax.random as jr
import numpy as np
import optax
from few_step import train
from flax import nnx

import jflow as jf
from jflow import few_step as fs
from jflow.data._folder import fit
from jflow.recipes._images import PatchedUNet

SIDE, BATCH = 16, 128
LAW = fs.TimePairs(jf.laws.Uniform())


def images():
    """All digits at 16 x 16, and their classes."""
    parts = [jf.data.mnist(split) for split in ("train", "test")]
    x = np.concatenate([((part[:]["x"] + 1) * 127.5).round().astype(np.uint8) for part in parts])
    label = np.concatenate([part.label for part in parts])  # pyright: ignore
    return jf.data.Dataset(fit(x, SIDE, grey=True), label, "mnist-16", 10)


def flow_loss(field, key, example):
    return jf.matching_loss(field, key, example["x"], example["label"])


def map_loss(field, key, example):
    return fs.flow_map_loss(field, key, example["x"], example["label"], law=LAW)


def network(times):
    options = {"channels": (32, 64), "layers": 1, "num_classes": 10, "times": times}
    return PatchedUNet((SIDE, SIDE, 1), 2, rngs=nnx.Rngs(0), **options)


MODELS = {
    "flow": (lambda: jf.Field(network(1), jf.CondOT(), "velocity"), flow_loss),
    "map": (lambda: jf.FlowMap(network(2), jf.CondOT()), map_loss),
}


def optimizer(steps):
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, min(100, steps // 2), steps), b2=0.99)


def judge(name, steps, field, sampler, data, features, draws):
    label = np.arange(draws) % 10
    start = time.perf_counter()
    out = jf.generate(field, jr.key(3), draws, (SIDE, SIDE, 1), sampler, args=label, args_in_axes=0, progress=False)
    seconds = time.perf_counter() - start
    distance = jf.metrics.frechet_distance(np.clip(out.x, -1, 1), data[:]["x"], features)
    print(f"| {name}, {steps} batches | {int(out.nfe[0])} | {distance:.3f} | {seconds:.0f} |", flush=True)
    return distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="of the processor, for each model")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--model", choices=list(MODELS), help="one of the two; by default both, and their ratio")
    given = parser.parse_args()
    data, features = images(), jf.metrics.features("fashion")
    print(f"| trained by | calls | Fréchet distance, `{features.name}` | s |\n|---|---|---|---|", flush=True)
    batch = ft.partial(jf.data.batch, data, 0, batch_size=BATCH)
    row = ft.partial(judge, data=data, features=features, draws=given.draws)
    found = {}
    for name, (make, loss) in MODELS.items():
        if given.model not in (None, name):
            continue
        field, steps = train(make(), loss, batch, optimizer, 60 * given.minutes)
        if name == "flow":
            found[name] = row("matching_loss", steps, field, jf.FixedSteps(jf.UniformGrid(16), dfx.Heun(), end="stop"))
            continue
        for n in (1, 2, 4):
            sampler = jf.FixedSteps(jf.UniformGrid(n), jf.Jump(), end="stop")
            distance = row("ImprovedMeanFlow", steps, field, sampler)
            found.setdefault(name, distance)
    if len(found) == 2:
        print(f"\none call over 32 of the flow: {found['map'] / found['flow']:.2f}, at most 1.5")


if __name__ == "__main__":
    main()
