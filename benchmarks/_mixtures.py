"""Exact worlds on which samplers are compared, and others on which their settings are chosen."""

from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp


class Mixture(NamedTuple):
    """A mixture of isotropic Gaussians in numpy: weights `(k,)`, means `(k, d)`, standard deviations `(k,)`."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    def world(self):
        """The same in jflow."""
        import jflow as jf  # here, so that the peers' environment need not have it

        return jf.distributions.GaussianMixture(self.means, stds=self.stds, weights=self.weights)

    def moments(self, alpha: float, sigma: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact predictions of data and noise for `x = alpha data + sigma noise`, a batch `(n, d)`."""
        variance = (alpha * self.stds) ** 2 + sigma**2
        square = (x**2).sum(1)[:, None] - 2 * alpha * x @ self.means.T + alpha**2 * (self.means**2).sum(1)
        logits = np.log(self.weights) - square / (2 * variance) - x.shape[1] / 2 * np.log(variance)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        to_noise, to_data = shares * sigma / variance, shares * alpha * self.stds**2 / variance
        noise = to_noise.sum(1)[:, None] * x - alpha * to_noise @ self.means
        data = shares @ self.means + to_data.sum(1)[:, None] * x - alpha * to_data @ self.means
        return data, noise

    def flow(self, x: np.ndarray, start: float = 1.0, stop: float = 0.0) -> np.ndarray:
        """The converged flow of `x/(alpha + sigma)` from one `sigma/(alpha + sigma)` to another: DOP853 at 1e-12."""

        def velocity(r, u):
            data, noise = self.moments(1 - r, r, u.reshape(x.shape))
            return (noise - data).ravel()

        options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
        return solve_ivp(velocity, (start, stop), x.ravel(), **options).y[:, -1].reshape(x.shape)


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

SHARP = scattered(16, 8, seed=21, low=0.02, high=0.1)
"""Narrow modes, in d = 16."""

OTHERS = [
    scattered(1, 3, seed=1, spread=2.0),
    scattered(1, 2, seed=2, spread=1.5),
    scattered(2, 5, seed=3, spread=2.0),
    scattered(2, 8, seed=4, spread=1.5),
    scattered(8, 4, seed=5),
    scattered(16, 6, seed=6),
    scattered(64, 8, seed=7),
]
"""On which, beside the first three of the tables, defaults were chosen."""


def noises(d: int, n: int, seed: int = 0) -> np.ndarray:
    """`n` standard normal starts in float64, the same for everybody who asks."""
    return np.random.default_rng([seed, d]).normal(size=(n, d))
