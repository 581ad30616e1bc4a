"""The examples in docstrings and pages: every one runs, and what a user calls or builds has one."""

import importlib
import inspect
import os
import re
import types
from pathlib import Path
from typing import NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import jflow as jf

ROOT = Path(__file__).parents[1]
MODULES = (
    *("jflow", "jflow.laws", "jflow.samplers", "jflow.search", "jflow.distributions", "jflow.testing"),
    "jflow.train._model",  # jf.save and jf.load
    *("jflow.processes", "jflow.few_step", "jflow.nn", "jflow.train", "jflow.data", "jflow.metrics", "jflow.plot"),
)
NAMES = {"jf": jf, "jax": jax, "jnp": jnp, "jr": jr, "dfx": dfx, "eqx": eqx, "optax": optax, "nnx": nnx, "np": np}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
METHODS = (types.FunctionType, property, classmethod, staticmethod)
MNIST = Path(os.environ.get("JFLOW_DATA_DIR", "/nowhere")) / "mnist"
SLOW = (
    "jflow.search",
    "jflow.testing",
    "jflow.distributions.",
    "jflow.batched",
    "jflow.brownian_tree",
    "jflow.stepper",
    "jflow.nn.DiT",
    "jflow.nn.UNet",
)


class Example(NamedTuple):
    """A block of code in the docstring of a public name."""

    name: str
    code: str


def public(module: types.ModuleType) -> dict[str, object]:
    """The public classes and functions of a module, by name; those of a package are what it re-exports."""
    home = "jflow." if module is jf else module.__name__
    listed = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = {name: getattr(module, name) for name in listed}
    kinds = inspect.isclass, inspect.isfunction
    return {
        name: value
        for name, value in found.items()
        if any(is_kind(value) for is_kind in kinds) and value.__module__.startswith(home)
    }


def examples() -> list[Example]:
    """All blocks: those of modules, of functions, of classes and of their methods."""
    found = []
    for path in MODULES:
        module = importlib.import_module(path)
        documented = {path: module}
        for name, value in public(module).items():
            documented[f"{path}.{name}"] = value
            for key, part in vars(value).items() if inspect.isclass(value) else ():
                if isinstance(part, METHODS) and not key.startswith("_"):
                    documented[f"{path}.{name}.{key}"] = part
        for name, value in documented.items():
            blocks = BLOCK.findall(inspect.cleandoc(value.__doc__ or ""))
            found += [Example(f"{name}[{i}]" if i else name, code) for i, code in enumerate(blocks)]
    return found


EXAMPLES = examples()


def cases():
    """The examples, those that compile for seconds in the slow tier."""
    for example in EXAMPLES:
        marks = [pytest.mark.slow] if example.name.startswith(SLOW) else []
        if example.name == "jflow.data.mnist":
            marks.append(pytest.mark.skipif(not MNIST.is_dir(), reason="its files are not in $JFLOW_DATA_DIR"))
        yield pytest.param(example, id=example.name, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("example", list(cases()))
def test_an_example_runs(example):
    exec(compile(example.code, f"<docstring of {example.name}>", "exec"), dict(NAMES))


def test_examples_are_found_and_assert():
    names = {example.name for example in EXAMPLES}
    assert {"jflow.sample", "jflow.Field", "jflow.laws.Beta", "jflow.samplers.ddim"} <= names
    silent = [
        e.name for e in EXAMPLES if "assert" not in e.code and not e.name.startswith("jflow.testing")
    ]  # these raise
    assert not silent, f"examples that assert nothing: {silent}"


def test_every_public_name_has_an_example():
    names = {example.name for example in EXAMPLES}
    called = {f"{path}.{name}" for path in MODULES for name in public(importlib.import_module(path))}
    bare = called - names
    assert len(called) > 150 and not bare, f"without an example: {sorted(bare)}"


def documented(doc: str) -> list[str] | None:
    """The arguments in the section `Args:` of a docstring, in order; `None` without that section."""
    section = re.search(r"^Args:\n((?: +.*\n?|\n)*)", inspect.cleandoc(doc), re.MULTILINE)
    return section and re.findall(r"^    \**(\w+): ", section.group(1), re.MULTILINE)


def written_constructor(kind: type) -> types.FunctionType | None:
    """The `__init__` that a class defines itself, not the one that a dataclass makes."""
    init = inspect.unwrap(vars(kind).get("__init__", object))
    return init if inspect.isfunction(init) and Path(init.__code__.co_filename).is_relative_to(ROOT) else None


def callables() -> dict[str, types.FunctionType]:
    """Public functions, and constructors where they are written out."""
    found = {}
    for path in MODULES:
        for name, value in public(importlib.import_module(path)).items():
            function = written_constructor(value) if inspect.isclass(value) else inspect.unwrap(value)
            if function is not None:
                found[f"{path}.{name}"] = function
    return found


def test_arguments_are_documented_in_one_style():
    """Three or more are listed in `Args:`, all of them and in order; one or two may be said in the text."""
    wrong = {}
    for name, function in callables().items():
        parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        doc = function.__doc__ or ""
        listed = documented(doc)
        if (len(parameters) > 2 or listed) and listed != parameters:
            wrong[name] = parameters, listed
        if re.search(rf"^ *- `({'|'.join(parameters)})`", doc, re.MULTILINE) and parameters:
            wrong[name] = "a list with dashes"
    assert not wrong
    assert documented("Says.\n\nArgs:\n    a: One.\n        Two: three.\n    *b: Four.\n") == ["a", "b"]


# Words that hide who does what: "raises" and "must" say it, and a noun says what "one", "none" and "that" stand for.
AVOIDED = re.compile(
    r"\b(refus\w*|mended|unasked|told|tells?|(is|are) to be|(that|which) is none|stands? still|of one's own"
    r"|of (its|their) own|(is|are|be) asked|asks? for|asked (for|of))\b"
)


def prose() -> dict[str, str]:
    """The text that users and readers of the code see, by file."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("jflow/**/*.py")]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files if file.name != "CONTRIBUTING.md"}


@pytest.mark.slow
def test_prose_is_plain():
    found = [
        f"{name}:{text.count(chr(10), 0, word.start()) + 1}: {word.group()}"
        for name, text in prose().items()
        for word in AVOIDED.finditer(text)
    ]
    assert not found
    assert AVOIDED.search("a grid that is none") and AVOIDED.search("the field is asked, which it refuses")


def test_the_names_of_the_page_on_guidance_exist():
    text = (ROOT / "docs" / "guidance.md").read_text()
    for name in set(re.findall(r"`([A-Z]\w+)\(", text)):
        assert hasattr(jf, name), name
