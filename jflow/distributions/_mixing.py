"""Moments of a mixture from those of its components, in bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PyTree

from .._types import PRNGKey
from ._abstract import Moments

BLOCK = 2**14
"""Numbers a block of components holds for one example."""


def mix(
    component: Callable[[Any], Moments], parameters: PyTree, log_weights: Float[Array, "k"], x: Float[Array, "..."]
) -> Moments:
    """Moments of a mixture at `x`: `log p = logsumexp(log w_k + log p_k)`, and data and score averaged with the
    responsibilities `exp(log w_k + log p_k - log p)`.

    `component` maps the k-th row of `parameters` to the moments of that component. Components are taken a block at
    a time, so that memory does not grow with their number. Where the density underflows, data and score are NaN.
    """

    def block(rows):
        log_weight, row = rows
        log_prob, data, score = jax.vmap(component)(row)
        return _average(Moments(log_weight + log_prob, data, score))

    k = log_weights.shape[0]
    count = -(-k * max(x.size, 1) // BLOCK)
    length = -(-k // count)
    if count == 1:
        return _possible(block((log_weights, parameters)))

    def split(leaf, **fill):
        pad = [(0, count * length - k)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, pad, **fill).reshape(count, length, *leaf.shape[1:])

    rows = (
        split(log_weights, constant_values=-jnp.inf),
        jtu.tree_map(lambda leaf: split(leaf, mode="edge"), parameters),
    )

    @jax.checkpoint
    def body(total, rows):
        pair = jtu.tree_map(lambda *leaves: jnp.stack(leaves), total, block(rows))
        return _average(pair), None

    nothing = Moments(jnp.full((), -jnp.inf, x.dtype), jnp.zeros_like(x), jnp.zeros_like(x))
    return _possible(lax.scan(body, nothing, rows)[0])


def _possible(moments: Moments) -> Moments:
    """Moments that are NaN where the density is zero, since they are means of nothing there."""
    possible = moments.log_prob > -jnp.inf
    known = [jnp.where(possible, value, jnp.nan) for value in (moments.data, moments.score)]
    return Moments(moments.log_prob, *known)


def _average(moments: Moments) -> Moments:
    """Moments along a leading axis averaged with their probabilities."""
    top = lax.stop_gradient(jnp.max(moments.log_prob))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.exp(moments.log_prob - top)
    total = jnp.sum(weights)
    possible = total > 0
    total = jnp.where(possible, total, 1)
    log_prob = jnp.where(possible, top + jnp.log(total), -jnp.inf)
    shares = weights / total

    def mean(values):
        return jnp.sum(shares.reshape(-1, *[1] * (values.ndim - 1)) * values, axis=0)

    return Moments(log_prob, mean(moments.data), mean(moments.score))


def residual(x: Float[Array, "..."], alpha: Float[Array, ""], mean: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x - alpha mean`, as `(x - c mean) - (alpha - c) mean` with `c` the integer nearest to `alpha`.

    Near the data (alpha = 1) both differences are exact in floating point, where the product would be rounded to a
    unit of `mean`, which is large beside `x - alpha mean`.
    """
    c = jnp.round(lax.stop_gradient(alpha))
    return (x - c * mean) - (alpha - c) * mean


def draw(key: PRNGKey, log_weights: Float[Array, "k"]) -> Int[Array, ""]:
    """The index of one component."""
    return jr.choice(key, log_weights.shape[0], p=jnp.exp(log_weights))
