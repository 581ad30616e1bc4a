"""Finite data sets as distributions."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._path import AbstractPath
from .._types import PRNGKey, Time
from .._validate import concrete, stream
from ._abstract import AbstractDistribution, Moments, Numbers, log_weights, marginal_weights, values
from ._mixing import mix, residual
from ._mixture import GaussianMixture


class PointSet(AbstractDistribution):
    """The empirical distribution of an array: each of its rows with the same probability.

    It has no density, but its noised versions have: `p_t` is a mixture of Gaussians of variance `sigma^2` at
    `alpha z_k`, `data` the mean of the points weighted with `softmax(-|x - alpha z_k|^2 / (2 sigma^2))`, and where
    sigma = 0 the nearest point. Its fields predict the data by default, so that samplers end with that step.

    ```python
    field = jf.distributions.PointSet([[-1.0, 0.0], [1.0, 0.0]]).field(jf.CondOT())
    assert jnp.allclose(jf.sample(field, jr.key(0), (2,), jf.UniformGrid(20)).x, jnp.array([1.0, 0.0]), atol=1e-4)
    ```
    """

    points: Array

    def __init__(self, points: Numbers):
        """`points` of shape `(n, *event)`. Raises `ValueError` where there is none, or one is not finite."""
        self.points = values(points, "Points")
        if self.points.ndim == 0 or self.points.shape[0] == 0:
            raise ValueError(f"Points must have shape (n, *event), n at least 1. Got shape {self.points.shape}.")

    @property
    def shape(self):
        return self.points.shape[1:]

    def sample(self, key: PRNGKey) -> Float[Array, "..."]:
        return self.points[jr.randint(stream(key, "PointSet"), (), 0, self.points.shape[0])]

    def at(self, path: AbstractPath, t: Time) -> "PointSet | GaussianMixture":
        """A mixture of Gaussians, and at a known time where sigma = 0 a point set."""
        alpha, sigma = marginal_weights(path, t)
        points = alpha * self.points
        if concrete(sigma) == 0:
            return eqx.tree_at(lambda p: p.points, self, points)
        n = points.shape[0]
        unit = GaussianMixture(points, stds=jnp.ones(n))
        return eqx.tree_at(lambda g: g.variances, unit, jnp.full((n,), sigma**2, points.dtype))

    def _moments(self, alpha, sigma, x, args):
        # where sigma = 0 the nearest point takes all the weight
        variance = jnp.where(sigma == 0, jnp.asarray(1e-30, x.dtype), sigma**2)

        def component(point):
            offset = residual(x, alpha, point)
            return Moments(-jnp.sum(offset**2) / (2 * variance), point, -offset / variance)

        n = self.points.shape[0]
        moments = mix(component, self.points, log_weights(None, n).astype(x.dtype), x)
        constant = x.size / 2 * jnp.log(2 * jnp.pi * variance)
        return moments._replace(log_prob=moments.log_prob - constant)
