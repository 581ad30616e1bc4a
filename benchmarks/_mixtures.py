"""Exact worlds on which samplers are compared, and others on which their settings are chosen."""

from typing import NamedTuple

import numpy as np

import jflow as jf


class Mixture(NamedTuple):
    """A mixture of isotropic Gaussians in numpy: weights `(k,)`, means `(k, d)`, standard deviations `(k,)`."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    def world(self) -> jf.distributions.GaussianMixture:
        """The same in jflow."""
        return jf.distributions.GaussianMixture(self.means, stds=self.stds, weights=self.weights)


def one_dimension() -> Mixture:
    """0.3 N(-2, 0.5^2) + 0.7 N(1, 0.8^2)."""
    return Mixture(np.array([0.3, 0.7]), np.array([[-2.0], [1.0]]), np.array([0.5, 0.8]))


def ring(modes: int = 8, radius: float = 2.0, std: float = 0.3) -> Mixture:
    """Equal modes on a circle."""
    angles = 2 * np.pi * np.arange(modes) / modes
    means = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    return Mixture(np.full(modes, 1 / modes), means, np.full(modes, std))


def scattered(d: int, modes: int, seed: int, spread: float = 1.0, low: float = 0.3, high: float = 0.8) -> Mixture:
    """Means from `N(0, spread^2 I)`, standard deviations uniform in `[low, high)`, weights from a Dirichlet law."""
    rng = np.random.default_rng(seed)
    means = spread * rng.normal(size=(modes, d))
    return Mixture(rng.dirichlet(np.full(modes, 5.0)), means, rng.uniform(low, high, modes))


MIXTURES = {1: one_dimension(), 2: ring(), 16: scattered(16, 5, seed=16), 256: scattered(256, 5, seed=256)}
"""What the tables show, by dimension."""

OTHERS = [
    scattered(1, 3, seed=1, spread=2.0),
    scattered(1, 2, seed=2, spread=1.5),
    scattered(2, 5, seed=3, spread=2.0),
    scattered(2, 8, seed=4, spread=1.5),
    scattered(8, 4, seed=5),
    scattered(16, 6, seed=6),
    scattered(64, 8, seed=7),
]
"""On which defaults are tuned: none of them is in a table."""


def noises(d: int, n: int, seed: int = 0) -> np.ndarray:
    """`n` standard normal starts in float64, the same for everybody who asks."""
    return np.random.default_rng([seed, d]).normal(size=(n, d))
