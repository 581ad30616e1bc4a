"""Where a field and a sampler meet: one object that takes the steps of a grid."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PyTree

from .._clock import PathClock, ThetaClock
from .._event import float_type, joined, row
from .._field import AbstractField
from .._grid import AbstractGridRule
from .._kinds import check_kinds
from .._noise_rule import AbstractNoiseRule
from .._path import AbstractAffinePath
from .._rule import AbstractStepRule
from .._sampler import AdaptiveSteps, FixedSteps, SamplerLike, as_sampler
from .._solver import AbstractFieldSolver, AbstractWrappedRule, check_is_map, inverse, log_det, step_of, with_solver
from .._source import noise_map
from .._types import Checked, DType, Event, PRNGKey
from .count import evaluation_nodes, is_itself, rule_evaluations, unwrapped
from .ends import check_ends, check_grid, check_noise, decide_end
from .equation import AbstractEquation, FieldEquation
from .solver_rule import SolverRule, choose_clock


class Stepper(eqx.Module):
    """The steps of a sampler with a field: a rule, the field, the grid, the end. `jflow.stepper` makes it.

    - `times`: the grid, `n + 1` points.
    - `rows`: what each step must know, with a leading axis of length `steps`.
    - `n`: the number of steps of the grid.
    - `steps`: the number of steps that the rule takes: `n`, or `n - 1` if the last step is the data prediction.
    - `end`: `"denoise"` or `"stop"`.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())

    steps, x = jf.stepper(field, jf.UniformGrid(4)), jnp.ones(2)
    after, state = steps.step(steps.row(0), x, steps.init(x))
    assert isinstance(steps, jf.Stepper) and jnp.allclose(after, x + field.velocity(0.0, x) / 4)
    ```
    """

    rule: AbstractStepRule
    field: PyTree
    times: Float[Array, " points"]
    rows: PyTree
    n: int = eqx.field(static=True)
    end: str = eqx.field(static=True)

    @property
    def steps(self) -> int:
        """The number of steps that the rule takes."""
        return self.n - (self.end == "denoise")

    @property
    def noisy(self) -> bool:
        """Whether a step needs noise."""
        return self.rule.noisy

    def row(self, i: int | Int[Array, ""]) -> PyTree:
        """What step `i` must know."""
        return row(self.rows, i)

    def init(self, x: PyTree, args: Any = None) -> PyTree:
        """The memory before the first step."""
        return self.rule.init(self.field, self.row(0), x, args) if self.steps else None

    def step(
        self, row: PyTree, x: PyTree, state: PyTree, noise: PyTree = None, args: Any = None
    ) -> tuple[Event, PyTree]:
        """The state after the step of `row`, and the memory."""
        x, state = self.rule.step(self.field, row, x, state, noise, args)
        if isinstance(self.field, AbstractField) and isinstance(self.field.path, AbstractAffinePath):
            # the rounding of many steps would move the centre of a cloud
            x = noise_map(self.field.path.source).project(x, args)
        return x, state

    def finish(self, x: PyTree, args: Any = None) -> Event:
        """The state at the end of the grid, from the state `x` after the last step of the rule.

        With the end `"stop"` that is `x`. With `"denoise"` it is the data prediction at `times[-2]`.
        """
        return x if self.end == "stop" else self.field.data(self.times[-2], x, args)

    def noise(self, key: PRNGKey, i: int | Int[Array, ""], x: PyTree, args: Any = None) -> PyTree:
        """The white noise of step `i`. The loop of `sample` draws the same from the same key of noise."""
        like = self.rule.noise_like(self.field, self.row(0), x, args)
        block = self.rule.block(like)
        return row(self.rule.draw(jr.fold_in(key, i // block), block, like), i % block)

    def nfe(self, x: PyTree, args: Any = None) -> int | Int[Array, ""] | None:
        """The network evaluations of the whole grid. `None` where they are not known."""
        last = self.field.evaluations(args, self.times[-2]) if self.end == "denoise" else 0
        if not self.steps:
            return last
        if isinstance(self.rule, SolverRule):
            steps = self._solver_nfe(args)
        else:
            like = self.rule.noise_like(self.field, self.row(0), x, args)
            noise = jax.eval_shape(lambda k: row(self.rule.draw(k, 1, like), 0), jr.key(0)) if self.noisy else None
            each = rule_evaluations(self.rule, self.field, self.row(0), x, noise, args)
            steps = None if each is None else each * self.steps
        return None if steps is None else steps + last

    def _solver_nfe(self, args):
        """The evaluations of a diffrax solver. A cost that depends on the time is summed over all evaluations."""
        rule: PyTree = self.rule
        each = rule.nfe(self.field, args)
        if each is not None:
            return each * self.steps
        equation = rule.equation(self.field)
        nodes = evaluation_nodes(rule.solver, equation.noisy)
        if nodes is None or isinstance(equation.cost(self.times[0], args), int):
            return None

        def step(row):
            total = jnp.zeros((), jnp.int32)
            for node in nodes:
                inside = equation.locate(row.tau0 + node * (row.tau1 - row.tau0), row.eta)[0]
                t = row.t0 if node == 0 else row.t1 if node == 1 else inside
                total = total + equation.cost(t, args)
            return total

        return jnp.sum(jax.vmap(step)(self.rows))

    def log_ratio(
        self, target: PyTree, row: PyTree, x: PyTree, x1: PyTree, args: Any = None, state: PyTree = None,
        target_state: PyTree = None,
    ) -> Float[Array, ""]:  # fmt: skip
        """`log p_target(x1 | x) - log p(x1 | x)` of one step from `x` to `x1`, for weights of particles."""
        return self.rule.log_ratio(self.field, target, row, x, x1, args, state, target_state)

    def log_det(self, row: PyTree, x: PyTree, args: Any = None) -> Float[Array, ""]:
        """`log |det|` of the derivative of a step. It raises unless the step is a map, as `jflow.Jump`."""
        return log_det(step_of(self.rule, self.field, row, args), x)[2]

    def inverse(self, row: PyTree, x: PyTree, args: Any = None) -> Event:
        """The state before a step that led to `x`. It raises unless the step is a map, as `jflow.Jump`."""
        return inverse(step_of(self.rule, self.field, row, args), x)[0]


def stepper(
    field: AbstractField, sampler: Checked[SamplerLike], *, dtype: DType = None, brownian: PyTree = None
) -> Stepper:
    """The steps of a sampler with a field, for your own loops: particles, steering, what the verbs do not do.

    Args:
        field: The field.
        sampler: `FixedSteps`, or a grid, which is short for it. Adaptive solves have no stepper.
        dtype: The type of times and coefficients, by default the default float type.
        brownian: A diffrax Brownian path in the clock's noise time, instead of the noise that is passed to each step.

    Raises `ValueError` or `TypeError` where field and sampler do not go together, or the grid touches a time at which
    the right-hand side is not determined.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
    st = jf.stepper(world.field(jf.CondOT()), jf.FixedSteps(jf.UniformGrid(8), eta=1.0, end="denoise"))
    x = jr.normal(jr.key(0), (2,))
    state = st.init(x)
    for i in range(st.steps):
        x, state = st.step(st.row(i), x, state, st.noise(jr.key(1), i, x))
    assert st.finish(x).shape == (2,)
    ```
    """
    check_kinds(stepper, locals())
    sampler = as_sampler(sampler)
    rule, end = meet(field, sampler, brownian)
    return bind(field, rule, sampler, end, dtype)  # pyright: ignore[reportArgumentType]  # `meet` raises for others


def meet(field: AbstractField, sampler: Any, brownian: Any = None) -> tuple[AbstractStepRule, str]:
    """The rule and the end of fixed steps with a field, checked.

    It computes nothing, so a verb calls it with values before it traces. `stepper` calls it again inside the jitted
    core, where numbers of field and sampler are tracers.
    """
    if not isinstance(sampler, FixedSteps):
        raise TypeError(f"A stepper must have fixed steps, jflow.FixedSteps(...). Got {type(sampler).__name__}.")
    if isinstance(sampler.solver, AbstractStepRule):
        rule, end = sampler.solver, sampler.end or "stop"
        if isinstance(rule, AbstractWrappedRule):
            inner, end = meet(field, with_solver(sampler, rule.solver), brownian)
            rule = with_solver(rule, inner)
        elif not (sampler.eta is sampler.diffusion is sampler.clock is None) or isinstance(brownian, dfx.AbstractPath):
            raise ValueError(
                f"{type(rule).__name__} must stand alone: it is a step rule, which knows its own noise and time. Got "
                "eta=, diffusion=, clock= or a Brownian path beside it: leave these out."
            )
        check_grid(field, sampler, end)
        rule.check(field, sampler)
        return rule, end
    clock = choose_clock(field, sampler)
    end = decide_end(field, sampler, clock.finite_end)
    check_grid(field, sampler, end)
    rule = solver_rule(sampler, clock, sampler.n - (end == "denoise"), brownian)
    rule.check(field, sampler)
    _check_ends(field, sampler, rule, end)
    return rule, end


def solver_rule(sampler: FixedSteps, clock: Any, n: int, brownian: Any = None) -> SolverRule:
    """The rule of a sampler's diffrax solver, for a grid on which it takes `n` steps."""
    solver: Any = dfx.Euler() if sampler.solver is None else sampler.solver
    inner, eta = unwrapped(solver), sampler.eta
    if isinstance(inner, AbstractFieldSolver):
        if inner.adds_noise:
            if eta is not None or sampler.diffusion is not None:
                raise ValueError(
                    f"{type(inner).__name__} must be without eta= and diffusion=: it adds noise to the ODE itself. "
                    "Drop these, or take another solver, as diffrax.Heun()."
                )
            eta = 0.0  # the equation of the ODE, but the loop draws a normal for each step
        solver = inner.prepare(sampler.n if inner.adds_noise else n) if solver is inner else solver
    if not isinstance(eta, AbstractNoiseRule) and eta is not None and jnp.ndim(eta) == 1:
        eta = jnp.asarray(eta)[:n]  # a value a step; the data prediction takes no noise
    return SolverRule(solver, clock, eta, sampler.diffusion, brownian)


def bind(
    field: PyTree, rule: AbstractStepRule, sampler: FixedSteps, end: str, dtype: DType, *, turned: bool = False
) -> Stepper:
    """The stepper of parts that were checked.

    `field` may be an `AbstractEquation`. `turned` runs the grid backwards. This runs inside the jitted core: the times
    are computed and cast here, and the table of steps is traced.
    """
    path = field.path if isinstance(field, AbstractField) else None
    times = sampler.grid(path)
    wide = joined(jnp.float32, float_type(times)) if dtype is None else dtype
    times = times.astype(wide)
    if not sampler.facts.narrow and wide == jnp.float32:
        raise ValueError(
            "The times of a grid must differ in the type of the state, float32. Got "
            f"{sampler.facts.note.value}, two of which are one there: leave one out, or pass a state of float64."
        )
    if isinstance(sampler.times, AbstractGridRule) and path is not None:
        times = _apart(times, sampler.facts, path)
    times = times[::-1] if turned else times
    taken = times if end == "stop" else times[:-1]  # the row of the step to t = 1, which is not taken, may be infinite
    rows = rule.rows(field, taken) if taken.shape[0] > 1 else None
    return Stepper(rule, field, times, rows, times.shape[0] - 1, end)


def _apart(times, facts, path):
    """The times of a rule, those that rounding carries to sigma = 0 as near to t = 1 as its type resolves: a level
    of noise that is given is not zero, and no step has no length.
    """
    known = path.ends_at_data and facts.ends_at_one is not None and not facts.repeats_last
    if not known or facts.increases is not True:
        return times
    left = jnp.arange(times.shape[0] - 1, -1, -1, times.dtype) + float(not facts.ends_at_one)
    return jnp.minimum(times, 1 - left * (jnp.finfo(times.dtype).eps / 2))


def _check_ends(field, sampler, rule, end):
    equation: Any = rule.equation(field)
    nodes = evaluation_nodes(rule.solver, equation.noisy) or (0.0,)
    twice = sampler.facts.repeats_last and isinstance(sampler.times, jax.Array)  # the last but one time is t = 1 too
    stops = end == "stop" or bool(twice)
    if sampler.n == 1 and end == "denoise":  # only a data prediction, the right-hand side of ThetaClock
        data = FieldEquation(field, ThetaClock(), None, None)
        check_ends(data, sampler, first=True, last=False, reaches=False)
        return
    check_ends(equation, sampler, first=True, last=stops and 1.0 in nodes, reaches=stops)
    _check_start(rule.solver, equation, sampler)
    if end == "denoise" and sampler.facts.starts_at_zero and (why := field.undefined(0.0)) is not None:
        raise ValueError(f"The field must be known at every time of the grid. Got t = 0, where {why}: start later.")


def _check_start(solver: Any, equation: FieldEquation | AbstractEquation, sampler: Any) -> None:
    """Raises `ValueError` where a solver moves the state by noise before its first evaluation and the scale is zero.

    Some stochastic Runge-Kutta methods evaluate the field at the start of a step in `u + noise`. Where the scale of the
    clock is zero, as at alpha = 0 in `ThetaClock` with noise, no `x` belongs to that `u` (see `equation.located`).
    """
    tableau = solver.tableau if is_itself(solver, dfx.AbstractSRK) else None
    if tableau is None or not tableau.is_additive_noise() or not isinstance(equation, FieldEquation):
        return
    path: Any = equation.field.path
    lost = equation.noisy and not equation.clock.keeps_start and path.starts_at_noise and sampler.facts.starts_at_zero
    noise = (tableau.coeffs_w, tableau.coeffs_hh, tableau.coeffs_kk)
    if lost and any(weights is not None and weights.a[0] != 0 for weights in noise):
        raise ValueError(
            f"{type(solver).__name__} must start where alpha > 0: it evaluates the field at the start of a step in a "
            "state that noise has moved, and at alpha = 0 the clock's state does not determine the path's. Got t = 0: "
            "start a little later, as jflow.UniformGrid(n, t0=1e-3), or take diffrax.SRA1() or diffrax.SPaRK()."
        )


def ode_stepper(field: AbstractField, sampler: FixedSteps, what: str, dtype: DType, *, forward: bool) -> Stepper:
    """The steps of the ODE from noise to data, or back along the same grid. Every step is a step of the solver."""
    rule = meet_ode(field, sampler, what, forward=forward)
    return bind(field, rule, sampler, "stop", dtype, turned=not (forward or rule.is_map))


def meet_ode(field: AbstractField, sampler: FixedSteps, what: str, *, forward: bool) -> AbstractStepRule:
    """The rule of fixed steps of the ODE, checked. Every step is a step of the solver. It computes nothing.

    Raises `ValueError` for a sampler with noise or with the end `"denoise"`, and where an end of the grid is singular.
    """
    check_is_ode(sampler, what)
    if isinstance(inner := unwrapped(sampler.solver), AbstractFieldSolver) and inner.adds_noise:
        raise ValueError(
            f"{what} must follow the ODE. Got {type(inner).__name__}(), which adds noise: take diffrax.Heun()."
        )
    if isinstance(sampler.solver, AbstractStepRule):
        check_is_map(sampler.solver, "stop", what)
        return check_is_map(*meet(field, sampler), what)
    clock = choose_clock(field, sampler)
    denoises = sampler.end == "denoise" if not forward else decide_end(field, sampler, clock.finite_end) == "denoise"
    if denoises:
        raise ValueError(
            f"{what} must follow the ODE to the end: the data prediction as a last step has no inverse and no "
            "divergence. Got end='denoise': leave it out, and for a field that predicts data stop the grid short of t "
            "= 1, as jflow.UniformGrid(n, t1=0.999)."
        )
    check_grid(field, sampler, "stop")
    rule = solver_rule(sampler, clock, sampler.n)
    rule.check(field, sampler)
    if forward:
        _check_ends(field, sampler, rule, "stop")
    else:
        nodes = evaluation_nodes(rule.solver) or (0.0, 1.0)
        check_ends(rule.equation(field), sampler, first=1.0 in nodes, last=True, reaches=True)  # pyright: ignore
    return rule


def check_is_ode(sampler: Any, what: str) -> None:
    """Raises `ValueError` for a sampler with noise."""
    if sampler.eta is not None or sampler.diffusion is not None:
        raise ValueError(f"{what} must follow the ODE. Got eta= or diffusion=: leave these out.")


def drift_stepper(equation: Any, sampler: FixedSteps, dtype: DType, brownian: Any = None) -> Stepper:
    """The steps of `jflow.solve`: an equation in its own time, on any monotone grid."""
    rule = solver_rule(sampler, PathClock(), sampler.n, brownian)
    rule = SolverRule(rule.solver, rule.clock, None, equation.coefficient, brownian)
    rule.check(equation, sampler)
    return bind(equation, rule, sampler, "stop", dtype)


def adaptive_equation(field: AbstractField, sampler: AdaptiveSteps) -> FieldEquation:
    """The equation of a field for an adaptive sampler, checked. The checks are those of grids.

    Raises `ValueError` or `TypeError` where field and sampler do not go together.
    """
    clock, solver = choose_clock(field, sampler), sampler.solver
    inner = unwrapped(solver)
    if isinstance(inner, AbstractFieldSolver) and inner.adds_noise:
        raise ValueError(
            f"{type(inner).__name__} must have a fixed grid: it adds noise to each step. Got adaptive "
            "steps: take jflow.FixedSteps, or another solver, as diffrax.Heun()."
        )
    if sampler.eta is not None:
        check_noise(field, "eta")
    equation = FieldEquation(field, clock, sampler.eta, sampler.diffusion)
    check_grid(field, sampler, "stop")
    path: Any = field.path
    if equation.noisy and not clock.keeps_start and path.starts_at_noise and sampler.facts.starts_at_zero:
        raise ValueError(
            f"An adaptive SDE must start where alpha > 0 in {type(clock).__name__}: at alpha = 0 its state does not "
            "determine the path's. Got t0 = 0: start a little later, as t0=1e-3, or take jflow.FixedSteps."
        )
    check_ends(equation, sampler, first=True, last=True, reaches=True)
    return equation
