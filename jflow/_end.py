"""How a grid ends: the end policy, and the solve with it."""

from typing import Any, Literal

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ._brownian import Recorded
from ._equation import FieldEquation
from ._field import AbstractNetwork
from ._loop import Ending
from ._misc import state_dtype
from ._solve import fixed
from ._solver import check_ode_solver, check_same_clock
from ._types import PRNGKey, Solution

End = Literal["denoise", "stop"] | dfx.AbstractSolver


def resolve_end(problem: FieldEquation, end: Any, times: Any) -> End | Bool[Array, ""]:
    """The end policy, by default one that never evaluates an undefined right-hand side: of a traced grid a boolean,
    whether to denoise.
    """
    if end is None:
        return _default_end(problem, times)
    if end not in ("denoise", "stop") and not isinstance(end, dfx.AbstractSolver):
        raise ValueError(f"end is 'denoise', 'stop', or a diffrax solver for the last step. Got {end!r}.")
    check_ode_solver(end, "A solver for the last step adds no noise")
    check_same_clock(end, problem.clock, "The last step is taken as the others,")
    return end


def _default_end(problem, times):
    """`"denoise"` where the right-hand side is undefined at the end, for sigma = 0, or the grid repeats its last point;
    of a traced grid whether so.
    """
    field = problem.field
    via_data = "data" in (field.predicts, *(field.sources if isinstance(field, AbstractNetwork) else ()))
    if problem.clock.finite_end and not via_data:
        return "stop"
    repeats, at_data = times[-1] == times[-2], (times[-1] == 1) & field.path.ends_at_data
    denoise = repeats | at_data
    return denoise if isinstance(denoise, jax.Array) else "denoise" if denoise else "stop"


def on_grid(
    problem: FieldEquation, x: PyTree, args: Any, times: Array, solver: Any, end: Any, key: PRNGKey | None = None,
    brownian: Any = None, saveat: dfx.SaveAt | None = None, unroll: bool = False,
) -> Solution:  # fmt: skip
    """The solve on the grid, its last step as the end policy says; `unroll` is that of the loop."""

    def denoise(x):
        t = times[-2].astype(state_dtype(x))
        return problem.field.data(t, x, args), jnp.asarray(problem.cost(t, args), jnp.int32)

    def foreign(x):
        last = None if key is None else jr.fold_in(key, np.uint32(2**32 - 1))
        rows = jtu.tree_map(lambda leaf: leaf[-1:], brownian) if isinstance(brownian, Recorded) else brownian
        sol = fixed(problem, x, args, times[-2:], solver=end, key=last, brownian=rows, saveat=None)
        return sol.x, sol.nfe

    if isinstance(end, dfx.AbstractSolver):
        ending = Ending(foreign)
    elif isinstance(end, jax.Array):
        ending = Ending(denoise, end)
    else:
        ending = Ending(denoise) if end == "denoise" else None
    return fixed(
        problem, x, args, times, solver=solver, key=key, brownian=brownian, saveat=saveat, ending=ending, unroll=unroll
    )  # fmt: skip
