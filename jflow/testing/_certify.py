"""Certificates of samplers."""

from collections.abc import Callable, Iterator, Sequence

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from .._field import AbstractField, AbstractWrappedField
from .._kinds import check_kinds
from .._path import AbstractAffinePath, CondOT
from .._sampler import AdaptiveSteps
from .._solve import solve
from .._types import Number, PRNGKey
from ..distributions import GaussianMixture
from ._pushed import FAR, World
from ._report import Check, Report, bounded

Sampler = Callable[[AbstractField, Array, Array], Array]
"""`sampler(field, x0, z)`: the state to which `x0` is carried, with the standard normals `z`."""


def certify(
    sampler: Sampler,
    *,
    path: AbstractAffinePath | None = None,
    t0: Number = 0.0,
    t1: Number = 1.0,
    steps: Sequence[int] = (16, 32, 64, 128),
    order: Number | None = None,
    calls: int | None = None,
    tolerance: Number | None = None,
    key: PRNGKey | None = None,
) -> Report:
    """Certifies a sampler: its exact law on Gaussian data step by step, its order, its network calls.

    On Gaussian data a sampler of fixed coefficients is affine in its start and its normals. So its values at zero and
    at the unit vectors give all moments up to order two, between coordinates, samples and steps, in float64 and
    without a draw. The states of its network calls are read the same way. What is looked at:

    | check | what it sees |
    |---|---|
    | distance from an affine map | clipping, rounding to half precision, noise that is not normal, keys made of data |
    | influence of another sample; alone against in a batch | normals or statistics shared in a batch |
    | law at t1, n to infinity | the wrong limit: bias, drift, level of noise, end, normals shared, own normals |
    | state at the first call; law step by step | a wrong time, a wrong level, a step left out, at one step too |
    | noise that is not new | normals shared between steps, near or far, in the joint law of the states |
    | calls made twice, calls that change nothing, calls too many or too few | a step of length 0; steps left out |
    | order | that of the error to the exact flow of a mixture, or with noise of the law at t1 |

    The law at t1 is extrapolated from four step counts up to 128 or the last of `steps`. One step may err by `h^2`: so
    the largest error of a step must fall by more than `2^1.5` where the number of steps doubles. With noise this is
    about the law of each state, without it about the exact flow of each start.

    A row of the report has the figure, the most that it may be, and a note. The sampler is compiled about ten times, so
    a report takes from seconds to minutes: longest for one with many calls a step, or with steps unrolled in Python.
    Fewer `steps` save little, since the law is taken at 128 steps anyway.

    What it cannot see: a change that is itself a consistent method of the order advertised, as another grid, another
    level of noise with its drift, or `z` in another order; a wrong level of under about a tenth at one step alone; a
    change at t0 that leaves white noise as it is, for a sampler with noise; what happens on data that is not Gaussian,
    for a sampler with noise; anything that depends on the condition, on the shape of the event, or on step counts that
    it does not try. A sampler whose times depend on the state, as one of adaptive steps, is held to the limits alone.

    Args:
        sampler: A function `sampler(field, x0, z)` that carries one state `x0`, of shape `(2,)`, from `t0` to `t1` in
            `len(z)` steps. It takes its standard normals from `z`, of shape `(n, 2)`, one row a step; a deterministic
            sampler looks only at its length.
        path: The path of the exact fields it is given, an affine one from white noise; `CondOT()` by default.
        t0: The time from which it carries a state.
        t1: The time to which it carries the state.
        steps: The step counts, increasing: the last two give the order, the last the calls.
        order: The order that the sampler advertises.
        calls: The network calls that it advertises, at `steps[-1]`.
        tolerance: The bound of the errors of mean and standard deviation at `steps[-1]`, in standard deviations;
            `None` for none.
        key: The key of the points at which it must be affine; `jax.random.key(0)` by default.

    Returns:
        A `Report`.

    ```python
    def ancestral(field, x0, z):
        sampler = jf.FixedSteps(jf.UniformGrid(len(z)), eta=1.0)
        return jf.decode(field, x0, sampler, brownian=jf.Recorded(z)).x

    report = jf.testing.certify(ancestral, steps=(8, 16), order=1, calls=16)
    report.check()
    ```
    """
    check_kinds(certify, locals())
    if not len(steps) or steps[0] < 1 or any(b <= a for a, b in zip(steps[:-1], steps[1:], strict=True)):
        raise ValueError(f"steps must be step counts, positive and increasing. Got {steps!r}.")
    if not 0 <= t0 < t1 <= 1:
        raise ValueError(f"t0 and t1 must be times of the path, 0 <= t0 < t1 <= 1. Got {t0!r} and {t1!r}.")
    path = CondOT() if path is None else path
    key = jr.key(0) if key is None else key

    def rows():
        with jax.enable_x64(True):
            world = World(sampler, path, float(t0), float(t1), key)
            yield from _rows(world, steps, order, tolerance)
            count = _count_calls(world, steps[-1])
            yield Check(f"network calls, n = {steps[-1]}", count, None, True)
            if calls is not None:
                yield bounded("network calls, off the advertised", abs(count - calls), 0.0)
            yield bounded("a sample alone against in a batch of 7", _batch_difference(world), 1e-9)

    return Report(f"sampler along {type(path).__name__}, t = {t0:g} to {t1:g}", rows())


def _rows(world: World, steps: Sequence[int], order: Number | None, tolerance: Number | None) -> Iterator[Check]:
    fine = max(steps[-1], 128)
    counts = [fine // 8, fine // 4, fine // 2, fine]
    runs = {n: world.push(n) for n in sorted({steps[-1], *counts})}
    pair = runs[fine // 2], runs[fine]
    last = pair[-1]
    affine = 2e-5 if last.times is not None else 1e-3
    yield bounded("distance from an affine map", last.bend, affine, f"to {FAR:g} standard deviations")
    yield bounded("influence of another sample", last.cross, 1e-9)
    yield bounded(f"law at t1, n = {steps[-1]}", np.abs(runs[steps[-1]].end).max(), tolerance)
    limit, doubt = _limit([runs[n].end for n in counts])
    yield bounded("law at t1, n to infinity", limit, max(1e-3, doubt) + world.slack, f"from n = {counts[0]} to {fine}")
    if last.noisy:
        slope = _slope((fine // 2, fine), [float(np.linalg.norm(run.end)) for run in pair])
        yield Check("order of the law", slope, None, True, f"n = {fine // 2} to {fine}")
    else:
        errors = _flow_errors(world, steps[-2:])
        slope = _slope(steps[-2:], errors)
        small = errors[-1] <= 1e-3 + world.slack
        name = f"error to the flow of a mixture, n = {steps[-1]}"
        yield Check(name, errors[-1], None, small or not slope < 0.5, "root mean square")
        yield Check("order on a mixture", slope, None, True, f"n = {' to '.join(map(str, steps[-2:]))}")
    if order is not None and not np.isnan(slope):
        yield bounded("order, off the advertised", max(order - slope, 0.0), 0.4)
    if all(run.times is not None for run in pair):
        yield from _step_rows(world, *pair, fine, slope)


def _step_rows(world, run, finer, fine, slope):
    """What the calls show: each step, and how many there are."""
    each = (finer.counting - run.counting) / (fine // 2)
    note = f"{each:g} calls a step"
    yield bounded("calls made twice", finer.twice, 0.0)
    yield bounded("calls that change nothing", (finer.idle & (finer.times < world.t1)).sum(), 0.0, "before t1")
    # one call a step: a method of order 1 has nothing to start from; more: only its ends may differ
    single, plain = each < 1.5, finer.noisy or slope < 1.5
    low, high = (0, 0 if plain else np.inf) if single else (1 - each, each - 1)
    excess = finer.counting - each * fine
    yield bounded(f"calls too many or too few for {fine} steps", max(low - excess, excess - high, 0.0), 0.0, note)
    if not (finer.noisy or single or np.isnan(slope)):
        yield bounded("order, short of 2", max(2 - slope, 0.0), 0.5, note)
    stride = max(round(each), 1) if finer.noisy else 1  # stages with noise need not have the law of their time
    yield bounded("state at the first call", np.abs(finer.laws(world, stride)[0]).max(), 1e-5)
    jumps = [pushed.jump(world, stride) for pushed in (run, finer)]
    yield _falls("law step by step", jumps, fine)
    if finer.noisy:
        yield _falls("noise that is not new", [pushed.memory(world, stride) for pushed in (run, finer)], fine)


def _limit(ends):
    """What is left of the errors at four step counts, each twice the last, as n grows, and how far that is in doubt.

    They are extrapolated with the powers 1, 2 and 2 of 1/n, so that `log(n)/n^2`, which singular ends leave, goes too.
    Where the last two fall as those of order 2, these give it by themselves: a sampler may be another at few steps.
    """
    once = [2 * b - a for a, b in zip(ends[:-1], ends[1:], strict=True)]
    twice = [(4 * b - a) / 3 for a, b in zip(once[:-1], once[1:], strict=True)]
    limit = np.abs(4 * twice[1] - twice[0]).max() / 3
    if np.linalg.norm(ends[-2]) > 2**1.5 * np.linalg.norm(ends[-1]):
        limit = min(limit, np.abs(4 * ends[-1] - ends[-2]).max() / 3)
    return limit, 0.3 * np.abs(twice[1] - twice[0]).max()


def _falls(name, errors, fine):
    """A check that an error of one step falls by `2^1.5` or more, from one number of steps to twice as many."""
    ratio = 0.0 if errors[1] <= 1e-7 else errors[1] / errors[0]
    return bounded(f"{name}: error, n = {fine} over {fine // 2}", ratio, 2**-1.5, f"{errors[1]:.2g} at n = {fine}")


def _slope(steps, errors):
    """The order of errors; not a number where they are below 1e-11."""
    if len(errors) < 2 or not min(errors) > 1e-11:
        return float("nan")
    return float(np.log(errors[-2] / errors[-1]) / np.log(steps[-1] / steps[-2]))


def _mixture(path):
    centres = jnp.asarray([[-2.0, 0.5], [1.0, 1.0], [0.5, -1.5]])
    return GaussianMixture(centres, stds=jnp.asarray([0.5, 0.8, 0.6]), weights=jnp.asarray([0.3, 0.4, 0.3])).field(path)


def _flow_errors(world, steps):
    """Root mean square distance to the converged flow of a mixture, for each step count."""
    field, (alpha, sigma) = _mixture(world.path), world.weights(world.t0)
    starts = jr.normal(jr.key(0), (32, 2), jnp.float64) * np.sqrt(2 * alpha**2 + sigma**2)
    control = dfx.PIDController(1e-11, 1e-11)

    @jax.jit
    @jax.vmap
    def flow(x):
        return solve(field.velocity, x, AdaptiveSteps(dfx.Tsit5(), control, t0=world.t0, t1=world.t1)).x

    reference, errors = flow(starts), []
    for n in steps:
        x = jax.jit(jax.vmap(lambda x0, n=n: world.sampler(field, x0, jnp.zeros((n, 2)))))(starts)
        errors.append(float(jnp.sqrt(jnp.mean((x - reference) ** 2))))
    return errors


class _Counted(AbstractWrappedField):
    """A field that counts its evaluations as they happen, and is else that field."""

    count: Callable[[], None]

    def __init__(self, field: AbstractField, count: Callable[[], None]):
        self.field, self.count = field, count

    def predict(self, targets, t, x, args=None):
        jax.debug.callback(self.count)
        return self.field.predict(targets, t, x, args)


def _count_calls(world, n):
    total = [0]

    def count():
        total[0] += 1

    field, start = _Counted(world.field, count), jnp.asarray(world.start())
    jax.block_until_ready(jax.jit(lambda: world.sampler(field, start, jnp.zeros((n, 2))))())
    jax.effects_barrier()
    return total[0]


def _batch_difference(world):
    field, spread, n = _mixture(world.path), jnp.asarray(world.spread(world.t0)), 8
    key_start, key_noise = jr.split(world.key)
    starts = jnp.asarray(world.start())[None] + jr.normal(key_start, (7, 2)) @ spread
    noises = jr.normal(key_noise, (7, n, 2))
    run = jax.jit(lambda x0, z: world.sampler(field, x0, z))
    alone = jnp.stack([run(x0, z) for x0, z in zip(starts, noises, strict=True)])
    return jnp.max(jnp.abs(alone - jax.jit(jax.vmap(run))(starts, noises)))
