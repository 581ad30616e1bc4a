"""Augmentations: functions of a key and one image, to be called in the loss."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Shaped

from .._kinds import check_kinds
from .._types import Checked, PRNGKey
from .._validate import check_count, stream


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


def _image(x: Array) -> Array:
    if jnp.ndim(x) != 3:
        raise ValueError(f"An image must have shape (H, W, C). Got {jnp.shape(x)}; a batch goes through jax.vmap.")
    return jnp.asarray(x)
