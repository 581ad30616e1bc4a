"""Run folders: what a run is on disk, and files that appear whole or not at all."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG, REPORT = "config.json", "report.json"
SAMPLES, LOSS, ANIMATION, TRAJECTORIES = "samples.png", "loss.png", "animation.gif", "trajectories.png"

# All that a run writes: `overwrite` removes these and nothing else, the mark of a run last.
_OWN = ("checkpoints", "metrics.jsonl", "metrics.jsonl.tmp", REPORT, SAMPLES, LOSS, ANIMATION, TRAJECTORIES, CONFIG)


def check_out(path: Path, *, overwrite: bool) -> None:
    """Makes the folder of `path`; raises `ValueError` where it cannot be written, or `path` exists already."""
    if path.is_dir() or (path.exists() and not overwrite):
        what = "which is a folder: pass" if path.is_dir() else "which exists: pass --overwrite to replace it, or"
        raise ValueError(f"A file must not exist yet. Got {path}, {what} another name by --out.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"A file must have a folder that can be written. Got {path}: {error}; choose another."
        ) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its name when the block ends without an error.

    Raises `OSError` that names `path` where the disk does not take it.
    """
    check_out(path, overwrite=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
            partial = Path(scratch) / path.name
            yield partial
            os.replace(partial, path)
    except OSError as error:
        raise OSError(f"A file must be written whole. Got {path}: {error}; free space on the disk.") from error


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as readable JSON."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def claim(folder: Path, name: str, recipe: Any, *, overwrite: bool) -> None:
    """Makes `folder` the folder of this run, or finds that it is.

    Raises `ValueError` where it holds something else, or another run that is not to be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"A run must have a folder. Got {folder}, which is a file: choose another name.")
    options = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        before = read_config(folder)
        if before == (name, options) and not overwrite:
            _sweep(folder)
            return
        if not overwrite:
            other = f"{before[0]}, not {name}" if before[0] != name else _differences(before[1], options)
            raise ValueError(
                f"A run must go on with the recipe and the options it was begun with. Got {folder}, which holds one of "
                f"{other}: pass the same, choose another --out, or begin it anew with --overwrite."
            )
            _sweep(folder)
        _remove(folder)
    write_json(folder / CONFIG, {"recipe": name, "options": options})


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """The name of a run's recipe, and its options; `ValueError` where the folder is not that of a run."""
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
        name, options = content["recipe"], content["options"]
        if not (isinstance(name, str) and isinstance(options, dict)):
            raise TypeError("no recipe with options")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"whose {CONFIG} is something else" if path.is_file() else f"which has no {CONFIG}"
        raise ValueError(
            "A run must be in a folder that `jflow train` made. "
            f"Got {folder}, {what if folder.is_dir() else 'which is no folder'}: choose another."
        ) from error
    return name, options


def _sweep(folder: Path) -> None:
    """Removes what a killed process has left of files that were not yet whole."""
    for pattern in (".partial-*", ".animation-*"):
        for scratch in folder.glob(pattern):
            shutil.rmtree(scratch, ignore_errors=True)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "other options: " + ", ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in names)


def _remove(folder: Path) -> None:
    """Removes what a run has written; killed half-way, it leaves a folder that is still a run's."""
    for name in _OWN:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
