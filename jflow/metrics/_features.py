"""Feature networks that come with the package: what images are compared by, and the judge of their classes."""

import functools as ft
import hashlib
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, Num

from .._batched import batched
from .._kinds import check_kinds
from .._validate import shown

FASHION = Path(__file__).with_name("fashion.safetensors")
_SHA256 = "e961661fcef61d4e4056251d6fe488df33908985d1a41eab6b01785711ac5c8f"
_SIDE = 28
_STRIDES = (2, 1, 2, 1, 1)  # of the convolutions


class Features(eqx.Module):
    """A small convolutional classifier of images, whose last layer but one is a vector of 64 features.

    - `name`: what a report calls it: the name of its data, and the first digits of the hash of its weights.

    `features(x)` are the vectors of images `(n, H, W, 1)` in [-1, 1], and `features.classes(x)` their classes.
    Images of other sides than 28 are resized to 28 x 28, without aliasing (Lanczos).

    ```python
    judge = jf.metrics.features("fashion")
    x = np.linspace(-1, 1, 3 * 28 * 28, dtype=np.float32).reshape(3, 28, 28, 1)
    assert judge(x).shape == (3, 64) and judge.classes(x).shape == (3,)
    ```
    """

    name: str = eqx.field(static=True)
    weights: dict[str, Array]

    def __call__(self, x: Num[np.ndarray | Array, "..."]) -> Float[np.ndarray, "n k"]:
        """The vectors of images, as `frechet_distance`, `kid` and `precision_recall` take them for `features=`.

        Raises `ValueError` for images of another shape, and for numbers that are not in [-1, 1].
        """
        return self._of(x)[0]

    def classes(self, x: Num[np.ndarray | Array, "..."]) -> Int[np.ndarray, "n"]:
        """The classes of images, as `class_accuracy` takes them; raises as a call does."""
        return self._of(x)[1].argmax(axis=1)

    def _of(self, x):
        x = np.asarray(x)
        if x.ndim != 4 or x.shape[3] != 1 or not x.size:
            raise ValueError(f"Images must have shape (n, H, W, 1), in shades of grey. Got {x.shape}.")
        if not np.issubdtype(x.dtype, np.floating) or not (np.abs(x) <= 1).all():
            raise ValueError(
                f"Images must be numbers in [-1, 1]. Got {shown(x)}: bytes are scaled by jflow.data.from_array, and "
                "draws are cut by np.clip(x, -1, 1)."
            )
        return batched(jtu.Partial(network, self.weights), x.astype(np.float32), batch_size=500, progress=False)


def features(name: Literal["fashion"]) -> Features:
    """A feature network that comes with the package, by the name of the data that it was trained on.

    `"fashion"`: Fashion-MNIST in ten classes, by `benchmarks/fashion_features.py`, on images that were made smaller and
    larger again too, so that it judges images from 16 x 16 on. Its file has a fixed hash, and nothing is unpickled.
    A distance by it compares with others by it alone: print its `name` beside each figure.

    Raises `ValueError` for another name, and where the file is not that of this version.

    ```python
    judge = jf.metrics.features("fashion")
    x = jax.random.uniform(jr.key(0), (150, 16, 16, 1), minval=-1)
    assert judge.name.startswith("fashion-")
    assert abs(jf.metrics.frechet_distance(x, x, features=judge)) < 1e-3
    ```
    """
    check_kinds(features, locals())
    return _read(FASHION, _SHA256)


@ft.lru_cache
def _read(path: Path, sha256: str) -> Features:
    from ..train._model import unpack

    blob = path.read_bytes()
    if (found := hashlib.sha256(blob).hexdigest()) != sha256:
        raise ValueError(f"The weights must be those of this version. Got {path} of sha256 {found}: install anew.")
    weights = {name: jnp.asarray(array, jnp.float32) for name, array in unpack(blob)[1].items()}
    return Features(f"{path.stem}-{sha256[:8]}", weights)


def network(weights: dict[str, Array], x: Float[Array, "h w 1"]) -> tuple[Float[Array, " k"], Float[Array, " c"]]:
    """The features of one image and the logits of its classes.

    Convolutions of 3 x 3 with biases and ReLUs; the mean over the places, which is the vector; a linear layer.
    """
    h = jax.image.resize(x, (_SIDE, _SIDE, 1), "lanczos3")[None]
    for i, stride in enumerate(_STRIDES):
        h = jax.lax.conv_general_dilated(
            h, weights[f"kernel{i}"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.nn.relu(h + weights[f"bias{i}"][None, None, None])
    vector = h.mean(axis=(0, 1, 2))
    return vector, vector @ weights["kernel"] + weights["bias"]
