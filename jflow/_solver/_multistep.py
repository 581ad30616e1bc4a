"""What multistep methods share: a memory of earlier right-hand sides, and a polynomial through them."""

import abc
from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._event import combine
from ._traits import AbstractFieldSolver


class History(eqx.Module):
    """What a multistep method remembers of earlier steps.

    - `count`: how many of the entries below are known.
    - `nodes`, `slopes`: earlier times of the clock and the right-hand sides there, the latest first.
    - `base`: with a corrector, the corrected state that the last step began with, plus the noise of that step: the
      corrector adds the mean right-hand side to it. `None` without a corrector.
    """

    count: Array
    nodes: tuple[Array, ...]
    slopes: tuple[PyTree, ...]
    base: PyTree = None


class AbstractMultistep(AbstractFieldSolver, dfx.AbstractItoSolver[History]):
    """A step along the mean of a polynomial in `xi(tau)` through the latest right-hand sides, one new one a step:

        u' = u + (tau' - tau) mean of P + noise,   P(xi_j) = rhs_j   for the latest `points` of them.

    A subclass says what `xi` is: the time of the clock itself (Adams-Bashforth), or its logarithm (exponential).
    The first steps take the points there are, and so does a step from or to an infinite `xi`. The weights come from
    the times of the steps, in their type: a new grid of the same length is no new program, and has a gradient.

    With a corrector the right-hand side at the predicted state `u'` first corrects the step that led there, for the
    same noise, and the next step starts from the corrected state `v'`, which is never evaluated:

        v' = v + (tau' - tau) mean of Q + noise,   Q through rhs(u') and the latest ones before it, `corrected` in all.

    So a step still takes one right-hand side. The state that it returns (and `SaveAt` shows) is the predicted one, and
    the last one is never corrected. A step from an infinite `xi` is corrected by the mean of its ends.

    Two steps of `points = corrected = 2`, with `xi = tau`, equal steps `h` and the noises `z_0`, `z_1`:

        step 0  f_0 = rhs(tau_0, u_0)              nothing is known before: the corrector moves nothing, v_0 = u_0
                u_1 = v_0 + h f_0 + z_0            the predictor is Euler's
                keeps tau_0, f_0, count 1 and base = v_0 + z_0
        step 1  f_1 = rhs(tau_1, u_1)              the one new right-hand side, at the predicted state
                v_1 = base + h (f_0 + f_1)/2       the corrector repeats step 0, with f_1 and the same z_0
                u_2 = v_1 + h (3 f_1 - f_0)/2 + z_1  the predictor starts from v_1
                keeps tau_1, f_1, count 1 and base = v_1 + z_1

    `memory = 1` here: step 1 needs `f_0` twice, and nothing older.

    ```python
    class Bashforth(jf.AbstractMultistep):  # Adams-Bashforth of order two: xi is the time of the clock
        points = 2
        corrected = 0

        def order(self, terms):
            return 2

        def gap(self, t0, t1):
            return t1 - t0

        def moments(self, gap, n, degree):
            return tuple(gap**k / (k + 1) for k in range(1, n + 1))

        def finite(self, t):
            return jnp.isfinite(t)

    mine, adams = (
        jf.solve(lambda t, x, args: -x, jnp.ones(1), jf.FixedSteps(jf.UniformGrid(20), solver)).x
        for solver in (Bashforth(), jf.Adams(2))
    )
    assert jnp.allclose(mine, adams)
    ```
    """

    points: eqx.AbstractVar[int]
    """Right-hand sides that a step takes into account."""
    corrected: eqx.AbstractVar[int]
    """Right-hand sides that the corrector takes into account; 0 for no corrector."""

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

    def nodes(self) -> tuple[float, ...] | None:
        """One right-hand side, at the start of the step."""
        return (0.0,)

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
            # Before the first step `nodes[0]` is `t0` itself: that step has no length, and is corrected by nothing.
            change = drift.prod(self._corrector(t0, slope, history), drift.contr(history.nodes[0], t0))
            better = combine((1, history.base), (1, change))
            start = jtu.tree_map(lambda a, b: jnp.where(made_jump, a, b), y0, better)
            base = combine((1, start), *noise)
        change = drift.prod(self._predictor(t0, t1, slope, history), drift.contr(t0, t1))
        y1 = combine((1, start), (1, combine((1, change), *noise)))
        return y1, None, {"y0": y0, "y1": y1}, self._remember(t0, slope, history, base), dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def _predictor(self, t0, t1, slope, history):
        """The mean right-hand side of the step from `t0`, through `slope` there and the ones before."""
        degree = self.points - 1
        known = jnp.where(self.finite(t0) & self.finite(t1), jnp.minimum(history.count, degree), 0)
        return self._mean(t0, t1, history.nodes[:degree], (slope, *history.slopes[:degree]), known)

    def _corrector(self, t1, slope, history):
        """The mean right-hand side of the last step, to `t1`, with `slope` there, which is newly known."""
        degree, (first, *before) = self.corrected - 1, history.slopes
        known = jnp.where(self.finite(t1), jnp.minimum(history.count, degree), 0)
        nodes, slopes = (t1, *history.nodes[1:degree]), (first, slope, *before[: degree - 1])
        return self._mean(history.nodes[0], t1, nodes, slopes, known, alone=0.5)

    def _mean(self, start, stop, nodes, slopes, known, alone=0.0):
        """The mean over the step from `start` to `stop` of the polynomial through `slopes[0]` at `start` and, at
        `nodes`, the `known` first of the other slopes.

        Where none of these is known, the mean is `slopes[0] + alone (slopes[1] - slopes[0])`.
        """
        any_known = known > 0
        # If no slope is known, the weights do not depend on the ends. But the `xi` of an end may be infinite, as the
        # logarithm of 0, and infinity times 0 is NaN, in a derivative too. So the ends are replaced by 1 and 2 here,
        # two different times with a finite `xi`.
        start, stop = jnp.where(any_known, start, 1), jnp.where(any_known, stop, 2)
        # For the same reason a node that is not known is moved to the start. No weight divides by its distance.
        distances = [self.gap(jnp.where(known >= j, node, start), start) for j, node in enumerate(nodes, 1)]
        weights = newton_weights(self.moments(self.gap(start, stop), len(nodes), known), distances, known)
        if weights:
            weights[0] = jnp.where(any_known, weights[0], alone)
        changes = [combine((1, other), (-1, slopes[0])) for other in slopes[1:]]
        return combine((1, slopes[0]), *zip(weights, changes, strict=True))

    def _remember(self, t0, slope, history, base):
        """The history with this step's right-hand side."""
        if not self.memory:
            return history
        count = jnp.where(self.finite(t0), jnp.minimum(history.count + 1, self.memory), 0).astype(jnp.int32)
        nodes = (jnp.asarray(t0, history.nodes[0].dtype), *history.nodes[:-1])
        return History(count, nodes, (slope, *history.slopes[:-1]), base)


def newton_weights(moments: tuple[Array, ...], distances: list[Array], known: Array) -> list[Array]:
    """Weights `c_j` with `mean of P = f_0 + sum_j c_j (f_j - f_0)`, for `P` through `f_0` and the `known` first of
    `f_1`, `f_2`, ..., whose nodes lie `d_j = xi_0 - xi_j` before that of `f_0`.

    Newton's form: `P = sum_k f[0..k] prod_{j<k} (v + d_j)` with `v = xi - xi_0`; the divided difference `f[0..k]` has
    at `f_j` the weight `1 / prod_{i != j} (xi_j - xi_i)`. The weight of an unknown slope is zero.
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
        counts = known >= k
        for j in range(1, k + 1):
            others = [distances[i] - distances[j] for i in range(k + 1) if i != j]
            share = mean
            for other in others:
                share = share / jnp.where(counts, other, 1)
            weights[j - 1] = weights[j - 1] + jnp.where(counts, share, 0)
    return weights
