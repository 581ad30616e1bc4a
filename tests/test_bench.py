"""The benchmarks of speed: two programs are timed in turn, and the tables come from the files."""

import importlib
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import _paired
import bench
import speed
from baselines import loops


@pytest.mark.parametrize("group", [*bench.GROUPS, "gpu"])
def test_a_group_has_rows(group):
    assert callable(importlib.import_module(f"speed.{group}").rows)


def test_two_programs_are_timed_in_turn(monkeypatch):
    monkeypatch.setattr(_paired, "RUNS", 3)
    called = []
    row = speed.timed("one", "other", lambda: called.append(1), lambda: called.append(2), 1.1)
    assert {1, 2} == set(called) and 0 < row.figure[0] <= row.figure[1] <= row.figure[2] and row.bar == 1.1


def test_the_tables_are_made_of_the_files(monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n" + bench.MARKS[0] + "old\n" + bench.MARKS[1] + "after\n")
    monkeypatch.setattr(bench, "README", readme)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    row = speed.Row("Euler", "a scan", (0.98, 1.01, 1.02), (12.3, 12.2), bar=1.02)
    monkeypatch.setattr(importlib.import_module("speed.fixed"), "rows", lambda: iter([row]))
    bench.measure(["fixed"], "idle")
    (file,) = (tmp_path / "results").iterdir()
    assert json.loads(file.read_text())["rows"]["fixed"][0]["figure"] == [0.98, 1.01, 1.02]
    text = readme.read_text()
    assert "| Euler | a scan | 1.01 | 0.98 to 1.02 | 1.02 | 12.3 ms | 12.2 ms |" in text and "(idle)" in text
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("dopri5", 5)])
def test_the_loops_by_hand_have_their_order(x64, name, order):
    ends = [getattr(loops, name)(lambda t, x: -x, jnp.ones(()), jnp.linspace(0, 1, n + 1)) for n in (8, 16)]
    errors = [abs(float(end) - np.exp(-1.0)) for end in ends]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)
