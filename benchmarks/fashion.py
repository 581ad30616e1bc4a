"""Clothes by class at 16 x 16, judged by `jf.metrics.features("fashion")`: `python benchmarks/fashion.py`.

It calls `jflow train images` on Fashion-MNIST (which is found as `jf.data.fashion_mnist` finds it), 20 minutes on two
cores, and goes on where it was stopped. Then it prints the accuracy of the judge on the 10,000 test images, the
accuracy of as many draws, the classes in turn, and the Fréchet distances of draws, and of training images, to the test
images. `--picture` writes a sheet of draws, a class a column.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import jflow as jf
from jflow import recipes
from jflow.data._binary import _DEBIAN

JFLOW = [sys.executable, "-c", "import sys; from jflow.cli import main; main(sys.argv[1:])"]
OPTIONS = ["--size", "16", "--grey", "--channels", "48", "96"]
OPTIONS += ["--batch-size", "128", "--steps", "8000", "--ema", "0.999"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "jflow-fashion"))
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--judge", action="store_true", help="judge the newest checkpoint, without training")
    given = parser.parse_args()
    if not given.judge:
        own = Path(os.environ.get("JFLOW_DATA_DIR", "."), "fashion-mnist")
        data = ["--data", str(own if own.is_dir() else _DEBIAN), "--out", str(given.out)]
        subprocess.run([*JFLOW, "train", "images", *data, *OPTIONS], check=True)
    run, judge = recipes.load(given.out), jf.metrics.features("fashion")
    train, test = run.recipe._open()
    label = np.arange(given.draws) % 10
    part = np.random.default_rng(0).choice(len(train), given.draws, replace=False)
    real = test[:]
    print(f"step {run.step}, judge {judge.name}\n\n| images | accuracy | Fréchet distance to test |\n|---|---|---|")

    def row(name, x, label):
        accuracy = jf.metrics.class_accuracy(x, label, judge.classes)
        distance = f"{jf.metrics.frechet_distance(x, real['x'], judge):.3f}" if x is not real["x"] else ""
        print(f"| {name} | {accuracy:.4f} | {distance} |", flush=True)

    row("test", real["x"], real["label"])
    row(f"{given.draws:,} of training", train[part]["x"], train.label[part])
    for scale in (1.0, 2.0):
        x = run.draw(run.recipe.sampler(), given.draws, label=label, scale=scale, stream=int(scale))
        row(f"{given.draws:,} draws, scale {scale:g}", x, label)
    if given.picture is not None:
        figure = jf.plot.image_grid(x[:80], ncols=10)
        ax = figure.axes[0]
        for i, name in enumerate(jf.data.fashion_mnist("test", Path(run.recipe.data)).classes):
            ax.text(i / 10 + 0.05, 1.01, name, ha="center", fontsize=8, transform=ax.transAxes)
        figure.savefig(given.picture, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
