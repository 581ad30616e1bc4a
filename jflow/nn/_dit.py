"""A transformer over patches, modulated by the time and the condition."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, Shaped

from .._kinds import check_kinds
from .._validate import as_array, shown
from ._arguments import kept
from ._attention import SelfAttention
from ._draw import conv, drawn_at_once, linear, normal
from ._embed import Condition, FourierFeatures, time_features
from ._events import as_event, check_times, image_shape, parted, positive

_PIXEL_FEATURES = 10  # what the head gives every pixel before the last convolution


def _image_shape(name, shape, patch):
    return image_shape(name, shape, positive("patch", patch), "the side of a patch", "use a patch that divides them")


def patchify(x: Shaped[Array, "h w c"], patch: int) -> Shaped[Array, "n p"]:
    """An image as its `(H/p) (W/p)` patches, row by row, each flattened to `p * p * C` numbers.

    Raises `ValueError` where `patch` does not divide both sides.

    ```python
    image = jnp.arange(16.0).reshape(4, 4, 1)
    assert jf.nn.patchify(image, 2)[0].tolist() == [0, 1, 4, 5]
    ```
    """
    check_kinds(patchify, locals())
    x = as_array(x, "An image")
    height, width, channels = _image_shape("patchify", x.shape, patch)
    grid = x.reshape(height // patch, patch, width // patch, patch, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, patch * patch * channels)


def depatchify(tokens: Shaped[Array, "n p"], patch: int, shape: Sequence[int]) -> Shaped[Array, "h w c"]:
    """The image of `shape` whose patches are `tokens`: the inverse of `patchify`.

    Args:
        tokens: The patches, flattened, row by row.
        patch: The side of a patch.
        shape: The shape `(H, W, C)` of the image.

    Raises `ValueError` where the tokens are not those of an image of that shape.

    ```python
    image = jnp.arange(16.0).reshape(4, 4, 1)
    assert (jf.nn.depatchify(jf.nn.patchify(image, 2), 2, (4, 4, 1)) == image).all()
    ```
    """
    check_kinds(depatchify, locals())
    tokens = as_array(tokens, "Tokens")
    height, width, channels = _image_shape("depatchify", shape, patch)
    rows, columns = height // patch, width // patch
    if tokens.shape != (rows * columns, patch * patch * channels):
        raise ValueError(
            f"An image of shape {tuple(shape)} must have {rows * columns} patches of {patch * patch * channels} "
            f"numbers. Got tokens of shape {tokens.shape}."
        )
    grid = tokens.reshape(rows, columns, patch, patch, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(height, width, channels)


class _FeedForward(nnx.Module):
    """Linear, GELU, linear; four times as wide inside."""

    def __init__(self, dim, out, *, dtype, rngs):
        self.hidden = linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.out = linear(4 * dim, out, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.out(jax.nn.gelu(self.hidden(x)))


class DiTBlock(nnx.Module):
    """Attention and feed-forward over the tokens, both modulated by the condition; the identity at the start.

    `x + g1 attention((1 + s1) norm(x) + b1)`, then the same with the feed-forward layer and `(s2, b2, g2)`: six
    linear maps of `silu(c)`, zero at the start (adaLN-Zero). The norm is the root mean square, without parameters.

    Source: Peebles and Xie 2022, arXiv:2212.09748, section 3.2.

    ```python
    block, x = jf.nn.DiTBlock(4, heads=2, rngs=nnx.Rngs(0)), jnp.ones((3, 4))
    assert (block(x, jnp.ones(4)) == x).all()  # the identity at the start
    ```
    """

    @drawn_at_once
    def __init__(self, dim: int, heads: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        """Makes the block.

        Args:
            dim: The numbers of a token.
            heads: The heads of the attention, which divide `dim`.
            dtype: The type of compute; parameters are float32.
            rngs: The random numbers of the initial parameters.

        Raises `ValueError` where the heads do not divide the numbers.
        """
        check_kinds(DiTBlock.__init__, locals())
        self.attention = SelfAttention(dim, heads, dtype=dtype, rngs=rngs)
        self.feed_forward = _FeedForward(dim, dim, dtype=dtype, rngs=rngs)
        self.modulation = linear(dim, 6 * dim, variance=0.0, dtype=dtype, rngs=rngs)
        self.norm = nnx.RMSNorm(dim, use_scale=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n dim"], c: Float[Array, " dim"]) -> Float[Array, "n dim"]:
        s1, b1, g1, s2, b2, g2 = jnp.split(self.modulation(jax.nn.silu(c))[None], 6, axis=-1)
        x = x + g1 * self.attention((1 + s1) * self.norm(x) + b1)
        return x + g2 * self.feed_forward((1 + s2) * self.norm(x) + b2)


class _Reading(nnx.Module):
    """`softmax(Q K' / sqrt(d_head)) V` for every head, the queries from the image, the rest from a sequence."""

    def __init__(self, dim, heads, *, dtype, rngs):
        self.heads = heads
        self.norm = nnx.RMSNorm(dim, use_scale=False, dtype=dtype, rngs=rngs)
        self.q = linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.out = linear(dim, dim, variance=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, x, tokens, mask):
        q = self.q(self.norm(x)).reshape(x.shape[0], self.heads, -1)
        k, v = self.kv(tokens).reshape(tokens.shape[0], 2, self.heads, -1).transpose(1, 0, 2, 3)
        return self.out(jax.nn.dot_product_attention(q, k, v, mask=mask[None, None]).reshape(x.shape))


class DiT(nnx.Module):
    """`net(t, x, args)` for images `(H, W, C)`: a transformer over patches.

    Tokens are a linear map of the patches (a convolution of stride `patch`) plus a trained position each;
    `layers` blocks follow (`DiTBlock`), modulated by the sum of the Fourier features of the time and the embedded
    condition; then norm, a feed-forward layer to 10 features a pixel, `depatchify` and a 3 x 3 convolution.

    With `token_size=c` the condition is a sequence, as an embedded text: `{"tokens": (m, c), "mask": (m,)}`, of any
    length m, positions within the tokens, the mask nonzero for what is there. After each block every token of the image
    attends to the sequence and to a trained token beside it, which is all that an empty mask leaves: that is the null
    condition of guidance. What the mask leaves out has no effect, whatever stands there.

    Source: Peebles and Xie 2022, arXiv:2212.09748, with the widths, features and head of the third lab of
    MIT 6.S184 (2026).

    ```python
    net = jf.nn.DiT((4, 4, 1), patch=2, dim=8, layers=1, heads=2, rngs=nnx.Rngs(0))
    assert net(0.5, jnp.zeros((4, 4, 1))).shape == (4, 4, 1)
    ```
    """

    @drawn_at_once
    def __init__(
        self,
        shape: Sequence[int],
        *,
        patch: int = 4,
        dim: int = 256,
        layers: int = 8,
        heads: int = 8,
        num_classes: int | None = None,
        condition_size: int | None = None,
        token_size: int | None = None,
        null: int | None = None,
        times: int = 1,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """A network for images of `shape`.

        Args:
            shape: `(H, W, C)`, both sides multiples of `patch`.
            patch: The side of a patch.
            dim: The numbers of a token, even.
            layers: The number of blocks.
            heads: The heads of their attention, which divide `dim`.
            num_classes: The number of labels, for a condition that is a label; see `Condition`.
            condition_size: The length of the vector, for a condition that is a vector; see `Condition`.
            token_size: The numbers of a token, for a condition that is a sequence with a mask; see the class.
            null: The label that stands for "no label", by default `num_classes`.
            times: 1, or 2 for `net(s, t, x, args)` with `x` at `s`, as `jflow.FlowMap` needs it. `t - s` enters by a
                linear map that is zero at the start, where the network is the one of the time `s`.
            dtype: The type of compute; parameters are float32.
            rngs: The random numbers of the initial parameters.

        Raises `ValueError` for sides that the patch does not divide, heads that do not divide `dim`, an odd `dim`,
        and an impossible condition.
        """
        check_kinds(DiT.__init__, locals())
        self.arguments = kept(locals())
        if token_size is not None and (num_classes, condition_size) != (None, None):
            raise ValueError(
                "A network must have labels (num_classes), vectors (condition_size) or sequences (token_size). Got "
                f"num_classes={num_classes}, condition_size={condition_size} and token_size={token_size}."
            )
        self.shape = _image_shape("DiT", shape, patch)
        self.patch, self.dtype = patch, dtype
        height, width, channels = self.shape
        tokens = (height // patch) * (width // patch)
        self.times = check_times("DiT", times)
        self.time = FourierFeatures(dim, rngs=rngs)
        self.length = linear(dim, dim, variance=0.0, dtype=None, rngs=rngs) if self.times == 2 else None
        self.condition = Condition(dim, num_classes=num_classes, condition_size=condition_size, null=null, rngs=rngs)
        self.project = None if condition_size is None else linear(condition_size, dim, dtype=dtype, rngs=rngs)
        self.tokens = linear(patch * patch * channels, dim, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(normal(rngs.params(), (tokens, dim)))
        self.blocks = nnx.List(DiTBlock(dim, heads, dtype=dtype, rngs=rngs) for _ in range(positive("layers", layers)))
        self.token_size = token_size
        if token_size is not None:
            self.embed = linear(positive("token_size", token_size), dim, dtype=dtype, rngs=rngs)
            self.nothing = nnx.Param(normal(rngs.params(), (1, dim)))
            self.readings = nnx.List(_Reading(dim, heads, dtype=dtype, rngs=rngs) for _ in range(layers))
        self.norm = nnx.RMSNorm(dim, use_scale=False, dtype=dtype, rngs=rngs)
        self.pixels = _FeedForward(dim, _PIXEL_FEATURES * patch * patch, dtype=dtype, rngs=rngs)
        self.head = conv(_PIXEL_FEATURES, channels, dtype=dtype, rngs=rngs)

    @property
    def null(self) -> int | None:
        """The label that stands for "no label"; `None` for a network without labels."""
        return self.condition.null

    def __call__(self, *given: PyTree) -> Float[Array, "*event"]:
        """`net(t, x, args)`, with two times `net(s, t, x, args)`: the output for one image `x`, in the type of compute.

        Raises `TypeError` for another number of arguments, and `ValueError` for a batched time, an image of another
        shape, or a condition of another kind.
        """
        t, length, x, args = parted("DiT", self.times, given)
        time = time_features(self.time, self.length, t, length)
        x = as_event("DiT", x, self.shape, self.dtype)
        sequence = None if self.token_size is None else self._sequence(args, x.dtype)
        c, condition = time.astype(x.dtype), self.condition(args if sequence is None else None)
        if condition is not None:
            c = c + (condition if self.project is None else self.project(condition)).astype(x.dtype)
        h = self.tokens(patchify(x, self.patch)) + self.positions[...].astype(x.dtype)
        for i, block in enumerate(self.blocks):
            h = block(h, c)
            if sequence is not None:
                h = h + self.readings[i](h, *sequence)
        features = (*self.shape[:2], _PIXEL_FEATURES)
        return self.head(depatchify(self.pixels(self.norm(h)), self.patch, features))

    def _sequence(self, args, dtype):
        """The embedded tokens of a condition, after the trained one, and which of them are there."""
        shapes = {k: getattr(v, "shape", None) for k, v in args.items()} if isinstance(args, dict) else {}
        tokens, mask = shapes.get("tokens"), shapes.get("mask")
        if len(shapes) != 2 or mask is None or len(mask) != 1 or tokens != (*mask, self.token_size):
            raise ValueError(
                f"This network's condition must be {{'tokens': (m, {self.token_size}), 'mask': (m,)}}, arrays. Got "
                f"{shapes or shown(args)}; an example without a condition has a mask of zeros, a batch goes through "
                "jax.vmap."
            )
        here = jnp.asarray(args["mask"]) != 0
        own = self.embed(jnp.where(here[:, None], args["tokens"], 0).astype(dtype))
        nothing = self.nothing[...].astype(own.dtype)
        return jnp.concatenate([nothing, own]), jnp.concatenate([jnp.ones(1, bool), here])
