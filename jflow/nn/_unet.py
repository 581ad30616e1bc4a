"""A convolutional U-Net with the time and the condition in every layer."""

from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from .._kinds import check_kinds
from ._arguments import kept
from ._attention import SelfAttention
from ._draw import conv, drawn_at_once, linear, ones, zeros
from ._embed import Condition, FourierFeatures, time_features
from ._events import as_event, check_times, image_shape, parted, positive


class _GroupNorm(nnx.Module):
    """GroupNorm of one image: up to 8 groups, of at least 4 channels where there are as many."""

    def __init__(self, channels, *, dtype, rngs):
        groups = max(n for n in range(1, 9) if channels % n == 0 and (n == 1 or channels >= 4 * n))
        self.norm = nnx.GroupNorm(
            channels, groups, use_fast_variance=False, scale_init=ones, bias_init=zeros, dtype=dtype, rngs=rngs
        )

    def __call__(self, x):
        return self.norm(x[None])[0]


class _Block(nnx.Module):
    """SiLU, norm, convolution. In this order a bias per channel, as the time's, is not normalised away."""

    def __init__(self, channels, *, variance=1.0, dtype, rngs):
        self.norm = _GroupNorm(channels, dtype=dtype, rngs=rngs)
        self.conv = conv(channels, channels, variance=variance, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.conv(self.norm(jax.nn.silu(x)))


class _Adapter(nnx.Module):
    """Features of the time, or of the condition, to a bias per channel: linear, SiLU, linear."""

    def __init__(self, size, embedding, channels, *, dtype, rngs):
        self.hidden = linear(size, embedding, dtype=dtype, rngs=rngs)
        self.out = linear(embedding, channels, dtype=dtype, rngs=rngs)

    def __call__(self, features):
        return self.out(jax.nn.silu(self.hidden(features)))


class _ResidualLayer(nnx.Module):
    """`x + block(block(x) + time + condition)`, then attention if it has heads."""

    def __init__(self, channels, embedding, condition_size, heads, *, dtype, rngs):
        self.first = _Block(channels, dtype=dtype, rngs=rngs)
        self.time = _Adapter(embedding, embedding, channels, dtype=dtype, rngs=rngs)
        self.condition = (
            _Adapter(condition_size, embedding, channels, dtype=dtype, rngs=rngs) if condition_size else None
        )
        # Small, not zero: behind a head of zeros the first step would not reach the time and the condition.
        self.second = _Block(channels, variance=0.01, dtype=dtype, rngs=rngs)
        self.norm = _GroupNorm(channels, dtype=dtype, rngs=rngs) if heads else None
        self.attention = SelfAttention(channels, heads, zero=True, dtype=dtype, rngs=rngs) if heads else None

    def __call__(self, x, time, condition):
        h = self.first(x) + self.time(time)[None, None]
        if self.condition is not None:
            h = h + self.condition(condition)[None, None]
        x = x + self.second(h)
        if self.norm is not None and self.attention is not None:
            x = x + self.attention(self.norm(x).reshape(-1, x.shape[-1])).reshape(x.shape)
        return x


def _double(x):
    """Bilinear interpolation to twice the sides."""
    height, width, channels = x.shape
    return jax.image.resize(x, (2 * height, 2 * width, channels), "bilinear")


def _check_levels(channels, attention):
    """`channels` as a tuple of integers; raises `ValueError` if it is empty, or attention is at a missing level."""
    channels = tuple(positive("Each of channels", c) for c in channels)
    if not channels:
        raise ValueError("A UNet must have one level at least: channels must not be empty. Got ().")
    if not set(attention) <= set(range(len(channels))):
        raise ValueError(
            f"Attention must be at levels of the UNet, 0 to {len(channels) - 1}. Got attention={tuple(attention)}."
        )
    return channels


class UNet(nnx.Module):
    """`net(t, x, args)` for images `(H, W, C)`: residual layers at falling, then rising resolution.

    Level i has `channels[i]` channels and sides `H / 2^i`, `W / 2^i`. Going down, `layers` residual layers and a
    convolution of stride 2 a level; `layers` at the lowest; going up, bilinear interpolation, a convolution and
    `layers` residual layers. What a level's layers give on the way down is added on the way up. A residual layer is
    `x + block(block(x) + b(t) + b(args))` with blocks of SiLU, GroupNorm and convolution and biases per channel.
    The last convolution starts at zero, and so does the network.

    Source: Ronneberger et al. 2015, arXiv:1505.04597, in the residual form of Ho et al. 2020, arXiv:2006.11239,
    appendix B, with the widths and features of the third lab of MIT 6.S184 (2025), GroupNorm for its BatchNorm, and
    what is added taken before the convolution of stride 2, not after it.

    ```python
    net = jf.nn.UNet((4, 4, 1), channels=(4, 8), layers=1, num_classes=10, rngs=nnx.Rngs(0))
    assert (net(0.5, jnp.ones((4, 4, 1)), 3) == 0).all()  # zero at the start
    ```
    """

    @drawn_at_once
    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: Sequence[int] = (32, 64, 128),
        layers: int = 2,
        embedding: int = 40,
        num_classes: int | None = None,
        condition_size: int | None = None,
        null: int | None = None,
        attention: Sequence[int] = (),
        heads: int = 4,
        times: int = 1,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """A network for images of `shape`.

        Args:
            shape: `(H, W, C)`, both sides multiples of `2^(len(channels) - 1)`.
            channels: The channels of every level.
            layers: The residual layers of each level.
            embedding: The features of the time (even), of a label, and of the hidden layer of their biases.
            num_classes: The number of labels, for a condition that is a label; see `Condition`.
            condition_size: The length of the vector, for a condition that is a vector; see `Condition`.
            null: The label that stands for "no label", by default `num_classes`.
            attention: The levels, 0 the full resolution, whose residual layers end in self-attention.
            heads: The heads of the self-attention.
            times: 1, or 2 for `net(s, t, x, args)` with `x` at `s`, as `jflow.FlowMap` needs it. `t - s` enters by a
                linear map that is zero at the start, where the network is the one of the time `s`.
            dtype: The type of compute; parameters are float32.
            rngs: The random numbers of the initial parameters.

        Raises `ValueError` for sides that the levels do not divide, levels that do not exist, heads that do not
        divide the channels, and an impossible condition.
        """
        check_kinds(UNet.__init__, locals())
        self.arguments = kept(locals())
        channels = _check_levels(channels, attention)
        halvings = len(channels) - 1
        why = f"{halvings + 1} levels halve them {halvings} times"
        self.shape = image_shape("UNet", shape, 2**halvings, why, "use fewer levels")
        self.dtype, layers = dtype, positive("layers", layers)
        self.times = check_times("UNet", times)
        self.time = FourierFeatures(embedding, rngs=rngs)
        self.length = linear(embedding, embedding, variance=0.0, dtype=None, rngs=rngs) if self.times == 2 else None
        self.condition = Condition(
            embedding, num_classes=num_classes, condition_size=condition_size, null=null, rngs=rngs
        )

        def level(i):
            size, with_heads = self.condition.size, heads if i in attention else 0
            return nnx.List(
                _ResidualLayer(channels[i], embedding, size, with_heads, dtype=dtype, rngs=rngs) for _ in range(layers)
            )

        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.stem = conv(self.shape[-1], channels[0], dtype=dtype, rngs=rngs)
        self.stem_norm = _GroupNorm(channels[0], dtype=dtype, rngs=rngs)
        self.down = nnx.List(level(i) for i in range(len(pairs)))
        self.shrink = nnx.List(conv(a, b, stride=2, dtype=dtype, rngs=rngs) for a, b in pairs)
        self.middle = level(len(pairs))
        self.grow = nnx.List(conv(b, a, dtype=dtype, rngs=rngs) for a, b in pairs)
        self.up = nnx.List(level(i) for i in range(len(pairs)))
        self.head = conv(channels[0], self.shape[-1], variance=0.0, dtype=dtype, rngs=rngs)

    @property
    def null(self) -> int | None:
        """The label that stands for "no label"; `None` for a network without labels."""
        return self.condition.null

    def __call__(self, *given: PyTree) -> Float[Array, "*event"]:
        """`net(t, x, args)`, with two times `net(s, t, x, args)`: the output for one image `x`, in the type of compute.

        Raises `TypeError` for another number of arguments, and `ValueError` for a batched time, an image of another
        shape, or a condition of another kind.
        """
        t, length, x, args = parted("UNet", self.times, given)
        time = time_features(self.time, self.length, t, length)
        x = as_event("UNet", x, self.shape, self.dtype)
        time, condition = time.astype(x.dtype), self.condition(args)
        condition = None if condition is None else condition.astype(x.dtype)
        h = jax.nn.silu(self.stem_norm(self.stem(x)))
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            for layer in level:
                h = layer(h, time, condition)
            skips.append(h)
            h = shrink(h)
        for layer in self.middle:
            h = layer(h, time, condition)
        for level, grow, skip in reversed(list(zip(self.up, self.grow, skips, strict=True))):
            h = grow(_double(h)) + skip
            for layer in level:
                h = layer(h, time, condition)
        return self.head(h)
