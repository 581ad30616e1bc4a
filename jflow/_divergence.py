"""Divergences of vector fields: exact, and estimated with probes drawn once per solve."""

import abc
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ._event import state_dtype
from ._kinds import check_kinds
from ._types import Noun, PRNGKey
from ._validate import check_count, check_key, stream


class AbstractDivergence(Noun):
    """A way to compute `div f(x) = tr(df/dx)` of one example, of any shape.

    Where the states fill only a subspace, as point clouds with zero centre of mass do, `f` must be projected to it:
    the trace is then that on the subspace.

    ```python
    class Known(jf.AbstractDivergence):  # of a field whose divergence is minus the dimension
        estimates = ()

        def probes(self, key, x):
            return None

        def trace(self, product, flat, probes):
            return -jnp.asarray(flat.size, float)

    assert Known()(lambda x: -x, jnp.ones(3), None)[1] == -3
    ```
    """

    @property
    @abc.abstractmethod
    def estimates(self) -> tuple[int, ...]:
        """Shape of the divergence: `()`, or the number of estimates."""

    @abc.abstractmethod
    def probes(self, key: PRNGKey | None, x: PyTree) -> PyTree:
        """What is drawn once and held fixed during a solve."""

    @abc.abstractmethod
    def trace(self, product: Callable[[Array], Array], flat: PyTree, probes: PyTree) -> Float[Array, "*estimates"]:
        """The trace of a matrix, by its `product` with vectors like `flat`: a scalar, or one estimate a probe."""

    def __call__(
        self, f: Callable[[PyTree], PyTree], x: PyTree, probes: PyTree
    ) -> tuple[PyTree, Float[Array, "*estimates"]]:
        """`f(x)`, and the divergence: a scalar, or one estimate a probe."""
        flat, unravel = ravel_pytree(x)
        y, push = jax.linearize(f, x)
        return y, self.trace(lambda v: ravel_pytree(push(unravel(v)))[0], flat, probes)


class ExactDivergence(AbstractDivergence):
    """The divergence itself, by forward mode: one Jacobian-vector product a component, `chunk` at a time.

    Raises `ValueError` for a `chunk` below 1.

    ```python
    x = jnp.ones(3)
    y, divergence = jf.ExactDivergence()(lambda x: x**2, x, None)
    assert divergence == 6
    ```
    """

    chunk: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        check_count(chunk=self.chunk)

    @property
    def estimates(self):
        return ()

    def probes(self, key, x):
        return None

    def trace(self, product, flat, probes):
        d, chunk = flat.shape[0], min(self.chunk, flat.shape[0])

        def some(start):
            index = start + jnp.arange(chunk)
            basis = index[:, None] == jnp.arange(d)[None]
            return jnp.sum(jnp.where(basis, jax.vmap(product)(basis.astype(flat.dtype)), 0))

        starts = jnp.arange(0, d, chunk)
        if d <= chunk:
            return some(0)
        return lax.scan(lambda total, start: (total + some(start), None), jnp.zeros((), flat.dtype), starts)[0]


class Hutchinson(AbstractDivergence):
    """Hutchinson's estimate, `v . (df/dx) v` for each of the probes `v`, unbiased where `E[v v^T] = I`.

    Each probe has its own accumulator, so the value comes with a standard error.

    Source: Hutchinson 1990; Grathwohl et al. 2019, arXiv:1810.01367, equation 8.

    ```python
    estimate, x = jf.Hutchinson(probes=4), jnp.ones(3)
    y, estimates = estimate(lambda x: x**2, x, estimate.probes(jr.key(0), x))
    assert jnp.allclose(estimates, 6)  # exact where df/dx is diagonal
    ```
    """

    count: int = eqx.field(static=True)
    law: str = eqx.field(static=True)

    def __init__(self, probes: int = 1, *, law: Literal["rademacher", "gaussian"] = "rademacher"):
        """`probes`: how many; `law`: of their components, with signs of the smaller variance.

        Raises `ValueError` for `probes` below 1 or an unknown law.
        """
        check_count(probes=probes)
        check_kinds(Hutchinson.__init__, locals())
        self.count, self.law = probes, law

    @property
    def estimates(self):
        return (self.count,)

    def probes(self, key: PyTree, x):
        check_key(key, "Hutchinson's estimate of a divergence")
        shape = (self.count, ravel_pytree(x)[0].shape[0])
        draw = jr.rademacher if self.law == "rademacher" else jr.normal
        return draw(stream(key, "divergence"), shape, dtype=state_dtype(x))

    def trace(self, product, flat, probes):
        return jnp.sum(jax.vmap(product)(probes) * probes, axis=1)


class HutchPlusPlus(AbstractDivergence):
    """Hutch++: exact on the range of a random sketch, Hutchinson's estimate on the rest.

    `tr(Q^T J Q) + v . P J P v` with `Q` an orthonormal basis of `J S`, `P = I - Q Q^T`, sketch `S` and probes `v` drawn
    once; one estimate a probe, all sharing the sketch. Unbiased for any fixed `Q`, so gradients, unbiased too, take the
    basis as constant: it has no derivative where the rank of `J` is below the sketch.

    Source: Meyer, Musco, Musco & Woodruff 2021, arXiv:2010.09649, algorithm 1.

    ```python
    estimate, x = jf.HutchPlusPlus(sketch=1, probes=2), jnp.ones(3)
    y, estimates = estimate(lambda x: jnp.ones((3, 3)) @ x, x, estimate.probes(jr.key(0), x))
    assert jnp.allclose(estimates, 3, atol=1e-4)  # exact where the sketch has the rank of df/dx
    ```
    """

    sketch: int = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __init__(self, sketch: int = 4, probes: int = 4):
        """`sketch`, `probes`: columns of `S` and number of `v`. Raises `ValueError` for one below 1."""
        check_count(sketch=sketch, probes=probes)
        self.sketch, self.count = sketch, probes

    @property
    def estimates(self):
        return (self.count,)

    def probes(self, key: PyTree, x):
        check_key(key, "The estimate of a divergence by Hutch++")
        d = ravel_pytree(x)[0].shape[0]
        if self.sketch > d:
            raise ValueError(
                f"The sketch of Hutch++ must have at most as many columns as the event has components, {d}. "
                f"Got {self.sketch}: take ExactDivergence(), which costs no more from there on."
            )
        return jr.rademacher(stream(key, "divergence"), (self.sketch + self.count, d), dtype=state_dtype(x))

    def trace(self, product, flat, probes):
        basis, _ = jnp.linalg.qr(lax.stop_gradient(jax.vmap(product)(probes[: self.sketch]).T))
        on_range = jnp.sum(jax.vmap(product)(basis.T) * basis.T)
        rest = probes[self.sketch :]
        rest = rest - (rest @ basis) @ basis.T
        return on_range + jnp.sum(jax.vmap(product)(rest) * rest, axis=1)
