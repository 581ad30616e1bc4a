"""Sources: how x0, the state at the noise end, is drawn."""

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Num, PyTree

from ._args import masked, present
from ._event import normal_like, size, state_dtype
from ._trainable import frozen
from ._types import Event, Noun, Number, PRNGKey
from ._validate import as_array, concrete


class AbstractSource(Noun):
    """How x0 is drawn: `sample`, and where it is known `log_prob`.

    `args` is the sample's own, `Args(condition, mask=m)` where its event is padded: `m` is nonzero for what is there.

    ```python
    class Ring(jf.AbstractSource):
        coupled = False

        def sample(self, key, like, args=None):
            x = jr.normal(key, like.shape)
            return x / jnp.linalg.norm(x)

    x0 = jf.CondOT(source=Ring()).source.sample(jr.key(0), jnp.zeros(2))
    assert jnp.allclose(jnp.linalg.norm(x0), 1.0)
    ```
    """

    coupled: eqx.AbstractVar[bool]
    """Whether x0 and x1 come as dependent pairs: then the score is not `-noise/sigma`."""

    @abc.abstractmethod
    def sample(self, key: PRNGKey, like: PyTree, args: Any = None) -> Event:
        """One draw, of the shapes and types of `like`."""

    def log_prob(self, x: PyTree, args: Any = None) -> Float[Array, ""]:
        """The log-density at `x`, in nats; by default it raises `ValueError`, since none is known."""
        raise ValueError(
            f"A density must be known at the noise end. Got the source {type(self).__name__}, which has none: give it "
            "a log_prob, or pass start=, a distribution with log_prob."
        )

    def dimension(self, x: PyTree, args: Any = None) -> Num[Array, ""] | Number:
        """The dimension of the space that the draws fill; by default the number of components that are there."""
        return UNPADDED.rank(x, args)


class AbstractNoiseMap(Noun):
    """A linear map `A` of white noise, `x0 = A e` with `e ~ N(0, I)`, for starts and increments alike.

    Where `A` has a kernel, as a projection, densities are those on its image.

    ```python
    class Halved(jf.AbstractNoiseMap):
        def apply(self, x, args=None):
            return x / 2

        def solve(self, x, args=None):
            return 2 * x

        def log_det(self, x, args=None):
            return -x.size * jnp.log(2.0)

        def rank(self, x, args=None):
            return x.size

    source = jf.Normal(Halved())
    assert jnp.allclose(source.log_prob(jnp.zeros(1)), jax.scipy.stats.norm.logpdf(0.0, scale=0.5))
    ```
    """

    @abc.abstractmethod
    def apply(self, x: PyTree, args: Any = None) -> Event:
        """`A x`."""

    @abc.abstractmethod
    def solve(self, x: PyTree, args: Any = None) -> Event:
        """`A^+ x`, the pseudo-inverse."""

    @abc.abstractmethod
    def log_det(self, x: PyTree, args: Any = None) -> Float[Array, ""] | Number:
        """The logarithm of the product of the singular values of `A` that are not zero."""

    @abc.abstractmethod
    def rank(self, x: PyTree, args: Any = None) -> Num[Array, ""] | Number:
        """The rank of `A`, the dimension of its image."""

    def project(self, x: PyTree, args: Any = None) -> Event:
        """`x` in the image of `A`, where states and predictions are; by default `A A^+ x`.

        For an invertible map it is `x`.
        """
        return self.apply(self.solve(x, args), args)


class _Projection(AbstractNoiseMap):
    """An orthogonal projection: only `apply` and `rank` are left."""

    def solve(self, x: PyTree, args: Any = None) -> Event:
        return self.apply(x, args)

    project = solve

    def log_det(self, x: PyTree, args: Any = None) -> Float[Array, ""] | Number:
        return 0.0


class _Unpadded(_Projection):
    """Zero where a mask says that nothing is, whatever stands there."""

    def apply(self, x: PyTree, args: Any = None) -> Event:
        here = present(x, args)
        return x if here is None else jtu.tree_map(lambda a, m: jnp.where(m, a, 0), x, here)

    def rank(self, x: PyTree, args: Any = None) -> Num[Array, ""] | Number:
        here = present(x, args)
        return size(x) if here is None else sum(map(jnp.sum, jtu.tree_leaves(here)))


UNPADDED = _Unpadded()


class AbstractGaussianSource(AbstractSource):
    """The marker of a source that is Gaussian, `x0 = A e`: score, `eta`, churn and density formulas are for these.

    ```python
    class Wide(jf.AbstractGaussianSource):  # x0 ~ N(0, 9 I)
        map = jf.Coloured(9 * jnp.eye(2))
        coupled = False

        def sample(self, key, like, args=None):
            return self.map.apply(jr.normal(key, like.shape), args)

    field = jf.Field(lambda t, x, args: x, jf.CondOT(source=Wide()), "noise")
    assert jnp.allclose(field.score(0.5, jnp.ones(2)), -1 / 9 / 0.5)  # -(A A^T)^-1 noise / sigma
    ```
    """

    map: eqx.AbstractVar[AbstractNoiseMap | None]


class Normal(AbstractGaussianSource):
    """`x0 ~ N(0, I)`, or `A e` with `e ~ N(0, I)` for a linear `map` A.

    With `coupled=True` x0 is Gaussian and comes with its x1, as pairs of a transport plan or of reflow do. Sampling,
    clocks, ODE solvers and `log_prob` hold as before; the score is not `-noise/sigma` any more, so `score`, `eta` and
    churn raise.

    Where `args` is `Args(condition, mask=m)`, the padding of an event is zero, here and in the noise of an SDE, and the
    density is that of what is there.

    ```python
    path = jf.CondOT(source=jf.Normal(jf.ZeroCentre()))  # point clouds with their centre of mass at zero
    x0 = path.source.sample(jr.key(0), jnp.zeros((5, 3)))
    assert jnp.abs(x0.mean(0)).max() < 1e-6
    ```
    """

    map: AbstractNoiseMap | None = frozen()
    coupled: bool = eqx.field(static=True)

    def __init__(self, map: AbstractNoiseMap | None = None, *, coupled: bool = False):
        """`map` the linear map A, by default the identity; `coupled` whether x0 and x1 come as dependent pairs."""
        self.map, self.coupled = map, coupled

    def sample(self, key: PRNGKey, like: PyTree, args: Any = None) -> Event:
        return noise_map(self).apply(normal_like(key, like), args)

    def log_prob(self, x: PyTree, args: Any = None) -> Float[Array, ""]:
        mapped = noise_map(self)
        squares = sum(jnp.sum(leaf**2) for leaf in jtu.tree_leaves(mapped.solve(x, args)))
        log_det = mapped.log_det(x, args)
        half = math.log(2 * math.pi) / 2
        return jnp.asarray(-squares / 2 - self.dimension(x, args) * half - log_det, state_dtype(x))

    def dimension(self, x: PyTree, args: Any = None) -> Num[Array, ""] | Number:
        return noise_map(self).rank(x, args)


class Given(AbstractSource):
    """The source of pairs that come with the data: training takes `x0=`, sampling a start. Use the object `GIVEN`.

    ```python
    field = jf.Field(lambda t, x, args: x, jf.CondOT(source=jf.GIVEN), "velocity")
    assert jf.matching_loss(field, jr.key(0), jnp.ones(2), x0=jnp.zeros(2)).shape == ()
    ```
    """

    coupled: ClassVar[bool] = True

    def sample(self, key: PRNGKey, like: PyTree, args: Any = None) -> Event:
        raise ValueError(
            "With the source GIVEN, x0 must come with the data. Got none: pass x0= to matching_loss; carry a state "
            "with jflow.decode(field, x0), many with jflow.batched, or give sample start=, a distribution of x0."
        )


GIVEN = Given()
"""Pairs come with the data: `CondOT(source=jf.GIVEN)`."""


class ZeroCentre(_Projection):
    """The projection of point clouds `(n, d)` to zero centre of mass: `x - mean(x)` over the points.

    Where `args` is `Args(condition, mask=m)`, `m` of shape `(n,)` marks the points there are; the others are zero. The
    rank is `(points - 1) d`. A cloud without points is not finite.

    Source: Köhler, Klein & Noé 2020, arXiv:2006.02425, section 5; Hoogeboom et al. 2022, arXiv:2203.17003.

    ```python
    x = jf.ZeroCentre().apply(jr.normal(jr.key(0), (4, 3)), jf.Args(mask=jnp.array([1, 1, 1, 0])))
    assert jnp.abs(x.sum(0)).max() < 1e-6 and (x[3] == 0).all()
    ```
    """

    def apply(self, x: PyTree, args: Any = None) -> Event:
        def centred(a, here=None):
            if here is None:
                return a - jnp.mean(a, axis=0, keepdims=True)
            mean = jnp.sum(jnp.where(here, a, 0), axis=0, keepdims=True) / jnp.sum(here, axis=0, keepdims=True)
            return jnp.where(here, a - mean.astype(a.dtype), 0)

        here = present(x, args)
        return jtu.tree_map(centred, x) if here is None else jtu.tree_map(centred, x, here)

    def rank(self, x: PyTree, args: Any = None) -> Num[Array, ""] | Number:
        return UNPADDED.rank(x, args) - sum(a.size // a.shape[0] for a in jtu.tree_leaves(x))


class Coloured(AbstractNoiseMap):
    """Noise of a covariance `L L^T`: `A x = L x` on the event as one vector, `L` its lower Cholesky factor.

    Where `args` is `Args(condition, mask=m)`, the components that are there have their own block of the covariance.

    ```python
    cov = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    path = jf.CondOT(source=jf.Normal(jf.Coloured(cov)))
    assert path.source.sample(jr.key(0), jnp.zeros(2)).shape == (2,)
    ```
    """

    covariance: Float[Array, "d d"] = frozen()

    def __init__(self, covariance: ArrayLike):
        """`covariance` a symmetric positive definite matrix over the components of the event.

        Raises `ValueError` for another one.
        """
        self.covariance = as_array(covariance, "A covariance", float)
        known = concrete(self.covariance)
        why = None
        if self.covariance.ndim != 2 or self.covariance.shape[0] != self.covariance.shape[1]:
            why = f"shape {self.covariance.shape}"
        elif known is not None and not np.allclose(known, known.T, rtol=1e-4, atol=1e-6 * np.abs(known).max()):
            why = "one that is not symmetric"
        elif known is not None and not np.linalg.eigvalsh(known).min() > 0:
            why = "one with an eigenvalue that is not positive"
        if why is not None:
            raise ValueError(
                f"A covariance must be a symmetric positive definite matrix over the event's components. Got {why}."
            )

    def _factor(self, x, args):
        flat, unravel = ravel_pytree(UNPADDED.apply(x, args))
        if flat.shape[0] != self.covariance.shape[0]:
            n = self.covariance.shape[0]
            raise ValueError(
                f"The event must have as many components as the covariance has rows, {n}. Got {len(flat)}."
            )
        cov = self.covariance.astype(flat.dtype)
        if masked(args) is not None:  # the identity for the padding, which is zero
            here, _ = ravel_pytree(present(x, args))
            cov = jnp.where(here[:, None] & here[None], cov, jnp.eye(*cov.shape, dtype=cov.dtype))
        return jnp.linalg.cholesky(cov), flat, unravel

    def apply(self, x: PyTree, args: Any = None) -> Event:
        factor, flat, unravel = self._factor(x, args)
        return unravel(jnp.matmul(factor, flat, precision=jax.lax.Precision.HIGHEST))

    def solve(self, x: PyTree, args: Any = None) -> Event:
        factor, flat, unravel = self._factor(x, args)
        return unravel(jsp.linalg.solve_triangular(factor, flat, lower=True))

    def project(self, x: PyTree, args: Any = None) -> Event:
        return UNPADDED.apply(x, args)

    def log_det(self, x: PyTree, args: Any = None) -> Float[Array, ""] | Number:
        return jnp.sum(jnp.log(jnp.diag(self._factor(x, args)[0])))

    def rank(self, x: PyTree, args: Any = None) -> Num[Array, ""] | Number:
        return UNPADDED.rank(x, args)


def noise_map(source: AbstractSource) -> AbstractNoiseMap:
    """The linear map of a Gaussian source; for white noise and other sources the identity on what is there."""
    return (source.map if isinstance(source, AbstractGaussianSource) else None) or UNPADDED


def covariance(noise_map: AbstractNoiseMap, x: PyTree, args: Any) -> Event:
    """`A A^T x`."""
    return noise_map.apply(_transposed(noise_map.apply, x, args), args)


def precision(noise_map: AbstractNoiseMap, x: PyTree, args: Any) -> Event:
    """`(A A^T)^+ x`."""
    return _transposed(noise_map.solve, noise_map.solve(x, args), args)


def _transposed(linear, x, args):
    return jax.linear_transpose(lambda y: linear(y, args), x)(x)[0]


def has_score(source: AbstractSource) -> bool:
    """Whether the score is `-noise/sigma`: for Gaussian sources whose x0 is independent of x1."""
    return isinstance(source, AbstractGaussianSource) and not source.coupled


def check_score(source: AbstractSource, what: str) -> None:
    """Raises `ValueError` where the score is not `-noise/sigma`."""
    if not has_score(source):
        why = "is coupled to the data" if isinstance(source, AbstractGaussianSource) else "is not Gaussian"
        raise ValueError(
            f"{what} must have a Gaussian source that is independent of the data, for only then the score is "
            f"-noise/sigma. Got {type(source).__name__}, which {why}: sample the ODE, or train a score for diffusion=."
        )
