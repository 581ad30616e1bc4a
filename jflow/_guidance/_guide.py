"""What every field made of a field shares."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from .._field import AbstractNetwork
from .._memory import Remembered, Remembering
from .._path import AbstractPath
from .._prediction import Prediction, Row, convert
from .._types import Event, Time


class AbstractGuide(AbstractNetwork):
    """A field that changes the sampling of another: its path, its prediction and its training are the other's."""

    field: eqx.AbstractVar[AbstractNetwork]

    @abc.abstractmethod
    def give(self, target: Prediction | tuple[Row, ...], t: Time, x: PyTree, args: Any) -> Any:
        """The target, as `ask(self, target, t, x, args)` wants it."""

    @property
    def path(self) -> AbstractPath:
        return self.field.path

    @property
    def predicts(self) -> Prediction:
        return self.field.predicts

    def __call__(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.give(self.predicts, t, x, args)

    def conditional(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.field.conditional(t, x, args)

    def velocity(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.give("velocity", t, x, args)

    def data(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.give("data", t, x, args)

    def noise(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.give("noise", t, x, args)

    def score(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.give("score", t, x, args)

    def mixed(self, rows: tuple[Row, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        return self.give(rows, t, x, args)

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        return self.field.evaluations(args, t)


def ask(field: AbstractNetwork, target: Prediction | tuple[Row, ...], t: Time, x: PyTree, args: Any) -> Any:
    """A prediction of a field by name, or several by their rows, from one evaluation."""
    if isinstance(target, tuple):
        return field.mixed(target, t, x, args)
    if target == field.predicts:
        return field(t, x, args)
    return getattr(field, target)(t, x, args)


def turn(
    path: AbstractPath, t: Time, x: PyTree, value: Event, source: Prediction, target: Prediction | tuple[Row, ...]
) -> Any:
    """The prediction `source` turned into the target."""

    def one(name):
        return apply(lambda v: convert(path, t, x, v, source, name), value)

    return tuple(one(row) for row in target) if isinstance(target, tuple) else one(target)


def apply(fn: Callable[[Any], Any], value: Any) -> Any:
    """`fn(value)`, past the change that goes with a remembered value."""
    if isinstance(value, Remembered):
        return Remembered(fn(value.value), value.change)
    return fn(value)


def split_args(args: Any, name: str) -> tuple[Any, Any]:
    """`(condition, scale)`; raises `ValueError` for anything else."""
    if not (isinstance(args, tuple) and len(args) == 2):
        raise ValueError(
            f"A {name} field takes args = (condition, scale), or (condition, None) for no guidance. "
            f"Got {type(args).__name__}. (In training, args is the bare condition: use matching_loss.)"
        )
    scale = args[1].scale if isinstance(args[1], Remembering) else args[1]
    if scale is not None and jnp.ndim(scale) != 0:
        raise ValueError(f"A guidance scale is one number for one example. Got shape {jnp.shape(scale)}; vmap over it.")
    return args
