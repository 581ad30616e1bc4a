"""The examples in docstrings and pages: every one runs, and what a user calls or builds has one."""

import importlib
import inspect
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

MODULES = (
    *("jflow", "jflow.laws", "jflow.samplers", "jflow.search", "jflow.distributions", "jflow.testing"),
    "jflow.train._model",  # jf.save and jf.load
    *("jflow.processes", "jflow.nn", "jflow.train", "jflow.data", "jflow.metrics", "jflow.plot"),
)
NAMES = {"jf": jf, "jax": jax, "jnp": jnp, "jr": jr, "dfx": dfx, "eqx": eqx, "optax": optax, "nnx": nnx, "np": np}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
METHODS = (types.FunctionType, property, classmethod, staticmethod)
# handed to a user and not built by one, or an interface whose smallest example is a file of tests/extending
WITHOUT = {"Noun", "Stepper", "AbstractClock", "AbstractFieldSolver", "AbstractGaussianSource", "AbstractMultistep"}
SLOW = (
    "jflow.search",
    "jflow.testing",
    "jflow.distributions.",
    "jflow.batched",
    "jflow.brownian_tree",
    "jflow.stepper",
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
        marks = pytest.mark.slow if example.name.startswith(SLOW) else ()
        yield pytest.param(example, id=example.name, marks=marks)


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


def test_every_verb_and_every_noun_that_a_user_builds_has_an_example():
    names = {example.name for example in EXAMPLES}
    bare = [name for name in public(jf) if f"jflow.{name}" not in names and name not in WITHOUT]
    assert not bare, f"without an example: {bare}"


@pytest.mark.slow
def test_the_page_on_guidance_runs():
    text = (Path(__file__).parents[1] / "docs" / "guidance.md").read_text()
    blocks = BLOCK.findall(text)
    assert blocks
    for code in blocks:
        exec(compile(code, "<docs/guidance.md>", "exec"), {})
    for name in set(re.findall(r"`([A-Z]\w+)\(", text)):
        assert hasattr(jf, name), name
