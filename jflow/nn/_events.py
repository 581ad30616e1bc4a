"""Checks shared by the networks: sizes given to constructors, events given to calls."""

import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._event import joined
from .._validate import as_array, scalar_time


def positive(name: str, value: Any) -> int:
    """`value` as a Python integer; raises `ValueError` where it is no positive integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a positive integer. Got {value!r}.")
    return number


def image_shape(network: str, shape: Sequence[int], divisor: int, why: str, fix: str) -> tuple[int, int, int]:
    """`shape` as `(H, W, C)`; raises `ValueError` where it is not one, or `divisor` does not divide both sides."""
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"{network} must have images of shape (H, W, C), C = 1 for grey ones. Got the shape {shape}.")
    height, width, channels = (positive(f"Each side of the image of {network}", side) for side in shape)
    if height % divisor or width % divisor:
        above = " x ".join(str(-(-side // divisor) * divisor) for side in (height, width))
        raise ValueError(
            f"Both sides of the image of {network} must be multiples of {divisor} ({why}). "
            f"Got {height} x {width}; pad or resize to {above}, or {fix}."
        )
    return height, width, channels


def as_event(network: str, x: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike | None) -> Float[Array, "..."]:
    """`x` in the type of compute: `dtype`, or else its own, at least float32; raises `ValueError` for a wrong shape."""
    x = as_array(x, "An event")
    if x.shape != shape:
        hint = "; a batch goes through jax.vmap, over t, x and args together" if x.shape[1:] == shape else ""
        raise ValueError(f"This {network} must have one event of shape {shape}. Got {x.shape}{hint}.")
    return x.astype(joined(x.dtype, jnp.float32) if dtype is None else dtype)


def check_times(network: str, times: Any) -> int:
    """The number of times of a network; raises `ValueError` where it is neither 1 nor 2."""
    if times not in (1, 2) or isinstance(times, bool):
        raise ValueError(
            f"times of {network} must be 1, for net(t, x, args), or 2, for net(s, t, x, args). Got {times!r}."
        )
    return int(times)


def parted(network: str, times: int, given: tuple[Any, ...]) -> tuple[Array, Array | None, Any, Any]:
    """A call `net(t, x, args)`, or `net(s, t, x, args)`: the time of the state, the length `t - s`, `x` and `args`.

    Raises `TypeError` for another number of arguments.
    """
    if len(given) not in (times + 1, times + 2):
        call = "net(t, x, args)" if times == 1 else "net(s, t, x, args)"
        raise TypeError(
            f"This {network} must be called as {call}. Got {len(given)} arguments: the option times= of its "
            "constructor says how many times it takes."
        )
    first, last = scalar_time(given[0]), scalar_time(given[times - 1])
    args = given[times + 1] if len(given) > times + 1 else None
    return first, None if times == 1 else last - first, given[times], args
