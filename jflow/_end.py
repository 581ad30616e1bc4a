"""How a grid ends: the end policy, and a last step that is another's than the solver's."""

from typing import Any, Literal

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._brownian import Recorded
from ._equation import FieldEquation
from ._field import AbstractNetwork
from ._misc import all_finite
from ._solver import check_ode_solver, check_same_clock
from ._types import Solution

End = Literal["denoise", "stop"] | dfx.AbstractSolver


def resolve_end(problem: FieldEquation, end: Any) -> End:
    """The end policy, by default one that never evaluates an undefined right-hand side."""
    if end is None:
        field = problem.field
        via_data = "data" in (field.predicts, *(field.sources if isinstance(field, AbstractNetwork) else ()))
        return "denoise" if via_data or not problem.clock.finite_end else "stop"
    if end not in ("denoise", "stop") and not isinstance(end, dfx.AbstractSolver):
        raise ValueError(f"end is 'denoise', 'stop', or a diffrax solver for the last step. Got {end!r}.")
    check_ode_solver(end, "A solver for the last step adds no noise")
    check_same_clock(end, problem.clock, "The last step is taken as the others,")
    return end


def recorded_rows(brownian: Any, rows: slice) -> Any:
    """The steps of recorded normals that a part of the grid takes; any other source as it is."""
    if not isinstance(brownian, Recorded):
        return brownian
    return Recorded(jtu.tree_map(lambda leaf: leaf[rows], brownian.normals))


def joined(x0: PyTree, head: Any, last: Any, times: Any, args: Any, saveat: Any) -> Solution:
    """The solution of the whole grid from that of its head and of its last step."""
    okay = (head.status == 0) & all_finite(last.x)
    end_time = times[-1].astype(head.t.dtype)
    ts, xs = head.ts, head.xs
    n = times.shape[0] - 1
    if saveat is not None and saveat.subs.steps and n % int(saveat.subs.steps) == 0:
        fn = saveat.subs.fn
        tail = jtu.tree_map(lambda leaf: jnp.asarray(leaf)[None], fn(end_time, last.x, args))
        if ts is None:
            first = jtu.tree_map(lambda leaf: jnp.asarray(leaf)[None], fn(times[0], x0, args))
            ts, xs = (times[:1], first) if saveat.subs.t0 else (times[:0], jtu.tree_map(lambda leaf: leaf[:0], first))
        ts = jnp.append(ts, end_time)
        xs = jtu.tree_map(lambda a, b: jnp.concatenate([a, b]), xs, tail)
    nfe = None if head.nfe is None or last.nfe is None else head.nfe + last.nfe
    status = jnp.where(okay, 0, 1).astype(jnp.int32)
    t = jnp.where(okay, end_time, jnp.where(head.status == 0, times[-2].astype(head.t.dtype), head.t))
    return Solution(x=last.x, nfe=nfe, status=status, t=t, ts=ts, xs=xs)
