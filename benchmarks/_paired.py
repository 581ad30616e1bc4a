"""Paired timings: two programs run in turn, and the median of their ratios."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def paired_seconds(first: Callable[[], Any], second: Callable[[], Any], runs: int = 15) -> np.ndarray:
    """The seconds of both over interleaved runs, `(runs, 2)`, after one run of each that does not count."""
    jax.block_until_ready((first(), second()))
    seconds = []
    for run in range(runs):
        pair = [0.0, 0.0]
        for which in (0, 1) if run % 2 else (1, 0):
            start = time.perf_counter()
            jax.block_until_ready((first, second)[which]())
            pair[which] = time.perf_counter() - start
        seconds.append(pair)
    return np.asarray(seconds)


def paired_ratio(first: Callable[[], Any], second: Callable[[], Any], runs: int = 15) -> tuple[float, float, float]:
    """Median of `time(first) / time(second)` over interleaved runs, and the median seconds of each."""
    table = paired_seconds(first, second, runs)
    return float(np.median(table[:, 0] / table[:, 1])), *(float(s) for s in np.median(table, axis=0))
