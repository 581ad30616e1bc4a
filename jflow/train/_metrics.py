"""The log of a run: `metrics.jsonl`, one line a logged step."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


class Metrics:
    """An open `metrics.jsonl`: every line a JSON object with at least `step` and `seconds`."""

    def __init__(self, file: IO[str], seconds: float):
        self._file, self._start = file, time.monotonic() - seconds

    def write(self, step: int, **values: float) -> None:
        """Adds a line; `seconds` is the time spent in training so far, over all sittings."""
        line = {"step": step, **values, "seconds": round(time.monotonic() - self._start, 3)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when the lines are on disk."""
        os.fsync(self._file.fileno())


@contextlib.contextmanager
def open_metrics(path: Path, step: int) -> Iterator[Metrics]:
    """The log, cut back to the lines of steps up to `step`, so that a resumed run has each step once."""
    lines = _lines(path) if path.exists() else []
    kept = [line for line in lines if line["step"] <= step]
    # written beside and renamed: a kill leaves the old log or the new one
    partial = path.with_name(path.name + ".tmp")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(partial, path)
    with path.open("a") as file:
        yield Metrics(file, kept[-1]["seconds"] if kept else 0.0)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the log; a last one that a kill cut short is dropped."""
    *whole, _ = path.read_text().split("\n")
    try:
        lines = [json.loads(line) for line in whole]
        if all(isinstance(line["step"], int) and isinstance(line["seconds"], int | float) for line in lines):
            return lines
        raise TypeError("no step")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            "A run must add to the metrics.jsonl that it wrote. "
            f"Got {path}, which is another file; choose another folder."
        ) from error
