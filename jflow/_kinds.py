"""Kinds of arguments: what an annotation asks of a value."""

import collections.abc
import functools as ft
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray

from ._validate import concrete, is_real, shown

NOTHING = (Any, object)
"""Kinds whose values are checked where they are used, by what they hold."""


def check_kinds(owner: Any, values: Mapping[str, Any]) -> None:
    """Raises `TypeError` for a value that is not of the kind its annotation names: for the arguments of a function, as
    `locals()` holds them at its start, or for the fields of a class. `Any` and a pytree ask nothing.
    """
    for name, test, rule in _asked(owner):
        if not test(values[name]):
            what = owner.__qualname__.removesuffix(".__init__")
            raise TypeError(f"{name} of {what} must be {rule()}. Got {shown(values[name])}.")


@ft.lru_cache(1024)
def _asked(owner: Any) -> list[tuple[str, Callable[[Any], bool], Callable[[], str]]]:
    """Name, test and words of each argument that has a kind."""
    if isinstance(owner, type):
        found = {name: field.type for name, field in owner.__dataclass_fields__.items()}  # pyright: ignore
    else:
        found = {name: kind for name, kind in inspect.get_annotations(owner).items() if name != "return"}
    kinds = ((name, _kind(annotation)) for name, annotation in found.items())
    return [(name, *kind) for name, kind in kinds if kind is not None]


def _kind(annotation: Any) -> tuple[Callable[[Any], bool], Callable[[], str]] | None:
    """The test and the words of an annotation; `None` where it asks nothing."""
    union = get_origin(annotation) in (Union, types.UnionType)
    options = get_args(annotation) if union else (annotation,)
    for one in (np.number, float, np.dtype):  # as numbers and types are annotated
        if one in options:
            options = (one, *(option for option in options if option is types.NoneType))
    tests, words = zip(*map(_alternative, options), strict=True)
    if None in tests:
        return None
    return lambda value: any(test(value) for test in tests), lambda: " or ".join(word() for word in words)


def _alternative(kind: Any) -> Any:
    """The test and the words of one alternative of an annotation, `None` where it asks nothing."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in get_args(kind), lambda: repr(kind)[15:-1]
    if origin is collections.abc.Callable:
        taken = get_args(kind)[0]
        return lambda value: _is_function(
            value, taken
        ), lambda: "a function" if taken is ... else f"a function of {len(taken)} arguments"
    if origin is type:
        base = get_args(kind)[0]
        return lambda value: isinstance(value, type) and issubclass(value, base), lambda: f"a class of {base.__name__}"
    if origin in (tuple, list, collections.abc.Sequence):
        return lambda value: isinstance(value, (tuple, list, range)) or _has_rows(value), lambda: "a sequence"
    array = isinstance(origin, type) and issubclass(origin, AbstractArray)
    if array and origin.dtypes == ("prng_key",):
        return _is_key, lambda: "one typed key, as jax.random.key(seed)"
    if origin is np.dtype:
        return _is_type, lambda: "a floating-point type, as jnp.bfloat16"
    if origin is float:
        return _is_number, lambda: "a finite number, known outside of jax.jit"
    if origin is np.number or array:
        return _is_numeric, lambda: "a real number or an array of these"
    if origin is int:
        return lambda value: isinstance(value, (int, np.integer)) and not isinstance(value, bool), lambda: "an integer"
    if origin is bool:
        return lambda value: isinstance(value, (bool, np.bool_)), lambda: "True or False"
    if not isinstance(origin, type) or origin in NOTHING or origin.__module__.startswith("jaxtyping"):
        return None, None
    return lambda value: isinstance(value, origin), lambda: _named(origin)


def _is_key(value):
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _is_function(value, taken):
    """Whether a value is no class, and may be called with the arguments that are named."""
    if not callable(value) or isinstance(value, type):
        return False
    try:
        return taken is ... or inspect.signature(value).bind(*taken) is not None
    except TypeError:
        return False
    except ValueError:  # a function that does not tell
        return True


def _has_rows(value):
    return isinstance(value, (np.ndarray, jax.Array)) and value.ndim > 0


def _is_numeric(value):
    return is_real(value) and not isinstance(value, bool)


def _is_number(value):
    if not _is_numeric(value) or np.ndim(value):
        return False
    known = concrete(value)
    return known is not None and bool(np.isfinite(known))


def _is_type(value):
    try:
        return isinstance(value, (str, type, np.dtype)) and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        return False


def _named(kind):
    """A class by its name, and by an example where a public one is known."""
    if kind is types.NoneType:
        return "None"
    public, below = vars(sys.modules[kind.__module__.split(".")[0]]), [kind]
    for sub in below:  # grows: the classes below a class, nearest first
        if public.get(sub.__name__) is sub and not inspect.isabstract(sub):
            return f"{kind.__name__}, as {sub.__module__.split('.')[0]}.{sub.__name__}(...)"
        below.extend(sub.__subclasses__())
    return kind.__name__
