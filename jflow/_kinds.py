"""Kinds of arguments: what an annotation asks of a value."""

import collections.abc
import functools as ft
import inspect
import sys
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import AbstractArray, ArrayLike, Key

from ._validate import concrete, is_real, shown


def check_kinds(owner: Any, values: collections.abc.Mapping[str, Any]) -> None:
    """Raises `TypeError`, or `ValueError` for counts, keys and names, where a value is not of the kind its annotation
    names: of the arguments of a function, as `locals()` holds them at its start, or the fields of a class. `Any` and
    a pytree ask nothing.
    """
    for name, kinds in _asked(owner):
        value = values[name]
        if not any(fits(value, *kind) for kind in kinds):
            what = owner.__qualname__.removesuffix(".__init__")
            rule = " or ".join(dict.fromkeys(_words(*kind) for kind in kinds))
            numeric = kinds[0][0] in (int, float, Key, Literal)
            raise (ValueError if numeric else TypeError)(f"{name} must be {rule}. Got {shown(value)}, in {what}.")


@ft.lru_cache(1024)
def _asked(owner: Any) -> list[tuple[str, list[tuple[Any, tuple[Any, ...]]]]]:
    """Each name with the alternatives of its annotation, in parts; without those of which one asks nothing."""
    if isinstance(owner, type):
        found = {name: field.type for name, field in owner.__dataclass_fields__.items()}  # pyright: ignore
    else:
        found = {name: kind for name, kind in inspect.get_annotations(owner).items() if name != "return"}
    return [(name, [*map(_parts, kinds)]) for name, kind in found.items() if None not in (kinds := _options(kind))]


def _options(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation, `None` for one that asks nothing."""
    annotation = get_args(annotation)[1] if get_origin(annotation) is Annotated else annotation  # of `Checked[T]`
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for one in (np.number, float, np.dtype):  # arrays, numbers and types are unions too
        if one in options:
            rest = set(map(_plain, {*options}.difference(get_args(ArrayLike), get_args(DTypeLike)))) - {np.number}
            options = (one, *rest) if rest <= {types.NoneType} else (Any,)  # the function asks itself
    return tuple(map(_plain, options))


def _plain(kind: Any) -> Any:
    origin = get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, AbstractArray):
        return Key if origin.dtypes == ("prng_key",) else np.number
    if origin in _WORDS:
        return kind if get_args(kind) else origin
    nothing = not isinstance(origin, type) or origin in (Any, object) or origin.__module__.startswith("jaxtyping")
    return None if nothing else origin


def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind) or kind, get_args(kind)


def fits(value: Any, origin: Any, inner: tuple[Any, ...] = ()) -> bool:
    """Whether a value is of a kind, given in parts."""
    if origin in (np.number, float):
        number = is_real(value) and not isinstance(value, (bool, np.bool_))
        known = concrete(value) if number and origin is float and not np.ndim(value) else None
        return number and (origin is np.number or (known is not None and bool(np.isfinite(known))))
    if origin in (tuple, collections.abc.Sequence):
        each = _options(inner[0]) if origin is not tuple and inner else (None,)
        known = isinstance(value, (tuple, list, range)) or (isinstance(value, np.ndarray) and value.ndim > 0)
        return known and (None in each or all(any(fits(item, *_parts(one)) for one in each) for item in value))
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is int:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if origin is type:
        return isinstance(value, type) and issubclass(value, inner[0])
    if origin is Key:
        return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and not value.ndim
    if origin is not np.dtype and origin is not collections.abc.Callable:
        return isinstance(value, origin)
    try:
        if origin is np.dtype:
            return isinstance(value, (str, type, np.dtype)) and jnp.issubdtype(jnp.dtype(value), jnp.floating)
        taken = inner[0] if callable(value) and not isinstance(value, type) else None
        return taken is ... or (taken is not None and _takes(value, taken))
    except TypeError:
        return False
    except ValueError:  # a built-in function need not say what it takes
        return origin is collections.abc.Callable and isinstance(value, types.BuiltinFunctionType)


def _takes(function, taken):
    """Whether a function takes these arguments, counted; raises `TypeError` or `ValueError` where it does not say."""
    plain = type(function) is types.FunctionType and not vars(function)
    if not plain or (code := function.__code__).co_kwonlyargcount:
        return inspect.signature(function).bind(*taken) is not None
    least = code.co_argcount - len(function.__defaults__ or ())  # as bind says, but at once
    return least <= len(taken) and (len(taken) <= code.co_argcount or bool(code.co_flags & inspect.CO_VARARGS))


_WORDS = {
    np.number: "a real number or an array of these", float: "a finite number, known outside of jax.jit",
    Key: "one typed key: pass key=jax.random.key(seed), and for many vmap over them", types.NoneType: "None",
    int: "an integer", np.dtype: "a floating-point type, as jnp.bfloat16", collections.abc.Callable: "a function",
    bool: "True or False", tuple: "a sequence", collections.abc.Sequence: "a sequence", type: "a class", Literal: "",
    dfx.AbstractSolver: "AbstractSolver, as diffrax.Heun()", dfx.AbstractPath: "a path as of jflow.brownian_tree",
}  # fmt: skip


def _words(origin: Any, inner: tuple[Any, ...] = ()) -> str:
    """A kind in words; a class with the nearest public one below it as an example."""
    if origin in _WORDS:
        named = f" of {len(inner[0])} argument(s)" if inner and isinstance(inner[0], list) else ""
        if origin is collections.abc.Sequence and inner and None not in _options(inner[0]):
            named = f", each {' or '.join(_words(*_parts(one)) for one in _options(inner[0]))}"
        return _WORDS[origin] + (" or ".join(map(repr, inner)) if origin is Literal else named)
    root, below = origin.__module__.split(".")[0], [origin]
    for sub in below:  # it grows
        module = sub.__module__ if "._" not in sub.__module__ else root
        if vars(sys.modules[module]).get(sub.__name__) is sub and not inspect.isabstract(sub):
            return f"{origin.__name__}, as {module}.{sub.__name__}(...)"
        below.extend(sub.__subclasses__())
    return origin.__name__
