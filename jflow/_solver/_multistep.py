"""What multistep methods share: a memory of earlier right-hand sides, and a polynomial through them."""

import abc
from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._clock import AbstractClock
from .._misc import combine


class History(eqx.Module):
    """Earlier times of the clock and the right-hand sides there, the latest first, and how many are known; for a
    corrector also the mended state that the last step began with, moved by the noise of that step.
    """

    count: Array
    nodes: tuple[Array, ...]
    slopes: tuple[PyTree, ...]
    base: PyTree = None


class AbstractMultistep(dfx.AbstractItoSolver[History]):
    """A step along the mean of a polynomial in `xi(tau)` through the latest right-hand sides, one new one a step:

        u' = u + (tau' - tau) mean of P + noise,   P(xi_j) = rhs_j   for the latest `points` of them.

    A subclass says what `xi` is: the time of the clock itself (Adams-Bashforth), or its logarithm (exponential).
    The first steps take the points there are, and so does a step from or to an infinite `xi`. The weights come from
    the times of the steps, in their type: a new grid of the same length is no new program, and has a gradient.

    With a corrector the right-hand side at the predicted state `u'` first mends the step that led there, for the same
    noise, and the next step starts from the mended state `v'`, which is never evaluated:

        v' = v + (tau' - tau) mean of Q + noise,   Q through rhs(u') and the latest ones before it, `corrected` in all.

    So a step still takes one right-hand side, the state that it returns (and `SaveAt` shows) is the predicted one, and
    the last one is never mended. A step from an infinite `xi` is mended by the mean of its ends.
    """

    points: eqx.AbstractVar[int]
    """Right-hand sides that a step takes into account."""
    corrected: eqx.AbstractVar[int]
    """Right-hand sides that the corrector takes into account; 0 for no corrector."""
    clock: eqx.AbstractVar[AbstractClock | None]
    """The clock the method belongs to; `None` for any."""
    ode_only: eqx.AbstractVar[bool]
    """Whether the method has no stochastic form."""

    calls: ClassVar[int] = 1
    error_estimate: ClassVar[bool] = False
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    @abc.abstractmethod
    def gap(self, t0: Float[Array, ""], t1: Float[Array, ""]) -> Float[Array, ""]:
        """`xi(t1) - xi(t0)`."""

    @abc.abstractmethod
    def moments(self, gap: Float[Array, ""], n: int, degree: Int[Array, ""]) -> tuple[Float[Array, ""], ...]:
        """The means over a step from `t0` of `(xi - xi(t0))^k`, `k = 1, ..., n`; those of higher power than the degree
        of the polynomial are not used.
        """

    @abc.abstractmethod
    def finite(self, t: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether `xi(t)` is finite."""

    @property
    def memory(self) -> int:
        """How many earlier right-hand sides are kept."""
        return max(self.points, self.corrected) - 1

    def init(self, terms, t0, t1, y0, args):
        node = jnp.asarray(t0, jnp.result_type(t0, float))
        zeros = jtu.tree_map(jnp.zeros_like, y0)
        base = y0 if self.corrected else None
        return History(jnp.zeros((), jnp.int32), (node,) * self.memory, (zeros,) * self.memory, base)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        drift, *noises = terms.terms if isinstance(terms, dfx.MultiTerm) else (terms,)
        slope = drift.vf(t0, y0, args)
        noise = [(1, term.prod(term.vf(t0, y0, args), term.contr(t0, t1))) for term in noises]
        count = jnp.where(made_jump, 0, solver_state.count)
        history = eqx.tree_at(lambda h: h.count, solver_state, count)
        start, base = y0, None
        if self.corrected:
            change = drift.prod(self._mended_mean(t0, slope, history), drift.contr(history.nodes[0], t0))
            mended = combine((1, history.base), (1, change))
            start = jtu.tree_map(lambda a, b: jnp.where(made_jump, a, b), y0, mended)
            base = combine((1, start), *noise)
        change = drift.prod(self._mean(t0, t1, slope, history), drift.contr(t0, t1))
        y1 = combine((1, start), (1, combine((1, change), *noise)))
        return y1, None, {"y0": y0, "y1": y1}, self._remember(t0, slope, history, base), dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def _mean(self, t0, t1, slope, history):
        """The mean of the polynomial over the step that begins at `t0`."""
        degree = self.points - 1
        known = jnp.where(self.finite(t0) & self.finite(t1), jnp.minimum(history.count, degree), 0)
        start, stop = jnp.where(known > 0, t0, 1), jnp.where(known > 0, t1, 2)
        distances = self._distances(start, stop, history.nodes[:degree], known)
        weights = newton_weights(self.moments(self.gap(start, stop), degree, known), distances, known)
        return _around(slope, weights, history.slopes[:degree])

    def _mended_mean(self, t1, slope, history):
        """The mean of the corrector's polynomial over the last step, that to `t1`, where `slope` is newly known."""
        degree, t0 = self.corrected - 1, history.nodes[0]
        known = jnp.where(self.finite(t1), jnp.minimum(history.count, degree), 0)
        start, stop = jnp.where(known > 0, t0, 1), jnp.where(known > 0, t1, 2)
        step = self.gap(start, stop)
        distances = [-step, *self._distances(start, stop, history.nodes[1:degree], known - 1)]
        first, *weights = newton_weights(self.moments(step, degree, known), distances, known)
        weights = [jnp.where(known > 0, first, 0.5), *weights]
        return _around(history.slopes[0], weights, (slope, *history.slopes[1:degree]))

    def _distances(self, start, stop, nodes, known):
        """`xi(start) - xi_j` for the nodes before `start`; those that are not known are a step apart."""
        total, later, distances = jnp.zeros_like(start), start, []
        for j, node in enumerate(nodes, 1):
            node = jnp.where(known >= j, node, later)
            total = total + jnp.where(known >= j, self.gap(node, later), self.gap(start, stop))
            distances.append(total)
            later = node
        return distances

    def _remember(self, t0, slope, history, base):
        """The history with this step's right-hand side."""
        if not self.memory:
            return history
        count = jnp.where(self.finite(t0), jnp.minimum(history.count + 1, self.memory), 0).astype(jnp.int32)
        nodes = (jnp.asarray(t0, history.nodes[0].dtype), *history.nodes[:-1])
        return History(count, nodes, (slope, *history.slopes[:-1]), base)


def _around(first, weights, others):
    """`f_0 + sum_j c_j (f_j - f_0)`."""
    changes = [combine((1, other), (-1, first)) for other in others]
    return combine((1, first), *zip(weights, changes, strict=True))


def newton_weights(moments: tuple[Array, ...], distances: list[Array], known: Array) -> list[Array]:
    """Weights `c_j` with `mean of P = f_0 + sum_j c_j (f_j - f_0)`, for `P` through `f_0` and the `known` first of
    `f_1`, `f_2`, ..., whose nodes lie `d_j = xi_0 - xi_j` before that of `f_0`.

    Newton's form: `P = sum_k f[0..k] prod_{j<k} (v + d_j)` with `v = xi - xi_0`; the divided difference `f[0..k]` has
    at `f_j` the weight `1 / prod_{i != j} (xi_j - xi_i)`.
    """
    if not distances:
        return []
    zero = jnp.zeros_like(distances[0])
    distances = [zero, *distances]
    weights = [zero] * (len(distances) - 1)
    product = [jnp.ones_like(zero)]  # coefficients of the product, by rising powers of v
    for k in range(1, len(distances)):
        lower = [distances[k - 1] * c for c in product] + [zero]
        product = [a + b for a, b in zip(lower, [zero, *product], strict=True)]
        mean = sum((c * m for c, m in zip(product[1:], moments, strict=False)), zero)
        for j in range(1, k + 1):
            others = [distances[i] - distances[j] for i in range(k + 1) if i != j]
            share = mean
            for other in others:
                share = share / other
            weights[j - 1] = weights[j - 1] + jnp.where(known >= k, share, 0)
    return weights
