"""What multistep methods share: a memory of earlier right-hand sides, and a polynomial through them."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, PyTree

from .._clock import AbstractClock, ThetaClock
from .._misc import combine


class History(eqx.Module):
    """Earlier times of the clock and the right-hand sides there, the latest first, and how many are known."""

    count: Array
    nodes: tuple[Array, ...]
    slopes: tuple[PyTree, ...]


class AbstractMultistep(dfx.AbstractItoSolver[History]):
    """A step along the mean of a polynomial in `xi(tau)` through the latest right-hand sides, one new one a step:

        u' = u + (tau' - tau) mean of P + noise,   P(xi_j) = rhs_j   for the latest `points` of them.

    A subclass says what `xi` is: the time of the clock itself (Adams-Bashforth), or its logarithm (exponential).
    The first steps take the points there are, and so does a step from or to an infinite `xi`. The weights come from
    the times of the steps, in their type: a new grid of the same length is no new program, and has a gradient.
    """

    points: eqx.AbstractVar[int]
    """Right-hand sides that one step takes into account."""
    clock: eqx.AbstractVar[AbstractClock | None]
    """The clock the method belongs to; `None` for any."""

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    @abc.abstractmethod
    def gap(self, t0: Float[Array, ""], t1: Float[Array, ""]) -> Float[Array, ""]:
        """`xi(t1) - xi(t0)`."""

    @abc.abstractmethod
    def moments(self, gap: Float[Array, ""]) -> tuple[Float[Array, ""], ...]:
        """The means over a step from `t0` of `(xi - xi(t0))^k`, `k = 1, ..., points - 1`."""

    @abc.abstractmethod
    def finite(self, t: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether `xi(t)` is finite."""

    def init(self, terms, t0, t1, y0, args):
        past = self.points - 1
        node = jnp.asarray(t0, jnp.result_type(t0, float))
        zeros = jtu.tree_map(jnp.zeros_like, y0)
        return History(jnp.zeros((), jnp.int32), (node,) * past, (zeros,) * past)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        noisy = isinstance(terms, dfx.MultiTerm)
        vf = terms.vf(t0, y0, args)
        slope = vf[0] if noisy else vf
        mean, state = self._mean(t0, t1, slope, solver_state, made_jump)
        increment = terms.prod((mean, *vf[1:]) if noisy else mean, terms.contr(t0, t1))
        y1 = combine((1, y0), (1, increment))
        return y1, None, {"y0": y0, "y1": y1}, state, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def _mean(self, t0, t1, slope, history, made_jump):
        """The mean of the polynomial over the step, and the history with this step's right-hand side."""
        past = self.points - 1
        if past == 0:
            return slope, history
        inside = self.finite(t0) & self.finite(t1)
        known = jnp.where(inside & ~jnp.asarray(made_jump), history.count, 0)
        start, stop = jnp.where(inside, t0, 1), jnp.where(inside, t1, 2)
        step = self.gap(start, stop)
        gaps, later = [], start
        for j, node in enumerate(history.nodes, 1):
            node = jnp.where(known >= j, node, later)
            gaps.append(jnp.where(known >= j, self.gap(node, later), step))
            later = node
        weights = newton_weights(self.moments(step), gaps, known)
        changes = [combine((1, old), (-1, slope)) for old in history.slopes]
        mean = combine((1, slope), *zip(weights, changes, strict=True))
        count = jnp.where(self.finite(t0), jnp.minimum(jnp.where(made_jump, 0, history.count) + 1, past), 0)
        nodes = (jnp.asarray(t0, history.nodes[0].dtype), *history.nodes[:-1])
        return mean, History(count.astype(jnp.int32), nodes, (slope, *history.slopes[:-1]))


def newton_weights(moments: tuple[Array, ...], gaps: list[Array], known: Array) -> list[Array]:
    """Weights `c_j` with `mean of P = f_0 + sum_j c_j (f_j - f_0)`, for `P` through the `known` latest of `f_0`, `f_1`,
    ..., whose nodes are `gaps` apart.

    Newton's form: `P = sum_k f[0..k] prod_{j<k} (v + d_j)` with `v = xi - xi_0`, `d_j = xi_0 - xi_j`; the divided
    difference `f[0..k]` has at `f_j` the weight `1 / prod_{i != j} (xi_j - xi_i)`.
    """
    distances = [jnp.zeros_like(gaps[0])]
    for gap in gaps:
        distances.append(distances[-1] + gap)
    weights = [jnp.zeros_like(gap) for gap in gaps]
    product = [jnp.ones_like(gaps[0])]  # coefficients of the product, by rising powers of v
    for k in range(1, len(gaps) + 1):
        lower = [distances[k - 1] * c for c in product] + [jnp.zeros_like(gaps[0])]
        product = [a + b for a, b in zip(lower, [jnp.zeros_like(gaps[0]), *product], strict=True)]
        mean = sum((c * m for c, m in zip(product[1:], moments, strict=False)), jnp.zeros_like(gaps[0]))
        for j in range(1, k + 1):
            others = [distances[i] - distances[j] for i in range(k + 1) if i != j]
            share = mean
            for other in others:
                share = share / other
            weights[j - 1] = weights[j - 1] + jnp.where(known >= k, share, 0)
    return weights


def choose_clock(solver: dfx.AbstractSolver | None, clock: AbstractClock | None, eta: Any) -> AbstractClock | None:
    """The clock to integrate in: the one given, or the one a solver belongs to.

    Raises `ValueError` where these differ, or where the memory of a multistep method would mix levels of noise.
    """
    solver = _unwrapped(solver)
    own = getattr(solver, "clock", None)
    if own is not None:
        if clock is not None and type(clock) is not type(own):
            raise ValueError(
                f"{type(solver).__name__}() is a method of {type(own).__name__}() and brings it along. Got another "
                f"clock, {type(clock).__name__}(): leave out clock=, or take a solver of any clock, as diffrax.Heun()."
            )
        clock = own
    if eta is not None and getattr(solver, "ode_only", False):
        raise ValueError(
            f"{type(solver).__name__}() is a method for the ODE. Got eta={eta}: leave out eta=, or take one with a "
            "stochastic form, as jflow.DPMppSinglestep(order=2) or jflow.DPMpp()."
        )
    remembers = isinstance(solver, AbstractMultistep) and solver.points > 1
    if remembers and callable(eta) and (clock is None or isinstance(clock, ThetaClock)):
        raise ValueError(
            "A multistep method remembers earlier steps in a clock that depends on eta, so one eta holds for the "
            "whole grid. Got eta as a function of t: pass a number, or take a one-step solver, as diffrax.Euler()."
        )
    return clock


def check_same_clock(solver: Any, clock: AbstractClock, what: str) -> None:
    """Raises `ValueError` where a solver belongs to another clock than the one that is integrated in."""
    solver = _unwrapped(solver)
    own = getattr(solver, "clock", None)
    if own is not None and type(own) is not type(clock):
        raise ValueError(
            f"{what} in the time of {type(clock).__name__}(). Got {type(solver).__name__}(), a method of "
            f"{type(own).__name__}(): take a solver of any clock, as diffrax.Heun(), or sample a field in that clock."
        )


def _unwrapped(solver: Any) -> Any:
    """The solver itself, where one like `diffrax.HalfSolver` wraps it."""
    while isinstance(getattr(solver, "solver", None), dfx.AbstractSolver):
        solver = solver.solver
    return solver
