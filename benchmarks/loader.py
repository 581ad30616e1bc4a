"""What data cost: `python benchmarks/loader.py`, on two cores (`taskset -c 0,1`).

- The share of a training's time that `fit` spends in `jf.data.batch`, which is the most that a step can wait for data.
- 28 x 28 images a second of `jf.data.batch`, and of `jf.data.loader`, for what does not fit into memory.
- A folder of JPEG pictures of mixed sizes through `jf.data.from_folder`, beside pillow's decoding alone in as many
  threads, and beside decoding, cutting and resizing: the median ratio of interleaved pairs.
"""

import argparse
import concurrent.futures
import itertools
import os
import tempfile
import time
from pathlib import Path

import _paired
import jax
import jax.random as jr
import numpy as np
import optax
from flax import nnx
from PIL import Image, ImageOps

import jflow as jf

BATCH = 128


def loss(field, key, example):
    return jf.matching_loss(field, key, example["x"], example["label"])


def waiting(data, net, steps):
    """The share of the time of `fit` that passes in `batches(i)`, without the steps that compile."""
    seconds = []

    def batches(i):
        start = time.perf_counter()
        batch = jf.data.batch(data, 0, i, BATCH)
        seconds.append((start, time.perf_counter()))
        return batch

    state = jf.train.init(jf.Field(net, jf.CondOT(), "velocity"), optax.adam(1e-3), ema=0.999)
    state, _ = jf.train.fit(state, loss, batches, steps=steps, key=jr.key(0), progress=False)
    end = time.perf_counter()
    inside = np.array(seconds[3:])
    return float((inside[:, 1] - inside[:, 0]).sum() / (end - inside[0, 0]))


def rate(batches, number):
    """Images a second of so many batches."""
    next(batches)
    start = time.perf_counter()
    for batch in itertools.islice(batches, number):
        assert batch["x"].dtype == np.float32
    return number * BATCH / (time.perf_counter() - start)


def pictures(folder, number):
    """JPEG pictures of smooth colours with some noise, their sides 256 to 768."""
    rng = np.random.default_rng(0)
    for i in range(number):
        width, height = (int(side) for side in rng.integers(256, 769, 2))
        smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((width, height), 3)
        pixels = np.asarray(smooth, np.int16) + rng.normal(0, 8, (height, width, 1)).astype(np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04}.jpg", quality=90)


def by_pillow(folder, size=None):
    """Every picture decoded by pillow, and with a size cut to its central square and resized."""

    def load(file):
        with Image.open(file) as image:
            image.load()
            if size is not None:
                ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(load, sorted(folder.iterdir())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    _paired.RUNS = given.runs
    rng = np.random.default_rng(0)
    x, label = rng.integers(0, 256, (60_000, 28, 28, 1), np.uint8), rng.integers(0, 10, 60_000)
    data = jf.data.Dataset(x, label, "bytes", 10)
    print("| what | figure | bar |\n|---|---|---|", flush=True)
    options = {"num_classes": 10, "rngs": nnx.Rngs(0)}
    nets = {
        "U-Net, 32 and 64 channels": jf.nn.UNet((28, 28, 1), channels=(32, 64), layers=1, **options),
        "DiT, 4 blocks of 96": jf.nn.DiT((28, 28, 1), patch=4, dim=96, layers=4, heads=4, **options),
    }
    for name, net in nets.items():
        share = waiting(data, net, given.steps)
        print(f"| share of `fit` in `data.batch`, {name}, {BATCH} of 28 x 28 | {share:.2%} | at most 2% |", flush=True)
    speed = rate((jf.data.batch(data, 0, i, BATCH) for i in itertools.count()), 2000)
    print(f"| 28 x 28 images a second, `data.batch` | {speed:,.0f} | 50,000 |", flush=True)
    speed = rate(iter(jf.data.loader(data, BATCH)), 200)
    print(f"| 28 x 28 images a second, `data.loader` | {speed:,.0f} | |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures(folder, given.pictures)
        for size in (32, 64, 256):
            for name, chosen in ("decoding", None), ("decoding and resizing", size):
                timed = _paired.paired(
                    lambda size=size: jf.data.from_folder(folder, size).x,
                    lambda chosen=chosen: by_pillow(folder, chosen),
                )
                print(
                    f"| {given.pictures} JPEG by `from_folder` at {size} x {size}, over pillow's {name} | "
                    f"{timed.quartiles[1]:.2f} ({timed.first:.2f} s, {timed.second:.2f} s) | 1 |",
                    flush=True,
                )
    print(f"\n{os.cpu_count()} cores, jax {jax.__version__}")


if __name__ == "__main__":
    main()
