"""A multilayer perceptron over the flattened event, the time and the condition."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from .._kinds import check_kinds
from .._validate import scalar_time
from ._arguments import kept
from ._draw import drawn_at_once, linear
from ._embed import Condition
from ._events import as_event, positive


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
        self.dtype = dtype
        width, depth = positive("width", width), positive("depth", depth)
        self.condition = Condition(
            embedding, num_classes=num_classes, condition_size=condition_size, null=null, rngs=rngs
        )
        sizes = [self.in_size + 1 + self.condition.size, *[width] * depth]
        self.hidden = nnx.List(linear(a, b, dtype=dtype, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.out = linear(width, self.in_size, dtype=dtype, rngs=rngs)

    @property
    def null(self) -> int | None:
        """The label that stands for "no label"; `None` for a network without labels."""
        return self.condition.null

    def __call__(self, t: ArrayLike, x: Float[Array, "*event"], args: Any = None) -> Float[Array, "*event"]:
        """The output at the time `t`, for one event `x` under the condition `args`, in the type of compute.

        Raises `ValueError` for a batched `t`, an event of another size, or a condition of another kind.
        """
        t = scalar_time(t)
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
        for layer in self.hidden:
            h = jax.nn.silu(layer(h))
        return self.out(h).reshape(shape)
