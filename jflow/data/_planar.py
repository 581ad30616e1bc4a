"""Sets in the plane, drawn by a key."""

from collections.abc import Callable

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._kinds import check_kinds
from .._types import PRNGKey
from .._validate import check_count, stream


def moons(key: PRNGKey, n: int, *, noise: float | int = 0.05, scale: float | int = 5.0) -> Float[Array, "n 2"]:
    """`n` points of two interleaving half circles.

    `scale (c + noise eps)`, `eps ~ N(0, I)`, with `c` on `(cos a, sin a)` or `(1 - cos a, 1/2 - sin a)`, each
    with probability 1/2, and `a` uniform on `[0, pi]`.

    Args:
        key: One typed key.
        n: The number of points.
        noise: The standard deviation of the noise, before `scale`.
        scale: The factor of the whole set.

    ```python
    assert jf.data.moons(jr.key(0), 100).shape == (100, 2)
    ```
    """
    check_kinds(moons, locals())
    key_angle, key_moon, key_noise = jr.split(_checked(moons, key, n), 3)
    angle = jr.uniform(key_angle, (n,), maxval=jnp.pi)
    upper = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    lower = jnp.stack([1 - jnp.cos(angle), 0.5 - jnp.sin(angle)], axis=1)
    centre = jnp.where(jr.bernoulli(key_moon, shape=(n, 1)), upper, lower)
    return float(scale) * (centre + float(noise) * jr.normal(key_noise, (n, 2)))


def circles(
    key: PRNGKey, n: int, *, factor: float | int = 0.5, noise: float | int = 0.05, scale: float | int = 5.0
) -> Float[Array, "n 2"]:
    """`n` points of two concentric circles.

    `scale (c + noise eps)`, `eps ~ N(0, I)`, with `c` uniform on the circle of radius 1 or `factor`, each
    with probability 1/2.

    Args:
        key: One typed key.
        n: The number of points.
        factor: The radius of the inner circle, before `scale`.
        noise: The standard deviation of the noise, before `scale`.
        scale: The factor of the whole set.

    ```python
    radius = jnp.linalg.norm(jf.data.circles(jr.key(0), 100, noise=0.0), axis=1)
    assert jnp.allclose(jnp.minimum(abs(radius - 5), abs(radius - 2.5)), 0, atol=1e-5)
    ```
    """
    check_kinds(circles, locals())
    key_angle, key_circle, key_noise = jr.split(_checked(circles, key, n), 3)
    angle = jr.uniform(key_angle, (n,), maxval=2 * jnp.pi)
    radius = jnp.where(jr.bernoulli(key_circle, shape=(n,)), 1.0, float(factor))
    centre = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return float(scale) * (centre + float(noise) * jr.normal(key_noise, (n, 2)))


def spirals(
    key: PRNGKey, n: int, *, turns: float | int = 1.5, noise: float | int = 0.02, scale: float | int = 5.0
) -> Float[Array, "n 2"]:
    """`n` points of two Archimedean spirals, one the other turned by pi.

    `scale (c + noise eps)`, `eps ~ N(0, I)`, with `c = +-r (cos a, sin a)`, `a = 2 pi turns r`, each sign
    with probability 1/2, and `r = sqrt(v)`, `v` uniform on `[0, 1]`: nearly uniform along the arms.

    Args:
        key: One typed key.
        n: The number of points.
        turns: The turns of each arm.
        noise: The standard deviation of the noise, before `scale`.
        scale: The factor of the whole set.

    ```python
    assert jnp.linalg.norm(jf.data.spirals(jr.key(0), 100, noise=0.0), axis=1).max() <= 5.0
    ```
    """
    check_kinds(spirals, locals())
    key_radius, key_arm, key_noise = jr.split(_checked(spirals, key, n), 3)
    radius = jnp.sqrt(jr.uniform(key_radius, (n,)))
    angle = 2 * jnp.pi * float(turns) * radius
    arm = jr.rademacher(key_arm, (n,)) * radius
    centre = arm[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return float(scale) * (centre + float(noise) * jr.normal(key_noise, (n, 2)))


def checkerboard(key: PRNGKey, n: int, *, cells: int = 4, half_width: float | int = 5.0) -> Float[Array, "n 2"]:
    """`n` points uniform on the squares of a board on `[-half_width, half_width]^2`, `cells` to a side.

    Square `(i, j)` is taken where `i + j` is even. One of these squares is drawn, then a point in it, so no
    draw is rejected. With the defaults the density is 1/50 on the squares and `E |x|^2 = 50/3`.

    Args:
        key: One typed key.
        n: The number of points.
        cells: The squares along a side of the board.
        half_width: Half the side of the board.

    ```python
    cells = jnp.floor((jf.data.checkerboard(jr.key(0), 100) + 5) / 2.5)
    assert (cells.sum(1) % 2 == 0).all()
    ```
    """
    check_kinds(checkerboard, locals())
    if cells < 1:
        raise ValueError(f"A board must have at least one cell to a side. Got cells={cells}.")
    key_square, key_point = jr.split(_checked(checkerboard, key, n))
    squares = jnp.asarray([(i, j) for i in range(cells) for j in range(i % 2, cells, 2)], dtype=jnp.float32)
    square = squares[jr.randint(key_square, (n,), 0, len(squares))]
    return 2 * float(half_width) / cells * (square + jr.uniform(key_point, (n, 2))) - float(half_width)


def eight_gaussians(key: PRNGKey, n: int, *, radius: float | int = 5.0, std: float | int = 0.5) -> Float[Array, "n 2"]:
    """`n` points of eight equal Gaussians `N(c, std^2 I)`, `c` spaced evenly on the circle of `radius`.

    Args:
        key: One typed key.
        n: The number of points.
        radius: The radius of the circle of centres.
        std: The standard deviation of each Gaussian.

    ```python
    x = jf.data.eight_gaussians(jr.key(0), 100, std=0.0)
    assert jnp.allclose(jnp.linalg.norm(x, axis=1), 5.0, atol=1e-5)
    ```
    """
    check_kinds(eight_gaussians, locals())
    key_centre, key_noise = jr.split(_checked(eight_gaussians, key, n))
    angle = jnp.pi / 4 * jr.randint(key_centre, (n,), 0, 8)
    centre = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return centre + std * jr.normal(key_noise, (n, 2))


def _checked(draw: Callable[..., Array], key: PRNGKey, n: int) -> PRNGKey:
    check_count(n=n)
    return stream(key, draw.__name__)
