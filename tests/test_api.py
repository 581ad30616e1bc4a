"""The public surface: documented, annotated, light to import; and the rules that its code keeps."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import diffrax as dfx
import jax
import numpy as np
import pytest
from jaxtyping import Array, ArrayLike, Float

import jflow as jf

HEAVY = ("orbax", "grain", "tyro", "matplotlib", "PIL", "sklearn", "optax", "flax", "chex")
LAZY = (
    *("nn", "train", "data", "metrics", "plot", "distributions"),
    *("processes", "testing", "samplers", "search", "few_step"),
)  # the wings, imported when they are asked for
WINGS = ("laws", *LAZY, "recipes")
VERBS = (
    *("sample", "decode", "encode", "log_prob", "solve", "generate", "batched", "matching_loss"),
    *("stepper", "recommended"),
)


def names(module: types.ModuleType) -> list[str]:
    """The public names of a module: those it lists, or those it defines; the package's are those it re-exports."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    home = "jflow." if module is jf else module.__name__
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", "").startswith(home)
    ]


MODULES = {"jflow": jf, **{f"jflow.{wing}": importlib.import_module(f"jflow.{wing}") for wing in WINGS}}
PUBLIC = {f"{module}.{name}": getattr(MODULES[module], name) for module in MODULES for name in names(MODULES[module])}


def members(kind: type) -> dict[str, list[types.FunctionType]]:
    """The public methods and properties of a class that jflow defines: name, and its definitions along the bases."""
    found: dict[str, list[types.FunctionType]] = {}
    for base in kind.__mro__:
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            function = inspect.unwrap(function) if callable(function) else function
            if inspect.isfunction(function) and (not name.startswith("_") or name in ("__init__", "__call__")):
                found.setdefault(name, []).append(function)
    return {name: all_ for name, all_ in found.items() if all_[0].__module__.startswith("jflow")}


def faults(function: types.FunctionType) -> list[str]:
    """Where a function lacks an annotation, or has one that tells that there is an array and not of which shape.

    `ArrayLike` stands for a number whose rank the function checks itself.
    """
    signature = inspect.signature(function)
    given = {name: p.annotation for name, p in signature.parameters.items() if name not in ("self", "cls")}
    if function.__name__ != "__init__":
        given["return"] = signature.return_annotation

    def bad(kind):
        if typing.get_origin(kind) in (types.UnionType, typing.Union) and kind != ArrayLike:
            return any(map(bad, typing.get_args(kind)))
        return kind in (inspect.Parameter.empty, jax.Array, np.ndarray)

    return [name for name, kind in given.items() if bad(kind)]


def test_the_public_names_are_found():
    """What this file checks is there: the package's own, those of every wing, and nothing of other packages."""
    core = ("jflow.sample", "jflow.Field", "jflow.FixedSteps", "jflow.laws.Beta", "jflow.samplers.ddim")
    for name in (*core, "jflow.nn.MLP", "jflow.metrics.mmd", "jflow.processes.Langevin", "jflow.search.best_sampler"):
        assert name in PUBLIC
    assert len(PUBLIC) > 100 and set(MODULES) == {name.rsplit(".", 1)[0] for name in PUBLIC}
    assert set(names(jf)) <= set(dir(jf)) and set(LAZY) <= set(dir(jf))
    assert set(LAZY) == set(jf._WINGS)
    assert not [name for name in names(jf) if name in (*LAZY, "recipes")]


@pytest.mark.parametrize(
    "name", [name for name, value in PUBLIC.items() if inspect.isroutine(value) or inspect.isclass(value)]
)
def test_every_public_name_is_documented_and_annotated(name):
    value = PUBLIC[name]
    doc = value.__doc__ or ""
    # a dataclass without a docstring gets its signature for one
    assert doc.strip() and not doc.startswith(f"{name.rsplit('.', 1)[1]}("), f"{name} has no docstring"
    if inspect.isfunction(value):
        assert not faults(inspect.unwrap(value)), name
    if inspect.isclass(value):
        fields = {field for base in value.__mro__ for field in vars(base).get("__annotations__", {})}
        for method, definitions in members(value).items():
            if method in fields:
                continue  # a property in the place of an interface's attribute
            # an implementation may leave both to the interface
            assert any(not faults(function) for function in definitions), f"{name}.{method}: {faults(definitions[0])}"
            if not method.startswith("__"):
                assert any(function.__doc__ for function in definitions), f"{name}.{method} has no docstring"


def test_the_rule_of_annotations():
    def good(t: ArrayLike, *, x: Float[Array, " n"] | None = None) -> None: ...
    def bad(t, x: jax.Array | None, *more: int): ...

    assert not faults(good)
    assert faults(bad) == ["t", "x", "return"]
    assert [function.__qualname__ for function in members(jf.CondOT)["alpha"]] == [
        *("CondOT.alpha", "AbstractAffinePath.alpha"),
    ]


def loose(kind: object) -> bool:
    """Whether an annotation says nothing, in itself or in a part of it: `Any`, `Callable[..., Any]`."""
    if isinstance(kind, list):
        return any(map(loose, kind))
    return kind is typing.Any or (typing.get_origin(kind) is not type and any(map(loose, typing.get_args(kind))))


def loosely_typed(function: types.FunctionType) -> list[str]:
    """The parameters, and the result, whose annotation says nothing; a condition `args` is any pytree."""
    signature = inspect.signature(function)
    given = {name: p.annotation for name, p in signature.parameters.items() if name != "args"}
    return [name for name, kind in (given | {"return": signature.return_annotation}).items() if loose(kind)]


def test_no_public_signature_says_any():
    """Arrays have their shapes, pytrees are `PyTree`, functions say what they return."""
    found = {}
    for name, value in PUBLIC.items():
        if name.startswith("jflow.recipes"):
            continue
        functions = {name: [value]} if inspect.isfunction(value) else {}
        if inspect.isclass(value):
            functions = {f"{name}.{method}": definitions for method, definitions in members(value).items()}
            fields = {k: v for b in value.__mro__ for k, v in vars(b).get("__annotations__", {}).items()}
            found |= {f"{name}.{k}": ["a field"] for k, v in fields.items() if loose(v) and not k.startswith("_")}
        for key, definitions in functions.items():
            own = [f for f in map(inspect.unwrap, definitions) if f.__module__.startswith("jflow")]
            if lines := [line for function in own for line in loosely_typed(function)]:
                found[key] = lines
    assert not found
    assert loose(Callable[..., typing.Any]) and loose(list[typing.Any] | None) and not loose(type[typing.Any])


EDITOR = """
import diffrax as dfx
import jax.random as jr

import jflow as jf

field = jf.distributions.Gaussian([0.0, 0.0], std=0.5).field(jf.CondOT())
good = jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(4), dfx.Heun(), end="stop"), dtype="float32")
also = jf.solve(lambda t, x, args: -x, good.x, [0.0, 0.5, 1.0]), jf.nn.MLP, jf.train.fit, jf.search.best_sampler
jf.sample(field, jr.key(0), (2,), samplr=jf.UniformGrid(4))
jf.sample(field, jr.key(0), (2,), dfx.Heun())
jf.FixedSteps(jf.UniformGrid(4), end="stopp")
jf.Adams("3")
jf.nn.MPL
jf.nonsense
"""


@pytest.mark.slow
def test_an_editor_knows_the_wings_and_sees_mistakes(tmp_path):
    """What a user types is checked by pyright against the annotations: right code passes, each mistake is found."""
    (tmp_path / "code.py").write_text(EDITOR)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(PACKAGE.parent)]}))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)["generalDiagnostics"]
    lines = [EDITOR.splitlines()[error["range"]["start"]["line"]] for error in found if error["severity"] == "error"]
    assert lines == EDITOR.splitlines()[9:]


def test_every_module_of_the_package_has_a_docstring():
    for name, module in MODULES.items():
        assert module.__doc__ and module.__doc__.strip(), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = jf.nonsense


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_extra():
    loaded = run(f"import jflow, sys; print(*(name for name in {HEAVY} if name in sys.modules))").split()
    assert not loaded, f"`import jflow` imports {loaded}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_at_most_ten_parameters_and_takes_no_others(verb):
    """Ten beside `saveat` and `dtype`; a misspelt option raises in the call itself."""
    parameters = inspect.signature(getattr(jf, verb)).parameters
    assert len([name for name in parameters if name not in ("saveat", "dtype")]) <= 10, list(parameters)
    assert not [p for p in parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]


PACKAGE = Path(jf.__file__).parent
CORE = [
    file
    for pattern in ("*.py", "_engine/*.py", "_solver/*.py", "_guidance/*.py", "_path/*.py")
    for file in sorted(PACKAGE.glob(pattern))
]


def concrete_classes() -> set[str]:
    """The names of jflow's paths, clocks and solvers and of diffrax's solvers, but for the interfaces."""
    kinds = jf.AbstractPath, jf.AbstractClock, dfx.AbstractSolver
    return {
        name
        for module in (jf, dfx)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, kinds) and not name.startswith("Abstract")
    }


CONCRETE = concrete_classes()


def last_name(node: ast.AST) -> str | None:
    """`Heun` of `dfx.Heun`, and of `Heun`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def calls(tree: ast.AST, *functions: str) -> Iterator[ast.Call]:
    """The calls of builtin functions by these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            yield node


def literal_attributes(tree: ast.AST) -> Iterator[int]:
    """`getattr(x, "name")` and `hasattr(x, "name")`: what an object is must be said by its class."""
    for node in calls(tree, "getattr", "hasattr"):
        if len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            yield node.lineno


def caught_attributes(tree: ast.AST) -> Iterator[int]:
    """`except AttributeError`, alone or among others."""
    for node in ast.walk(tree):
        caught = ast.walk(node.type) if isinstance(node, ast.ExceptHandler) and node.type else ()
        if any(last_name(part) == "AttributeError" for part in caught):
            yield node.lineno


def protocols(tree: ast.AST) -> Iterator[int]:
    """`typing.Protocol` and `runtime_checkable`, imported or named."""
    for node in ast.walk(tree):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        if {"Protocol", "runtime_checkable"} & {*imported, last_name(node)}:
            yield node.lineno


def concrete_checks(tree: ast.AST) -> Iterator[int]:
    """`isinstance(x, SigmaClock)` and its kin, with a concrete class alone, in a tuple or in a union."""
    for node in calls(tree, "isinstance", "issubclass"):
        if any(last_name(part) in CONCRETE for part in ast.walk(node.args[1])):
            yield node.lineno


@pytest.mark.parametrize("rule", [literal_attributes, caught_attributes, protocols])
def test_the_core_asks_classes_and_not_attributes(rule: Callable[[ast.AST], Iterator[int]]):
    found = [f"{file.relative_to(PACKAGE)}:{line}" for file in CORE for line in rule(ast.parse(file.read_text()))]
    assert len(CORE) > 50 and not found, f"{rule.__doc__}: {found}"


def test_the_engine_names_no_concrete_path_clock_or_solver():
    files = [file for file in CORE if file.parent.name == "_engine"]
    found = [f"{file.name}:{line}" for file in files for line in concrete_checks(ast.parse(file.read_text()))]
    assert files and not found, f"ask an interface, which users may implement: {found}"


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (literal_attributes, "getattr(solver, 'clock', None)"),
        (literal_attributes, "hasattr(solver, 'clock')"),
        (caught_attributes, "try:\n    f()\nexcept (TypeError, AttributeError):\n    pass"),
        (protocols, "from typing import Protocol"),
        (protocols, "class Net(typing.Protocol): ..."),
        (concrete_checks, "isinstance(clock, SigmaClock)"),
        (concrete_checks, "isinstance(solver, (dfx.AbstractERK, dfx.Heun))"),
        (concrete_checks, "isinstance(path, CondOT | VP)"),
    ],
)
def test_the_rules_themselves(rule, code):
    assert list(rule(ast.parse(code)))
    fine = "getattr(obj, name)\nisinstance(solver, dfx.AbstractERK)\ntry:\n    f()\nexcept TypeError:\n    pass"
    assert not list(rule(ast.parse(fine)))


@pytest.mark.slow
def test_import_time():
    def seconds(code: str) -> float:
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    rounds = [(seconds("import jflow"), seconds("import diffrax, flax.nnx")) for _ in range(3)]
    ours, base = (min(column) for column in zip(*rounds, strict=True))
    assert ours < 1.5 * base, f"import jflow took {ours:.2f} s, import diffrax, flax.nnx {base:.2f} s"
