"""Sets in the plane as densities: fine mixtures of Gaussians along curves."""

import numpy as np

from ._mixture import GaussianMixture


def moons(*, noise: float | int = 0.05, scale: float | int = 5.0, components: int = 256) -> GaussianMixture:
    """Two interleaving half circles: the law of `jflow.data.moons`, as a mixture.

    `components` Gaussians of standard deviation `scale noise`, half of them evenly along `scale (cos a, sin a)` and
    half along `scale (1 - cos a, 1/2 - sin a)`, `a` in `[0, pi]`. Where neighbours are nearer than that deviation the
    density is that of the whole curve to nine digits. Raises `ValueError` for `components < 2`, or noise that is not
    positive.
    """
    angle = np.pi * _shares(components)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _along([upper, [1, 0.5] - upper], noise, scale)


def circles(
    *, factor: float | int = 0.5, noise: float | int = 0.05, scale: float | int = 5.0, components: int = 256
) -> GaussianMixture:
    """Two concentric circles, of radii `scale` and `factor scale`: the law of `jflow.data.circles`, as a mixture.

    `components` Gaussians of standard deviation `scale noise`, half of them evenly along each circle; see `moons`.
    """
    angle = 2 * np.pi * _shares(components)
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _along([unit, factor * unit], noise, scale)


def spirals(
    *, turns: float | int = 1.5, noise: float | int = 0.02, scale: float | int = 5.0, components: int = 512
) -> GaussianMixture:
    """Two spirals, one the other turned by pi: the law of `jflow.data.spirals`, as a mixture.

    `components` Gaussians of standard deviation `scale noise`, half of them along each arm
    `+-scale r (cos a, sin a)`, `a = 2 pi turns r`, at the quantiles of the law `r = sqrt(uniform)`; see `moons`.
    """
    radius = np.sqrt(_shares(components))
    angle = 2 * np.pi * turns * radius
    arm = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _along([arm, -arm], noise, scale)


def _shares(components):
    """Half as many midpoints of equal parts of [0, 1] as there are components."""
    if components < 2:
        raise ValueError(f"Two curves take at least two components. Got components={components}.")
    n = components // 2
    return (np.arange(n) + 0.5) / n


def _along(curves, noise, scale):
    means = scale * np.concatenate(curves)
    return GaussianMixture(means, stds=np.full(len(means), scale * noise))
