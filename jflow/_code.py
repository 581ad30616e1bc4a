"""Objects as the code that makes them: class name and constructor arguments."""

import inspect
from typing import Any

import jax
import numpy as np

SHORT = {"jflow": "jf", "diffrax": "dfx"}
"""The prefixes of the printed names, as `import jflow as jf, diffrax as dfx` gives them."""


def constructor_arguments(obj: Any) -> dict[str, Any]:
    """The arguments of an object's constructor, by the attributes of the same names; those with an attribute alone."""
    names = inspect.signature(type(obj)).parameters
    held = set(dir(obj))
    return {name: getattr(obj, name) for name in names if name in held}


def as_code(value: Any) -> str:
    """A value as code: `eval(as_code(value))` is the value again, with jf, dfx, jnp imported."""
    if isinstance(value, (jax.Array, np.ndarray)):
        known = np.asarray(value)
        return repr(known.item()) if known.ndim == 0 else f"jnp.array({known.tolist()!r}, {known.dtype.name!r})"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(as_code, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    prefix = SHORT.get(type(value).__module__.split(".")[0])
    if prefix is None:
        return repr(value) if not callable(value) else f"<{type(value).__name__}>"
    return f"{prefix}.{type(value).__name__}({', '.join(_parts(value))})"


def _parts(value: Any) -> list[str]:
    """The arguments that are not the default, the first ones by position."""
    parts, by_position = [], True
    given = arguments(value)
    for name, parameter in inspect.signature(type(value)).parameters.items():
        if name not in given or _same(given[name], parameter.default):
            by_position = False
            continue
        by_position = by_position and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        parts.append(as_code(given[name]) if by_position else f"{name}={as_code(given[name])}")
    return parts


def arguments(value: Any) -> dict[str, Any]:
    """The constructor's arguments of an object, as it tells them itself or by its attributes."""
    return value.arguments() if isinstance(value, Written) else constructor_arguments(value)


class Written:
    """The marker of an object that tells the arguments of its constructor itself."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, by name; by default the attributes of the same names."""
        return constructor_arguments(self)


def _same(value: Any, default: Any) -> bool:
    """Whether an argument is its default."""
    if default is inspect.Parameter.empty:
        return False
    if isinstance(value, (jax.Array, np.ndarray)):
        return isinstance(default, (int, float)) and value.ndim == 0 and value.item() == default
    return value is default or (
        type(value) is type(default) and isinstance(value, (int, float, str)) and value == default
    )
