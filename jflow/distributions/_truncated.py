"""A uniform variable seen through Gaussian noise: truncated normal distributions, with stable tails."""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, erfcx
from jaxtyping import Array, Float

from ._abstract import Moments
from ._mixing import residual

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def interval_moments(
    x: Float[Array, "..."], alpha: Float[Array, ""], std: Float[Array, ""], low: Array, high: Array
) -> Moments:
    """Log-density, `E[z | x]` and score of `x = alpha z + std eps`, `z` uniform on `[low, high]`, elementwise.

    With `c` the centre and `h` the half width of the interval, `y = (x - alpha c)/std` and `q = alpha h/std`:
    `z = c + h u`, where `u` has the density proportional to `exp(q y u - q^2 u^2 / 2)` on `[-1, 1]`, and

        E[u] = (y + r)/q ,   score = r/std ,   r = (phi(y + q) - phi(y - q)) / (Phi(y + q) - Phi(y - q)) .

    Where the noise is wide beside the interval (`q < 1`), `y + r` would cancel, and the integrals over `u` are
    taken by a Gauss-Legendre rule instead; where `std = 0` the limits are.
    """
    centre, half = (low + high) / 2, (high - low) / 2
    none = std == 0
    safe = jnp.where(none, 1, std)
    offset = residual(x, alpha, centre)
    sign = jnp.where(offset < 0, -1, 1).astype(x.dtype)
    beyond = jnp.where(offset < 0, -residual(x, alpha, low), residual(x, alpha, high))  # below 0 in the interval
    y, q, edge = sign * offset / safe, alpha * half / safe, beyond / safe
    # further out the rule would need more nodes, and nothing cancels
    wide = (q < 1) & (y * q < 12)
    log_wide, u_wide = _wide(jnp.where(wide, y, 0.0), jnp.where(wide, q, 0.0))
    ratio = jnp.where(wide, 1.0, q)
    log_narrow, r_narrow = _narrow(jnp.where(wide, 0.0, edge), ratio)
    log_prob = jnp.where(wide, log_wide - jnp.log(safe), log_narrow - jnp.log(2 * safe * ratio))
    u = jnp.where(wide, u_wide, 1 + (edge - r_narrow) / ratio)
    r = jnp.where(wide, q * u_wide - y, -r_narrow)
    # the limits without noise: uniform, the nearest point of the interval, constant density
    width = jnp.where(none, alpha * half, 1)
    log_prob = jnp.where(none, jnp.where(beyond <= 0, -jnp.log(2 * width), -jnp.inf), log_prob)
    u = jnp.where(none, jnp.minimum(sign * offset / width, 1), u)
    r = jnp.where(none, 0, r)
    return Moments(log_prob, centre + half * sign * u, sign * r / safe)


def _wide(y, q):
    """`log p` in units of the noise, and `E[u]`, by quadrature over `u`."""
    nodes = jnp.asarray(_NODES, y.dtype).reshape(-1, *[1] * y.ndim)
    weights = jnp.asarray(_WEIGHTS, y.dtype).reshape(-1, *[1] * y.ndim)
    density = weights * jnp.exp((q * y)[None] * nodes - (q**2 / 2)[None] * nodes**2)
    total = jnp.sum(density, axis=0)
    log_prob = jnp.log(total / 2) - y**2 / 2 - math.log(2 * math.pi) / 2
    return log_prob, jnp.sum(density * nodes, axis=0) / total


def _narrow(edge, q):
    """`log(Phi(y + q) - Phi(y - q))` and `-r` at `y = edge + q >= 0`, by tail functions scaled outside."""
    root = math.sqrt(2)
    y = edge + q
    decay = -jnp.expm1(-2 * y * q)  # 1 - phi(y + q)/phi(y - q)
    outside = edge > 0
    # outside, all is taken relative to the density at the edge
    out = jnp.where(outside, edge, 0.0)
    scaled = erfcx(out / root) - (1 - decay) * erfcx((out + 2 * q) / root)
    log_out, r_out = jnp.log(scaled / 2) - out**2 / 2, math.sqrt(2 / math.pi) * decay / scaled
    inn = jnp.where(outside, 0.0, edge)
    mass = 1 - (erfc(-inn / root) + erfc((inn + 2 * q) / root)) / 2
    r_in = jnp.exp(-(inn**2) / 2) / math.sqrt(2 * math.pi) * decay / mass
    return jnp.where(outside, log_out, jnp.log(mass)), jnp.where(outside, r_out, r_in)
