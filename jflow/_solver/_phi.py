"""Moments of an exponential weight, without cancellation."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def exponential_moments(h: Float[Array, ""], n: int) -> tuple[Float[Array, ""], ...]:
    """`m_k(h) = int_0^1 e^(-h (1 - s)) s^k ds` for `k = 0, ..., n`; `m_k(0) = 1/(k + 1)`.

    `m_k = k! phi_(k+1)(-h)` in the notation of exponential integrators. They obey `h m_k = 1 - k m_(k-1)`, which runs
    upwards from `h m_0 = 1 - e^(-h)` where `|h| > 1`, and downwards from the series
    `m_n = sum_i (-h)^i n! / (n + i + 1)!` where that would lose digits.

    Source: Hochbruck & Ostermann 2010, Acta Numerica 19, equation 2.9.
    """
    small = jnp.abs(h) <= 1
    near, far = jnp.where(small, h, 0), jnp.where(small, 1, h)
    top = jnp.zeros_like(near)
    for i in reversed(range(17)):
        top = math.factorial(n) / math.factorial(n + i + 1) - near * top
    down = [top]
    for k in range(n, 0, -1):
        down.append((1 - near * down[-1]) / k)
    up = [-jnp.expm1(-far) / far]
    for k in range(1, n + 1):
        up.append((1 - k * up[-1]) / far)
    return tuple(jnp.where(small, a, b) for a, b in zip(reversed(down), up, strict=True))


def exponential_means(h: Float[Array, ""], n: int) -> tuple[Float[Array, ""], ...]:
    """The means over a step in `tau` of `(log tau - log tau_0)^k`, `k = 1, ..., n`, for `h = log tau_1 - log tau_0`:
    `h^k m_k(h) / m_0(h)`.
    """
    first, *rest = exponential_moments(h, n)
    return tuple(h**k * m / first for k, m in enumerate(rest, 1))
