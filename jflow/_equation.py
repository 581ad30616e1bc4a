"""The ODE and the SDE of a field, in a clock."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._clock import AbstractClock, AngleClock, PathClock, RatioClock, ThetaClock
from ._field import AbstractField, AbstractNetwork, check_overlap
from ._misc import concrete, scale
from ._prediction import Row, coefficients, prediction_row
from ._problem import AbstractProblem, Interval, needed_stages


class FieldEquation(AbstractProblem):
    """The ODE or SDE of a field, in a clock."""

    field: AbstractField
    clock: AbstractClock
    eta: Any  # None, a number, or a function of t
    coefficient: Callable[..., Any] | None  # an absolute diffusion coefficient, in the path's own time

    @property
    def noisy(self):
        return self.eta is not None or self.coefficient is not None

    def level(self, t: Any) -> Any:
        """`eta` at the time `t`."""
        return 0.0 if self.eta is None else self.eta(t) if callable(self.eta) else self.eta

    def intervals(self, times):
        path, clock = self.field.path, self.clock

        def one(t0, t1):
            eta = self.level(t0)
            eta = jnp.asarray(eta).astype(times.dtype)
            enter, leave = clock.scale(path, t0, eta), clock.scale(path, t1, eta)
            s0 = s1 = variance = None
            if self.noisy:
                s0, s1 = (clock.noise_time(path, t, eta) for t in (t0, t1))
                variance = s1 - s0
            return Interval(
                t0=t0,
                t1=t1,
                tau0=clock.time(path, t0, eta),
                tau1=clock.time(path, t1, eta),
                variance=variance,
                enter=enter,
                leave=None if leave is None else 1 / leave,
                eta=eta,
                s0=s0,
                s1=s1,
            )

        return jax.vmap(one)(times[:-1], times[1:])

    def scaled(self, factor, x):
        return scale(factor, x)

    def time(self, t, eta):
        return t if isinstance(self.clock, PathClock) else self.clock.time(self.field.path, t, eta)

    def noise_time(self, tau, eta):
        path = self.field.path
        return self.clock.noise_time(path, self.clock.path_time(path, tau, eta), eta)

    def locate(self, tau, u, eta):
        t = self.clock.path_time(self.field.path, tau, eta)
        factor = self.clock.scale(self.field.path, t, eta)
        return t, u if factor is None else scale(1 / factor, u)

    def drift(self, t, x, args, eta):
        if isinstance(self.clock, PathClock) and not self.noisy:
            return self.field.velocity(t, x, args)
        return self.field.mixed((self.rhs(t, x, args, eta),), t, x, args)[0]

    def cost(self, t, args):
        return self.field.evaluations(args, t)

    def rhs(self, t, x, args, eta):
        """The right-hand side as a row of weights of data and noise."""
        path = self.field.path
        if self.coefficient is None:
            return self.clock.rhs(path, t, eta)
        return self.noisy_row(t, self.absolute(t, x, args).astype(jnp.result_type(t)))

    def absolute(self, t, x, args):
        """The coefficient `g`. The drift has `g^2/2 score` and no gradient of `g`, which is a function of t alone."""
        assert self.coefficient is not None
        g = self.coefficient(t, x, args)
        if not jtu.all_leaves([g]) or jnp.shape(g) not in {(), *_shape(x)}:
            raise ValueError(
                "The coefficient diffusion= of a sample is a function of t alone, a number or of the shape of a state "
                f"that is one array; jflow.solve takes others. Got {jtu.tree_map(jnp.shape, g)}."
            )
        return jnp.asarray(g)

    def noisy_row(self, t, g):
        """`velocity + g^2/2 score`."""
        path = self.field.path
        s, a, b = path.velocity_row(t)
        # sigma times the whole, so that nothing is divided by zero at t = 1; a row of infinite sigma' has that factor
        factor = path.sigma(t) if path.finite_sigma_dot else 1.0
        return Row(factor * s, factor * a, factor * b - g**2 / 2)

    def diffusion(self, t, x, args, eta):
        if self.coefficient is not None:
            return self.absolute(t, x, args)
        return self.clock.diffusion(self.field.path, t, eta)


def check_field(field: Any) -> None:
    """Raises `TypeError` for what is no field."""
    if not isinstance(field, AbstractField):
        raise TypeError(f"A sampler takes a field, as jflow.Field(net, path, predicts). Got {type(field).__name__}.")


def field_equation(
    field: AbstractField, clock: AbstractClock | None, eta: Any, diffusion: Callable[..., Any] | None
) -> FieldEquation:
    """The equation to solve, its arguments checked."""
    check_field(field)
    if diffusion is not None and not (eta is None and (clock is None or isinstance(clock, PathClock))):
        raise ValueError(
            "diffusion= is an absolute coefficient in the path's own time; it goes without eta= and without another "
            "clock. For a level of noise in any clock use eta=."
        )
    if eta is not None and not callable(eta):
        number = concrete(eta)
        if number is not None and (number.ndim != 0 or not np.isfinite(number) or number < 0):
            raise ValueError(f"eta is a number of at least 0 (0 the ODE, 1 the reverse SDE), or a function. Got {eta}.")
        if number is not None:
            with jax.ensure_compile_time_eval():  # known to `check_singular` inside jax.jit too
                eta = jnp.asarray(eta)
    if clock is None:
        clock = PathClock() if eta is None else ThetaClock()
    return FieldEquation(field, clock, eta, diffusion)


def check_singular(problem: FieldEquation, times: tuple[Any, ...], reached: Any = None) -> None:
    """Raises `ValueError` where, at concrete times, the prediction does not determine the right-hand side, or where the
    clock is infinite, there or at the time that is `reached` last.
    """
    field, path = problem.field, problem.field.path
    for t, evaluated in [(t, True) for t in times] + ([] if reached is None else [(reached, False)]):
        if evaluated:
            check_overlap(field, t)
        if concrete(t) is None:
            continue
        with jax.ensure_compile_time_eval():  # inside jax.jit too, where a constant would become a tracer
            t = jnp.asarray(t)
            eta = problem.level(t) if evaluated else 0.0
            values = {field.predicts: [problem.clock.time(path, t, eta)]}
            if (factor := problem.clock.scale(path, t, eta)) is not None:
                values[field.predicts].append(factor)
            if evaluated and isinstance(field, AbstractNetwork):
                plain = isinstance(problem.clock, PathClock) and not problem.noisy
                target = prediction_row(path, "velocity", t) if plain else _target(problem, t, eta)
                values[field.predicts].extend(target)
                for source in field.sources:
                    if not (plain and source == "velocity"):
                        weights = coefficients(path, t, prediction_row(path, source, t), target)
                        values.setdefault(source, []).extend(weights)
            singular = [name for name, vs in values.items() if not all(_finite(v) for v in vs)]
        if singular:
            raise ValueError(_singular_message(problem, float(t), singular[0]))


def _finite(value):
    """Whether a value is finite, as far as it is known: the parameters of a path or a clock may be traced."""
    known = concrete(value)
    return known is None or np.isfinite(known).all()


def _target(problem, t, eta):
    """The right-hand side; where a coefficient of the caller's needs more than the time, that without its score."""
    if problem.coefficient is None:
        return problem.clock.rhs(problem.field.path, t, eta)
    try:
        g = concrete(jnp.asarray(problem.coefficient(t, None, None), t.dtype))
    except Exception:  # whatever the caller's function raises without a state
        g = None
    return problem.noisy_row(t, jnp.zeros_like(t) if g is None else jnp.asarray(g))


def _shape(x):
    """The shape of a state that is one array."""
    return [jnp.shape(x)] if jtu.all_leaves([x]) else []


def _singular_message(problem, t, source):
    name, clock = type(problem.field.path).__name__, type(problem.clock).__name__
    if t < 0.5:
        fix = (
            "start a little later, as times=jnp.linspace(1e-3, 1.0, n + 1) (the start is then sigma(t) eps, and the "
            "neglected alpha(t) x1 is the cost)"
        )
        if problem.eta is not None and not isinstance(problem.clock, ThetaClock):
            fix += ", or take ThetaClock()"
        elif not (problem.noisy or isinstance(problem.clock, RatioClock | AngleClock | ThetaClock)):
            fix += ", or take RatioClock() or AngleClock()"
    else:
        fix = (
            "stop a little earlier, as at t = 0.999 (the noise sigma(t) left in the sample is the cost), or on a grid "
            "let the last step be the data prediction, end='denoise'"
        )
    return (
        f"The equation is finite at every time of the grid. Got t = {t:g}, where a field that predicts "
        f"{source!r} along {name} does not determine the right-hand side of {clock}: {fix}."
    )


def stage_times(times: Any, solver: dfx.AbstractSolver, end: Any = "stop") -> tuple[Any, ...]:
    """The first and the last time of a grid at which the right-hand side is evaluated."""
    if end == "denoise":
        return (times[0], times[-3]) if times.shape[0] > 2 else ()
    tableau = getattr(solver if end == "stop" else end, "tableau", None)
    if not isinstance(tableau, dfx.ButcherTableau):
        return times[0], times[-2]
    reaches = any(tableau.c[i - 1] == 1 for i in needed_stages(tableau) if i)
    return times[0], times[-1] if reaches else times[-2]
