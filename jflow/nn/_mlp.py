"""A multilayer perceptron over the flattened event, the time and the condition."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from .._kinds import check_kinds
from ._arguments import kept
from ._draw import drawn_at_once, linear
from ._embed import Condition
from ._events import as_event, check_times, parted, positive


class MLP(nnx.Module):
    """`net(t, x, args)`: the flattened event, the time and the condition, through `depth` SiLU layers of `width`.

    Nothing follows the last linear map; the output has the shape of `x`.

    ```python
    net = jf.nn.MLP(2, width=16, depth=2, num_classes=10, rngs=nnx.Rngs(0))
    assert net(0.5, jnp.zeros(2), 3).shape == (2,) and net.null == 10
    ```
    """

    @drawn_at_once
    def __init__(
        self,
        in_size: int | Sequence[int],
        *,
        width: int = 64,
        depth: int = 4,
        num_classes: int | None = None,
        condition_size: int | None = None,
        embedding: int = 16,
        null: int | None = None,
        times: int = 1,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """A network for events of `in_size` components.

        Args:
            in_size: The number of components, for events of any shape with as many; or the event's shape.
            width: The size of a hidden layer.
            depth: The number of hidden layers.
            num_classes: The number of labels, for a condition that is a label; see `Condition`.
            condition_size: The length of the vector, for a condition that is a vector; see `Condition`.
            embedding: The numbers that a label becomes. A vector is used as it is.
            null: The label that stands for "no label", by default `num_classes`.
            times: 1, or 2 for `net(s, t, x, args)` with `x` at `s`, as `jflow.FlowMap` needs it. `t - s` enters by a
                linear map that is zero at the start, where the network is the one of the time `s`.
            dtype: The type of compute; parameters are float32.
            rngs: The random numbers of the initial parameters.

        Raises `ValueError` for sizes that are no positive integers and for an impossible condition.
        """
        check_kinds(MLP.__init__, locals())
        self.arguments = kept(locals())
        if isinstance(in_size, Sequence):
            self.shape = tuple(positive("Each side of in_size", side) for side in in_size)
            self.in_size = math.prod(self.shape)
        else:
            self.shape, self.in_size = None, positive("in_size", in_size)
        self.dtype, self.times = dtype, check_times("MLP", times)
        width, depth = positive("width", width), positive("depth", depth)
        self.condition = Condition(
            embedding, num_classes=num_classes, condition_size=condition_size, null=null, rngs=rngs
        )
        sizes = [self.in_size + 1 + self.condition.size, *[width] * depth]
        self.hidden = nnx.List(linear(a, b, dtype=dtype, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.length = linear(1, width, variance=0.0, dtype=dtype, rngs=rngs) if self.times == 2 else None
        self.out = linear(width, self.in_size, dtype=dtype, rngs=rngs)

    @property
    def null(self) -> int | None:
        """The label that stands for "no label"; `None` for a network without labels."""
        return self.condition.null

    def __call__(self, *given: PyTree) -> Float[Array, "*event"]:
        """`net(t, x, args)`, with two times `net(s, t, x, args)`: the output for one event `x`, in the type of compute.

        Raises `TypeError` for another number of arguments, and `ValueError` for a batched time, an event of another
        size, or a condition of another kind.
        """
        t, length, x, args = parted("MLP", self.times, given)
        shape = jnp.shape(x)
        if self.shape is None and math.prod(shape) != self.in_size:
            raise ValueError(
                f"This MLP must have one event of {self.in_size} components. Got shape {shape}; "
                "a batch goes through jax.vmap, over t, x and args together."
            )
        x = as_event("MLP", x, shape if self.shape is None else self.shape, self.dtype)
        condition = self.condition(args)
        parts = [x.ravel(), t[None]] if condition is None else [x.ravel(), t[None], condition]
        h = jnp.concatenate([part.astype(x.dtype) for part in parts])
        first, *others = self.hidden
        h = first(h)
        if self.length is not None and length is not None:
            h = h + self.length(length[None].astype(x.dtype))
        for layer in others:
            h = layer(jax.nn.silu(h))
        return self.out(jax.nn.silu(h)).reshape(shape)
