"""Grids of times fitted to a field and a solver."""

import time
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

from .._clock import AbstractClock, RatioClock
from .._field import AbstractField
from .._grid import eased_shares
from .._kinds import check_kinds
from .._rule import AbstractStepRule
from .._sampler import End, FixedSteps
from .._solver import NonStationary
from .._types import Checked, DType, PRNGKey, Shape, Time
from .._validate import check_count
from ._task import Task, between, errors, fine, make_ends, make_task, settled, with_times

STARTS = (0.8, 1.0, 1.2, 1.4, 1.7)
"""Of `eased_shares(n, 1, last)`: from which grids a descent begins."""
RATE, MEMORY = 0.1, 0.99


def optimize_times(
    field: AbstractField,
    key: PRNGKey,
    n: int,
    shape: Checked[Shape],
    *,
    args: Any = None,
    args_in_axes: PyTree = None,
    solver: dfx.AbstractSolver | AbstractStepRule | None = None,
    clock: AbstractClock | None = None,
    end: End | None = None,
    t0: Time = 0.0,
    t1: Time = 1.0,
    start: PyTree = None,
    dtype: DType = None,
    num: int = 128,
    iterations: int = 60,
    progress: bool = True,
) -> Float[Array, "{n}+1"]:
    """A grid of `n` steps fitted to a field and a solver: `n + 1` times, for `FixedSteps(times, solver, clock=, end=)`.

    With `x_i(times)` the sample of the ODE from noise `i`, and `y_i` that of a fine solve, it descends

        log(median_i e_i) + log(mean_i e_i^2) / 2,   e_i^2 = mean over the event of (x_i(times) - y_i)^2,

    in the logarithms of the steps, from each of five grids whose steps grow or shrink towards the data: Adam, with
    gradients through the sampler. One term makes the typical error small, the other the largest ones. The noises are
    those of `generate(field, key, num, ...)`.

    Args:
        field: A field along an affine path.
        key: One typed key.
        n: The number of steps.
        shape: The shape of one event, or a pytree of `jax.ShapeDtypeStruct`.
        args: The condition: conditions like those that will be sampled.
        args_in_axes: Which leaves of `args` have a leading axis of length `num` (0) or are shared (`None`), as in
            `generate`.
        solver: As in `FixedSteps`, which takes the same one beside the grid.
        clock: The same.
        end: The same.
        t0: The first time, which stays.
        t1: The last time, which stays.
        start: As in `sample`.
        dtype: As in `sample`.
        num: How many noises.
        iterations: Steps of each of the five descents; a step costs about `4 num` samples.
        progress: A progress bar, on a terminal.

    Returns:
        Increasing times, the best of the descents; the same for the same key.

    Raises `ValueError` for `n`, `num` or `iterations` below 1, ends out of order, conditions of another length, a
    sampler that does not go with the field, or one that is not finite on the first grid.

    Source: Tong et al. 2024, arXiv:2405.15506 (a grid learned through the solver from a fine solve; with perceptual
    losses and perturbed noises there).

    ```python
    field = jf.distributions.moons(components=32).field(jf.CondOT())
    times = jf.search.optimize_times(field, jr.key(0), 4, (2,), num=8, iterations=2, progress=False)
    assert jf.sample(field, jr.key(1), (2,), jf.FixedSteps(times)).nfe == 4
    ```
    """
    check_kinds(optimize_times, locals())
    check_count(n=n, iterations=iterations)
    task, ends = make_task(field, key, shape, args, args_in_axes, num, start, dtype), make_ends(t0, t1)
    sampler = settled(task, FixedSteps(_starts(task, ends, n)[0], solver, clock=clock, end=end))
    target = fine(task, ends, sampler.end)
    return fit_times(task, target, ends, sampler, iterations, progress)


def fit_times(
    task: Task,
    target: Any,
    ends: Float[Array, "2"],
    sampler: FixedSteps,
    iterations: int,
    progress: bool,
    until: float = np.inf,
) -> Float[Array, " points"]:
    """The times of the best of the descents of `optimize_times`, each of which ends at the moment `until`."""
    grids = _starts(task, ends, sampler.n)
    with tqdm(
        total=len(STARTS) * iterations, desc="optimize_times", unit="step", disable=None if progress else True
    ) as bar:
        starts = [{"steps": jnp.log(jnp.diff(grid))} for grid in grids]
        runs = [descend(both, task, target, ends, sampler, begin, RATE, iterations, bar, until) for begin in starts]
    loss, found = min(runs, key=lambda run: run[0])
    if not np.isfinite(loss):
        raise ValueError(
            "A grid must be fitted from one on which the samples are finite. Got samples that are not, at "
            f"{sampler.n} steps from t = {ends[0]:g} to {ends[1]:g}: take more steps, or ends further from singular "
            "times."
        )
    return found["times"]


def _starts(task, ends, n):
    """The grids from which the descents begin."""
    return [between(RatioClock(), task.field.path, ends, eased_shares(n, 1.0, last)) for last in STARTS]


def both(error: Array) -> Array:
    """The loss of a grid: the typical and the largest errors, by their logarithms."""
    return jnp.log(jnp.median(error)) + rms(error)


def rms(error: Array) -> Array:
    """The logarithm of the root mean square of the errors of the samples."""
    return jnp.log(jnp.mean(error**2)) / 2


def descend(
    loss: Any,
    task: Any,
    target: Any,
    ends: Array,
    sampler: FixedSteps,
    params: Any,
    rate: Any,
    iterations: int,
    bar: Any,
    until: float,
) -> tuple[float, dict[str, Any]]:
    """The least loss of a descent from given parameters, which ends at the moment `until`, and the `times` and the
    `solver` of the sampler there.
    """
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, iterations), b2=MEMORY)
    state, best = optimiser.init(params), (np.inf, {})
    parts = sampler.solver, sampler.clock, sampler.end  # without what is known of the times, which are others
    for _ in range(iterations):
        value, found, slope = _slope(loss, task, target, ends, *parts, params)
        if float(value) < best[0]:
            best = float(value), found
        step, state = optimiser.update(slope, state)
        params = optax.apply_updates(params, step)
        bar.update()
        if time.monotonic() > until:
            break
    return best


@eqx.filter_jit
def _slope(loss, task, target, ends, solver, clock, end, params):
    """The loss of a sampler, its times and solver, and the gradient of the loss."""
    even = FixedSteps(_grid(ends, params["steps"]), solver, clock=clock, end=end)
    unroll = jax.default_backend() == "cpu" and _convolves(task, even)

    def objective(params):
        times = _grid(ends, params["steps"])
        chosen = NonStationary(jnp.tril(params["weights"])) if "weights" in params else solver
        error = errors(task.draw(FixedSteps(times, chosen, clock=clock, end=end), unroll).x, target)
        value = jnp.where(jnp.all(jnp.diff(times) > 0), loss(error), jnp.inf)
        return value, {"times": times, "solver": chosen}

    (value, found), slope = eqx.filter_value_and_grad(objective, has_aux=True)(params)
    return value, found, slope


def _convolves(task, sampler):
    """Whether there are convolutions, whose gradient on CPU costs 17 times the samples in a loop and 3 without."""
    draw = jax.make_jaxpr(lambda times: task.draw(with_times(sampler, times, sampler.end)).x)
    return "conv_general_dilated" in str(draw(sampler.times))


def _grid(ends, logits):
    """The grid between two ends whose steps have the shares `softmax(logits)` of the way."""
    shares = jnp.cumsum(jax.nn.softmax(logits))[:-1]
    return jnp.concatenate([ends[:1], ends[0] + (ends[1] - ends[0]) * shares, ends[1:]])
