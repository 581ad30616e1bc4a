"""A uniform variable seen through Gaussian noise: truncated normal distributions, with stable tails."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._abstract import Moments
from ._mixing import residual

# half width of the quadrature in standard deviations, and its number of nodes
_RULES = {np.dtype(np.float32): (6.0, 24), np.dtype(np.float64): (9.0, 64)}


def interval_moments(
    x: Float[Array, "..."], alpha: Float[Array, ""], std: Float[Array, ""], low: Array, high: Array
) -> Moments:
    """Log-density, `E[z | x]` and score of `x = alpha z + std eps`, `z` uniform on `[low, high]`, elementwise.

    With `c` the centre and `h` the half width of the interval, `y = |x - alpha c|/std` and `q = alpha h/std`, the
    data lies at `c +- h v/q` where `v` is `N(y, 1)` truncated to `[-q, q]`, of probability `Z`; then

        p(x) = Z/(2 q std) ,   score = +-r/std ,   r = E[v] - y = (phi(y + q) - phi(y - q))/Z .

    `Z` and `E[v]` are integrals over the part of `[-q, q]` that has mass, relative to the density at the mode, by a
    Gauss-Legendre rule: nothing cancels or underflows, neither in the tails nor where the noise is wide beside the
    interval. Where `std = 0` the limits are taken.
    """
    none = std == 0
    safe = jnp.where(none, 1, std)
    centre, half = (low + high) / 2, (high - low) / 2
    offset = residual(x, alpha, centre)
    sign = jnp.where(offset < 0, -1, 1).astype(x.dtype)
    beyond = jnp.where(offset < 0, -residual(x, alpha, low), residual(x, alpha, high))  # below 0 in the interval
    log_prob, u, r = _truncated(sign * offset / safe, alpha * half / safe, beyond / safe)
    # the limits without noise: uniform, the nearest point of the interval, constant density
    width = jnp.where(none, alpha * half, 1)
    log_prob = jnp.where(none, jnp.where(beyond <= 0, -jnp.log(2 * width), -jnp.inf), log_prob - jnp.log(safe))
    u = jnp.where(none, jnp.minimum(sign * offset / width, 1), u)
    r = jnp.where(none, 0, r)
    return Moments(log_prob, centre + half * sign * u, sign * r / safe)


def _truncated(y, q, edge):
    """`log Z/(2 q)`, `E[v]/q` and `r` for `y >= 0`, where `edge = y - q` comes with its own digits."""
    reach, n = _RULES[y.dtype]
    nodes, weights = (jnp.asarray(v, y.dtype).reshape(-1, *[1] * y.ndim) for v in np.polynomial.legendre.leggauss(n))
    # relative to the mode, min(y, q), the log-density of v = mode + d is d (outside - d/2)
    outside, mode = jnp.maximum(edge, 0), jnp.minimum(y, q)
    below = reach**2 / (outside + jnp.sqrt(outside**2 + reach**2))
    start, end = -jnp.minimum(below, mode + q), jnp.minimum(reach, q - mode)
    middle, radius = (start + end) / 2, (end - start) / 2
    d = middle[None] + radius[None] * nodes
    density = weights * jnp.exp(d * (outside[None] - d / 2))
    total = jnp.sum(density, axis=0)
    place = jnp.sum(density * nodes, axis=0) / total
    # where the rule runs over the whole interval, its nodes are v/q: finite for q = 0 too
    whole = (below >= mode + q) & (reach >= q - mode)
    ratio = jnp.where(whole, 1, q)
    u = jnp.where(whole, place, (mode + middle + radius * place) / ratio)
    share = jnp.where(whole, 1, radius / ratio)
    log_prob = jnp.log(share * total / 2) - outside**2 / 2 - math.log(2 * math.pi) / 2
    inside = jnp.minimum(edge, 0)
    flux = -jnp.exp(-(inside**2) / 2) * -jnp.expm1(-2 * y * q) / jnp.where(q < 1, 1, radius * total)
    return log_prob, u, jnp.where(q < 1, q * u - y, flux)
