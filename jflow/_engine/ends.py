"""The ends of a solve: how a grid ends, and where a right-hand side or a clock is not defined.

All decisions are made once, before the loop, from static facts: which ends a grid touches, whether alpha and sigma
vanish there, what the field predicts without conversion. The loops do not look at their ends.

Each check may run twice in one call of a verb. The eager front calls it with values, so that an error is raised before
anything is traced. The jitted core calls it again on the same objects, whose arrays are then tracers. What depends on
the value of a tracer is not checked the second time. The facts of a sampler (its `facts`) were taken from values
when the sampler was built, and are static, so both calls see the same facts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer

from .._clock import PathClock, RatioClock, ThetaClock
from .._field import AbstractField
from .._path import AbstractAffinePath
from .._prediction import as_prediction, coefficients, name_has_row, prediction_row
from .._source import check_score
from .._validate import concrete
from .equation import FieldEquation


def decide_end(field: AbstractField, sampler: Any, finite_end: bool) -> str:
    """The end of a grid: the sampler's, or by default an end that never evaluates an undefined right-hand side.

    Raises `ValueError` where the default depends on the last time of a traced grid.
    """
    if sampler.end is not None:
        return sampler.end
    via_data = "data" in [as_prediction(p).name for p in field.sources]
    if finite_end and not via_data:
        return "stop"
    facts = sampler.facts
    if facts.repeats_last:
        return "denoise"
    at_data = facts.ends_at_one if field.path.ends_at_data else False
    if at_data is None or (facts.repeats_last is None and not at_data):
        raise ValueError(
            "The end of this grid must be given: the field predicts the data, or the clock is infinite where sigma = "
            "0, so it matters whether the last time is t = 1. Got a traced array of times: pass end='denoise' or "
            "end='stop' to jflow.FixedSteps, or take a grid rule, whose end is known."
        )
    return "denoise" if at_data else "stop"


def check_grid(field: AbstractField, sampler: Any, end: str) -> None:
    """Raises `ValueError` for a grid that decreases, leaves [0, 1], or repeats its last time without `"denoise"`."""
    facts, path = sampler.facts, type(field.path).__name__
    if facts.increases is False:
        raise ValueError(
            "A path's times must increase from noise (t = 0) to data (t = 1). Got decreasing ones, "
            f"{facts.note.value}: turn them around (jflow.encode carries data to noise, and takes the same grid)."
        )
    if facts.within is False and field.path.interval == (0.0, 1.0):
        raise ValueError(
            f"The times of {path} must lie in [0, 1], noise at 0 and data at 1. Got {facts.note.value}; steps numbered "
            "from data to noise, as 0 to 1000, are t = 1 - step/1000."
        )
    if facts.repeats_last and end != "denoise":
        raise ValueError(
            "The times of a grid must increase strictly. Got a last point twice: pass end='denoise', or another grid."
        )


def check_ends(equation: FieldEquation, sampler: Any, *, first: bool, last: bool, reaches: bool) -> None:
    """Raises `ValueError` where the right-hand side at an end of the path is not determined, or the clock is infinite.

    `first` and `last` say whether the right-hand side is evaluated at the first and at the last time of the sampler.
    `reaches` says whether the state is carried to the last time. Whether these times are ends of the path is a fact of
    the sampler. It is unknown for traced times, which are not checked.
    """
    facts = sampler.facts
    if facts.starts_at_zero:
        _check_end(equation, 0.0, evaluated=first)
    if facts.ends_at_one and (last or reaches):
        _check_end(equation, 1.0, evaluated=last)


_SINGULAR: dict[Any, str | None] = {}


def _check_end(equation, t, *, evaluated):
    field = equation.field
    if evaluated and (why := field.undefined(t)) is not None:
        raise ValueError(
            f"The field must be known at every time of the grid. Got t = {t:g}, where {why}: start and stop where they "
            "overlap, or let the last step be the data prediction, end='denoise'."
        )
    if not isinstance(field.path, AbstractAffinePath):
        return
    # A right-hand side that is finite for one positive eta is finite for all of them. A traced eta may be 0, so the
    # check treats it as 0.
    eta = equation.eta
    silent = eta is None or isinstance(eta, Tracer) or (isinstance(eta, (int, float, np.ndarray)) and not np.any(eta))
    # Each call of a verb checks twice, so results are stored. A user's coefficient is a function, whose values may
    # change between calls: its results are not stored.
    leaves, structure = jtu.tree_flatten((field.path, equation.clock))
    key = (
        structure, tuple(map(_identity, leaves)),
        tuple(as_prediction(p).name for p in field.sources), t, evaluated, silent, equation.noisy,
    )  # fmt: skip
    found = _SINGULAR.get(key, "") if equation.coefficient is None else ""
    if found == "":
        found = _singular(equation, t, 0.0 if silent else 1.0, evaluated)
        if len(_SINGULAR) > 256:
            _SINGULAR.clear()
        known = found is not None or not any(isinstance(leaf, Tracer) for leaf in leaves)
        if known and equation.coefficient is None:
            _SINGULAR[key] = found
    if found is not None:
        raise ValueError(_message(equation, t, found))


def _identity(leaf):
    """A key that two leaves of equal values share. It is `None` for every traced array, whose value is unknown."""
    if isinstance(leaf, Tracer):
        return None
    return np.asarray(leaf).tobytes() if isinstance(leaf, (jax.Array, np.ndarray)) else leaf


def _singular(equation, t, level, evaluated):
    """The name of a prediction that does not determine the right-hand side at `t`. `None` if all of them do.

    The weights of the predictions are computed and compared with infinity. `jax.ensure_compile_time_eval` makes them
    values inside `jax.jit` too, where a plain constant would become a tracer. Parameters of a path or a clock that are
    tracers stay tracers; `_finite` accepts weights that depend on them.
    """
    field, path, clock = equation.field, equation.field.path, equation.clock
    with jax.ensure_compile_time_eval():
        t, level = jnp.asarray(t, jnp.float32), jnp.asarray(level, jnp.float32)
        own = as_prediction(field.sources[0]).name if field.sources else "velocity"
        values: dict[str, list[Any]] = {own: [clock.time(path, t, level)]}
        if (factor := clock.scale(path, t, level)) is not None:
            values[own].append(factor)
        if evaluated:
            plain = clock.own_time and not equation.noisy
            target = prediction_row(path, "velocity", t) if plain else equation_row(equation, t, level)
            if target is not None:
                values[own].extend(w for w in target if w is not None)
                for source in map(as_prediction, field.sources):
                    if not (plain and source.name == "velocity") and name_has_row(path, source, t):
                        weights = coefficients(path, t, prediction_row(path, source, t), target)
                        values.setdefault(source.name, []).extend(weights)
        bad = [name for name, vs in values.items() if not all(_finite(v) for v in vs)]
    return bad[0] if bad else None


def equation_row(equation: FieldEquation, t: Any, level: Any) -> Any:
    """The right-hand side as a row. `None` where it is a sum of the field's own velocity and score."""
    row = equation.rhs(t, level)
    return row if len(row) == 3 else None


def _finite(value):
    """Whether a value is finite. A traced value counts as finite, and one that leaves no digit of float32 does not.

    The derivative of `t**2` at the end is taken one float away, so what it divides is 1e37 where the limit is infinite.
    """
    return (known := concrete(value)) is None or (np.abs(known) < 1 / np.finfo(np.float32).eps).all()


def _message(equation, t, source):
    name, clock = type(equation.field.path).__name__, type(equation.clock).__name__
    if t < 0.5:
        fix = (
            "start a little later, as jflow.UniformGrid(n, t0=1e-3) (the start is then sigma(t) eps, and the neglected "
            "alpha(t) x1 is the cost)"
        )
        others = [ThetaClock()] if equation.eta is not None else [] if equation.noisy else [RatioClock(), PathClock()]
        if found := [clock for clock in others if _holds(equation, t, clock)]:
            fix += f", or take {found[0]!r}, whatever the solver"
    else:
        fix = (
            "stop a little earlier, as at t = 0.999 (the noise sigma(t) left in the sample is the cost), or on a grid "
            "let the last step be the data prediction, end='denoise'"
        )
    return (
        f"The equation must be finite at every time of the grid. Got t = {t:g}, where a field that predicts "
        f"{source!r} along {name} does not determine the right-hand side of {clock}: {fix}."
    )


def _holds(equation, t, clock):
    """Whether the equation is finite at `t` in another clock. A message suggests only such a clock."""
    other = FieldEquation(equation.field, clock, equation.eta, None)
    return _singular(other, t, 1.0 if other.noisy else 0.0, True) is None


def check_noise(field: AbstractField, what: str) -> None:
    """Raises `ValueError` where `eta` or churn has no score, the `-noise/sigma` of an affine path."""
    if not isinstance(field.path, AbstractAffinePath):
        raise ValueError(f"{what} must have an affine path, with alpha and sigma. Got {type(field.path).__name__}.")
    check_score(field.path.source, what)
