"""Every code block of the README works: Python runs, commands and their options exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(*languages: str) -> list[tuple[int, str]]:
    """The fenced blocks in these languages: line of the first line of code, code."""
    fence = rf"^```(?:{'|'.join(languages)})[^\n]*\n(.*?)^```"
    found = re.finditer(fence, README, re.MULTILINE | re.DOTALL)
    return [(README.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


PYTHON = blocks("python", "py")
SHELL = blocks("bash", "sh", "shell", "console")


def commands() -> list[list[str]]:
    """The words of every command in the shell blocks; continued lines are joined, comments dropped."""
    lines = "\n".join(code for _, code in SHELL).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"&&|\|\||[;|]", line.removeprefix("$ "))]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def test_no_block_is_overlooked():
    assert PYTHON and SHELL  # so that nothing below is skipped
    opened = re.findall(r"^```(\w+)", README, re.MULTILINE)
    known = {"python", "py", "bash", "sh", "shell", "console", "text", "bibtex"}
    assert set(opened) <= known, f"blocks in {sorted(set(opened) - known)} would not be checked"
    assert len(PYTHON) == sum(language in {"python", "py"} for language in opened)


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="the README has no Python block")
def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for line, code in PYTHON:
        exec(compile("\n" * (line - 1) + code, str(ROOT / "README.md"), "exec"), namespace)


@pytest.mark.skipif(not SHELL, reason="the README has no shell block")
def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for words in commands() if words[0] == "make" for word in words[1:] if "=" not in word}
    assert named <= targets, f"no such target: {sorted(named - targets)}"


@pytest.mark.slow
@pytest.mark.skipif(not SHELL, reason="the README has no shell block")
def test_commands_and_options_exist():
    ours: dict[tuple[str, ...], set[str]] = {}
    for words in commands():
        if Path(words[0]).name == "jflow" and len(words) > 1:
            options = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
            recipe = words[2:3] if words[1] == "train" and words[2:3] != ["FILE.py:CLASS"] else []
            ours.setdefault((words[1], *recipe), set()).update(options)
    for command, options in ours.items():
        tool = Path(sys.executable).parent / "jflow"
        done = subprocess.run([tool, *command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, f"jflow {' '.join(command)} --help: {done.stderr}"
        unknown = {option for option in options if not re.search(rf"{option}(?![\w-])", done.stdout)}
        assert not unknown, f"jflow {' '.join(command)} does not have {sorted(unknown)}"
