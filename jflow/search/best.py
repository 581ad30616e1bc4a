"""The best of many samplers."""

import bisect
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from .._clock import AngleClock, RatioClock
from .._field import AbstractField
from .._grid import eased_shares
from .._kinds import check_kinds
from .._sampler import FixedSteps, as_sampler
from .._solver import Adams, DPMpp
from .._types import PRNGKey, Time
from .._validate import check_count, check_key
from ._task import between, draw, errors, evaluations, even, fine, known, make_ends, make_task, settled, with_times
from .times import optimize_times
from .weights import fit_weights


class Best(NamedTuple):
    """The best of many samplers: `sample(field, key, shape, best.sampler)`, and so for the other verbs."""

    name: str
    sampler: FixedSteps
    """Its times are an array, its end is decided."""
    nfe: int
    """Network evaluations of one sample."""
    table: dict[str, float]
    """The error of every combination, the best first; infinite where it diverges, or where the fitted grid has come
    to take other than `nfe` evaluations, as guidance on an interval of times may make it.
    """


def best_sampler(
    field: AbstractField,
    key: PRNGKey,
    nfe: int,
    shape: Any,
    *,
    candidates: dict[str, Callable[[int], Any]] | None = None,
    fit: int = 2,
    args: Any = None,
    args_in_axes: Any = None,
    t0: Time = 0.0,
    t1: Time = 1.0,
    start: Any = None,
    dtype: DTypeLike | None = None,
    num: int = 128,
    iterations: int = 60,
    progress: bool = True,
) -> Best:
    """The sampler of the ODE with `nfe` network evaluations that comes nearest to a fine solve.

    Each combination of solver, clock and grid draws the same `num` samples; its error is the root mean square, over
    samples and components, of their distance from those of the fine solve. The grids of the best ones are then fitted
    by `optimize_times`, and of the best of all the grid together with the weights of every step (`NonStationary`), on
    other noises than the errors are measured on.

    Args:
        field: A field along an affine path.
        key: One typed key.
        nfe: Evaluations as `Solution.nfe` counts them: a guided step counts 2.
        shape: The shape of one event, or a pytree of `jax.ShapeDtypeStruct`.
        candidates: By name functions from the number of steps to a sampler, a `FixedSteps` or a grid. By default Adams'
            predictor-correctors of orders 2 to 4 in `RatioClock`, Adams-Bashforth 3 and 4 in `AngleClock` and
            DPM-Solver++ 2M, on grids even in the ratio `alpha/(alpha + sigma)`, even in the angle `atan(alpha/sigma)`,
            and eased by (1.2, 1.3) and (1, 1.3) as in `EasedGrid`: those of them that the field and `nfe` admit.
        fit: For how many combinations of solver and clock the grid is fitted too, 0 for no fit at all. The weights
            are fitted for the best solver that has one call a step and no clock of its own, as Adams' methods; `n`
            steps have `n (n + 1)/2` of them, and with a few hundred noises (`num`) what is gained holds on others.
        args: As in `optimize_times`.
        args_in_axes: As there.
        t0: The first time of the default candidates and of the fine solve.
        t1: The last time of both.
        start: As in `sample`.
        dtype: As in `sample`.
        num: How many noises.
        iterations: As in `optimize_times`.
        progress: A progress bar, on a terminal.

    Raises `ValueError` where a combination of your own, or every one, does not take exactly `nfe` evaluations; else
    as `optimize_times` does.

    ```python
    field = jf.distributions.moons(components=32).field(jf.CondOT())
    candidates = {
        "Heun": lambda n: jf.FixedSteps(jf.UniformGrid(n), dfx.Heun()),
        "Adams": lambda n: jf.FixedSteps(jf.EasedGrid(n), jf.Adams(3), clock=jf.RatioClock()),
    }
    best = jf.search.best_sampler(field, jr.key(0), 6, (2,), candidates=candidates, fit=0, num=8, progress=False)
    assert jf.sample(field, jr.key(1), (2,), best.sampler).nfe == best.nfe == 6
    ```
    """
    check_kinds(best_sampler, locals())
    check_key(key, "best_sampler")
    check_count(nfe=nfe, iterations=iterations)
    check_count(0, fit=fit)
    key_test, key_fit = jr.split(key)
    task, ends = make_task(field, key_test, shape, args, args_in_axes, num, start, dtype), make_ends(t0, t1)
    plans = _plans(task, candidates, ends, nfe)
    targets, table = {}, {}
    total = len(plans) + fit + (fit > 0)
    with tqdm(total=total, desc="best_sampler", unit="sampler", disable=None if progress else True) as bar:

        def measure(name, sampler):
            plans[name] = sampler
            table[name] = _measure(task, ends, sampler, nfe, targets)
            bar.update()

        for name, sampler in list(plans.items()):
            measure(name, sampler)
        for name in _distinct(_ranked(table), plans)[:fit]:
            sampler = plans[name]
            times = optimize_times(
                field, key_fit, sampler.n, shape, args=args, args_in_axes=args_in_axes, solver=sampler.solver,
                clock=sampler.clock, end=sampler.end, t0=t0, t1=t1, start=start, dtype=dtype, num=num,
                iterations=iterations, progress=progress,
            )  # fmt: skip
            measure(f"{name}, times fitted", with_times(sampler, times, sampler.end))
        for name in [name for name in _ranked(table) if _has_weights(plans[name])][: fit > 0]:
            other = make_task(field, key_fit, shape, args, args_in_axes, num, start, dtype)
            found = fit_weights(other, ends, plans[name], 10 * iterations, progress)
            measure(f"{name.removesuffix(', times fitted')}, times and weights fitted", found)
    names = _ranked(table)
    return Best(names[0], plans[names[0]], nfe, {name: table[name] for name in names})


def _ranked(table):
    """The names, that of the least error first."""
    return sorted(table, key=lambda name: table[name])


def _has_weights(sampler):
    """Whether a sampler is a linear method with one call a step in any clock, so that its weights can be fitted."""
    linear = sampler.solver is None or isinstance(sampler.solver, (Adams, dfx.Euler))
    return linear and sampler.n > (sampler.end == "denoise")


def _measure(task, ends, sampler, nfe, targets):
    """The error of one sampler, infinite where it diverges or where a varying cost takes it off `nfe`."""
    if sampler.end not in targets:
        targets[sampler.end] = fine(task, ends, sampler.end)
    out: Any = draw(task, sampler)
    error = float(jnp.sqrt(jnp.mean(errors(out.x, targets[sampler.end]) ** 2)))
    return error if np.isfinite(error) and int(out.nfe[0]) == nfe else np.inf


def _distinct(names, plans):
    """The names but for those that differ from an earlier one in their grid alone."""
    kept = []
    for name in names:
        if not any(eqx.tree_equal(_but_times(plans[name]), _but_times(plans[other])) for other in kept):
            kept.append(name)
    return kept


def _but_times(sampler):
    return sampler.solver, sampler.clock, sampler.end


def _defaults(path, ends) -> dict[str, Callable[[int], Any]]:
    """Solvers in their clocks, each on a few grids."""
    solvers: dict[str, tuple[Any, Any]] = {
        f"Adams PC {order}": (Adams(order, corrector=True), RatioClock()) for order in (2, 3, 4)
    }
    solvers |= {f"Adams {order}, angle": (Adams(order), AngleClock()) for order in (3, 4)}
    solvers["DPM-Solver++ 2M"] = (DPMpp(2, "midpoint"), None)
    grids = {
        "even in the ratio": lambda n: even(RatioClock(), path, ends, n),
        "even in the angle": lambda n: even(AngleClock(), path, ends, n),
        "eased": lambda n: between(RatioClock(), path, ends, eased_shares(n)),
        "eased (1, 1.3)": lambda n: between(RatioClock(), path, ends, eased_shares(n, 1.0, 1.3)),
    }

    def candidate(solver, clock, grid):
        return lambda n: FixedSteps(grid(n), solver, clock=clock)

    return {
        f"{name}, {which}": candidate(*parts, grid) for name, parts in solvers.items() for which, grid in grids.items()
    }


def _plans(task, candidates, ends, nfe):
    """The settled sampler of every candidate; of the default ones of those that fit."""
    plans, failed = {}, None
    for name, candidate in (_defaults(task.field.path, ends) if candidates is None else candidates).items():
        try:
            plans[name] = _plan(task, name, candidate, nfe)
        except ValueError as error:
            if candidates is not None:
                raise
            failed = error
    if not plans:
        raise ValueError(f"nfe must be a number of evaluations that a sampler of this field takes. Got {nfe}: {failed}")
    return plans


def _plan(task, name, candidate, nfe):
    """The sampler of a candidate that takes `nfe` evaluations."""
    if not callable(candidate):
        raise TypeError(
            "A candidate must be a function from the number of steps to a sampler, as "
            f"lambda n: jflow.FixedSteps(jflow.UniformGrid(n), diffrax.Heun()). Got {candidate!r} for {name!r}."
        )

    def made(n):
        sampler: Any = as_sampler(candidate(n))
        facts = known(task, sampler) if isinstance(sampler, FixedSteps) else None
        if facts is None or facts.noisy:
            raise ValueError(
                f"A candidate must be a sampler of the ODE with fixed steps, without eta=, diffusion= or churn. "
                f"Got {sampler!r} for {name!r}."
            )
        if facts.nfe is None:
            raise ValueError(f"A candidate must make a known number of evaluations. Got {sampler!r} for {name!r}.")
        return sampler, facts.nfe

    two, three = (made(n)[1] for n in (2, 3))
    static = isinstance(two, int) and isinstance(three, int)
    n = _steps(name, nfe, two, three - two) if static else _steps_drawn(name, nfe, task, lambda n: made(n)[0])
    return settled(task, made(n)[0])


def _steps(name, nfe, two, each):
    """The steps that take `nfe` evaluations, where two steps take `two` and every further one `each`."""
    further, rest = divmod(nfe - two, each) if each > 0 else (0, 1)
    if rest or further < -1:
        raise ValueError(
            f"nfe must be a number of evaluations that {name} takes, {two} in 2 steps and {each} more in every further "
            f"one. Got nfe={nfe}."
        )
    return 2 + further


def _steps_drawn(name, nfe, task, made):
    """The steps that take `nfe` evaluations where these depend on the times: more steps take more."""

    def count(n):
        return evaluations(task, settled(task, made(n)))

    n = 1 + bisect.bisect_left(range(1, nfe + 1), nfe, key=count)
    if (got := count(n)) != nfe:
        raise ValueError(
            f"nfe must be a number of evaluations that {name} takes, fewer in {n - 1} steps and {got} in {n}. "
            f"Got nfe={nfe}."
        )
    return n
