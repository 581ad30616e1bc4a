"""Sets in the plane as densities: fine mixtures of Gaussians along curves."""

import numpy as np

from .._kinds import check_kinds
from .._types import Number
from .._validate import check_count
from ._mixture import GaussianMixture


def moons(*, noise: Number = 0.05, scale: Number = 5.0, components: int = 256) -> GaussianMixture:
    """Two interleaving half circles: the law of `jflow.data.moons`, as a mixture.

    `components` Gaussians of standard deviation `scale noise`, half of them evenly along `scale (cos a, sin a)` and
    half along `scale (1 - cos a, 1/2 - sin a)`, `a` in `[0, pi]`. Where neighbours are nearer than that deviation the
    density is that of the whole curve to nine digits. Raises `ValueError` for `components` below 2, or noise
    that is not positive.

    Args:
        noise: The standard deviation of the Gaussians, before `scale`.
        scale: The factor of the whole set.
        components: The number of Gaussians.

    ```python
    world = jf.distributions.moons()
    assert world.log_prob(world.sample(jr.key(0))) > world.log_prob(jnp.array([5.0, 5.0]))
    ```
    """
    check_kinds(moons, locals())
    angle = np.pi * _shares(components)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _along([upper, [1, 0.5] - upper], noise, scale)


def circles(
    *, factor: Number = 0.5, noise: Number = 0.05, scale: Number = 5.0, components: int = 256
) -> GaussianMixture:
    """Two concentric circles, of radii `scale` and `factor scale`: the law of `jflow.data.circles`, as a mixture.

    `components` Gaussians of standard deviation `scale noise`, half of them evenly along each circle; see `moons`.

    Args:
        factor: The radius of the inner circle, before `scale`.
        noise: The standard deviation of the Gaussians, before `scale`.
        scale: The factor of the whole set.
        components: The number of Gaussians.

    ```python
    world = jf.distributions.circles(scale=2.0)
    assert world.log_prob(jnp.array([2.0, 0.0])) > world.log_prob(jnp.zeros(2))
    ```
    """
    check_kinds(circles, locals())
    angle = 2 * np.pi * _shares(components)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _along([unit, factor * unit], noise, scale)


def spirals(
    *, turns: Number = 1.5, noise: Number = 0.02, scale: Number = 5.0, components: int = 512
) -> GaussianMixture:
    """Two spirals, one the other turned by pi: the law of `jflow.data.spirals`, as a mixture.

    `components` Gaussians of standard deviation `scale noise`, half of them along each arm
    `+-scale r (cos a, sin a)`, `a = 2 pi turns r`, at the quantiles of the law `r = sqrt(uniform)`; see `moons`.

    Args:
        turns: The turns of each arm.
        noise: The standard deviation of the Gaussians, before `scale`.
        scale: The factor of the whole set.
        components: The number of Gaussians.

    ```python
    world = jf.distributions.spirals(turns=0.25)  # a quarter of a turn: one arm stays in one quadrant
    assert world.log_prob(jnp.array([2.0, 2.0])) > world.log_prob(jnp.array([2.0, -2.0]))
    ```
    """
    check_kinds(spirals, locals())
    radius = np.sqrt(_shares(components))
    angle = 2 * np.pi * turns * radius
    arm = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _along([arm, -arm], noise, scale)


def _shares(components):
    """Half as many midpoints of equal parts of [0, 1] as there are components."""
    check_count(2, components=components)
    n = components // 2
    return (np.arange(n) + 0.5) / n


def _along(curves, noise, scale):
    means = scale * np.concatenate(curves)
    return GaussianMixture(means, stds=np.full(len(means), scale * noise))
