"""Distributions with a condition: labelled mixtures, and the hierarchical Gaussian."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from .._event import event_like
from .._kinds import check_kinds
from .._path import AbstractPath
from .._types import PRNGKey, Time
from .._validate import as_array, concrete, stream
from ._abstract import AbstractDensity, Numbers, marginal_weights, positive
from ._gaussian import gaussian_moments
from ._mixing import draw
from ._mixture import GaussianMixture


class LabelledMixture(AbstractDensity):
    """A mixture of Gaussians whose components carry class labels `0, ..., n - 1`.

    The condition, `args` of densities and fields, is a label; `null`, which is `n`, or `None` is no condition: the
    whole mixture. Given a label the law is the mixture of the components that carry it. Guide its exact field
    with `jflow.Guided(world.field(path), null=world.null)`.

    ```python
    mixture = jf.distributions.GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], stds=[0.5, 0.5])
    field = jf.distributions.LabelledMixture(mixture).field(jf.CondOT())
    assert jnp.allclose(field.data(0.0, jnp.ones(2), 1), jnp.array([2.0, 0.0]))
    ```
    """

    mixture: GaussianMixture
    labels: Array
    classes: int = eqx.field(static=True)

    def __init__(self, mixture: GaussianMixture, labels: Numbers | None = None):
        """Gives the components of a mixture their labels.

        Args:
            mixture: A mixture of `k` components.
            labels: The class of each; by default every component has its own.

        Raises `ValueError` unless the labels are `k` integers in which each of `0, ..., n - 1` occurs.
        """
        check_kinds(LabelledMixture.__init__, locals())
        k = mixture.means.shape[0]
        known = np.arange(k) if labels is None else concrete(as_array(labels, "labels"))
        if known is None:
            raise ValueError("Labels must be known outside of jax.jit, for they decide the classes. Got traced ones.")
        classes = int(known.max()) + 1 if known.size and np.issubdtype(known.dtype, np.integer) else 0
        if known.shape != (k,) or set(known.ravel().tolist()) != set(range(classes)):
            raise ValueError(
                f"Labels must be {k} integers, one for each component, in which every class 0, ..., n - 1 occurs. "
                f"Got shape {known.shape} with the values {sorted(set(known.ravel().tolist()))[:10]}."
            )
        self.mixture, self.labels, self.classes = mixture, jnp.asarray(known, jnp.int32), classes

    @property
    def shape(self):
        return self.mixture.shape

    @property
    def null(self) -> int:
        """The label that stands for no condition, the number of classes."""
        return self.classes

    def sample(self, key: PRNGKey) -> tuple[Float[Array, "..."], Int[Array, ""]]:
        """An event and its label."""
        key_component, key_event = jr.split(stream(key, "labelled"))
        k = draw(key_component, self.mixture.log_weights)
        return self.mixture.component_sample(key_event, k), self.labels[k]

    def given(self, label: Shaped[ArrayLike, ""] | None) -> GaussianMixture:
        """The distribution of the events with one label. Raises `ValueError` for a label that does not exist."""
        if label is None:
            return self.mixture
        known = concrete(label)
        if jnp.ndim(label) != 0 or (known is not None and known not in range(self.classes + 1)):
            raise ValueError(
                f"A label must be one integer from 0 to {self.classes - 1}, or {self.null} for none. Got {label}."
            )
        kept = (self.labels == label) | (self.null == label)
        weights = jnp.where(kept, self.mixture.log_weights, -jnp.inf)
        return eqx.tree_at(lambda m: m.log_weights, self.mixture, jax.nn.log_softmax(weights))

    def at(self, path: AbstractPath, t: Time) -> "LabelledMixture":
        return eqx.tree_at(lambda world: world.mixture, self, self.mixture.at(path, t))

    def _moments(self, alpha, sigma, x, args):
        return self.given(args)._moments(alpha, sigma, x, None)


class HierarchicalGaussian(AbstractDensity):
    """`y ~ N(0, I)` and `z given y ~ N(y, std^2 I)`: a world in which guidance has a closed form.

    The condition is `y`, of the event's shape; NaN, the missing value, stands for no condition (`null`), as does
    `None`: the law is then `N(0, (1 + std^2) I)`. Along the linear path the flow guided with the scale `w` ends with
    the standard deviation `std^w (1 + std^2)^((1 - w)/2)`.

    ```python
    world = jf.distributions.HierarchicalGaussian(0.5, (2,))
    assert world.log_prob(jnp.ones(2), jnp.ones(2)) > world.log_prob(jnp.ones(2))
    ```
    """

    gain: Array
    variance: Array
    event: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, std: Numbers, shape: tuple[int, ...] = ()):
        """`std`, the standard deviation given the condition; `shape` the event's. Raises `ValueError` for a `std`
        that is not positive.
        """
        check_kinds(HierarchicalGaussian.__init__, locals())
        self.variance = positive(std, "A standard deviation (std)") ** 2
        if self.variance.shape not in ((), tuple(shape)):
            raise ValueError(f"std must be a number or of the event's shape, {shape}. Got shape {self.variance.shape}.")
        self.gain, self.event = jnp.ones_like(self.variance), event_like(tuple(shape)).shape

    @property
    def shape(self):
        return self.event

    @property
    def null(self) -> Float[Array, "..."]:
        """The condition that stands for none: NaN."""
        return jnp.full(self.event, jnp.nan, self.variance.dtype)

    def sample(self, key: PRNGKey) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """An event and its condition."""
        key_condition, key_event = jr.split(stream(key, "HierarchicalGaussian"))
        y = jr.normal(key_condition, self.event, self.variance.dtype)
        noise = jr.normal(key_event, self.event, self.variance.dtype)
        return self.gain * y + jnp.sqrt(self.variance) * noise, y

    def at(self, path: AbstractPath, t: Time) -> "HierarchicalGaussian":
        alpha, sigma = marginal_weights(path, t)
        marginal = alpha * self.gain, alpha**2 * self.variance + sigma**2
        return eqx.tree_at(lambda h: (h.gain, h.variance), self, marginal)

    def _moments(self, alpha, sigma, x, args: Any):
        y = self.null if args is None else jnp.asarray(args)
        if y.shape != self.event:
            raise ValueError(f"The condition must have the event's shape, {self.event}. Got {y.shape}.")
        y = y.astype(x.dtype)
        mean = jnp.where(jnp.isnan(y), 0, self.gain * y)
        variance = self.variance + jnp.where(jnp.isnan(y), self.gain**2, 0)
        return gaussian_moments(alpha, sigma, x, mean, variance, None, jnp.asarray(1 / (2 * np.pi), x.dtype))
