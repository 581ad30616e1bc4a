"""Paired timings: two programs run in turn, and the quartiles of the ratios of their times."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

RUNS = 15
"""How often each of the two is timed."""


class Paired(NamedTuple):
    """The quartiles of `seconds of the first / seconds of the second`, and the median seconds of each."""

    quartiles: tuple[float, float, float]
    first: float
    second: float


def seconds(program: Callable[[], Any]) -> float:
    """The seconds of one call, until its arrays are there."""
    start = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - start


def calls_for(program: Callable[[], Any]) -> int:
    """How many calls fill 20 ms: a short program is called more than once a run."""
    return max(1, min(1000, int(0.02 / max(seconds(program), 1e-6))))


def paired(first: Callable[[], Any], second: Callable[[], Any]) -> Paired:
    """Times two programs in turn, the order swapped at each run. Both are called once before, which compiles them."""
    seconds(first), seconds(second)
    programs = (first, second)
    calls = [calls_for(program) for program in programs]
    table = np.empty((RUNS, 2))
    for run in range(RUNS):
        for which in (0, 1) if run % 2 else (1, 0):
            table[run, which] = sum(seconds(programs[which]) for _ in range(calls[which])) / calls[which]
    quartiles = np.quantile(table[:, 0] / table[:, 1], (0.25, 0.5, 0.75))
    return Paired(tuple(map(float, quartiles)), *map(float, np.median(table, axis=0)))
