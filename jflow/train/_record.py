"""What a field is beside its arrays: its class, what it predicts, its path and its source, in words that compare."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._code import arguments
from .._field import AbstractField
from .._path import AbstractAffinePath
from .._types import Noun

TRAINED = "trained"
"""What stands in a tree for an array that is trained: its values change, and are no part of what a field is."""

_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def record(tree: PyTree) -> dict[str, str]:
    """Name and text of what distinguishes the fields in `tree` from others with arrays of the same shapes.

    A path that holds functions is known by its values at five times.
    """
    found: dict[str, str] = {}
    for where, field in jtu.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, AbstractField)):
        if isinstance(field, AbstractField):
            name, path = jtu.keystr(where), field.path
            found |= {f"{name}.field": type(field).__qualname__}
            found |= dict(_parts(field.predicts, f"{name}.predicts"))
            found |= dict(_parts(path, f"{name}.path"))
            if "function" in found.values() and isinstance(path, AbstractAffinePath):
                values = [float(f(t)) for f in (path.alpha, path.sigma) for t in _TIMES]
                found[f"{name}.path.values"] = " ".join(f"{value:.3g}" for value in values)
    return found


def differences(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """The entries that two records do not share, in words; empty where they are the same."""
    names = [name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name)]
    lines = [f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}" for name in names]
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")


def _parts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Noun):
        yield name, type(value).__qualname__
        for key, item in arguments(value).items():
            yield from _parts(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _parts(item, f"{name}[{i}]")
    elif isinstance(value, (jax.Array, np.ndarray, np.generic)):
        host = np.asarray(value)
        content = hashlib.sha256(host.tobytes()).hexdigest()[:16] if host.size > 8 else host.tolist()
        yield name, f"{host.dtype.name} {content}"
    elif value is None or isinstance(value, (bool, int, float, complex, str)):
        yield name, str(value)
    else:
        yield name, "function" if callable(value) else type(value).__qualname__
