"""Augmentations: functions of a key and one image, to be called in the loss."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Shaped

from .._kinds import check_kinds
from .._types import Checked, PRNGKey
from .._validate import check_count, stream, streams


def flip(key: PRNGKey, x: Checked[Shaped[Array, "h w c"]]) -> Shaped[Array, "h w c"]:
    """One image `(H, W, C)`, with probability 1/2 its mirror image, left and right exchanged.

    ```python
    x = jnp.arange(4.0).reshape(1, 4, 1)
    drawn = {tuple(jf.data.flip(key, x).ravel().tolist()) for key in jr.split(jr.key(0), 20)}
    assert drawn == {(0, 1, 2, 3), (3, 2, 1, 0)}
    ```
    """
    check_kinds(flip, locals())
    return jnp.where(jr.bernoulli(stream(key, "flip")), _image(x)[:, ::-1], x)


def crop(key: PRNGKey, x: Checked[Shaped[Array, "h w c"]], margin: int) -> Shaped[Array, "h w c"]:
    """One image `(H, W, C)` moved by up to `margin` pixels each way, uniformly; its edge pixels fill the gap.

    This is a random crop of the same size from the image with `margin` copies of its edge on each side.

    Args:
        key: Decides the shift.
        x: The image.
        margin: The largest shift, in pixels.

    ```python
    x = jnp.ones((8, 8, 3)).at[4, 4].set(0)
    moved = jf.data.crop(jr.key(0), x, margin=2)
    assert moved.shape == x.shape and abs(jnp.argwhere(moved[..., 0] == 0) - 4).max() <= 2
    ```
    """
    check_kinds(crop, locals())
    check_count(0, margin=margin)
    wide = jnp.pad(_image(x), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    row, column = jr.randint(stream(key, "crop"), (2,), 0, 2 * margin + 1)
    return jax.lax.dynamic_slice(wide, (row, column, 0), x.shape)


def augment(
    key: PRNGKey, x: Checked[Float[Array, "h w c"]], p: float | int = 0.12
) -> tuple[Float[Array, "h w c"], Float[Array, "9"]]:
    """One image flipped, scaled, turned, stretched and moved at random, and the nine numbers that say how.

    A network that is given these numbers as a condition learns the law of the images for each of them, and with nine
    zeros as the condition it draws images as they were: no transformation leaks into the draws. The numbers are

        a0, a1                      1 for an image flipped left and right, or up and down, else 0
        a2                          scaled by 2^(0.2 a2), a2 normal
        cos a3 - 1, sin a3          turned counter-clockwise by a3, uniform
        a5 cos a4, a5 sin a4        stretched along a4 by 2^(0.2 a5), across it by the inverse, a5 normal; a4 uniform,
                                    and in one half of the cases 0
        a6, a7                      moved right and down by 1/8 of the sides times a6 and a7, both normal

    Left and right are exchanged in one half of the images. Each of the others is done with the probability `p`, the
    flip up and down then in one half of the cases, and its numbers are zeros where it is not. What lies outside of the
    image is its mirror image. An image that is not moved but for flips keeps its pixels; others are interpolated on
    twice as many pixels (Lanczos, then linear) and filtered down.

    Args:
        key: Decides all of it.
        x: The image.
        p: The probability of each transformation, 0.12 for CIFAR-10 and 0.15 for faces in the source.

    Raises `ValueError` for another shape, and a `p` outside of [0, 1].

    Source: Karras et al. 2022, arXiv:2206.00364, appendix F.2; the filter is another one.

    ```python
    x = jr.normal(jr.key(0), (8, 8, 3))
    moved, label = jf.data.augment(jr.key(1), x, p=1.0)
    assert moved.shape == x.shape and label.shape == (9,) and (label[2:] != 0).all()
    same, label = jf.data.augment(jr.key(2), x, p=0.0)
    assert (same == jnp.where(label[0] == 1, x[:, ::-1], x)).all() and (label[1:] == 0).all()
    ```
    """
    check_kinds(augment, locals())
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability, from 0 to 1. Got {p}.")
    x, kind = _image(x), x.dtype
    keys = streams(key, "augment", 4)
    on = jr.bernoulli(keys[0], p, (5,)).astype(kind)
    a0, a1, along = jr.bernoulli(keys[1], shape=(3,)).astype(kind) * jnp.stack([jnp.ones((), kind), on[0], on[3]])
    a2, a5, a6, a7 = jr.normal(keys[2], (4,), kind) * on[jnp.array([1, 3, 4, 4])]
    a3, a4 = jr.uniform(keys[3], (2,), kind, -jnp.pi, jnp.pi) * jnp.stack([on[2], along])
    flipped = jnp.where(a0 == 1, x[:, ::-1], x)
    flipped = jnp.where(a1 == 1, flipped[::-1], flipped)
    warped = _warped(flipped, a2, a3, a4, a5, jnp.stack([a6, a7]))
    turn, stretch = jnp.stack([jnp.cos(a3) - 1, jnp.sin(a3)]), a5 * jnp.stack([jnp.cos(a4), jnp.sin(a4)])
    label = jnp.concatenate([jnp.stack([a0, a1, a2]), turn, stretch, jnp.stack([a6, a7])])
    return jnp.where((on[1:] > 0).any(), warped, flipped), label


def _warped(x, a2, a3, a4, a5, shift):
    """The image at the places that the transformation brings to its pixels, the column before the row."""
    height, width, channels = x.shape

    def turn(angle):
        return jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]], x.dtype)

    with jax.default_matmul_precision("highest"):
        back = turn(a3) @ turn(-a4) @ jnp.diag(2 ** (0.2 * a5 * jnp.array([-1, 1]))) @ turn(a4) / 2 ** (0.2 * a2)
    u, v = jnp.meshgrid(jnp.arange(2 * width) - width + 0.5, jnp.arange(2 * height) - height + 0.5)
    u, v = u - width * shift[0] / 4, v - height * shift[1] / 4
    column, row = (back[i, 0] * u + back[i, 1] * v + side - 0.5 for i, side in enumerate((width, height)))
    wide = jax.image.resize(x, (2 * height, 2 * width, channels), "lanczos3")
    moved = [map_coordinates(wide[..., c], [row, column], 1, "reflect") for c in range(channels)]
    return jax.image.resize(jnp.stack(moved, axis=-1), x.shape, "lanczos3")


def _image(x: Array) -> Array:
    if jnp.ndim(x) != 3:
        raise ValueError(f"An image must have shape (H, W, C). Got {jnp.shape(x)}; a batch goes through jax.vmap.")
    return jnp.asarray(x)
