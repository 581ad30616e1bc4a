"""The public surface: documented, annotated, light to import, one version."""

import importlib
import inspect
import subprocess
import sys
import time
import types
import typing

import jax
import numpy as np
import pytest
from jaxtyping import Array, ArrayLike, Float

import jflow as jf

HEAVY = ("orbax", "grain", "tyro", "matplotlib", "PIL", "sklearn")
WINGS = ("nn", "train", "data", "metrics", "plot", "distributions", "processes", "testing", "recipes")


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
    for name in ("jflow.sample", "jflow.Field", "jflow.nn.MLP", "jflow.metrics.mmd", "jflow.processes.Langevin"):
        assert name in PUBLIC
    assert len(PUBLIC) > 100 and set(MODULES) == {name.rsplit(".", 1)[0] for name in PUBLIC}
    assert set(names(jf)) <= set(dir(jf)) and set(WINGS) - {"recipes"} <= set(dir(jf))
    assert set(WINGS) - {"recipes"} == set(jf._WINGS)
    assert not [name for name in names(jf) if name in WINGS]


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
    assert [function.__qualname__ for function in members(jf.CondOT)["alpha"]] == ["CondOT.alpha", "AbstractPath.alpha"]


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


@pytest.mark.slow
def test_import_time():
    def seconds(code: str) -> float:
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    rounds = [(seconds("import jflow"), seconds("import diffrax, flax.nnx")) for _ in range(5)]
    ours, base = (min(column) for column in zip(*rounds, strict=True))
    assert ours < 1.5 * base, f"import jflow took {ours:.2f} s, import diffrax, flax.nnx {base:.2f} s"
