"""The layout of the package: every module imports from strictly lower floors only."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jflow"

# A unit is a module or a package directly under jflow/. Bottom up: values, sources, paths, predictions, fields, solvers
# and guides, samplers and losses, the engine, the verbs.
FLOORS: list[set[str]] = [
    {"_code", "_extra", "_validate"},
    {"_kinds"},
    {"_types", "_mesh"},
    {"_event", "_args", "_trainable", "_front"},
    {"_source"},
    {"_path"},
    {"_prediction", "_grid", "_noise_rule", "_brownian", "_divergence", "_rule"},
    {"_field", "_clock", "laws", "_weight"},
    {"_solver", "_guidance", "_loss"},
    {"_sampler"},
    {"_flow_map"},
    {"_engine", "_recommended"},
    {"_sample", "_serialise"},
    {"_solve", "_log_prob", "_batched", "_tree"},
]
# import from any floor, never from each other but for the pairs below
WINGS = {"nn", "train", "data", "metrics", "plot", "samplers", "distributions", "testing", "processes", "search"}
WINGS |= {"few_step"}
BESIDE = {
    *(("testing", "distributions"), ("processes", "distributions")),  # laws that are compared with exact ones
    ("train", "nn"),  # a file of a model names its network
    ("metrics", "train"),  # a feature network lies in a file of that layout
}
DOOR = {"cli", "recipes", "__main__"}  # import anything
TOP = "__init__"  # re-exports the floors, and the wings lazily

ONLY_IN = {"flax": {"nn", "recipes"}, "chex": {"testing"}, "optax": {"train", "search", "recipes"}}
# The `train` extra by the names it is imported under: inside functions only.
HEAVY = {"orbax", "grain", "tyro", "matplotlib", "PIL", "sklearn"}
# What may be imported at all, beside the standard library and the package itself.
RUNTIME = {"jax", "jaxlib", "equinox", "jaxtyping", "diffrax", "flax", "optax", "chex", "tqdm"}
UNDER_JAX = {"numpy", "scipy", "ml_dtypes"}  # jax's own dependencies

CORE = {unit: height for height, units in enumerate(FLOORS) for unit in units}
UNITS = {*CORE, *WINGS, *DOOR, TOP}


def unit_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(file: Path) -> Iterator[tuple[str, bool, int]]:
    """Every module that `file` imports: absolute name, whether at the top level, line."""
    tree = ast.parse(file.read_text(), str(file))
    package = ["jflow", *file.relative_to(PACKAGE).parent.parts]
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside.update(id(child) for child in ast.walk(node))
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            inside.update(id(child) for statement in node.body for child in ast.walk(statement))  # never run
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "jflow":
                # `from jflow import _path` names a module, `from jflow import Field` does not
                for alias in node.names:
                    yield (f"jflow.{alias.name}" if alias.name in UNITS else "jflow"), top, node.lineno
            else:
                yield module, top, node.lineno


def fault(unit: str, name: str, top: bool) -> str | None:
    """What is wrong with `unit` importing the module `name`, if anything."""
    package, *rest = name.split(".")
    if package != "jflow":
        if unit not in ONLY_IN.get(package, {unit}):
            return f"only {sorted(ONLY_IN[package])} may import {package}"
        if package in HEAVY and top:
            return f"{package} belongs to an extra: import it inside the function that uses it"
        return None
    target = rest[0] if rest else TOP
    if target == unit:
        return None
    if unit == TOP:
        return "a wing is exposed lazily, not imported" if top and target not in CORE else None
    if unit in DOOR:
        return None
    if target == TOP:
        return "import from the module that defines the name, not from the package"
    if (unit, target) in BESIDE:
        return None
    if target not in CORE:
        return f"{target} is a wing or the door"
    if unit in CORE and CORE[target] >= CORE[unit]:
        return f"{target} is on floor {CORE[target]}, {unit} on floor {CORE[unit]}: import strictly downwards"
    return None


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_keep_to_the_floors(file):
    unit = unit_of(file)
    assert unit in UNITS, f"{unit} has no floor yet: put it into the table at the top of test_floors.py"
    found = [
        f"{file.relative_to(ROOT)}:{line}: {unit} imports {name}: {why}"
        for name, top, line in imports(file)
        if (why := fault(unit, name, top))
    ]
    assert not found, "\n".join(found)


def test_every_unit_of_the_table_is_there():
    assert {unit_of(file) for file in FILES} >= UNITS - {"__main__"}


def test_third_party_imports_are_declared():
    allowed = {"jflow", *RUNTIME, *UNDER_JAX, *HEAVY, *sys.stdlib_module_names}
    strange = {
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in FILES
        for name, _, line in imports(file)
        if name.split(".")[0] not in allowed
    }
    assert not strange, f"imported, but no dependency: {sorted(strange)}"
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {line.split(">")[0] for line in declared} == RUNTIME


@pytest.mark.parametrize(
    ("unit", "name", "top", "bad"),
    [
        ("_path", "jflow._types", True, False),
        ("_path", "jflow._prediction", True, True),
        ("_loss", "jflow.laws", True, False),
        ("laws", "jflow._loss", True, True),
        ("_types", "jflow._path", False, True),
        ("_sample", "jflow.nn.unet", False, True),
        ("_solver", "jflow._solver.base", True, False),
        ("_field", "jflow", True, True),
        ("_field", "flax.nnx", False, True),
        ("nn", "flax", True, False),
        ("train", "jflow._batched", True, False),
        ("train", "jflow.data", False, True),
        ("train", "orbax.checkpoint", True, True),
        ("train", "orbax.checkpoint", False, False),
        ("testing", "jflow.distributions", True, False),
        ("distributions", "jflow.testing", True, True),
        ("search", "jflow.samplers", True, True),
        ("search", "optax", True, False),
        ("_engine", "optax", False, True),
        ("plot", "jflow.cli", False, True),
        ("cli", "jflow.train", True, False),
        ("recipes", "jflow", True, False),
        ("__init__", "jflow._path", True, False),
        ("__init__", "jflow.nn", True, True),
    ],
)
def test_the_rule_itself(unit, name, top, bad):
    assert bool(fault(unit, name, top)) == bad


def test_imports_are_read_as_python_reads_them(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    file = tmp_path / "nn" / "unet.py"
    file.parent.mkdir()
    file.write_text(
        "from .._path import CondOT\nfrom . import time\nfrom .mlp import MLP\nfrom .. import _field, Field\n"
        "from jflow import _grid\nimport jax.numpy as jnp\ndef f():\n    import orbax.checkpoint\n"
    )
    assert [name for name, _, _ in imports(file)] == [
        *("jflow._path", "jflow.nn", "jflow.nn.mlp", "jflow._field", "jflow", "jflow._grid"),
        *("jax.numpy", "orbax.checkpoint"),
    ]
    assert [top for _, top, _ in imports(file)] == [True] * 7 + [False]
