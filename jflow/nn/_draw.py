"""The first numbers of a network, drawn by one compiled program."""

import functools as ft
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from .._validate import shown

_CUT = 2.0
_CUT_STD = 0.87962566103423978  # of a standard normal that is cut at 2


def drawn_at_once(init: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that draws all its numbers by one program, from one key of its `rngs`.

    Its layers are made without numbers: their `rngs` are `Wishes`, and the initialisers of this module leave
    placeholders. Inside `jax.jit` it draws the same.
    """

    @ft.wraps(init)
    def __init__(self, *args, rngs, **options):
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"rngs must be random numbers of flax, as flax.nnx.Rngs(0). Got {shown(rngs)}.")
        wishes = rngs if isinstance(rngs, Wishes) else Wishes()
        init(self, *args, rngs=wishes, **options)
        if wishes is rngs:  # a layer of a network
            return
        arrays = _granted(rngs.params(), wishes.made)
        for param in jtu.tree_leaves(self, is_leaf=lambda node: isinstance(node, nnx.Param)):
            if isinstance(param, nnx.Param) and isinstance(place := param.get_raw_value(), _Place):
                param.set_raw_value(arrays[place.index])

    return __init__


class _Place:
    """The placeholder of an array."""

    def __init__(self, index: int):
        self.index = index


class Wishes(nnx.Rngs):
    """The `rngs` of layers whose numbers are drawn later: each wish is a law, its scale and a shape."""

    def __init__(self):
        self.made: tuple[tuple[str, float, tuple[int, ...]], ...] = ()

    def params(self) -> Any:
        return self

    def place(self, law: str, scale: float, shape: Any) -> Any:
        """A placeholder of an array: a scale times `"one"`s, standard `"normal"`s, or those `"cut"` at 2."""
        self.made = (*self.made, (law, scale, tuple(shape)))
        return _Place(len(self.made) - 1)


def normal(wishes: Any, shape: Any, dtype: DTypeLike | None = None) -> Any:
    """An initialiser of standard normals."""
    return wishes.place("normal", 1.0, shape)


def zeros(wishes: Any, shape: Any, dtype: DTypeLike | None = None) -> Any:
    """An initialiser of zeros."""
    return wishes.place("one", 0.0, shape)


def ones(wishes: Any, shape: Any, dtype: DTypeLike | None = None) -> Any:
    """An initialiser of ones."""
    return wishes.place("one", 1.0, shape)


def fan_in(variance: float) -> Callable[..., Any]:
    """An initialiser of normals, cut at two of their standard deviations, whose variance is `variance / fan_in`."""

    def init(wishes, shape, dtype=None):
        return wishes.place("cut", math.sqrt(variance / math.prod(shape[:-1])) / _CUT_STD, shape)

    return init if variance > 0 else zeros


def linear(a: int, b: int, *, variance: float = 1.0, dtype: DTypeLike | None, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer; its output has `variance` times the variance of its input at the start."""
    return nnx.Linear(a, b, kernel_init=fan_in(variance), bias_init=zeros, dtype=dtype, rngs=rngs)


def conv(
    a: int, b: int, *, stride: int = 1, variance: float = 1.0, dtype: DTypeLike | None, rngs: nnx.Rngs
) -> nnx.Conv:
    """A 3 x 3 convolution; the output's side is the input's over `stride`, its variance `variance` at the start."""
    padding = ((1, 1), (1, 1))
    init = fan_in(variance)
    return nnx.Conv(a, b, (3, 3), stride, padding=padding, kernel_init=init, bias_init=zeros, dtype=dtype, rngs=rngs)


def _granted(key, wishes):
    """The arrays of all wishes, cut out of two vectors: on the host, where this compiles nothing."""
    counts = {law: sum(math.prod(shape) for own, _, shape in wishes if own == law) for law in ("cut", "normal")}
    vectors, arrays = dict(zip(counts, _draw(key, *counts.values()), strict=True)), []
    traced = isinstance(vectors["cut"], jax.core.Tracer)
    if not traced:
        vectors = {law: np.asarray(vector) for law, vector in vectors.items()}
    for law, scale, shape in wishes:
        if law == "one":
            array = (jnp if traced else np).full(shape, scale, np.float32)
        else:
            size = math.prod(shape)
            array, vectors[law] = vectors[law][:size].reshape(shape) * np.float32(scale), vectors[law][size:]
        arrays.append(array)
    return arrays if traced else jax.device_put(arrays)


@ft.partial(jax.jit, static_argnums=(1, 2))
def _draw(key, cut, normal):
    """Standard normals, `cut` of them cut at 2 and `normal` that are not."""
    key_cut, key_normal = jr.split(key)
    return jr.truncated_normal(key_cut, -_CUT, _CUT, (cut,), jnp.float32), jr.normal(key_normal, (normal,), jnp.float32)
