"""Reports: checks that print as a table and can be asserted on."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Check(NamedTuple):
    """One line of a report: a figure, the bound it is held to (`None` for information), and how it was got.

    ```python
    check = jf.testing.check_path(jf.CondOT())["inverse of log-SNR"]
    assert isinstance(check, jf.testing.Check) and check.passed and check.figure <= check.bound
    ```
    """

    name: str
    figure: float
    bound: float | None
    passed: bool
    note: str = ""


class Report(Sequence):
    """Checks, in order; it prints as a table, and gives a check by its place or its name.

    ```python
    report = jf.testing.check_path(jf.CondOT())
    assert report.ok and report["inverse of log-SNR"].figure < 1e-7
    ```
    """

    def __init__(self, title: str, checks: Iterable[Check]):
        self.title, self.checks = title, tuple(checks)

    @property
    def ok(self) -> bool:
        """Whether every check that has a bound meets it."""
        return all(check.passed for check in self.checks)

    def check(self) -> None:
        """Raises `AssertionError`, with the table, unless `ok`."""
        if not self.ok:
            raise AssertionError(str(self))

    def __getitem__(self, name):
        if isinstance(name, str):
            found = [check for check in self.checks if check.name == name]
            if not found:
                names = ", ".join(repr(check.name) for check in self.checks)
                raise KeyError(f"A name must be that of a check of this report, one of {names}. Got {name!r}.")
            return found[0]
        return self.checks[name]

    def __len__(self):
        return len(self.checks)

    def __str__(self):
        width = max(len(check.name) for check in self.checks)
        lines = [self.title]
        for name, figure, bound, passed, note in self.checks:
            state = "FAIL" if not passed else "    " if bound is None else "pass"
            limit = "" if bound is None else f"at most {bound:.3g}"
            lines.append(f"  {state}  {name:<{width}}  {figure:>10.4g}  {limit:<17}{note}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__


def bounded(name: str, figure: Any, bound: Any, note: str = "") -> Check:
    """A check of a figure that must be finite and at most the bound, where there is a bound."""
    figure = float(figure)
    bound = None if bound is None else float(bound)
    return Check(name, figure, bound, bool(np.isfinite(figure) and (bound is None or figure <= bound)), note)
