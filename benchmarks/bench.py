"""The speed of jflow beside the limit and its peers: `make bench`, or `python benchmarks/bench.py --only likelihood`.

Each row sets one program beside a hand-written one, `baselines/`, or a peer's. The two run in turn in one go, and are
compiled before; the figure is the median of 15 ratios, with their quartiles. The rows of a group replace those of the
last run in `results/<machine>.json`, and the tables of README.md are made anew from all of these files.
"""

import argparse
import importlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import _paired
import jax

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
GROUPS = ("fixed", "likelihood", "adaptive", "start", "peers")
MARKS = "<!-- speed -->\n", "<!-- /speed -->\n"


def machine() -> dict[str, str | int]:
    """The processor, how many of its cores this process has, and what runs there."""
    found = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", found)
    kinds = sorted({d.device_kind for d in jax.local_devices() if d.platform != "cpu"})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = model[1].strip() if model else platform.processor() or platform.machine()
    return {"processor": ", ".join([processor, *kinds]), "cores": cores or 1, "jax": jax.__version__}


def cell(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(found: dict) -> str:
    """The rows of one machine."""
    about, note = found["machine"], f" ({found['note']})" if found["note"] else ""
    lines = [f"\n{about['processor']}, {about['cores']} core{'s' * (about['cores'] != 1)}, jax {about['jax']}{note}:\n"]
    lines += ["| program | beside | figure | quartiles | at most | jflow | other |", "|---|---|---|---|---|---|---|"]
    for row in (row for group in (*GROUPS, "gpu") for row in found["rows"].get(group, [])):
        low, middle, high = row["figure"]
        unit = f" {row['unit']}" if row["kind"] == "difference" else ""
        bar = "" if row["bar"] is None else f"{row['bar']:g}{unit}"
        ours, theirs = (f"{cell(cost)} {row['unit']}" for cost in row["costs"])
        lines.append(
            f"| {row['program']} | {row['beside']} | {middle:.2f}{unit} | {low:.2f} to {high:.2f} | {bar} "
            f"| {ours} | {theirs} |"
        )
    return "\n".join(lines) + "\n"


def refresh() -> None:
    """Writes the tables of all machines into README.md."""
    before, rest = README.read_text().split(MARKS[0])
    _, after = rest.split(MARKS[1])
    tables = [table(json.loads(file.read_text())) for file in sorted(RESULTS.glob("*.json"))]
    README.write_text(before + MARKS[0] + "".join(tables) + "\n" + MARKS[1] + after)


def measure(groups: Iterable[str], note: str = "", write: bool = True, **options: bool) -> None:
    """Measures groups, prints each row as it comes, and writes the file of this machine and the tables."""
    about = machine()
    name = re.sub(r"[^a-z0-9]+", "-", f"{about['processor']} {about['cores']} cores".lower()).strip("-")
    file = RESULTS / f"{name}.json"
    found = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    found |= {"machine": about, "note": note}
    for group in groups:
        rows = []
        for row in importlib.import_module(f"speed.{group}").rows(**options):
            rows.append(row._asdict())
            low, middle, high = row.figure
            print(f"{middle:8.3f} ({low:.3f} to {high:.3f})  {row.program} | {row.beside}", flush=True)
        if rows and write:
            found["rows"][group] = rows
            RESULTS.mkdir(exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
            refresh()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=GROUPS, help="the groups to measure")
    parser.add_argument("--note", default="", help="what the tables say of the machine beside its name, as its load")
    parser.add_argument("--runs", type=int, default=_paired.RUNS, help="how often each pair is timed")
    options = parser.parse_args()
    _paired.RUNS = options.runs
    measure(options.only, options.note)


if __name__ == "__main__":
    sys.exit(main())
