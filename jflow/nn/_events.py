"""Checks shared by the networks: sizes given to constructors, events given to calls."""

import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._event import joined
from .._validate import as_array


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
