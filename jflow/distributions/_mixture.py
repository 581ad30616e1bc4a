"""Mixtures of Gaussians."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, Shaped

from .._path import AbstractPath
from .._types import PRNGKey, Time
from .._validate import stream
from ._abstract import AbstractDensity, Numbers, log_weights, marginal_weights, values
from ._gaussian import gaussian_moments, gaussian_sample, spread
from ._mixing import draw, mix


class GaussianMixture(AbstractDensity):
    """`sum_k w_k N(m_k, s_k^2 I)`, or with full covariances.

    Along a path each component stays Gaussian, `N(alpha m_k, v_k)` with `v_k = alpha^2 s_k^2 + sigma^2`; velocity,
    data, noise and score are those of the components, averaged with their responsibilities
    `r_k(x) = w_k N(x; alpha m_k, v_k) / p_t(x)`. Memory does not grow with the number of components.

    ```python
    world = jf.distributions.GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], stds=[0.5, 0.5])
    assert jnp.allclose(world.field(jf.CondOT()).data(0.0, jnp.ones(2)), 0, atol=1e-6)  # the mean
    ```
    """

    means: Array
    variances: Array
    basis: Array | None
    log_weights: Array

    def __init__(
        self,
        means: Numbers,
        stds: Numbers | None = None,
        covs: Numbers | None = None,
        weights: Numbers | None = None,
    ):
        """Makes a mixture of its means, and of either their standard deviations or their covariances.

        Args:
            means: The means, of shape `(k, *event)`.
            stds: The standard deviations, of shape `(k,)` or that of the means.
            covs: The covariances, of shape `(k, d, d)`, for events that are vectors.
            weights: Weights of any positive sum; by default equal.

        Raises `ValueError` for shapes that do not fit, a width that is not positive, or weights that are no weights.
        """
        self.means = values(means, "Means")
        if self.means.ndim == 0 or self.means.shape[0] == 0:
            raise ValueError(
                f"Means must have shape (k, *event), k the number of components. Got shape {self.means.shape}."
            )
        k = self.means.shape[0]
        self.variances, self.basis = spread((k,), self.shape, stds=stds, covs=covs)
        self.log_weights = log_weights(weights, k)

    @property
    def shape(self):
        return self.means.shape[1:]

    def sample(self, key: PRNGKey) -> Float[Array, "..."]:
        key_component, key_noise = jr.split(stream(key, "GaussianMixture"))
        return self.component_sample(key_noise, draw(key_component, self.log_weights))

    def component_sample(self, key: PRNGKey, k: Shaped[ArrayLike, ""]) -> Float[Array, "..."]:
        """One event of the k-th component."""
        basis = None if self.basis is None else self.basis[k]
        return gaussian_sample(key, self.means[k], self.variances[k], basis)

    def at(self, path: AbstractPath, t: Time) -> "GaussianMixture":
        alpha, sigma = marginal_weights(path, t)
        marginal = alpha * self.means, alpha**2 * self.variances + sigma**2
        return eqx.tree_at(lambda g: (g.means, g.variances), self, marginal)

    def _moments(self, alpha, sigma, x, args):
        unit = alpha**2 * jnp.min(self.variances) + sigma**2

        def component(row):
            mean, variance, basis = row
            return gaussian_moments(alpha, sigma, x, mean, variance, basis, unit)

        moments = mix(component, (self.means, self.variances, self.basis), self.log_weights, x)
        return moments._replace(log_prob=moments.log_prob - x.size / 2 * jnp.log(2 * jnp.pi * unit))
