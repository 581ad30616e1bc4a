"""What a network was built with, so that a file can name it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def kept(given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The arguments of a constructor, from its `locals()` at the start; hashable, as what is static must be."""
    return tuple((name, _hashable(value)) for name, value in given.items() if name not in ("self", "rngs"))


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(map(_hashable, value))
    return value.item() if isinstance(value, np.generic) else value


def to_words(arguments: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Arguments as JSON has them: types by their names."""
    return {n: jnp.dtype(v).name if n == "dtype" and v is not None else v for n, v in arguments}


def rebuilt(kind: type, words: dict[str, Any]) -> Any:
    """The network of these arguments, with the shapes and types of its arrays in their place."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in words.items()}
    dtype = None if given["dtype"] is None else jnp.dtype(given["dtype"])
    return jax.eval_shape(lambda: kind(**{**given, "dtype": dtype}, rngs=nnx.Rngs(0)))
