"""The notebooks as they are committed, and the table of the lecture."""

import json
import re
from pathlib import Path

import pytest

import jflow as jf

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TABLE, LABS = (ROOT / "docs" / "lecture.md").read_text(encoding="utf-8").split("## The labs")
ROWS = re.findall(r"^\| (\d+) \|(.*)\|$", TABLE, re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_executed_small_and_says_what_it_shows(path):
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    opening = "".join(cells[0]["source"])
    assert len(text) < 1_500_000
    assert "**What you will see.**" in opening and "**Lines of the lecture:**" in opening
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4
    assert sum("assert" in "".join(cell["source"]) for cell in code) >= 6
    assert not re.search(r"\"/(home|root|tmp|work|Users)/", text)


def test_every_notebook_is_checked():
    assert len(NOTEBOOKS) >= 6


def test_the_table_of_the_lecture_has_no_empty_cell_and_names_tests_that_exist():
    assert [int(number) for number, _ in ROWS] == list(range(1, 41))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for number, row in ROWS:
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 4 and all(cells), f"row {number}"
        tests, shown = re.findall(r"`(test_\w+)`", cells[2]), cells[3].split(", ")
        assert tests and all(f"def {name}(" in source for name in tests), f"row {number}: {tests}"
        assert all((ROOT / "notebooks").glob(f"{name}_*.ipynb") for name in shown), f"row {number}: {shown}"


def test_the_labs_and_what_follows_name_tests_and_notebooks_that_exist():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert set(re.findall(r"`(0\d_\w+)`", LABS)) >= {path.stem for path in NOTEBOOKS[2:]}
    for name in re.findall(r"`(0\d_\w+)`", LABS):
        assert (ROOT / "notebooks" / f"{name}.ipynb").exists(), name
    for name in re.findall(r"`(test_\w+)`", LABS):
        assert f"def {name}(" in source, name


def test_the_functions_of_the_table_exist():
    """Names in the third column, as far as they are jflow's own."""
    names = {name for _, row in ROWS for name in re.findall(r"`([\w.]+)[`(]", row.split(" | ")[1])}
    found = [name for name in names if _resolves(name)]
    assert len(found) >= 25
    for name in names - set(found):
        head = name.split(".")[0]
        assert head == "Solution" or not hasattr(jf, head), f"{name} is in the table and not in jflow"


def _resolves(name):
    here = jf
    for part in name.split("."):
        if not hasattr(here, part):
            return False
        here = getattr(here, part)
    return True
