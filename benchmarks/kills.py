"""A run that is killed 20 times at random moments ends bit for bit as one that is not: `python benchmarks/kills.py`.

A child process trains by `fit` and gets SIGKILL at a random moment; the next one goes on from its folder. Half of the
kills come at a random moment after the first step, the other half while a checkpoint is being written. A last child
ends the run. Compared with an uninterrupted run are all arrays of the state (parameters, optimiser, both averages), the
stored averages, the log, and each batch that any of the processes took.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SAVE_EVERY = 25


def child(folder: Path, steps: int) -> None:
    """The run; each batch leaves a line in a file, and takes a while, so that there is time to kill."""
    import jax
    import jax.random as jr
    import optax
    from flax import nnx

    import jflow as jf

    data = jf.data.from_array(np.random.default_rng(0).normal(size=(5000, 2)))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}-batches.jsonl").open("a") as file:

        def batches(i):
            batch = jf.data.batch(data, 0, i, 64)
            file.write(json.dumps([i, zlib.crc32(batch["x"].tobytes())]) + "\n")
            file.flush()
            time.sleep(0.005)
            return batch

        field = jf.Field(jf.nn.MLP(2, width=64, depth=2, rngs=nnx.Rngs(0)), jf.CondOT(), "velocity")
        state = jf.train.init(field, optax.adamw(1e-3), ema=(0.999, jf.train.PowerEMA(0.1)))
        state, _ = jf.train.fit(
            state, lambda f, k, e: jf.matching_loss(f, k, e["x"]), batches, steps=steps, key=jr.key(1),
            run_dir=folder, save_every=SAVE_EVERY, log_every=7, best="loss", progress=False,
        )  # fmt: skip
    np.savez(folder.parent / f"{folder.name}.npz", *[np.asarray(leaf) for leaf in jax.tree.leaves(state)])


def started(folder: Path, steps: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    command = [sys.executable, __file__, "--child", str(folder), "--steps", str(steps)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def taken(folder: Path) -> list[list[int]]:
    """The batches that were taken: step and checksum; the last line may be half written."""
    file = folder.parent / f"{folder.name}-batches.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("]")] if file.exists() else []


def half_written(folder: Path) -> set[str]:
    """The checkpoints that are being written."""
    return {entry.name for entry in folder.glob("checkpoints/*tmp*")}


def until(condition, process: subprocess.Popen) -> None:
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"The run ended before it was killed: take more --steps.\n{process.communicate()[1]}")
        time.sleep(0.0005)


def killed(folder: Path, steps: int, saving: bool, rng: np.random.Generator) -> tuple[int, bool]:
    """One kill; the step that it hit, and whether a checkpoint was half written."""
    before, left = len(taken(folder)), half_written(folder)
    process = started(folder, steps)
    until(lambda: len(taken(folder)) > before, process)
    if saving:  # not what the process before left
        until(lambda: half_written(folder) - left, process)
        time.sleep(rng.uniform(0, 0.03))
    else:
        time.sleep(rng.uniform(0, 1.5))
    process.kill()
    complaint = process.communicate()[1]
    if process.returncode != -9 or "damaged" in complaint:
        raise SystemExit(f"The run must go on from any kill. It ended by {process.returncode}:\n{complaint}")
    return taken(folder)[-1][0], bool(half_written(folder) - left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        return child(given.child, given.steps)
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, cut = Path(scratch, "whole"), Path(scratch, "cut")
        hits = []
        for i in range(given.kills):
            hits.append(killed(cut, given.steps, i % 2 == 1, rng))
            print(f"kill {i + 1} at step {hits[-1][0]}{', a checkpoint half written' * hits[-1][1]}", flush=True)
        for folder in (cut, whole):
            process = started(folder, given.steps)
            if complaint := process.communicate()[1] or process.returncode:
                raise SystemExit(f"The run must end. {complaint}")
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
        left = sorted(entry.name for entry in (cut / "checkpoints").iterdir())
        print(f"checkpoints: {', '.join(left)}")
        equal = all(arrays) and all(stored) and all(batches) and logs[0] == logs[1]
    sys.exit(not equal)


if __name__ == "__main__":
    main()
