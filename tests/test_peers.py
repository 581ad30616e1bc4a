"""The pages of docs/from/ and what `make peers` runs them beside."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
spec = importlib.util.spec_from_file_location("peer_pages", BENCHMARKS / "peer_pages.py")
assert spec is not None and spec.loader is not None
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)


def bound(listing):
    """The names that the statements of a listing bind."""
    return {
        node.id
        for node in ast.walk(ast.parse(listing))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def test_every_page_is_run_beside_its_peer():
    assert set(pages.PEERS) == {page.stem for page in pages.PAGES.glob("*.md")}
    pins = "".join(file.read_text() for file in BENCHMARKS.glob("peers-*.txt"))
    pinned = set(re.findall(r"^([\w-]+)==", pins, re.MULTILINE))
    for page, (package, names) in pages.PEERS.items():
        shared, before, after = pages.listings(page)
        assert names and not set(names) & bound(shared), page
        assert set(names) <= bound(before) & bound(after), page
        assert "jflow" not in before and "torch" not in after, page
        if package is not None:
            assert package in pinned and package.replace("-", "_") in before, page


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, (package, _) in pages.PEERS.items() if package is None])
def test_a_page_agrees_with_the_formulas_of_its_paper(page):
    assert max(pages.differences(page)) < pages.BOUND
