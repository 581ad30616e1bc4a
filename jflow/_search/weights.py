"""Weights of a multistep method fitted to a field, together with its grid."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from tqdm import tqdm

from .._sample import plan
from .._solve import solve
from ._task import Task, fine
from .times import descend, rms

RATE = 0.02
"""A fifth of that of a grid alone: this descent begins where that one ended."""


def fit_weights(
    task: Task, ends: Float[Array, "2"], options: dict[str, Any], iterations: int, progress: bool
) -> dict[str, Any]:
    """The options of `sample` with a grid and the weights of `NonStationary` fitted together, from those of a linear
    method with one call a step, which has no clock of its own: the descent of `optimize_times`, by the root mean
    square of the errors, as `best_sampler` ranks.
    """
    problem, solver, end = plan(task.field, **options)
    times = options["times"]
    head = times if end == "stop" else times[:-1]
    weights = weights_like(solver, jax.vmap(lambda t: problem.clock.time(problem.field.path, t))(head))
    start = {"steps": jnp.log(jnp.diff(times)), "weights": weights}
    target = fine(task, ends, "denoise" if end == "denoise" else "stop")
    with tqdm(total=iterations, desc="weights", unit="step", disable=None if progress else True) as bar:
        return descend(rms, task, target, ends, {**options, "end": end}, start, RATE, iterations, bar)[1]


def weights_like(solver: dfx.AbstractSolver, taus: Float[Array, " points"]) -> Float[Array, "steps steps"]:
    """The weights with which `NonStationary` is a linear method with one call a step, on a grid of the clock's times:
    the method's states, where the right-hand side at the `i`-th time is the `i`-th unit vector.
    """
    units = jnp.eye(len(taus) - 1, dtype=taus.dtype)
    states = solve(
        lambda tau, u, args: units[jnp.argmin(jnp.abs(taus[:-1] - tau))], jnp.zeros_like(units[0]), times=taus,
        solver=solver, saveat=dfx.SaveAt(t0=True, steps=True),
    ).xs  # fmt: skip
    return jnp.tril(jnp.diff(states, axis=0) / jnp.diff(taus)[:, None])
