"""Trains the feature network of `jf.metrics.features("fashion")`: `python benchmarks/fashion_features.py --out FILE`.

Fashion-MNIST is found as `jf.data.fashion_mnist` finds it, from Debian's package `dataset-fashion-mnist`. Half of the
training images are made smaller, to a side of 14 to 24, and larger again, so that small images are judged as well. It
prints the accuracy on the 10,000 test images, at 28 x 28 and at 16 x 16, and the hash that jflow/metrics/_features.py
must have.
"""

import argparse
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import jflow as jf
from jflow.data._folder import fit
from jflow.metrics._features import FASHION, Features, network
from jflow.train._model import pack

CHANNELS = (1, 32, 48, 64, 64, 64)
SMALL = (14, 16, 20, 24)


def first_weights(key):
    """He's initialisation."""
    weights = {}
    sizes = list(zip(CHANNELS[:-1], CHANNELS[1:], strict=True))
    for i, (before, after) in enumerate(sizes):
        std = (2 / (9 * before)) ** 0.5
        weights[f"kernel{i}"] = std * jr.normal(jr.fold_in(key, i), (3, 3, before, after))
        weights[f"bias{i}"] = jnp.zeros(after)
    return weights | {"kernel": 0.1 * jr.normal(jr.fold_in(key, 99), (CHANNELS[-1], 10)), "bias": jnp.zeros(10)}


def resized(x, side):
    """Images of bytes at another side, and back at 28 as bytes."""
    small = fit(x, side, True) / np.float32(127.5) - 1
    large = jf.batched(lambda x: jax.image.resize(x, (28, 28, 1), "lanczos3"), small, progress=False)
    return np.rint((large.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def loss(weights, key, example):
    key_flip, key_crop = jr.split(key)
    x = jf.data.crop(key_crop, jf.data.flip(key_flip, example["x"]), 1)
    logits = network(weights, x)[1]
    smooth = optax.smooth_labels(jax.nn.one_hot(example["label"], 10), 0.05)
    return optax.softmax_cross_entropy(logits, smooth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FASHION)
    parser.add_argument("--epochs", type=int, nargs=2, default=(12, 6), help="in each of two falls of the rate")
    parser.add_argument("--run", type=Path, help="folder of the run, which goes on where it was stopped")
    given = parser.parse_args()
    train, test = jf.data.fashion_mnist("train"), jf.data.fashion_mnist("test")
    x, part = train.x.copy(), np.random.default_rng(0).permutation(len(train)) % (2 * len(SMALL))
    for i, side in enumerate(SMALL):
        x[part == i] = resized(x[part == i], side)
    data = jf.data.Dataset(x, train.label, "fashion", 10)
    first, second = (epochs * len(train) // 128 for epochs in given.epochs)
    rates = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 200, first), optax.cosine_decay_schedule(1e-3, second)
    schedule, steps = optax.join_schedules(rates, [first]), first + second
    state = jf.train.init(first_weights(jr.key(0)), optax.adamw(schedule, weight_decay=0.02), ema=0.998)
    state, _ = jf.train.fit(
        state, loss, lambda i: jf.data.batch(data, 0, i, 128), steps=steps, key=jr.key(1), run_dir=given.run
    )
    blob = pack({name: np.asarray(value, np.float16) for name, value in state.ema.items()}, {"data": "Fashion-MNIST"})
    given.out.write_bytes(blob)
    weights = {name: jnp.asarray(value, jnp.float16).astype(jnp.float32) for name, value in state.ema.items()}
    judge = Features("fashion", weights)
    for side in (28, 16):
        x = test.x if side == 28 else fit(test.x, side, True)
        accuracy = jf.metrics.class_accuracy(x / np.float32(127.5) - 1, test.label, judge.classes)
        print(f"accuracy on the {len(test):,} test images at {side} x {side}: {accuracy:.4f}")
    print(f"{given.out}: {len(blob):,} bytes, sha256 {hashlib.sha256(blob).hexdigest()}")


if __name__ == "__main__":
    main()
