"""A multistep method with separate weights for each step."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._event import combine
from .._types import Checked, Number
from .._validate import as_array, concrete
from ._traits import AbstractFieldSolver


class NonStationary(AbstractFieldSolver, dfx.AbstractSolver[tuple[Int[Array, ""], PyTree]]):
    """Step `i` of `n` goes along a weighted sum of all the right-hand sides so far, one new one a step:

        u_{i+1} = u_i + (tau_{i+1} - tau_i) sum_{j <= i} w_ij f_j ,   f_j the right-hand side at tau_j and u_j .

    On a given grid every linear method with one call a step is of this form, as `Adams` is. Here the weights are free,
    to be fitted to a field together with the grid, as `best_sampler` does. They hold for one number of steps, on the
    grid and in the clock that they were made for, and for the ODE. All `n` right-hand sides are kept.

    Source: Shaul et al. 2024, arXiv:2403.01329, section 3.2 (without their weight of the first state).

    ```python
    euler = jf.NonStationary(jnp.eye(4))
    sol = jf.solve(lambda t, x, args: -x, jnp.ones(1), jf.FixedSteps(jf.UniformGrid(4), euler))
    assert jnp.allclose(sol.x, 0.75**4)
    ```
    """

    weights: Float[Array, "n n"]

    error_estimate: ClassVar[bool] = False
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = dfx.LocalLinearInterpolation

    def __init__(self, weights: Checked[ArrayLike | Sequence[Sequence[Number]]]):
        """`weights`: a lower triangular matrix, one row a step.

        Raises `ValueError` unless they are square, finite, and zero above the diagonal.
        """
        weights = as_array(weights, "Weights", float)
        if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not len(weights):
            raise ValueError(f"Weights must be a matrix, one row a step, n x n for n steps. Got shape {weights.shape}.")
        if (known := concrete(weights)) is not None and not (
            np.isfinite(known).all() and (np.triu(known, 1) == 0).all()
        ):
            raise ValueError(
                "Weights must be finite, and row i must weigh the right-hand sides 0 to i only. Got a weight that is "
                "not finite, or one above the diagonal, of a right-hand side that is yet to come: take "
                "jnp.tril(weights)."
            )
        self.weights = weights

    @property
    def ode_only(self) -> bool:
        return True

    @property
    def memory(self) -> int:
        """How many earlier right-hand sides are kept: all of them."""
        return self.weights.shape[0] - 1

    def nodes(self) -> tuple[float, ...] | None:
        return (0.0,)

    def prepare(self, n: int) -> "NonStationary":
        """The solver itself; raises `ValueError` for another number of steps than it has weights for."""
        if n != self.weights.shape[0]:
            raise ValueError(
                f"NonStationary weights must be those of the grid's number of steps, here {self.weights.shape[0]}. "
                f"Got a grid of {n} steps: pass the grid they were made for."
            )
        return self

    def order(self, terms):
        """Not known: the weights decide."""
        return

    def init(self, terms, t0, t1, y0, args):
        n = self.weights.shape[0]
        return jnp.zeros((), jnp.int32), jtu.tree_map(lambda y: jnp.zeros((n, *y.shape), y.dtype), y0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        index, slopes = solver_state
        slope = terms.vf(t0, y0, args)
        slopes = jtu.tree_map(lambda all_, new: all_.at[index].set(new), slopes, slope)
        mean = jtu.tree_map(lambda f: jnp.tensordot(self.weights[index].astype(f.dtype), f, 1), slopes)
        y1 = combine((1, y0), (1, terms.prod(mean, terms.contr(t0, t1))))
        return y1, None, {"y0": y0, "y1": y1}, (index + 1, slopes), dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
