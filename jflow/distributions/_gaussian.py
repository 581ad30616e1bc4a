"""Gaussians."""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._path import AbstractPath
from .._types import PRNGKey, Time
from .._validate import concrete, stream
from ._abstract import AbstractDensity, Moments, Numbers, marginal_weights, positive, values
from ._mixing import residual


class Gaussian(AbstractDensity):
    """`N(mean, std^2 I)`, or `N(mean, cov)` for an event that is a vector.

    With `v = alpha^2 std^2 + sigma^2`: `p_t = N(alpha mean, v I)`, `score = -(x - alpha mean)/v` and
    `data = mean + alpha std^2 (x - alpha mean)/v`; a covariance is the same in its eigenvectors.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), cov=[[2.0, 1.0], [1.0, 2.0]])
    assert jnp.allclose(world.score(jnp.ones(2)), -1 / 3, atol=1e-6)
    ```
    """

    mean: Array
    variance: Array
    basis: Array | None

    def __init__(
        self,
        mean: Numbers,
        std: Numbers | None = None,
        cov: Numbers | None = None,
    ):
        """Makes a Gaussian of its mean, and of either its standard deviation or its covariance.

        Args:
            mean: The mean, of the event's shape.
            std: The standard deviation, a number or of the event's shape.
            cov: The covariance, a matrix, for an event that is a vector.

        Raises `ValueError` unless one of both is given, of a fitting shape and positive.
        """
        self.mean = values(mean, "The components of a mean")
        self.variance, self.basis = spread((), self.mean.shape, std=std, cov=cov)

    @property
    def shape(self):
        return self.mean.shape

    def sample(self, key: PRNGKey) -> Float[Array, "..."]:
        return gaussian_sample(stream(key, "Gaussian"), self.mean, self.variance, self.basis)

    def at(self, path: AbstractPath, t: Time) -> "Gaussian":
        alpha, sigma = marginal_weights(path, t)
        marginal = alpha * self.mean, alpha**2 * self.variance + sigma**2
        return eqx.tree_at(lambda g: (g.mean, g.variance), self, marginal)

    def _moments(self, alpha, sigma, x, args):
        unit = jnp.asarray(1 / (2 * np.pi), x.dtype)
        return gaussian_moments(alpha, sigma, x, self.mean, self.variance, self.basis, unit)


def gaussian_moments(
    alpha: Array, sigma: Array, x: Array, mean: Array, variance: Array, basis: Array | None, unit: Array
) -> Moments:
    """Moments of one Gaussian, its log-density being that with respect to `(2 pi unit)^(-d/2)`.

    In a mixture `unit` is a variance common to all components: what they share is then not a large number whose
    rounding disturbs their responsibilities.
    """
    offset = residual(x, alpha, mean)
    offset = offset if basis is None else _rotate(basis.T, offset)
    total = alpha**2 * variance + sigma**2
    scaled = offset / total
    log_det = jnp.sum(jnp.log(total / unit)) * (x.size // total.size)
    log_prob = -(jnp.sum(offset * scaled) + log_det) / 2
    shrunk = alpha * variance * scaled
    if basis is not None:
        scaled, shrunk = _rotate(basis, scaled), _rotate(basis, shrunk)
    return Moments(log_prob, mean + shrunk, -scaled)


def gaussian_sample(key: PRNGKey, mean: Array, variance: Array, basis: Array | None) -> Array:
    """One draw."""
    noise = jnp.sqrt(variance) * jr.normal(key, mean.shape, mean.dtype)
    return mean + (noise if basis is None else _rotate(basis, noise))


def spread(lead: tuple[int, ...], event: tuple[int, ...], **given: Any) -> tuple[Array, Array | None]:
    """Variances and eigenvectors of Gaussians on events, from exactly one of their standard deviations and their
    covariances; `lead` is the shape of the family, `()` or `(k,)`, and `given` holds both by the caller's names.
    """
    (name, std), (cov_name, cov) = given.items()
    if (std is None) == (cov is None):
        raise ValueError(
            f"The spread must be given as either {name}= or {cov_name}=. Got {'neither' if std is None else 'both'}."
        )
    if std is not None:
        std = positive(std, f"Standard deviations ({name})")
        if std.shape not in (lead, lead + event):
            raise ValueError(f"{name} must have shape {lead} or {lead + event}. Got {std.shape}.")
        return std**2, None
    cov = values(cov, f"Covariances ({cov_name})")
    if len(event) != 1 or cov.shape != lead + event + event:
        raise ValueError(
            f"{cov_name} must have shape {lead + ('d', 'd')}, for an event that is a vector of length d. "
            f"Got {cov.shape} for events of shape {event}."
        )
    return _eigh(cov, cov_name)


def _eigh(cov, name):
    """Eigenvalues and eigenvectors, in float64 where the matrices are known."""
    known = concrete(cov)
    if known is None:
        return jnp.linalg.eigh(cov)
    known = known.astype(np.float64)
    symmetric = np.abs(known - np.swapaxes(known, -1, -2)).max() <= 1e-5 * np.abs(known).max()
    variance, basis = np.linalg.eigh(known)
    if not symmetric or variance.min() <= 0:
        raise ValueError(
            f"A covariance ({name}) must be symmetric and positive definite. Got "
            + (f"a least eigenvalue of {variance.min():g}." if symmetric else "one that is not symmetric.")
        )
    return jnp.asarray(variance, cov.dtype), jnp.asarray(basis, cov.dtype)


def _rotate(matrix, vector):
    return jnp.matmul(matrix, vector, precision=lax.Precision.HIGHEST)
