"""The log of a run: `metrics.jsonl`, one line a logged step."""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_LOG = logging.getLogger("jflow")


class Metrics:
    """An open `metrics.jsonl`: every line a JSON object with at least `step` and `seconds`."""

    def __init__(self, path: Path, file: IO[bytes], kept: list[dict[str, Any]]):
        self._path, self._file, self._kept = path, file, kept
        self._start = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)

    def least(self, name: str) -> float:
        """The lowest number of this name in the lines of earlier sittings, infinity without any."""
        found = [line[name] for line in self._kept if isinstance(line.get(name), int | float)]
        return min(found, default=math.inf)

    def write(self, step: int, **values: float) -> None:
        """Adds a line; `seconds` is the time spent in training so far, over all sittings.

        JSON has no NaN and no infinities: these are null.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, **finite, "seconds": round(time.monotonic() - self._start, 3)}
        with self._told():
            self._file.write(json.dumps(line).encode() + b"\n")

    def sync(self) -> None:
        """Returns when the lines are on disk."""
        with self._told():
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"A run must add to its log. Got {self._path}: {error}; free space on the disk, and go on."
            ) from error


@contextlib.contextmanager
def open_metrics(path: Path, step: int) -> Iterator[Metrics]:
    """The log, cut back to the lines of steps up to `step`, so that a resumed run has each step once.

    Lines that are damaged are left out, and a warning is logged. Raises `ValueError` where there is no checkpoint yet,
    `step` being 0, and none of the lines is one of a log.
    """
    lines, damaged = _lines(path.read_bytes()) if path.exists() else ([], 0)
    if damaged and not (lines or step):
        raise ValueError(
            "A run must add to the metrics.jsonl that it wrote. "
            f"Got {path}, which is another file; choose another folder."
        )
    if damaged:
        _LOG.warning("%s has %d damaged lines, which are left out.", path, damaged)
    kept = [line for line in lines if line["step"] <= step]
    # written beside and renamed: a kill leaves the old log or the new one
    partial = path.with_name(path.name + ".tmp")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(partial, path)
    with path.open("ab", buffering=0) as file:  # what a full disk does not take is not tried again on closing
        yield Metrics(path, file, kept)


def _lines(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The lines of the log, and how many are damaged; a last one that a kill cut short is dropped."""
    *whole, _ = content.split(b"\n")
    lines = [line for line in map(_line, whole) if line is not None]
    return lines, len(whole) - len(lines)


def _line(content: bytes) -> dict[str, Any] | None:
    """A line of the log, `None` for what is none."""
    try:
        line = json.loads(content)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(line, dict) and isinstance(line.get("step"), int) and "loss" in line
    return line if numbers and isinstance(line.get("seconds"), int | float) else None
