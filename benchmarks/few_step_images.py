"""Pictures in one call beside a flow of equal training time: `python benchmarks/few_step_images.py --data mnist`.

U-Nets of one size, on patches of 2 x 2 and conditional on the class, learn MNIST's 10,000 digits at 16 x 16 pixels for
20 minutes of the processor each, or Fashion-MNIST's 60,000 clothes for 5 minutes of an accelerator each: one the
velocity, by `matching_loss`, the others a flow map, by `ImprovedMeanFlow`, with two laws of the times. A row is the
Fréchet distance of 10,000 draws, the classes in turn, to 10,000 images (the digits; the test images of clothes), by
`jf.metrics.features("fashion")`. The flow takes 16 steps of Heun's method, 32 calls; a map 1, 2 and 4 calls. The bar:
one call is at most 1.5 times as far as the flow. `--model` trains one of them, so that each may have its own core.
"""

import argparse
import functools as ft
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


class ToData(fs.AbstractPairLaw):
    """`TimePairs`, but of the pairs that differ a share ends at the data, as one call does."""

    share: float
    diagonal = 0.5

    def sample(self, key, path=None):
        key_pair, key_far = jr.split(key)
        pair = EVERY.sample(key_pair, path)
        far = jr.bernoulli(key_far, self.share) & (pair.s < pair.t)
        return pair._replace(t=jnp.where(far, jnp.ones_like(pair.t), pair.t))


BATCH, EVERY = 128, fs.TimePairs(jf.laws.Uniform(), diagonal=0.5)
LAWS = {
    "ImprovedMeanFlow": ToData(0.0),
    "ImprovedMeanFlow, half to the data": ToData(0.5),
    "ImprovedMeanFlow, all to the data": ToData(1.0),
}


def flow_loss(field, key, example):
    return jf.matching_loss(field, key, example["x"], example["label"])


def map_loss(field, key, example, law):
    return fs.flow_map_loss(field, key, example["x"], example["label"], law=law)


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
    parser.add_argument("--model", choices=["matching_loss", *LAWS], help="one of them; by default all, and the ratio")
    given = parser.parse_args()
    data, features = {"mnist": mnist, "fashion": fashion}[given.data](), jf.metrics.features("fashion")
    print(f"| trained by | calls | Fréchet distance, `{features.name}` | s |\n|---|---|---|---|", flush=True)
    batch = ft.partial(jf.data.batch, data.train, 0, batch_size=BATCH)
    row = ft.partial(judge, real=data.real, features=features, draws=given.draws)
    learn = ft.partial(train, batch=batch, optimizer=ft.partial(optimizer, data.rate))
    seconds, flow, best = 60 * (given.minutes or data.minutes), np.nan, np.inf
    if given.model in (None, "matching_loss"):
        field, steps = learn(jf.Field(network(data, 1), jf.CondOT(), "velocity"), flow_loss, seconds=seconds)
        flow = row("matching_loss", steps, field, jf.FixedSteps(jf.UniformGrid(16), dfx.Heun(), end="stop"))
    for name, law in LAWS.items():
        if given.model in (None, name):
            loss = ft.partial(map_loss, law=law)
            field, steps = learn(jf.FlowMap(network(data, 2), jf.CondOT()), loss, seconds=seconds)
            jump = jf.Jump(renoise=1.0) if law.share == 1 else jf.Jump()
            samplers = (jf.FixedSteps(jf.UniformGrid(n), jump, end="stop") for n in (1, 2, 4))
            one, *_ = [row(name, steps, field, sampler) for sampler in samplers]
            best = min(best, one)
    if given.model is None:
        print(f"\nbest at one call over 32 of the flow: {best / flow:.2f}, at most 1.5")


if __name__ == "__main__":
    main()
