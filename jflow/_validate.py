"""Checks of single values: times, numbers, counts, keys."""

import contextlib
import zlib
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Key


def scalar_time(t: Any) -> Array:
    """`t` as a floating-point scalar array; raises `ValueError` where it is batched."""
    t = as_array(t, "A time")
    if t.ndim != 0:
        raise ValueError(
            f"A time must be a scalar: everything is written for one example. Got t of shape {t.shape}; "
            "a batch goes through jax.vmap (or equinox.filter_vmap), over t, x and args together."
        )
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


def as_array(value: Any, what: str, dtype: Any = None) -> Array:
    """Real numbers as an array, whose values are known inside `jax.jit` too; raises `TypeError` for what is none."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree_util.tree_leaves(value))
    try:
        if is_real(value):  # inside jax.jit a constant would become a tracer too
            with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
                return jnp.asarray(value, dtype)
    except OverflowError:
        pass  # the message is ours
    raise TypeError(f"{what} must be a real number or an array of these. Got {shown(value)}.")


def is_real(value: Any) -> bool:
    """Whether a value is a real number or boolean, or an array or nested lists of these; none is moved."""
    try:
        dtype = value.dtype if isinstance(value, (jax.Array, np.ndarray, np.generic)) else np.asarray(value).dtype
    except jax.errors.TracerArrayConversionError:
        dtype = jnp.asarray(value).dtype
    except (TypeError, ValueError):
        return False
    plain = not isinstance(value, np.ma.MaskedArray)  # whose mask numpy would drop
    return plain and any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def parameter(value: Any, name: str, *, positive: bool = True) -> Array:
    """A number that people sweep, as a scalar array of the default float type, checked where it is concrete."""
    array = as_array(value, name, jnp.result_type(float))
    number = concrete(array)
    if array.ndim != 0 or isinstance(value, bool):
        raise ValueError(f"{name} must be a single number. Got {shown(value)}.")
    if number is not None and not (np.isfinite(number) and (number > 0 or not positive)):
        raise ValueError(f"{name} must be a {'positive' if positive else 'finite'} number. Got {number}.")
    return array


def shown(value: Any) -> str:
    """A value for a message, in one line."""
    if isinstance(value, (jax.Array, np.ndarray)) and value.ndim:
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = f"the class {value.__name__}: make an object of it" if isinstance(value, type) else repr(value)
    return " ".join(text.split()) if len(text) <= 200 else f"{' '.join(text[:100].split())}..."


def concrete(x: Any) -> Any:
    """`x` as a numpy array if its value is known. `None` if `x` is a tracer, whose value is unknown."""
    if x is None or isinstance(x, jax.core.Tracer):
        return None
    try:
        return np.asarray(x)
    except (jax.errors.TracerArrayConversionError, TypeError):
        return None


def check_count(least: int = 1, **counts: Any) -> None:
    """Raises `ValueError` unless every count is an integer of at least `least`."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}. Got {value!r}.")


def check_key(key: Any, why: str) -> None:
    """Raises `ValueError` where `key` is not one typed key of a kind that vmaps lane by lane."""
    if key is None:
        raise ValueError(f"{why} must have a key, since it draws: pass key=jax.random.key(seed).")
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"A key must be a typed key, as jax.random.key(seed) makes it. Got {type(key).__name__}.")
    if key.ndim != 0:
        raise ValueError(f"One example must have one key. Got keys of shape {key.shape}: vmap over them.")
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            "Sample i must depend on its key alone, and keys of the 'rbg' implementations draw numbers that depend "
            f"on the batch. Got {jax.random.key_impl(key)}; use jax.random.key(seed, impl='threefry2x32')."
        )


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of a purpose. So one key that is used for data, training and sampling gives independent draws."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def streams(key: Key[Array, ""], name: str, n: int) -> Key[Array, "{n}"]:
    """`n` independent keys of a purpose, each a `fold_in` of a constant.

    They come from one pass of the generator, since compiling it is most of the cost of a small program. threefry is
    called with the shape that `split` and a draw of `n` numbers use, so XLA compiles it once. `vmap` would add an axis.
    """
    own = [zlib.crc32(f"{name} {i}".encode()) for i in range(n)]
    if (impl := jax.random.key_impl(key)) != "threefry2x32":
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(own, jnp.uint32))
    words = threefry_2x32(jax.random.key_data(key), jnp.asarray([0] * n + own, jnp.uint32))
    return jax.random.wrap_key_data(words.reshape(2, n).T, impl=impl)
