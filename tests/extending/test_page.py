"""The page on extending: its code is that of the files beside this one, and it is written as users write."""

import ast
import re
from pathlib import Path

import pytest

import jflow as jf

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = sorted(set(HERE.glob("test_*.py")) - {Path(__file__)})


def extension(file):
    """The code between the two headings of a file."""
    _, rest = file.read_text().split("# The extension")
    return rest.split("\n", 1)[1].split("# The law")[0].strip("\n") + "\n"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_extension_is_short_public_and_on_the_page(file):
    code = extension(file)
    assert sum(bool(line.strip()) for line in code.splitlines()) < 60
    assert code in BLOCKS and f"`{file.name}`" in PAGE
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jf":
            assert not node.attr.startswith("_") and hasattr(jf, node.attr)
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("jflow")


def test_the_table_names_what_there_is():
    table = [line for line in PAGE.splitlines() if line.startswith("| [")]
    assert len(table) == len(FILES)
    for line in table:
        title, anchor = re.match(r"\| \[(.*?)\]\(#(.*?)\)", line).groups()
        assert anchor == title.replace(" ", "-")
        assert f"\n## {title[0].upper()}{title[1:]}\n" in PAGE
        for name in re.findall(r"`([A-Z]\w+|stepper|given)`", line):
            assert hasattr(jf, name), name
