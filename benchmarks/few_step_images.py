"""Pictures in one call beside a flow of equal training time: `python benchmarks/few_step_images.py --data mnist`.

U-Nets of one size, on patches of 2 x 2, conditional on the class and bounded by `jf.nn.Bounded`, learn MNIST's 10,000
digits at 16 x 16 pixels for 20 minutes of the processor each, or Fashion-MNIST's 60,000 clothes for 5 minutes of an
accelerator each: one the velocity, by `matching_loss`, the others a flow map, by `ImprovedMeanFlow` from random
parameters; by it from the parameters of a flow, which takes two fifths of the time; or so from one that takes three
fifths, for 3 parts in 20, and then by distribution matching with that flow as the teacher. A row is the Fréchet
distance of 10,000 draws, the classes in turn, to 10,000 images (the digits; the test images of clothes), by
`jf.metrics.features("fashion")`. The flow takes 16 steps of Heun's method, 32 calls, or 31 with the data prediction as
the last step; a map 1, 2 and 4 calls. The bar: one call is at most 1.5 times as far as the flow's 32.
`--model` trains one of them, so that each may have its own core; `--picture` writes a sheet of its draws in one call.
"""

import argparse
import functools as ft
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import diffrax as dfx
import jax
import jax.random as jr
import numpy as np
import optax
from few_step import train
from flax import nnx

import jflow as jf
from jflow import few_step as fs
from jflow.data._folder import fit
from jflow.recipes._images import PatchedUNet


class Data(NamedTuple):
    """What is trained on, what is judged against, and the size of the networks."""

    train: jf.data.Dataset
    real: jf.data.Dataset
    channels: tuple[int, ...]
    layers: int
    rate: float
    minutes: float


def mnist():
    parts = [jf.data.mnist(split) for split in ("train", "test")]
    x = np.concatenate([((part[:]["x"] + 1) * 127.5).round().astype(np.uint8) for part in parts])
    label = np.concatenate([part.label for part in parts])  # pyright: ignore
    data = jf.data.Dataset(fit(x, 16, grey=True), label, "mnist-16", 10)
    return Data(data, data, (32, 64), 1, 3e-3, 20.0)


def fashion():
    return Data(jf.data.fashion_mnist("train"), jf.data.fashion_mnist("test"), (96, 192), 2, 1e-3, 5.0)


BATCH = 128
SHARES = {"begun": (0.4, 0.6), "matching": (0.6, 0.15)}  # of the time: a flow's, and its map's
MODELS = ("matching_loss", "ImprovedMeanFlow", "ImprovedMeanFlow, begun as a flow", "distribution matching")


def flow_loss(field, key, example):
    return jf.matching_loss(field, key, example["x"], example["label"])


def map_loss(flow_map, key, example):
    return fs.flow_map_loss(flow_map, key, example["x"], example["label"], law=fs.TimePairs(jf.laws.Uniform()))


def pair_loss(pair, key, example, teacher):
    return fs.distribution_matching_loss(pair, key, example["x"], example["label"], teacher=teacher)


def network(data, times):
    shape = data.train.x.shape[1:]
    options = {"channels": data.channels, "layers": data.layers, "num_classes": 10, "times": times}
    return jf.nn.Bounded(PatchedUNet(shape, 2, rngs=nnx.Rngs(0), **options))


def begun(flow_map, flow):
    """The map with the parameters of a flow: it begins with its velocity."""
    with tempfile.TemporaryDirectory() as folder:
        jf.train.save(folder, jf.train.init(flow, optax.sgd(0.0), ema=None))
        return jf.train.warm_start(folder, flow_map)[0]


def optimizer(rate, steps, b1=0.9):
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 2), steps), b1=b1, b2=0.99)


def pair_optimizer(rate, steps):
    """The field that follows the draws must be ahead of the map."""
    parts = {"map": optimizer(rate / 12, steps, 0.5), "fake": optimizer(rate / 2, steps)}
    return optax.partition(parts, lambda pair: tuple(map(named, pair, parts)))


def named(part, name):
    return jax.tree.map(lambda _: name, part)


def judge(name, steps, field, sampler, real, features, draws):
    label = np.arange(draws) % 10
    start = time.perf_counter()
    out = jf.generate(field, jr.key(3), draws, real.x.shape[1:], sampler, args=label, args_in_axes=0, progress=False)
    seconds = time.perf_counter() - start
    distance = jf.metrics.frechet_distance(np.clip(out.x, -1, 1), real[:]["x"], features)
    print(f"| {name}, {steps} batches | {int(out.nfe[0])} | {distance:.3f} | {seconds:.0f} |", flush=True)
    return distance


def sheet(field, sampler, shape):
    """80 draws, a class a column."""
    label = np.arange(80) % 10
    out = jf.generate(field, jr.key(4), 80, shape, sampler, args=label, args_in_axes=0, progress=False)
    return jf.plot.image_grid(np.clip(out.x, -1, 1), ncols=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["mnist", "fashion"], default="mnist")
    parser.add_argument("--minutes", type=float, help="of training, for each model")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--model", choices=MODELS, help="one of them; by default all, and the ratio")
    parser.add_argument("--picture", type=Path, help="of its draws in one call; with --model")
    given = parser.parse_args()
    data, features = {"mnist": mnist, "fashion": fashion}[given.data](), jf.metrics.features("fashion")
    print(f"| trained by | calls | Fréchet distance, `{features.name}` | s |\n|---|---|---|---|", flush=True)
    row = ft.partial(judge, real=data.real, features=features, draws=given.draws)
    seconds, found = 60 * (given.minutes or data.minutes), {}

    def learn(field, loss, share=1.0, optimizer=optimizer, size=BATCH):
        batch = ft.partial(jf.data.batch, data.train, 0, batch_size=size)
        return train(field, loss, batch, ft.partial(optimizer, data.rate), share * seconds)

    for name in [given.model] if given.model else MODELS:
        flow, flow_map = jf.Field(network(data, 1), jf.CondOT(), "velocity"), jf.FlowMap(network(data, 2), jf.CondOT())
        samplers = [jf.FixedSteps(jf.UniformGrid(n), jf.Jump(), end="stop") for n in (1, 2, 4)]
        if name == "matching_loss":
            field, steps = learn(flow, flow_loss)
            samplers = [jf.FixedSteps(jf.UniformGrid(16), dfx.Heun(), end=end) for end in ("stop", "denoise")]
        elif name == "ImprovedMeanFlow":
            field, steps = learn(flow_map, map_loss)
        else:
            of_flow, of_map = SHARES["matching" if name == MODELS[-1] else "begun"]
            flow, steps = learn(flow, flow_loss, of_flow)
            field, more = learn(begun(flow_map, flow), map_loss, of_map)
            if name == MODELS[-1]:
                loss, rest = ft.partial(pair_loss, teacher=flow), 1 - of_flow - of_map
                (field, _), matched = learn((field, flow), loss, rest, pair_optimizer, BATCH // 2)
                more += matched
            steps += more
        rows = [row(name, steps, field, sampler) for sampler in samplers]
        found[name] = rows[0]
        if given.picture:
            sheet(field, samplers[0], data.real.x.shape[1:]).savefig(given.picture, dpi=100, bbox_inches="tight")
    if given.model is None:
        print(f"\none call over 32 of the flow: {min(list(found.values())[1:]) / found[MODELS[0]]:.2f}, at most 1.5")


if __name__ == "__main__":
    main()
