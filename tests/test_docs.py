"""The site: every block of every page runs, links lead somewhere, the reference has every name, and prose is short."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from test_docstrings import AVOIDED, MODULES, NAMES, public

from jflow.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MADE = {"benchmarks.md": "benchmarks/README.md", "changelog.md": "CHANGELOG.md"}  # by docs/hooks.py
NO_EXAMPLE = {"lecture.md"}  # a table; the reference has the examples of docstrings
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAGS = re.MULTILINE | re.DOTALL
LONGEST = 30  # words of a sentence


def name(page):
    return page.relative_to(DOCS).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name)
def test_the_blocks_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace = page.read_text(), {"__name__": "page"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


def test_every_page_has_an_example():
    bare = {name(page) for page in PAGES if not BLOCK.search(page.read_text()) and "\n::: " not in page.read_text()}
    assert bare == NO_EXAMPLE
    for page in PAGES:  # and no block is overlooked: those marked `py` need another library, and `make peers` runs them
        known = {"python", "text"} | ({"py"} if page.parent.name == "from" else set())
        assert set(re.findall(r"^ *```(\w+)", page.read_text(), re.MULTILINE)) <= known, page


def test_the_navigation_has_every_page():
    listed = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    course = {f"course/{notebook.stem}.md" for notebook in (ROOT / "notebooks").glob("*.ipynb")}
    assert len(listed) == len(set(listed)) and set(listed) == {name(page) for page in PAGES} | set(MADE) | course


def anchors(text):
    """The anchors of headings, as mkdocs makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_links_lead_somewhere():
    course = {DOCS / "course" / f"{notebook.stem}.md" for notebook in (ROOT / "notebooks").glob("*.ipynb")}
    dead = []
    for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`|\$[^$]*\$", "", page.read_text())):
            where, _, anchor = link.partition("#")
            if "://" in where:
                continue
            file = (page.parent / where).resolve() if where else page
            file = ROOT / MADE.get(file.name, "nowhere") if file.parent == DOCS and file.name in MADE else file
            found = file in course or file.exists()
            if not found or (anchor and anchor not in anchors(file.read_text())):
                dead.append((page.name, link))
    assert not dead


def test_pictures_are_shown_and_the_gallery_names_their_commands():
    shown = {name for page in PAGES for name in re.findall(r"images/(\w+\.png)\)", page.read_text())}
    assert shown == {file.name for file in (DOCS / "images").iterdir()}
    made = set(re.findall(r"^def (\w+)\(\):", (DOCS / "pictures.py").read_text(), re.MULTILINE))
    for part in (DOCS / "gallery.md").read_text().split("![")[1:]:
        (command,) = re.findall(r"^\*(`.*)\*$", part, re.MULTILINE)
        assert set(re.findall(r"docs/pictures.py (\w+)", command)) <= made


def test_the_reference_has_every_public_name_once():
    entries = [entry for page in PAGES for entry in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    modules = {path: __import__(path, fromlist=["_"]) for path in MODULES}
    wanted = {f"{path.removesuffix('.train._model')}.{key}" for path, m in modules.items() for key in public(m)}
    assert len(entries) == len(set(entries)) and set(entries) == wanted | {"jflow.GIVEN"}


def test_a_page_of_the_reference_has_the_imports_of_its_examples():
    for text in (page.read_text() for page in PAGES if "\n::: " in page.read_text()):
        names = {}
        exec(BLOCK.findall(text)[0], names)
        del names["__builtins__"]
        assert names == NAMES, text[:40]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_sentence_is_short_and_its_words_are_plain(page):
    text = page.read_text()
    long = [s for s in sentences(text) if len(s.split()) > LONGEST]
    assert not long
    assert not [word.group() for word in AVOIDED.finditer(text)]


COMMANDS = ("train images", "train moons-meanflow", "sample", "evaluate", "export", "data show", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_the_command_line_has_every_option(command, monkeypatch, capsys):
    """The tables are made of the source; `--help` is made of the functions by another way."""
    monkeypatch.syspath_prepend(DOCS)
    (section,) = re.findall(rf"^## jflow {command}\n(.*?)(?=^## |\Z)", import_module("options").tables() + "\n", FLAGS)
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    told = re.findall(r"^\W*(--[a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(re.findall(r"^\| `(--[a-z-]+)` \|", section, re.MULTILINE)) == sorted(set(told) - {"--help"})


def sentences(text):
    """The sentences of prose and of tables: no code; a formula counts as a word."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "\n\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^::: .*$", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$|`[^`]*`|\$[^$]*\$", "F", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |#|\|))|\|", text):
        yield from (" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+", part))


def test_a_long_sentence_is_found():
    words = " ".join(["word"] * 31)
    page = f"# A\n\nShort. {words}. Short.\n\n```python\n{words} {words}\n```\n"
    assert max(len(s.split()) for s in sentences(page)) == 31
    assert max(len(s.split()) for s in sentences("one `a b c` two $d e$ three")) == 5
