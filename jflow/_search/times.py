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
from .._solver import NonStationary
from .._times import eased_shares
from .._types import PRNGKey, Time
from ._task import between, check_counts, errors, fine, make_ends, make_task

STARTS = (0.8, 1.0, 1.2, 1.4, 1.7)
"""Of `eased_shares(n, 1, last)`: from which grids a descent begins."""
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
    iterations: int = 60,
    progress: bool = True,
) -> Float[Array, "{n}+1"]:
    """A grid of `n` steps fitted to a field and a solver: `n + 1` times, for `sample(..., times=, solver=, clock=)`.

    With `x_i(times)` the sample of the ODE from noise `i`, and `y_i` that of a fine solve, it descends

        log(median_i e_i) + log(mean_i e_i^2) / 2,   e_i^2 = mean over the event of (x_i(times) - y_i)^2,

    in the logarithms of the steps, from each of five grids whose steps grow or shrink towards the data: Adam, with
    gradients through the sampler. One term makes the typical error small, the other the largest ones. The noises are
    those of `generate(field, key, num, ...)`.

    **Arguments:**

    - `args`, `args_in_axes`: the condition, and which of its leaves have a leading axis of length `num` (0) or are
      shared (`None`), as in `generate`: conditions like those that will be asked for.
    - `solver`, `clock`, `end`, `base`, `dtype`: as in `sample`, which takes the same ones beside the grid.
    - `t0`, `t1`: the ends of the grid, which stay.
    - `num`, `iterations`: noises, and steps of each of the five descents; a step costs about `4 num` samples.
    - `progress`: a progress bar, on a terminal.

    **Returns:** increasing times, the best of the descents; the same for the same key.

    Raises `ValueError` for `n`, `num` or `iterations` below 1, ends out of order, conditions of another length, a
    sampler that `sample` refuses, or one that is not finite on the first grid.

    Source: Tong et al. 2024, arXiv:2405.15506 (a grid learned through the solver from a fine solve; with perceptual
    losses and perturbed noises there).
    """
    check_counts(n=n, iterations=iterations)
    task, ends = make_task(field, key, shape, args, args_in_axes, num, base, dtype), make_ends(t0, t1)
    grids = [between(RatioClock(), field.path, ends, eased_shares(n, 1.0, last)) for last in STARTS]
    _, solver, end = plan(field, times=grids[0], solver=solver, clock=clock, end=end)
    options = {"solver": solver, "clock": clock, "end": end}
    target = fine(task, ends, end)
    with tqdm(
        total=len(STARTS) * iterations, desc="optimize_times", unit="step", disable=None if progress else True
    ) as bar:
        starts = [{"steps": jnp.log(jnp.diff(grid))} for grid in grids]
        runs = [descend(both, task, target, ends, options, start, RATE, iterations, bar) for start in starts]
    loss, found = min(runs, key=lambda run: run[0])
    if not np.isfinite(loss):
        raise ValueError(
            "A grid is fitted from one on which the samples are finite. Got samples that are not, at "
            f"{n} steps from t = {ends[0]:g} to {ends[1]:g}: take more steps, or ends further from singular times."
        )
    return found["times"]


def both(error):
    """The loss of a grid: the typical and the largest errors, by their logarithms."""
    return jnp.log(jnp.median(error)) + rms(error)


def rms(error):
    """The logarithm of the root mean square of the errors of the samples."""
    return jnp.log(jnp.mean(error**2)) / 2


def descend(loss, task, target, ends, options, params, rate, iterations, bar):
    """The least loss of a descent from given parameters, and the options of `sample` there."""
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, iterations), b2=MEMORY)
    state, best = optimiser.init(params), (np.inf, {})
    for _ in range(iterations):
        value, found, slope = _slope(loss, task, target, ends, options, params)
        if float(value) < best[0]:
            best = float(value), found
        step, state = optimiser.update(slope, state)
        params = optax.apply_updates(params, step)
        bar.update()
    return best


@eqx.filter_jit
def _slope(loss, task, target, ends, options, params):
    """The loss of a sampler, the sampler, and the gradient of the loss."""
    unroll = jax.default_backend() == "cpu" and _convolves(task, {**options, "times": _grid(ends, params["steps"])})

    def objective(params):
        found = {**options, "times": _grid(ends, params["steps"])}
        if "weights" in params:
            found["solver"] = NonStationary(jnp.tril(params["weights"]))
        error = errors(task.draw(found, unroll).x, target)
        return jnp.where(jnp.all(jnp.diff(found["times"]) > 0), loss(error), jnp.inf), found

    (value, found), slope = eqx.filter_value_and_grad(objective, has_aux=True)(params)
    return value, found, slope


def _convolves(task, options):
    """Whether there are convolutions, whose gradient on CPU costs 17 times the samples in a loop and 3 without."""
    draw = jax.make_jaxpr(lambda times: task.draw(options | {"times": times}).x)
    return "conv_general_dilated" in str(draw(options["times"]))


def _grid(ends, logits):
    """The grid between two ends whose steps have the shares `softmax(logits)` of the way."""
    shares = jnp.cumsum(jax.nn.softmax(logits))[:-1]
    return jnp.concatenate([ends[:1], ends[0] + (ends[1] - ends[0]) * shares, ends[1:]])
