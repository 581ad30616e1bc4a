"""Samplers, paths and their parts as JSON: class names and constructor arguments, from a closed table."""

import inspect
import json

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from . import _clock, _grid, _noise_rule, _path, _sampler, _solver, _source
from ._code import SHORT, arguments
from ._flow_map import Jump
from ._kinds import check_kinds
from ._prediction import Logits, Velocity
from ._types import Noun
from ._validate import is_real

_MODULES = (_clock, _grid, _noise_rule, _path, _sampler, _solver, _source)
_DIFFRAX = [
    "Euler", "Heun", "Midpoint", "Ralston", "Bosh3", "Tsit5", "Dopri5", "Dopri8", "SRA1", "ShARK", "SEA", "SPaRK",
    "SlowRK", "GeneralShARK", "EulerHeun", "ItoMilstein", "StratonovichMilstein", "ReversibleHeun", "HalfSolver",
    "KenCarp3", "KenCarp4", "KenCarp5", "Kvaerno3", "Kvaerno4", "Kvaerno5", "ImplicitEuler", "PIDController",
    "ConstantStepSize", "StepTo", "ClipStepSizeController", "RecursiveCheckpointAdjoint", "DirectAdjoint",
    "ForwardMode",
]  # fmt: skip


_FOUND = [item for part in _MODULES for item in vars(part).items() if not item[0].startswith(("Abstract", "Noun", "_"))]
_FOUND += [(kind.__name__, kind) for kind in (Jump, Logits, Velocity)]
TABLE: dict[str, type] = {
    **{f"{SHORT['jflow']}.{name}": kind for name, kind in _FOUND if inspect.isclass(kind) and issubclass(kind, Noun)},
    **{f"{SHORT['diffrax']}.{name}": vars(dfx)[name] for name in _DIFFRAX if name in vars(dfx)},
}
"""What may be written and read: nothing else is ever made from a file."""

_NAMES = {kind: name for name, kind in TABLE.items()}


def to_json(obj: PyTree) -> str:
    """A sampler, a path, or a part of one as JSON: class names, constructor arguments, numbers and arrays.

    Raises `TypeError` for anything else, and says what: a function, a class that is not jflow's or diffrax's.

    ```python
    sampler = jf.samplers.heun_edm(18)
    assert jf.from_json(jf.to_json(sampler)) == sampler
    ```
    """
    return json.dumps(_encoded(obj, type(obj).__name__))


def from_json(text: str) -> PyTree:
    """What `to_json` wrote. Nothing but the constructors of a closed table of classes is called.

    Raises `ValueError` for what is not of that table.

    ```python
    assert jf.from_json('{"class": "jf.CondOT"}') == jf.CondOT()
    ```
    """
    check_kinds(from_json, locals())
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"A text must be JSON as to_json writes it. Got {text[:60]!r}: {error}.") from None
    return _decoded(data)


def _encoded(value: PyTree, where: str) -> PyTree:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)) and is_real(value):
        known = np.asarray(value)
        return {"array": known.tolist(), "dtype": known.dtype.name}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_encoded(item, where) for item in value]}
    name = _NAMES.get(type(value))
    if name is None:
        kind = "a function" if callable(value) and not isinstance(value, Noun) else type(value).__name__
        raise TypeError(
            "What is written must be made of jflow's and diffrax's classes, numbers and arrays. "
            f"Got {where}, {kind}: make it in code."
        )
    defaults = {key: p.default for key, p in inspect.signature(type(value)).parameters.items()}
    given = {
        key: item for key, item in arguments(value).items() if item is not defaults.get(key, inspect.Parameter.empty)
    }
    return {"class": name, **{key: _encoded(item, f"{where}.{key}") for key, item in given.items()}}


def _array(data: dict[str, PyTree]) -> PyTree:
    try:
        kind = np.dtype(data["dtype"])
        if kind.kind not in "biuf":
            raise TypeError(f"{kind.name} is not a type of numbers")
        return jnp.asarray(np.asarray(data["array"], kind), jax.dtypes.canonicalize_dtype(kind))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"An array must be numbers and their dtype. Got {str(data)[:60]}: {error}.") from None


def _decoded(data: PyTree) -> PyTree:
    if not isinstance(data, dict):
        return data
    if "array" in data:
        return _array(data)
    for kind in (list, tuple):
        if set(data) == {kind.__name__}:
            return kind(map(_decoded, data[kind.__name__]))
    name, given = data.get("class"), {key: _decoded(item) for key, item in data.items() if key != "class"}
    if name not in TABLE:
        raise ValueError(f"A class must be one of jflow's or diffrax's that to_json writes. Got {name!r}.")
    try:
        return TABLE[name](**given)
    except TypeError as error:
        raise ValueError(f"The arguments must be those of {name}. Got {sorted(given)}: {error}.") from None
