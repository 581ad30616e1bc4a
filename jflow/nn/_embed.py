"""Features of the time and of the condition."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._event import joined
from .._kinds import check_kinds
from .._validate import as_array, concrete, scalar_time
from ._draw import drawn_at_once, normal
from ._events import positive


def fourier_features(t: ArrayLike, frequencies: Float[Array, " k"]) -> Float[Array, " 2*k"]:
    """`sqrt(2) [sin(2 pi w t), cos(2 pi w t)]` for frequencies `w` in cycles per unit of `t`.

    The squared norm is the number of features. Computed in at least float32: in half precision the phase of a
    high frequency is lost. Raises `ValueError` where `t` is batched.

    Source: Tancik et al. 2020, arXiv:2006.10739, section 5.

    ```python
    features = jf.nn.fourier_features(0.25, jnp.ones(1))
    assert jnp.allclose(features, jnp.array([jnp.sqrt(2), 0.0]), atol=1e-6)
    ```
    """
    t, frequencies = scalar_time(t), as_array(frequencies, "frequencies")
    if frequencies.ndim != 1:
        raise ValueError(f"frequencies must be a vector. Got shape {frequencies.shape}.")
    dtype = joined(t.dtype, frequencies.dtype, jnp.float32)
    phase = 2 * jnp.pi * frequencies.astype(dtype) * t.astype(dtype)
    return math.sqrt(2) * jnp.concatenate([jnp.sin(phase), jnp.cos(phase)])


class FourierFeatures(nnx.Module):
    """`fourier_features` with `size / 2` frequencies drawn from N(0, 1) and trained.

    ```python
    assert jf.nn.FourierFeatures(8, rngs=nnx.Rngs(0))(0.5).shape == (8,)
    ```
    """

    @drawn_at_once
    def __init__(self, size: int, *, rngs: nnx.Rngs):
        """`size` the number of features, even; raises `ValueError` where it is not."""
        check_kinds(FourierFeatures.__init__, locals())
        if positive("The number of Fourier features", size) % 2:
            raise ValueError(f"Fourier features come in pairs, so their number must be even. Got {size}.")
        self.frequencies = nnx.Param(normal(rngs.params(), (size // 2,)))

    def __call__(self, t: ArrayLike) -> Float[Array, " size"]:
        return fourier_features(t, self.frequencies[...])


def time_features(
    time: FourierFeatures, linear: nnx.Linear | None, t: Array, length: Array | None
) -> Float[Array, " size"]:
    """The features of `t`, and for a network of two times plus a linear map of those of the length of the step."""
    features = time(t)
    return features if linear is None or length is None else features + linear(time(length))


class Condition(nnx.Module):
    """The condition of a network as a vector of `self.size` numbers.

    - `num_classes=k`: an integer label from 0 to k; a trained table of k + 1 rows, N(0, 1) at the start, the row
      `null` standing for "no label".
    - `condition_size=c`: a vector of shape (c,), passed on as it is.
    - neither: `None`, and `size` is 0.

    A label out of range raises where its value is known, and is a vector of NaN where it is traced: never the
    nearest row in silence.

    ```python
    condition = jf.nn.Condition(4, num_classes=10, rngs=nnx.Rngs(0))
    assert condition(3).shape == (4,) and condition.null == 10
    ```
    """

    @drawn_at_once
    def __init__(
        self,
        embedding: int,
        *,
        num_classes: int | None = None,
        condition_size: int | None = None,
        null: int | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes the table, or nothing for a vector.

        Args:
            embedding: The length of a row of the table.
            num_classes: The number of labels, for a label.
            condition_size: The length of the vector, for a vector.
            null: The label that stands for "no label", by default `num_classes`.
            rngs: The random numbers of the initial parameters.

        Raises `ValueError` where both kinds of condition are given, and for a null label out of range.
        """
        check_kinds(Condition.__init__, locals())
        if num_classes is not None and condition_size is not None:
            raise ValueError(
                "A network must have labels (num_classes) or vectors (condition_size), not both. "
                f"Got num_classes={num_classes} and condition_size={condition_size}."
            )
        if null is not None and num_classes is None:
            raise ValueError(f"A null label must go with num_classes. Got null={null} without it.")
        self.num_classes, self.null, self.size = num_classes, None, 0
        if num_classes is not None:
            rows = positive("num_classes", num_classes) + 1
            self.null = num_classes if null is None else null
            _check_label(self.null, num_classes)
            self.size = positive("embedding", embedding)
            self.table = nnx.Param(normal(rngs.params(), (rows, self.size)))
        elif condition_size is not None:
            self.size = positive("condition_size", condition_size)

    def __call__(self, args: Any) -> Float[Array, " size"] | None:
        """The vector of the condition `args`; `None` for a network without condition.

        Raises `ValueError` for a condition of another kind, a batch of them, or a label out of range.
        """
        if self.num_classes is not None:
            label = _check_label(args, self.num_classes)
            return self.table[...].at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        if self.size:
            return _check_vector(args, self.size)
        if args is not None:
            raise ValueError(
                "This network takes no condition: args must be None. "
                f"Got {_describe(args)}; build it with num_classes or condition_size."
            )
        return None


def _check_label(args, num_classes):
    """`args` as an integer scalar from 0 to `num_classes`."""
    rule = f"This network's condition must be an integer label from 0 to {num_classes}"
    if not isinstance(args, int | np.integer | np.ndarray | jax.Array) or isinstance(args, bool):
        raise ValueError(
            f"{rule}. Got {_describe(args)}; an unlabelled example passes the network's null label, "
            "a guidance scale goes with jflow.Guided."
        )
    if not isinstance(args, int) and (args.ndim != 0 or not jnp.issubdtype(args.dtype, jnp.integer)):
        raise ValueError(
            f"{rule}. Got {_describe(args)}; a batch goes through jax.vmap, labels are of an integer type."
        )
    value = concrete(args)
    if value is not None and not 0 <= value <= num_classes:
        raise ValueError(f"{rule}. Got {value}; build the network with more classes, or number them from 0.")
    return jnp.asarray(args)


def _check_vector(args, size):
    rule = f"This network's condition must be a vector of shape ({size},)"
    if not isinstance(args, np.ndarray | jax.Array) or args.shape != (size,):
        raise ValueError(f"{rule}. Got {_describe(args)}; a batch goes through jax.vmap, over t, x and args together.")
    return jnp.asarray(args)


def _describe(args):
    if isinstance(args, np.ndarray | jax.Array):
        return f"an array of shape {args.shape} and type {args.dtype}"
    return repr(args)
