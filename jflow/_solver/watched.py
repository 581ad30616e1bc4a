"""Error estimates of adaptive steps, watched by a second one."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree


def smaller(a: Array, b: Array) -> Array:
    """Of the sizes of a state at the two ends of a step the smaller one; the other where that is zero, or no number."""
    a, b = jnp.abs(a), jnp.abs(b)
    least = jnp.fmin(a, b)
    return jnp.where(least == 0, jnp.fmax(a, b), least)


def watched(
    error: PyTree, y0: PyTree, y1: PyTree, increments: PyTree, controller: dfx.PIDController, order: Any
) -> PyTree:
    """A solver's error estimate, or a second one where that is larger.

    The second one is made of `y1 - y0 - (k_1 + k_n)/2`: what the trapezoidal rule misses, by the increments `k = h f`
    at the two ends of the step. In units of the tolerance it is `m = 0.2 tolerance^(1 - 3/order) |that|`, which stays
    in proportion as the tolerance falls, and `m^(order/3)` below one, of the solver's own order.

    The estimate of an embedded method is one combination of its stages. It is nearly zero for some steps that go over a
    corner of the solution, as a flow has it before narrow data: such a step is wrong by a thousand tolerances, and
    accepted. (Of 4,001 starts of the flow along `VP` to `N(0.5, 0.1^2)`, at the tolerance 1e-4, the worst is wrong by
    14 tolerances, and by 1408 without the second estimate, for fewer calls.)
    """
    part = 0.2 * jnp.max(jnp.maximum(controller.rtol, controller.atol)) ** max(0, 1 - 3 / order)

    def larger(e, a, b, k):
        unit = controller.atol + controller.rtol * smaller(a, b)
        missed = part * jnp.abs(b - a - (k[0] + k[-1]) / 2) / unit
        second = (unit * missed * jnp.minimum(missed, 1) ** max(0, order / 3 - 1)).astype(e.dtype)
        return jnp.where(jnp.abs(e) < second, second, e)

    return jtu.tree_map(larger, error, y0, y1, increments)


class Watched(dfx.HalfSolver):
    """A first-same-as-last method whose error estimate is `watched`; of `HalfSolver` it keeps what wraps a solver."""

    controller: dfx.PIDController

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def step(self, terms, t0, t1, y0, *rest):
        y1, error, dense, state, result = self.solver.step(terms, t0, t1, y0, *rest)
        return y1, watched(error, y0, y1, dense["k"], self.controller, self.error_order(terms)), dense, state, result
