"""Weights of a multistep method fitted to a field, together with its grid."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from tqdm import tqdm

from .._engine.solver_rule import choose_clock
from .._sampler import FixedSteps
from .._solve import solve
from ._task import Task, times_of
from .times import descend, rms

RATE = 0.02
"""A fifth of that of a grid alone: this descent begins where that one ended."""


def fit_weights(
    task: Task,
    target: Any,
    ends: Float[Array, "2"],
    sampler: FixedSteps,
    iterations: int,
    progress: bool,
    until: float,
) -> FixedSteps:
    """A sampler whose grid and weights of `NonStationary` are fitted together, from those of a linear method with one
    call a step, which goes in any clock: the descent of `optimize_times`, by the root mean square of the errors,
    as `best_sampler` ranks. It ends at the moment `until`.
    """
    times, clock = times_of(task, sampler), choose_clock(task.field, sampler)
    head = times if sampler.end == "stop" else times[:-1]
    weights = weights_like(sampler.solver, jax.vmap(lambda t: clock.time(task.field.path, t))(head))
    begin: dict[str, Any] = {"steps": jnp.log(jnp.diff(times)), "weights": weights}
    with tqdm(total=iterations, desc="weights", unit="step", disable=None if progress else True) as bar:
        found = descend(rms, task, target, ends, sampler, begin, RATE, iterations, bar, until)[1]
    return FixedSteps(found["times"], found["solver"], clock=sampler.clock, end=sampler.end)


def weights_like(solver: Any, taus: Float[Array, " points"]) -> Float[Array, "steps steps"]:
    """The weights with which `NonStationary` is a linear method with one call a step, on a grid of the clock's times:
    the method's states, where the right-hand side at the `i`-th time is the `i`-th unit vector.
    """
    units = jnp.eye(len(taus) - 1, dtype=taus.dtype)
    states = solve(
        lambda tau, u, args: units[jnp.argmin(jnp.abs(taus[:-1] - tau))], jnp.zeros_like(units[0]),
        FixedSteps(taus, solver), saveat=dfx.SaveAt(t0=True, steps=True),
    ).xs  # fmt: skip
    return jnp.tril(jnp.diff(states, axis=0) / jnp.diff(taus)[:, None])
