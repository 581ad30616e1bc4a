"""Grids of times fitted to a field and a solver."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from .._clock import AbstractClock, RatioClock
from .._field import AbstractField
from .._sample import End, plan
from .._types import PRNGKey, Time
from ._task import check_counts, errors, even, fine, make_ends, make_task

RATE, MEMORY = 0.1, 0.99


def optimize_times(
    field: AbstractField,
    key: PRNGKey,
    n: int,
    shape: Any,
    *,
    args: Any = None,
    args_in_axes: Any = None,
    solver: dfx.AbstractSolver | None = None,
    clock: AbstractClock | None = None,
    end: End | None = None,
    t0: Time = 0.0,
    t1: Time = 1.0,
    base: Any = None,
    dtype: Any = None,
    num: int = 128,
    iterations: int = 100,
    progress: bool = True,
) -> Float[Array, "{n}+1"]:
    """A grid of `n` steps fitted to a field and a solver: `n + 1` times, for `sample(..., times=, solver=, clock=)`.

    With `x_i(times)` the sample of the ODE from noise `i`, and `y_i` that of a fine solve, it descends

        mean_i log e_i + log(mean_i e_i^2) / 2,   e_i^2 = mean over the event of (x_i(times) - y_i)^2,

    in the logarithms of the steps, from steps that are even in the ratio `alpha/(alpha + sigma)`: Adam, with gradients
    through the sampler. One term makes the typical error small, the other the largest ones. The noises are those of
    `generate(field, key, num, ...)`.

    **Arguments:**

    - `args`, `args_in_axes`: the condition, and which of its leaves have a leading axis of length `num` (0) or are
      shared (`None`), as in `generate`: conditions like those that will be asked for.
    - `solver`, `clock`, `end`, `base`, `dtype`: as in `sample`, which takes the same ones beside the grid.
    - `t0`, `t1`: the ends of the grid, which stay.
    - `num`, `iterations`: noises, and steps of the descent; one costs about `4 num` samples.
    - `progress`: a progress bar, on a terminal.

    **Returns:** increasing times, the best of the descent; the same for the same key.

    Raises `ValueError` for `n`, `num` or `iterations` below 1, ends out of order, conditions of another length, a
    sampler that `sample` refuses, or one that is not finite on the first grid.

    Source: Tong et al. 2024, arXiv:2405.15506 (a grid learned through the solver from a fine solve; with perceptual
    losses and perturbed noises there).
    """
    check_counts(n=n, iterations=iterations)
    task, ends = make_task(field, key, shape, args, args_in_axes, num, base, dtype), make_ends(t0, t1)
    times = even(RatioClock(), field.path, ends, n)
    _, solver, end = plan(field, times=times, solver=solver, clock=clock, end=end)
    options = {"solver": solver, "clock": clock, "end": end}
    target = fine(task, ends, end)
    logits = jnp.log(jnp.diff(times))
    state, best = _adam(iterations).init(logits), (np.inf, times)
    with tqdm(total=iterations, desc="optimize_times", unit="step", disable=None if progress else True) as bar:
        for _ in range(iterations):
            loss, times, logits, state = _descend(task, target, ends, options, logits, state, iterations)
            if float(loss) < best[0]:
                best = float(loss), times
            bar.update()
    if not np.isfinite(best[0]):
        raise ValueError(
            "A grid is fitted from one on which the samples are finite. Got samples that are not, at "
            f"{n} steps from t = {ends[0]:g} to {ends[1]:g}: take more steps, or ends further from singular times."
        )
    return best[1]


@eqx.filter_jit
def _descend(task, target, ends, options, logits, state, iterations):
    """The loss of a grid, the grid, and the logarithms of the next one's steps."""

    def objective(logits):
        shares = jnp.cumsum(jax.nn.softmax(logits))[:-1]
        times = jnp.concatenate([ends[:1], ends[0] + (ends[1] - ends[0]) * shares, ends[1:]])
        error = errors(task.draw({"times": times, **options}).x, target)
        loss = jnp.mean(jnp.log(error)) + jnp.log(jnp.mean(error**2)) / 2
        return jnp.where(jnp.all(jnp.diff(times) > 0), loss, jnp.inf), times

    (loss, times), slope = jax.value_and_grad(objective, has_aux=True)(logits)
    step, state = _adam(iterations).update(slope, state)
    return loss, times, optax.apply_updates(logits, step), state


def _adam(iterations):
    return optax.adam(optax.cosine_decay_schedule(RATE, iterations), b2=MEMORY)
