"""The rows of `benchmarks/bench.py`, one module a group: each has `rows()`, which measures and yields them."""

from typing import NamedTuple

from _paired import Paired, paired


class Row(NamedTuple):
    """One figure: the quartiles of what is measured, and the largest median that is promised.

    `kind` is `"ratio"`, of the two costs, or `"difference"`. The costs are in `unit`.
    """

    program: str
    beside: str
    figure: tuple[float, float, float]
    costs: tuple[float, float]
    unit: str = "ms"
    bar: float | None = None
    kind: str = "ratio"


def timed(program: str, beside: str, ours, theirs, bar: float | None = None) -> Row:
    """The row of two programs that are run in turn."""
    found: Paired = paired(ours, theirs)
    return Row(program, beside, found.quartiles, (1e3 * found.first, 1e3 * found.second), bar=bar)
