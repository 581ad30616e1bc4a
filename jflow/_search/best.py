"""The best of many samplers."""

import bisect
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tqdm import tqdm

from .._clock import AngleClock, RatioClock
from .._field import AbstractField
from .._misc import check_key
from .._problem import needed_stages
from .._sample import plan
from .._solver import Adams, DPMpp
from .._times import eased_shares
from .._types import PRNGKey, Time
from ._task import between, check_counts, draw, errors, evaluations, even, fine, make_ends, make_task
from .times import optimize_times
from .weights import fit_weights


class Best(NamedTuple):
    """The best of many samplers: `sample(field, key, shape, **best.options)`, and so for `generate`."""

    name: str
    options: dict[str, Any]
    """`times`, `solver`, `clock` and `end`."""
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
    candidates: dict[str, dict[str, Any]] | None = None,
    fit: int = 2,
    args: Any = None,
    args_in_axes: Any = None,
    t0: Time = 0.0,
    t1: Time = 1.0,
    base: Any = None,
    dtype: Any = None,
    num: int = 128,
    iterations: int = 60,
    progress: bool = True,
) -> Best:
    """The sampler of the ODE with `nfe` network evaluations that comes nearest to a fine solve.

    Each combination of solver, clock and grid draws the same `num` samples; its error is the root mean square, over
    samples and components, of their distance from those of the fine solve. The grids of the best ones are then fitted
    by `optimize_times`, and of the best of all the grid together with the weights of every step (`NonStationary`), on
    other noises than the errors are measured on.

    **Arguments:**

    - `nfe`: evaluations as `Solution.nfe` counts them: a guided step counts 2.
    - `candidates`: by name the options of `sample`, `times` being a function from the number of steps to a grid:
      `{"2M": dict(solver=jf.DPMpp(2), times=lambda n: jf.log_snr_times(n, path, -8, 8))}`. By default Adams'
      predictor-correctors of orders 2 to 4 in `RatioClock`, Adams-Bashforth 3 and 4 in `AngleClock` and DPM-Solver++
      2M, on grids even in the ratio `alpha/(alpha + sigma)`, even in the angle `atan(alpha/sigma)`, and eased by
      (1.2, 1.3) and (1, 1.3) as in `eased_times`: those of them that the field and `nfe` admit.
    - `fit`: for how many combinations of solver and clock the grid is fitted too, 0 for no fit at all. The weights
      are fitted for the best solver that has one call a step and no clock of its own, as Adams' methods; `n` steps
      have `n (n + 1)/2` of them, and with a few hundred noises (`num`) what is gained holds on others.
    - the others: as in `optimize_times`.

    Raises `ValueError` where a combination of your own, or every one, does not take exactly `nfe` evaluations; else
    as `optimize_times` does.
    """
    check_key(key, "best_sampler")
    check_counts(nfe=nfe, iterations=iterations)
    if fit != 0:
        check_counts(fit=fit)
    key_test, key_fit = jr.split(key)
    task, ends = make_task(field, key_test, shape, args, args_in_axes, num, base, dtype), make_ends(t0, t1)
    plans = _plans(task, candidates, ends, nfe)
    targets, table = {}, {}
    total = len(plans) + fit + (fit > 0)
    with tqdm(total=total, desc="best_sampler", unit="sampler", disable=None if progress else True) as bar:

        def measure(name, options):
            plans[name] = options
            table[name] = _measure(task, ends, options, nfe, targets)
            bar.update()

        for name, options in list(plans.items()):
            measure(name, options)
        for name in _distinct(_ranked(table), plans)[:fit]:
            rest = {k: v for k, v in plans[name].items() if k != "times"}
            times = optimize_times(
                field, key_fit, len(plans[name]["times"]) - 1, shape, args=args, args_in_axes=args_in_axes, t0=t0,
                t1=t1, base=base, dtype=dtype, num=num, iterations=iterations, progress=progress, **rest,
            )  # fmt: skip
            measure(f"{name}, times fitted", {**rest, "times": times})
        for name in [name for name in _ranked(table) if _has_weights(plans[name])][: fit > 0]:
            other = make_task(field, key_fit, shape, args, args_in_axes, num, base, dtype)
            found = fit_weights(other, ends, plans[name], 10 * iterations, progress)
            measure(f"{name.removesuffix(', times fitted')}, times and weights fitted", found)
    names = _ranked(table)
    return Best(names[0], plans[names[0]], nfe, {name: table[name] for name in names})


def _ranked(table):
    """The names, that of the least error first."""
    return sorted(table, key=lambda name: table[name])


def _has_weights(options):
    """Whether a sampler is a linear method with one call a step in any clock, so that its weights can be fitted."""
    solver, steps = options["solver"], len(options["times"]) - 1 - (options["end"] != "stop")
    return steps > 0 and isinstance(solver, (Adams, dfx.Euler))


def _measure(task, ends, options, nfe, targets):
    """The error of one sampler, infinite where it diverges or where a varying cost takes it off `nfe`."""
    end = "denoise" if options["end"] == "denoise" else "stop"
    if end not in targets:
        targets[end] = fine(task, ends, end)
    out = draw(task, options)
    if int(out.nfe[0]) != nfe:
        if _cost(task.one(), ends) is None:
            return np.inf
        raise ValueError(
            f"Every sampler takes nfe = {nfe} evaluations. Got {options['solver']}, which takes {out.nfe[0]}."
        )
    error = float(jnp.sqrt(jnp.mean(errors(out.x, targets[end]) ** 2)))
    return error if np.isfinite(error) else np.inf


def _distinct(names, plans):
    """The names but for those that differ from an earlier one in their grid alone."""
    kept = []
    for name in names:
        rest = {k: v for k, v in plans[name].items() if k != "times"}
        if not any(eqx.tree_equal(rest, {k: v for k, v in plans[o].items() if k != "times"}) for o in kept):
            kept.append(name)
    return kept


def _defaults(path, ends) -> dict[str, dict[str, Any]]:
    """Solvers in their clocks, each on a few grids."""
    solvers: dict[str, dict[str, Any]] = {
        f"Adams PC {order}": {"solver": Adams(order, corrector=True), "clock": RatioClock()} for order in (2, 3, 4)
    }
    solvers |= {f"Adams {order}, angle": {"solver": Adams(order), "clock": AngleClock()} for order in (3, 4)}
    solvers["DPM-Solver++ 2M"] = {"solver": DPMpp(2, "midpoint")}
    grids = {
        "even in the ratio": lambda n: even(RatioClock(), path, ends, n),
        "even in the angle": lambda n: even(AngleClock(), path, ends, n),
        "eased": lambda n: between(RatioClock(), path, ends, eased_shares(n)),
        "eased (1, 1.3)": lambda n: between(RatioClock(), path, ends, eased_shares(n, 1.0, 1.3)),
    }
    return {
        f"{name}, {which}": {**options, "times": grid}
        for name, options in solvers.items()
        for which, grid in grids.items()
    }


def _cost(one, ends):
    """The evaluations of one call of the field, `None` where they depend on its time."""
    cost = one.field.evaluations(one.args, ends[0])
    return cost if isinstance(cost, int) else None


def _plans(task, candidates, ends, nfe):
    """The options of every combination, with its grid; of the default ones those that fit."""
    plans, refused, field, one = {}, None, task.field, task.one()
    cost = _cost(one, ends)
    for name, given in (_defaults(field.path, ends) if candidates is None else candidates).items():
        if "times" not in given or set(given) - {"times", "solver", "clock", "end"}:
            raise ValueError(
                "A candidate has times=, a function from the number of steps to a grid, and solver=, clock= or end= "
                f"as in sample. Got {sorted(given)} for {name!r}."
            )
        grid, options = given["times"], {k: v for k, v in given.items() if k != "times"}
        try:
            _, solver, end = plan(field, times=grid(2), **options)
            options = {"clock": None, **options, "solver": solver, "end": end}
            if cost is None:
                n = _steps_drawn(name, nfe, one, grid, options)
            else:
                n = _steps(name, nfe, cost, _calls(solver), end)
            plans[name] = {"times": grid(n), **options}
            plan(field, **plans[name])
        except ValueError as error:
            plans.pop(name, None)
            if candidates is not None:
                raise
            refused = error
    if not plans:
        raise ValueError(f"No sampler takes nfe = {nfe} evaluations of this field; the last one said: {refused}")
    return plans


def _steps(name, nfe, cost, calls, end):
    """The steps that take `nfe` evaluations."""
    last = 0 if end == "stop" else 1 if end == "denoise" else _calls(end)
    steps, rest = divmod(nfe - cost * last, cost * calls)
    n = steps + (end != "stop")
    if rest or n < 1:
        raise ValueError(
            f"nfe is {cost} x (steps x {calls} + {last}) for {name}, {cost} being the evaluations of one "
            f"call of the field and {last} those of its own last step. Got nfe={nfe}."
        )
    return n


def _steps_drawn(name, nfe, one, grid, options):
    """The steps that take `nfe` evaluations where these depend on the times: more steps take more."""

    def count(n):
        return int(evaluations(one, {"times": grid(n), **options})[0])

    n = 1 + bisect.bisect_left(range(1, nfe + 1), nfe, key=count)
    if (got := count(n)) != nfe:
        raise ValueError(f"{name} takes fewer than nfe = {nfe} evaluations in {n - 1} steps. Got {got} in {n}.")
    return n


def _calls(solver):
    """Right-hand sides of one step."""
    tableau = getattr(solver, "tableau", None)
    return len(needed_stages(tableau)) if isinstance(tableau, dfx.ButcherTableau) else getattr(solver, "calls", 1)
