"""The best of many samplers."""

import bisect
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from .._clock import AngleClock, RatioClock
from .._code import as_code
from .._field import AbstractField
from .._grid import EasedGrid, RatioGrid, eased_shares
from .._kinds import check_kinds
from .._recommended import recommended
from .._sampler import FixedSteps, SamplerLike, as_sampler
from .._solver import Adams, DPMpp
from .._types import Checked, DType, Number, PRNGKey, Shape, Time
from .._validate import check_count, check_key
from ._task import (
    FINE_STEPS,
    Task,
    between,
    draw,
    errors,
    evaluations,
    even,
    fine,
    known,
    make_ends,
    make_task,
    settled,
    with_times,
)
from .times import STARTS, fit_times
from .weights import fit_weights

WEIGHTS = 10
"""How many steps the descent of the weights has for each of those of a grid."""
GRADIENT = 4
"""What a gradient through a sampler costs, in its samples."""


class Best(NamedTuple):
    """The best of many samplers: `sample(field, key, shape, best.sampler)`, and so for the other verbs.

    ```python
    euler = jf.FixedSteps(jf.UniformGrid(4), end="stop")
    best = jf.search.Best("Euler", euler, 4, {"Euler": 0.1, "Adams": 0.2})
    assert best.table[best.name] == min(best.table.values()) and best.sampler.n == best.nfe
    ```
    """

    name: str
    sampler: FixedSteps
    """It prints as the code that makes it, and `to_json` takes it. Its end is decided."""
    nfe: int
    """Network evaluations of one sample."""
    table: dict[str, float]
    """The error of every combination that was tried, the best first; infinite where it diverges, or where the fitted
    grid has come to take other than `nfe` evaluations, as guidance on an interval of times may make it.
    """


def best_sampler(
    field: AbstractField,
    key: PRNGKey,
    nfe: int,
    shape: Checked[Shape],
    *,
    candidates: dict[str, Callable[[int], SamplerLike]] | None = None,
    fit: int = 0,
    budget: Number | None = None,
    args: Any = None,
    args_in_axes: PyTree = None,
    t0: Time = 0.0,
    t1: Time = 1.0,
    start: PyTree = None,
    dtype: DType = None,
    num: int = 128,
    iterations: int = 60,
    progress: bool = True,
) -> Best:
    """The sampler of the ODE with `nfe` network evaluations that comes nearest to a fine solve.

    Each combination of solver, clock and grid draws the same `num` samples; its error is the root mean square, over
    samples and components, of their distance from those of the fine solve. With `fit` the grids of the best ones are
    then fitted by `optimize_times`, and of the best of all the grid together with the weights of every step
    (`NonStationary`), on other noises than the errors are measured on.

    The first sampler is drawn twice, for the time of a program's compilation and of an evaluation. Then a line says how
    many evaluations the search makes, and about how long it takes.

    Args:
        field: A field along an affine path.
        key: One typed key.
        nfe: Evaluations as `Solution.nfe` counts them: a guided step counts 2.
        shape: The shape of one event, or a pytree of `jax.ShapeDtypeStruct`.
        candidates: By name functions from the number of steps to a sampler, a `FixedSteps` or a grid. By default
            `recommended(field, nfe)` and the rules of docs/which_sampler.md: Adams' predictor-correctors of orders 2 to
            5 in `RatioClock` and 6 in `AngleClock`, Adams-Bashforth 3 and 4 in `AngleClock` and DPM-Solver++ 2M, on
            grids even in the ratio `alpha/(alpha + sigma)`, even in the angle `atan(alpha/sigma)`, and eased by (1.2,
            1.3) and (1, 1.3) as in `EasedGrid`: those of them that the field and `nfe` admit.
        fit: For how many combinations of solver and clock the grid is fitted too, by default for none. A fit costs
            about `1200 num nfe` evaluations, many times the rest. The weights are fitted for the best solver that has
            one call a step and goes in any clock, as Adams' methods; `n` steps have `n (n + 1)/2` of them, and with a
            few hundred noises (`num`) what is gained holds on others.
        budget: How many seconds the search may take. The first sampler is measured whatever it costs. What is not
            expected to end in time is left out, and a fit ends where the time does. By default all is done.
        args: As in `optimize_times`.
        args_in_axes: As there.
        t0: The first time of the default candidates and of the fine solve.
        t1: The last time of both.
        start: As in `sample`.
        dtype: As in `sample`.
        num: How many noises.
        iterations: As in `optimize_times`.
        progress: Whether the line and, on a terminal, a progress bar are shown.

    Raises `ValueError` for a budget that is not positive, and where a combination of your own, or every one, does not
    take exactly `nfe` evaluations; else as `optimize_times` does.

    ```python
    field = jf.distributions.moons(components=32).field(jf.CondOT())
    candidates = {
        "Heun": lambda n: jf.FixedSteps(jf.UniformGrid(n), dfx.Heun()),
        "Adams": lambda n: jf.FixedSteps(jf.EasedGrid(n), jf.Adams(3), clock=jf.RatioClock()),
    }
    best = jf.search.best_sampler(field, jr.key(0), 6, (2,), candidates=candidates, num=8, progress=False)
    assert jf.sample(field, jr.key(1), (2,), best.sampler).nfe == best.nfe == 6
    assert eval(repr(best.sampler)) == best.sampler
    ```
    """
    check_kinds(best_sampler, locals())
    until = _until(budget)
    check_key(key, "best_sampler")
    check_count(nfe=nfe, iterations=iterations)
    check_count(0, fit=fit)
    key_test, key_fit = jr.split(key)
    task, other = (make_task(field, k, shape, args, args_in_axes, num, start, dtype) for k in (key_test, key_fit))
    ends = make_ends(t0, t1)
    plans = _plans(task, candidates, ends, nfe)
    first = next(iter(plans.values()))
    trial, slopes = _tried(task, first, nfe), (len(STARTS) * iterations, WEIGHTS * iterations)
    if progress:
        cost = _forecast(task, trial, plans, nfe, [slopes[0]] * fit + [slopes[1]] * (fit > 0))
        tqdm.write(_line(*cost, len(plans), fit, budget), file=sys.stderr)
    targets, fit_targets, table = {}, {}, {}
    total = len(plans) + fit + (fit > 0)
    with tqdm(total=total, desc="best_sampler", unit="sampler", disable=None if progress else True) as bar:

        def affords(cost):
            return not table or time.monotonic() + cost <= until

        def measure(name, sampler):
            plans[name] = sampler
            table[name] = _measure(task, ends, sampler, nfe, targets)

        def aim(sampler):
            if sampler.end not in fit_targets:
                fit_targets[sampler.end] = fine(other, ends, sampler.end)
            return fit_targets[sampler.end]

        drawn = [first]
        for name, sampler in list(plans.items()):
            if affords(trial.cost(sampler, drawn, targets)):
                measure(name, sampler)
                drawn.append(sampler)
            bar.update()
        for name in _distinct(_ranked(table), plans)[:fit]:
            if affords(trial.fit(slopes[0])):
                sampler = plans[name]
                times = fit_times(other, aim(sampler), ends, sampler, iterations, progress, until)
                measure(f"{name}, times fitted", with_times(sampler, times, sampler.end))
            bar.update()
        for name in [name for name in _ranked(table) if _has_weights(plans[name])][: fit > 0]:
            if affords(trial.fit(slopes[1])):
                sampler = plans[name]
                found = fit_weights(other, aim(sampler), ends, sampler, WEIGHTS * iterations, progress, until)
                measure(f"{name.removesuffix(', times fitted')}, times and weights fitted", found)
            bar.update()
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


def _defaults(task, ends) -> dict[str, Callable[[int], Any]]:
    """The recommended sampler, and solvers in their clocks, each on a few grids."""
    path, args = task.field.path, task.one().args
    solvers: dict[str, tuple[Any, Any]] = {
        f"Adams PC {order}": (Adams(order, corrector=True), RatioClock()) for order in (2, 3, 4, 5)
    }
    solvers["Adams PC 6, angle"] = (Adams(6, corrector=True), AngleClock())
    solvers |= {f"Adams {order}, angle": (Adams(order), AngleClock()) for order in (3, 4)}
    solvers["DPM-Solver++ 2M"] = (DPMpp(2, "midpoint"), None)
    grids: dict[str, Callable[[int], Any]] = {
        "even in the ratio": RatioGrid,
        "even in the angle": lambda n: even(AngleClock(), path, ends, n),
        "eased": EasedGrid,
        "eased (1, 1.3)": lambda n: EasedGrid(n, 1.0, 1.3),
    }
    found: dict[str, Callable[[int], Any]] = {
        "recommended": lambda n: recommended(task.field, n * _step_cost(task), args),
    }
    if ends.tolist() != [0.0, 1.0]:  # rules go the whole way
        grids |= {
            "even in the ratio": lambda n: even(RatioClock(), path, ends, n),
            "eased": lambda n: between(RatioClock(), path, ends, eased_shares(n)),
            "eased (1, 1.3)": lambda n: between(RatioClock(), path, ends, eased_shares(n, 1.0, 1.3)),
        }
        found = {}

    def candidate(solver, clock, grid):
        return lambda n: FixedSteps(grid(n), solver, clock=clock)

    return found | {
        f"{name}, {which}": candidate(*parts, grid) for name, parts in solvers.items() for which, grid in grids.items()
    }


def _step_cost(task):
    """The evaluations of a step with one call."""
    cost = task.field.evaluations(task.one().args, 0.5)
    return cost if isinstance(cost, int) else 2  # guidance on an interval of times


class _Trial(NamedTuple):
    """Seconds, by a trial of one sampler."""

    program: float
    """To compile a program."""
    drawing: float
    """To draw the samples of a sampler."""
    fine: float
    """To draw those of the fine solve."""

    def cost(self, sampler: FixedSteps, drawn: list[FixedSteps], ends: Any) -> float:
        """Of a sampler, after those that were drawn, where fine solves to these ends were."""
        new = not any(sampler.n == s.n and eqx.tree_equal(_but_times(sampler), _but_times(s)) for s in drawn)
        return self.drawing + new * self.program + (sampler.end not in ends) * (self.program + self.fine)

    def fit(self, steps: int) -> float:
        """Of a descent."""
        return GRADIENT * (self.program + steps * self.drawing)


def _tried(task: Task, sampler: FixedSteps, nfe: int) -> _Trial:
    """The trial: the second drawing of a program is one without compilation."""
    seconds = []
    for _ in range(2):
        begin = time.monotonic()
        jax.block_until_ready(draw(task, sampler).x)
        seconds.append(time.monotonic() - begin)
    fine_nfe = FINE_STEPS * _step_cost(task)
    return _Trial(max(seconds[0] - seconds[1], 0.0), seconds[1], seconds[1] * fine_nfe / nfe)


def _forecast(task, trial, plans, nfe, slopes):
    """The evaluations of a search, those of the trial with them, and its seconds from now on; `slopes` the numbers of
    steps of its descents.
    """
    drawn, ends, seconds = [next(iter(plans.values()))], set(), 0.0
    for sampler in plans.values():
        seconds += trial.cost(sampler, drawn, ends)
        drawn, ends = [*drawn, sampler], {*ends, sampler.end}
    seconds += sum(map(trial.fit, slopes)) + bool(slopes) * trial.fine
    fine_nfe = FINE_STEPS * _step_cost(task) * (len(ends) + bool(slopes))
    return len(task.keys) * (nfe * (2 + len(plans) + GRADIENT * sum(slopes)) + fine_nfe), seconds


def _line(evaluations, seconds, plans, fit, budget):
    """What a search says before it starts."""
    fits = f" and {fit} fits" if fit else ""
    spent = "" if budget is None else f", of which it may take {budget:g} s"
    return (
        f"best_sampler: {plans} samplers{fits}, {evaluations:,} evaluations of the network, "
        f"about {seconds:.3g} s{spent}"
    )


def _until(budget):
    """The moment at which a budget is spent."""
    if budget is None:
        return math.inf
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.number) or not budget > 0:
        raise ValueError(f"budget must be a positive number of seconds, as 60, or None for no limit. Got {budget!r}.")
    return time.monotonic() + float(budget)


def _plans(task, candidates, ends, nfe):
    """The sampler of every candidate, its end decided; of the default ones of those that fit."""
    plans, failed, own = {}, None, candidates is not None
    facts = {}

    def look(sampler):  # samplers that differ in their grid alone are known alike
        if own:
            return known(task, sampler)
        which = as_code(_but_times(sampler)), sampler.n, sampler.facts[:-1]
        if which not in facts or not isinstance(facts[which].nfe, int):
            facts[which] = known(task, sampler)
        return facts[which]

    for name, candidate in (candidates if own else _defaults(task, ends)).items():
        try:
            plans[name] = _plan(task, name, candidate, nfe, look)
        except ValueError as error:
            if own:
                raise
            failed = error
    if not plans:
        raise ValueError(f"nfe must be a number of evaluations that a sampler of this field takes. Got {nfe}: {failed}")
    return plans


def _plan(task, name, candidate, nfe, look):
    """The sampler of a candidate that takes `nfe` evaluations."""
    if not callable(candidate):
        raise TypeError(
            "A candidate must be a function from the number of steps to a sampler, as "
            f"lambda n: jflow.FixedSteps(jflow.UniformGrid(n), diffrax.Heun()). Got {candidate!r} for {name!r}."
        )

    def made(n):
        sampler: Any = as_sampler(candidate(n))
        facts = look(sampler) if isinstance(sampler, FixedSteps) else None
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
    sampler = made(n)[0]
    return with_times(sampler, sampler.times, look(sampler).end)


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
