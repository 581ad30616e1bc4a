"""Objects as the code that makes them: class name and constructor arguments."""

import inspect

import jax
import jax.core
import numpy as np
from jaxtyping import PyTree

SHORT = {"jflow": "jf", "diffrax": "dfx"}
"""The prefixes of the printed names, as `import jflow as jf, diffrax as dfx` gives them."""


def constructor_arguments(obj: PyTree) -> dict[str, PyTree]:
    """The arguments of an object's constructor, by the attributes of the same names; those with an attribute alone."""
    held = set(dir(obj))
    return {name: getattr(obj, name) for name in inspect.signature(type(obj)).parameters if name in held}


def as_code(value: PyTree) -> str:
    """A value as code: `eval(as_code(value))` is the value again, with jf, dfx, jnp imported."""
    if isinstance(value, jax.core.Tracer):
        return f"<{value.dtype}{list(value.shape)}, traced>"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        known = np.asarray(value)
        return f"jnp.array({known.tolist()!r}, {known.dtype.name!r})"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(as_code, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    prefix = SHORT.get(type(value).__module__.split(".")[0])
    if prefix is None:
        return repr(value) if not callable(value) else f"<{type(value).__name__}>"
    return f"{prefix}.{type(value).__name__}({', '.join(_parts(value))})"


def _parts(value: PyTree) -> list[str]:
    """The arguments that are not the default, the first ones by position."""
    parts, by_position = [], True
    given, parameters = arguments(value), inspect.signature(type(value)).parameters
    for name, parameter in parameters.items():
        if name not in given or _same(given[name], parameter.default):
            by_position = False
            continue
        by_position = by_position and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        text = _argument(value, name, given)
        parts.append(text if by_position else f"{name}={text}")
    return parts


def _argument(value: PyTree, name: str, given: dict[str, PyTree]) -> str:
    """An argument as code: a single number stands for its array, where the constructor makes that array of it."""
    item = given[name]
    if isinstance(item, (jax.Array, np.ndarray)) and item.ndim == 0 and not isinstance(item, jax.core.Tracer):
        number = np.asarray(item).item()
        if isinstance(arguments(type(value)(**{**given, name: number}))[name], jax.Array):
            return repr(number)
    return as_code(item)


def arguments(value: PyTree) -> dict[str, PyTree]:
    """The constructor's arguments of an object, from its method `arguments`, or else from its attributes."""
    return value.arguments() if isinstance(value, Written) else constructor_arguments(value)


class Written:
    """The marker of an object with a method that returns the arguments of its constructor."""

    def arguments(self) -> dict[str, PyTree]:
        """The arguments of the constructor, by name; by default the attributes of the same names."""
        return constructor_arguments(self)


def _same(value: PyTree, default: PyTree) -> bool:
    """Whether an argument is its default."""
    if default is inspect.Parameter.empty:
        return False
    if isinstance(value, jax.core.Tracer):
        return False
    if isinstance(value, (jax.Array, np.ndarray)):
        return isinstance(default, (int, float)) and value.ndim == 0 and value.item() == default
    return value is default or (
        type(value) is type(default) and isinstance(value, (int, float, str)) and value == default
    )
