"""Pictures in one call beside a flow of equal training time: `python benchmarks/few_step_images.py --data mnist`.

U-Nets of one size, on patches of 2 x 2 and conditional on the class, learn MNIST's 10,000 digits at 16 x 16 pixels for
20 minutes of the processor each, or Fashion-MNIST's 60,000 clothes for 5 minutes of an accelerator each: one the
velocity, by `matching_loss`, the others a flow map: one by `ImprovedMeanFlow`, one by `Lagrangian` from a teacher that
takes two fifths of the time, with whose parameters it begins. A row is the Fréchet distance of 10,000 draws, the
classes in turn, to 10,000 images (the digits; the test images of clothes), by `jf.metrics.features("fashion")`. The
flow takes 16 steps of Heun's method, 32 calls; a map 1, 2 and 4 calls. The bar: one call is at most 1.5 times as far as
the flow. `--model` trains one of them, so that each may have its own core.
"""

import argparse
import functools as ft
import tempfile
import time
from typing import NamedTuple

import diffrax as dfx
import jax.numpy as jnp
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


class FromNoise(fs.AbstractPairLaw):
    """Two times, of which every other pair begins at the noise, as one call does."""

    diagonal = 0.0

    def sample(self, key, path=None):
        key_pair, key_noise = jr.split(key)
        pair = fs.TimePairs(jf.laws.Uniform(), diagonal=0.0).sample(key_pair, path)
        return pair._replace(s=jnp.where(jr.bernoulli(key_noise), 0.0, pair.s))


BATCH, TEACHER = 128, 0.4  # the share of the time that a teacher takes
MODELS = ("matching_loss", "ImprovedMeanFlow", "Lagrangian, distilled")


def flow_loss(field, key, example):
    return jf.matching_loss(field, key, example["x"], example["label"])


def map_loss(field, key, example, objective=None, law=None):
    return fs.flow_map_loss(field, key, example["x"], example["label"], objective=objective, law=law)


def network(data, times):
    return PatchedUNet(
        data.train.x.shape[1:],
        2,
        channels=data.channels,
        layers=data.layers,
        num_classes=10,
        times=times,
        rngs=nnx.Rngs(0),
    )


def begun(flow_map, flow):
    """The map with the parameters of a flow: it begins with its velocity."""
    with tempfile.TemporaryDirectory() as folder:
        jf.train.save(folder, jf.train.init(flow, optax.sgd(0.0), ema=None))
        return jf.train.warm_start(folder, flow_map)[0]


def optimizer(rate, steps):
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 2), steps), b2=0.99)


def judge(name, steps, field, sampler, real, features, draws):
    label = np.arange(draws) % 10
    start = time.perf_counter()
    out = jf.generate(field, jr.key(3), draws, real.x.shape[1:], sampler, args=label, args_in_axes=0, progress=False)
    seconds = time.perf_counter() - start
    distance = jf.metrics.frechet_distance(np.clip(out.x, -1, 1), real[:]["x"], features)
    print(f"| {name}, {steps} batches | {int(out.nfe[0])} | {distance:.3f} | {seconds:.0f} |", flush=True)
    return distance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["mnist", "fashion"], default="mnist")
    parser.add_argument("--minutes", type=float, help="of training, for each model")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--model", choices=MODELS, help="one of them; by default all, and the ratio")
    given = parser.parse_args()
    data, features = {"mnist": mnist, "fashion": fashion}[given.data](), jf.metrics.features("fashion")
    print(f"| trained by | calls | Fréchet distance, `{features.name}` | s |\n|---|---|---|---|", flush=True)
    batch = ft.partial(jf.data.batch, data.train, 0, batch_size=BATCH)
    row = ft.partial(judge, real=data.real, features=features, draws=given.draws)
    seconds, found = 60 * (given.minutes or data.minutes), {}

    def learn(field, loss, share=1.0):
        return train(field, loss, batch, ft.partial(optimizer, data.rate), share * seconds)

    for name in [given.model] if given.model else MODELS:
        flow, flow_map = jf.Field(network(data, 1), jf.CondOT(), "velocity"), jf.FlowMap(network(data, 2), jf.CondOT())
        if name == "matching_loss":
            field, steps = learn(flow, flow_loss)
            samplers = [jf.FixedSteps(jf.UniformGrid(16), dfx.Heun(), end="stop")]
        else:
            loss, share, before = ft.partial(map_loss, law=fs.TimePairs(jf.laws.Uniform())), 1.0, 0
            if name == "Lagrangian, distilled":
                teacher, before = learn(flow, flow_loss, TEACHER)
                flow_map = begun(flow_map, teacher)
                loss = ft.partial(map_loss, objective=fs.Lagrangian(teacher=teacher), law=FromNoise())
                share = 1 - TEACHER
            field, steps = learn(flow_map, loss, share)
            steps += before
            samplers = [jf.FixedSteps(jf.UniformGrid(n), jf.Jump(), end="stop") for n in (1, 2, 4)]
        found[name], *_ = [row(name, steps, field, sampler) for sampler in samplers]
    if given.model is None:
        print(f"\none call over 32 of the flow: {min(list(found.values())[1:]) / found[MODELS[0]]:.2f}, at most 1.5")


if __name__ == "__main__":
    main()
