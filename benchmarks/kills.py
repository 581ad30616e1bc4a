"""A run that is killed 20 times at random moments ends bit for bit as one that is not: `python benchmarks/kills.py`.

A child process trains by `fit` and gets SIGKILL at a random moment; the next one goes on from its folder. Half of the
kills come at a random moment after the first step, the other half while a checkpoint is being written. A last child
ends the run. Compared with an uninterrupted run are all arrays of the state (parameters, optimiser, both averages), the
stored averages, the log, and each batch that any of the processes took.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  (once, before the children)
from flax import nnx
from jax._src.xla_bridge import backends_are_initialized

import jflow as jf
import jflow.nn
import jflow.train

SAVE_EVERY = 10


def child(folder: Path, steps: int) -> None:
    """The run; each batch leaves a line in a file, and takes a while, so that there is time to kill."""
    os.dup2(os.open(f"{folder}-errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "compiled"))
    data = jf.data.from_array(np.random.default_rng(0).normal(size=(5000, 2)))
    with Path(f"{folder}-batches.jsonl").open("a") as file:

        def batches(i):
            batch = jf.data.batch(data, 0, i, 64)
            file.write(json.dumps([i, zlib.crc32(batch["x"].tobytes())]) + "\n")
            file.flush()
            time.sleep(0.01)
            return batch

        field = jf.Field(jf.nn.MLP(2, width=64, depth=2, rngs=nnx.Rngs(0)), jf.CondOT(), "velocity")
        state = jf.train.init(field, optax.adamw(1e-3), ema=(0.999, jf.train.PowerEMA(0.1)))
        state, _ = jf.train.fit(
            state, lambda f, k, e: jf.matching_loss(f, k, e["x"]), batches, steps=steps, key=jr.key(1),
            run_dir=folder, save_every=SAVE_EVERY, log_every=7, best="loss", progress=False,
        )  # fmt: skip
    np.savez(f"{folder}.npz", *[np.asarray(leaf) for leaf in jax.tree.leaves(state)])


def started(folder: Path, steps: int) -> multiprocessing.Process:
    """A child, by a fork: this process has imported all and computed nothing."""
    assert not backends_are_initialized()
    process = multiprocessing.get_context("fork").Process(target=child, args=(folder, steps))
    process.start()
    return process


def taken(folder: Path) -> list[list[int]]:
    """The batches that were taken: step and checksum; a line may be half written."""
    file = Path(f"{folder}-batches.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("]")] if file.exists() else []


def number(folder: Path) -> int:
    """How many batches were taken."""
    file = Path(f"{folder}-batches.jsonl")
    return file.read_bytes().count(b"\n") if file.exists() else 0


def half_written(folder: Path) -> set[str]:
    """The checkpoints that are being written."""
    return {entry.name for entry in folder.glob("checkpoints/*tmp*")}


def fail(folder: Path, process: multiprocessing.Process) -> None:
    raise SystemExit(f"The run must go on from any kill. It ended by {process.exitcode}:\n{errors(folder)}")


def errors(folder: Path) -> str:
    return Path(f"{folder}-errors").read_text()


def until(condition, folder: Path, process: multiprocessing.Process) -> None:
    while not condition():
        if process.exitcode is not None:
            fail(folder, process)
        time.sleep(0.001)


def killed(folder: Path, steps: int, saving: bool, rng: np.random.Generator) -> tuple[int, bool]:
    """One kill; the step that it hit, and whether a checkpoint was half written."""
    before, left = number(folder), half_written(folder)
    process = started(folder, steps)
    first = before + 1 + rng.integers(1, 4 * SAVE_EVERY)
    until(lambda: number(folder) > first, folder, process)
    if saving:  # not what the process before left
        left |= half_written(folder)
        until(lambda: half_written(folder) - left, folder, process)
    time.sleep(rng.uniform(0, 0.03))
    torn = half_written(folder)
    process.kill()
    process.join()
    if process.exitcode != -9 or "damaged" in errors(folder):
        fail(folder, process)
    return taken(folder)[-1][0], bool(half_written(folder) & torn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, cut = Path(scratch, "whole"), Path(scratch, "cut")
        hits = []
        for i in range(given.kills):
            hits.append(killed(cut, given.steps, i % 2 == 1, rng))
            print(f"kill {i + 1} at step {hits[-1][0]}{', a checkpoint half written' * hits[-1][1]}", flush=True)
        for folder in (cut, whole):
            process = started(folder, given.steps)
            process.join()
            if process.exitcode or "damaged" in errors(folder):
                fail(folder, process)
        with np.load(f"{whole}.npz") as one, np.load(f"{cut}.npz") as other:
            arrays = [np.array_equal(one[name], other[name]) for name in one.files]
            assert one.files == other.files
        own = dict(taken(whole))
        batches = [own[i] == checksum for i, checksum in taken(cut)]
        stored = [f.read_bytes() == (cut / "averages" / f.name).read_bytes() for f in (whole / "averages").iterdir()]
        logs = [
            [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in file.read_text().splitlines()]
            for file in (folder / "metrics.jsonl" for folder in (whole, cut))
        ]
        print(f"{len(hits)} kills, {sum(torn for _, torn in hits)} of them with a checkpoint half written")
        print(f"arrays of the state: {sum(arrays)} of {len(arrays)} equal bit for bit")
        print(f"stored averages: {sum(stored)} of {len(stored)}; batches taken: {sum(batches)} of {len(batches)}")
        print(f"lines of the log: {sum(map(dict.__eq__, *logs))} of {len(logs[0])}")
        left = sorted((entry.name for entry in (cut / "checkpoints").iterdir()), key=int)
        print(f"checkpoints: {', '.join(left)}")
        equal = all(arrays) and all(stored) and all(batches) and logs[0] == logs[1]
    sys.exit(not equal)


if __name__ == "__main__":
    main()
