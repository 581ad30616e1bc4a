"""Steps that are maps: the log-determinant of a step, its inverse, and both along a grid.

A step `x' = F(x)` without noise and memory changes a density by `log p'(F(x)) = log p(x) - log |det dF/dx|`. The `k`
steps of a grid compose to one map, so the density of what is sampled is exact, whatever the flow that was meant: it is
not the density of the ODE.

The formula needs `F` to be injective. `X_{s,s}` is the identity, so the determinant of a flow map starts at 1, and
where it is negative the map has folded: the same `x'` has a second preimage, and the density there is a sum of which
one term is known. Newton's method with a line search finds the preimage of every point where the map has no singular
derivative. So a negative determinant and a search that fails mark a fold. A second preimage may exist where neither
happens: the search is then repeated without the preimage that it found (deflation).

Where the source fills a subspace, with the projection `P` to it, the map is `P F(P x) + (x - P x)`, the identity beside
the subspace, so that its determinant is the one within.

Source: Farrell, Birkisson & Funke 2015, SIAM J. Sci. Comput. 37, section 2 (deflation); Ubaru, Chen & Saad 2017, SIAM
J. Matrix Anal. Appl. 38 (Lanczos quadrature of a log-determinant).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.scipy as jsp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._divergence import AbstractDivergence, ExactDivergence
from .._event import combine, state_dtype
from .._rule import AbstractStepRule
from .._source import noise_map
from .._types import PRNGKey, Solution

DENSE = 128
"""Up to how many components a linear system is solved by its matrix, and above by GMRES."""
LANCZOS = 32
"""How many Lanczos steps an estimate of a log-determinant takes, at most the number of components."""
SEARCH = 100
"""How many evaluations a search for a preimage takes at most."""
SECOND = 25
"""How many evaluations a search for a second preimage takes at most."""


class Carried(NamedTuple):
    """The state, the log-determinant so far, the evaluations of a step, and whether the map was seen to fold."""

    x: PyTree
    total: Array
    calls: Array
    folds: Array


class MapRule(AbstractStepRule):
    """The steps of a rule that is a map, or of its inverse, with the log-determinant beside the state.

    `divergence` takes the trace of the logarithm: `None` leaves the density out, as `encode` does. A forward step costs
    one evaluation. `total` has the sign of an integral of the divergence along the solve.
    """

    rule: AbstractStepRule
    field: PyTree
    divergence: AbstractDivergence | None
    probes: PyTree
    forward: bool = eqx.field(static=True)

    def step(self, field, row, x, state, noise, args):
        x, total, calls, folds = x
        step = step_of(self.rule, self.field, row, args)
        if not self.forward:
            x, tried, found = inverse(step, x, unique=self.divergence is not None and not self.divergence.estimates)
            calls, folds = calls + tried, folds | ~found
        if self.divergence is None:
            return Carried(x, total, calls, folds), state
        after, sign, values = log_det(step, x, self.divergence, self.probes)
        x, total = (after, total + values) if self.forward else (x, total - values)
        return Carried(x, total, calls + 1, folds | (sign < 0)), state

    def nfe(self, field, args):
        return 0  # the state counts them

    def log_scale(self, t):
        return 0.0  # its state is the path's own

    def visible(self, x):
        return x.x

    def along(self, steps: Any) -> Any:
        """The steps with this rule in place of theirs, from the last to the first if they are inverted."""
        times, rows = steps.times, steps.rows
        if not self.forward:
            times, rows = jtu.tree_map(lambda a: a[::-1], (times, rows))
        return dataclasses.replace(steps, rule=self, field=None, times=times, rows=rows)

    def finished(self, solution: Solution, each: int | None) -> Solution:
        """The solution of the state, as the engine's own equations have it; `each` the evaluations of a step."""
        x, total, calls, folds = solution.x
        done: Any = solution.status
        return dataclasses.replace(
            solution,
            x=x if self.divergence is None else (x, total),
            status=jnp.where((done == 0) & folds, 4, done),
            nfe=None if each is None else each * calls,
        )


def check_is_map(rule: AbstractStepRule, end: str, what: str) -> AbstractStepRule:
    """The rule; raises `ValueError` where its steps are not maps to the end of the grid."""
    if not rule.is_map or end == "denoise":
        got = "end='denoise'" if rule.is_map else f"{rule!r}, which draws, remembers, or does not say is_map = True"
        raise ValueError(
            f"{what} must have a diffrax solver, or a step that is a map, as jflow.Jump(). Got {got}: leave out what "
            "draws, as renoise=, and end=."
        )
    return rule


def carried(
    rule: AbstractStepRule, field: PyTree, x: PyTree, divergence: Any, key: PRNGKey | None, forward: bool
) -> tuple[MapRule, Carried]:
    """The steps of a rule beside their log-determinant, and the first state; `divergence=False` for the state alone."""
    divergence = ExactDivergence() if divergence is None else divergence or None
    probes, estimates = (divergence.probes(key, x), divergence.estimates) if divergence else (None, ())
    total, calls, folds = jnp.zeros(estimates, state_dtype(x)), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return MapRule(rule, field, divergence, probes, forward), Carried(x, total, calls, folds)


def step_of(rule: AbstractStepRule, field: PyTree, row: PyTree, args: Any) -> Callable[[PyTree], PyTree]:
    """The step of a row as a function of the state, the identity beside the space of the source.

    Raises `ValueError` for a rule whose steps are no maps.
    """
    check_is_map(rule, "stop", "A density on a grid")
    mapped = noise_map(field.path.source)

    def step(x):
        inside = mapped.project(x, args)
        after = mapped.project(rule.step(field, row, inside, None, None, args)[0], args)
        return combine((1, after), (1, x), (-1, inside))

    return step


def log_det(
    step: Callable[[PyTree], PyTree], x: PyTree, divergence: AbstractDivergence | None = None, probes: PyTree = None
) -> tuple[PyTree, Array, Array]:
    """The state after the step, the sign of `det J` of its derivative `J`, and `log |det J|`, or estimates of that.

    A divergence without estimates takes the exact value, by the whole matrix. Another one takes the trace of
    `log(J^T J) / 2`, whose product with a vector is `LANCZOS` steps of Golub and Kahan: exact up to as many components.
    For larger events it has an error that grows with the condition of `J` and is in no standard error. The sign is not
    known then: it is 1.
    """
    flat, unravel = ravel_pytree(x)
    after, push = jax.linearize(step, x)

    def product(v):
        return ravel_pytree(push(unravel(v)))[0]

    if divergence is None or not divergence.estimates:
        eye = jnp.eye(flat.size, dtype=flat.dtype)
        rows = jax.vmap(product)(eye) if flat.size <= 64 else lax.map(product, eye, batch_size=64)  # J transposed
        sign, value = jnp.linalg.slogdet(rows)
        return after, sign, value
    pull = jax.linear_transpose(product, flat)
    values = divergence.trace(lambda v: _log_product(product, lambda u: pull(u)[0], v), flat, probes)
    return after, jnp.ones((), flat.dtype), values


def _log_product(product, pull, v):
    """`log(J^T J) v / 2`, by Golub-Kahan bidiagonalisation `J Q = P B` from `v`, with both bases kept orthogonal."""
    m, eps = min(LANCZOS, v.size), jnp.finfo(v.dtype).eps
    length = jnp.linalg.norm(v)

    def unit(u, *bases):
        size = jnp.linalg.norm(u)
        for _ in range(2):  # twice is enough
            for basis in bases:
                u = u - basis.T @ (basis @ u)
        rest = jnp.linalg.norm(u)
        gone = rest <= 4 * eps * size
        return jnp.where(gone, 0, u / jnp.where(gone, 1, rest)), jnp.where(gone, 0, rest)

    def body(carry, i):
        left, right, q = carry
        right = right.at[i].set(q)
        p, alpha = unit(product(q), left)
        left = left.at[i].set(p)
        after, beta = unit(pull(p), right)
        # a basis that has closed goes on with zeros, and the identity in the place of B
        return (left, right, after), (jnp.where((q == 0).all(), 1, alpha), beta)

    empty = jnp.zeros((m, v.size), v.dtype)
    (_, right, _), (alpha, beta) = lax.scan(body, (empty, empty, v / jnp.where(length == 0, 1, length)), jnp.arange(m))
    _, values, rows = jnp.linalg.svd(jnp.diag(alpha) + jnp.diag(beta[:-1], 1))
    return length * (right.T @ (rows.T @ (jnp.log(values) * rows[:, 0])))


def inverse(step: Callable[[PyTree], PyTree], y: PyTree, *, unique: bool = False) -> tuple[PyTree, Array, Array]:
    """The state that a step carries to `y`, the evaluations it took, and whether it was found.

    Newton's method from `y` with a line search; each evaluation is one of the step and its derivative. `unique` looks
    for a second preimage and says `False` where there is one. The derivative is that of the implicit function.
    """
    flat, unravel = ravel_pytree(y)

    def residual(x):
        return ravel_pytree(step(unravel(x)))[0] - flat

    def search(residual, start):
        x, tried, found = _newton(residual, start, flat, SEARCH)
        if unique:
            other, more, second = _newton(residual, start, flat, SECOND, x)
            x, tried, found = jnp.where(found, x, other), tried + more, found ^ second
        return x, (tried.astype(x.dtype), found.astype(x.dtype))  # a root's derivative takes no integers

    x, (tried, found) = lax.custom_root(residual, lax.stop_gradient(flat), search, _solved, has_aux=True)
    return unravel(x), tried.astype(jnp.int32), found > 0


def _newton(residual, start, y, most, known=None):
    """A root, the evaluations, and whether it is one. With `known` a root that is another one, by Newton's method for
    the residual times `1 + |y|^2 / |x - known|^2`.
    """
    eps, unit = jnp.finfo(start.dtype).eps, jnp.mean(y**2) + jnp.finfo(start.dtype).tiny

    def at(x):
        value, push = jax.linearize(residual, x)
        move, size = -_solved(push, value), _rms(value)
        if known is None:
            return size, size, move
        off = x - known
        square = jnp.mean(off**2) + jnp.finfo(start.dtype).tiny
        factor = 1 + unit / square
        slope = -2 * unit * jnp.mean(off * move) / square**2 / factor
        return factor * size, size, move / (1 - slope)

    def close(x, size, factor):
        return size <= factor * eps * (_rms(x) + _rms(y))

    def more(carry):
        x, _, size, _, share, n, stuck = carry
        return ~close(x, size, 4) & ~(stuck & close(x, size, 1000)) & (share > 1e-3) & (n < most)

    def body(carry):
        x, merit, size, move, share, n, _ = carry
        there = x + share * move
        new = at(there)
        better = new[0] <= (1 - 1e-4 * share) * merit
        kept = jtu.tree_map(lambda a, b: jnp.where(better, a, b), (there, *new), (x, merit, size, move))
        return *kept, jnp.where(better, jnp.minimum(4 * share, 1), share / 2), n + 1, ~better

    carry = (start, *at(start), jnp.ones((), start.dtype), jnp.ones((), jnp.int32), jnp.zeros((), bool))
    x, _, size, _, _, n, _ = lax.while_loop(more, body, carry)
    # within the accuracy of a root every point is one, so a second root must be farther away than that
    apart = True if known is None else _rms(x - known) > eps**0.25 * (_rms(x) + _rms(y))
    return x, n, close(x, size, 1000) & apart


def _rms(x):
    return jnp.sqrt(jnp.mean(x**2))


def _solved(push, b):
    """`v` with `push(v) = b`."""
    if b.size <= DENSE:
        return jnp.linalg.solve(jax.vmap(push)(jnp.eye(b.size, dtype=b.dtype)).T, b)
    return jsp.sparse.linalg.gmres(push, b, tol=1e-4, restart=20, maxiter=5, solve_method="incremental")[0]
