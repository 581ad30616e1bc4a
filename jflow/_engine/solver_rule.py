"""A diffrax solver in a clock, as a step rule."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu

from .._clock import AbstractClock, PathClock, ThetaClock
from .._event import combine, float_type, safe_sqrt, scale
from .._field import AbstractField
from .._noise_rule import AbstractNoiseRule
from .._path import AbstractAffinePath
from .._rule import AbstractStepRule
from .._solver import AbstractFieldSolver, AbstractMultistep
from .._source import noise_map
from .count import (
    evaluates_at_start,
    evaluation_nodes,
    explicit_tableau,
    levy_kinds,
    needed_stages,
    step_evaluations,
    takes_two_terms,
    trial,
    unwrapped,
)
from .ends import check_noise
from .equation import AbstractEquation, FieldEquation, Interval, located, noise_shape
from .noise import NoiseTerm, step_path


class SolverRule(AbstractStepRule):
    """The steps of a diffrax solver, in the time and state of a clock.

    A step maps the path's state `x` at the start of the step to the path's state at its end. Inside it multiplies `x`
    by `row.enter`, runs the solver in the clock, and multiplies by `row.leave`. So the state that the loop carries is
    finite even where the scale of the clock is zero or infinite. The solver sees the clock's times, which are tracers;
    `located` gives it the path's time and state.

    `field` is an `AbstractField`. `jflow.solve` and densities pass an `AbstractEquation` instead.
    """

    solver: dfx.AbstractSolver
    clock: AbstractClock
    eta: Any
    coefficient: Callable[..., Any] | None
    brownian: Any = None  # a diffrax path in the clock's noise time, instead of the loop's noise

    @property
    def noisy(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the loop draws noise for the step. A given Brownian path needs no draws."""
        return (self.eta is not None or self.coefficient is not None) and self.brownian is None

    def equation(self, field: Any) -> AbstractEquation:
        """The equation of the field in the clock. An equation is returned as it is."""
        own = isinstance(field, AbstractEquation)
        return field if own else FieldEquation(field, self.clock, self.eta, self.coefficient)

    def rows(self, field, times):
        return self.equation(field).intervals(times)

    def init(self, field, row, x, args):
        if explicit_tableau(self.solver) is not None:
            return None
        u0, terms = self._terms(field, row, x, None, args)
        return self.solver.init(terms, row.tau0, row.tau1, u0, args)

    def step(self, field, row, x, state, noise, args):
        equation, tableau = self.equation(field), explicit_tableau(self.solver)
        if tableau is not None:
            u1 = self._unrolled(equation, tableau, row, x, noise, args)
        else:
            u0, terms = self._terms(field, row, x, noise, args)
            no_jump = jnp.zeros((), bool)
            u1, _, _, state, result = self.solver.step(terms, row.tau0, row.tau1, u0, args, state, no_jump)
            failed = result != dfx.RESULTS.successful
            u1 = jtu.tree_map(lambda leaf: jnp.where(failed, jnp.nan, leaf).astype(leaf.dtype), u1)
        return (u1 if row.leave is None else equation.scaled(row.leave, u1)), state

    def _terms(self, field, row, x, noise, args):
        """The state in the clock, and diffrax's terms for the step.

        A solver that evaluates only at the start of a step gets the path's time and state there from the table. All
        others go through `located`, which inverts the clock inside the step.
        """
        equation = self.equation(field)
        u0 = x if row.enter is None else equation.scaled(row.enter, x)
        if not equation.own_time and evaluates_at_start(self.solver, equation.noisy):
            drift = dfx.ODETerm(lambda tau, u, a: equation.drift(row.t0, x, a, row.eta))
        else:
            drift = dfx.ODETerm(lambda tau, u, a: equation.drift(*located(equation, row, x, tau, u), a, row.eta))
        if not equation.noisy:
            return u0, drift
        return u0, dfx.MultiTerm(drift, self._noise_term(equation, row, x, u0, noise, args))

    def _noise_term(self, equation, row, x, u0, noise, args):
        still = not equation.own_time and evaluates_at_start(self.solver, equation.noisy)

        def diffusion(tau, u, a):
            t, y = (row.t0, x) if still else located(equation, row, x, tau, u)
            return equation.diffusion(t, y, a, row.eta)

        def colour(white):
            return equation.colour(white, args)

        if self.brownian is not None:
            return NoiseTerm(diffusion, self.brownian, u0, source_time(equation, row), colour)
        if noise is None:  # `init` needs only the shapes of the memory, and a weight of particles the mean of a step
            noise = tuple(jtu.tree_map(jnp.zeros_like, u0) for _ in range(levy_kinds(self.solver)))
        solver = unwrapped(self.solver)
        asks = isinstance(solver, AbstractFieldSolver) and solver.asks_inside

        def share(tau):
            s0, s1 = (row.tau0, row.tau1) if row.s0 is None else (row.s0, row.s1)
            moves = s1 > s0
            inside = jnp.where(moves, (equation.noise_time(tau, row.eta) - s0) / jnp.where(moves, s1 - s0, 1), 0)
            return jnp.where(tau == row.tau0, 0, jnp.where(tau == row.tau1, 1, jnp.clip(inside, 0, 1)))

        path = step_path(row.tau0, row.tau1, row.variance, noise, share if asks else None)
        return NoiseTerm(diffusion, path, u0, None, colour)

    def _unrolled(self, equation, tableau, row, x, noise, args):
        """One explicit Runge-Kutta step with the stages of the tableau written out.

        It gives the result of diffrax's step (0.7.2, `_solver/runge_kutta.py`, `AbstractRungeKutta.step`). The weights
        are Python numbers, and zero weights add nothing to the program. Stages that only the error estimate needs are
        not evaluated. At `c = 0` and `c = 1` time and state come from the table of steps.
        """
        tau0, tau1, length = row.tau0, row.tau1, row.tau1 - row.tau0
        u0 = x if row.enter is None else equation.scaled(row.enter, x)
        term: Any = self._noise_term(equation, row, x, u0, noise, args) if equation.noisy else None
        increment = None if term is None else term.contr(tau0, tau1)

        def slope(c, tau, u, first):
            if first:
                t, y = row.t0, x
            elif c == 1:
                t, y = row.t1, u if row.leave is None else equation.scaled(row.leave, u)
            else:
                t, y = located(equation, row, x, tau, u)
            drift = equation.drift(t, y, args, row.eta)
            if term is None:
                return drift
            kick = term.prod(equation.diffusion(t, y, args, row.eta), increment)
            return jtu.tree_map(lambda a, b: a + b, scale(length, drift), kick)

        def advanced(weights):
            pairs = zip(weights, slopes, strict=False)  # slopes of weight 0 may be missing
            terms = [(float(w), k) for w, k in pairs if w != 0]
            return combine((1, u0), (length if term is None else 1, combine(*terms))) if terms else u0

        slopes: list[Any] = []
        for stage in range(tableau.num_stages):
            if stage not in needed_stages(tableau):
                slopes.append(None)
                continue
            c = 0.0 if stage == 0 else float(tableau.c[stage - 1])
            u = u0 if stage == 0 else advanced(tableau.a_lower[stage - 1])
            tau = tau0 if c == 0 else tau1 if c == 1 else tau0 + c * length
            slopes.append(slope(c, tau, u, stage == 0))
        return advanced(tableau.b_sol)

    def draw(self, key, n, like):
        leaves, treedef = jtu.tree_flatten(like)
        kinds = levy_kinds(self.solver)
        keys = None if kinds * len(leaves) == 1 else jr.split(key, (kinds, len(leaves)))

        def one(kind, i, leaf):
            return jr.normal(key if keys is None else keys[kind, i], (n, *leaf.shape), float_type(leaf))

        return tuple(
            jtu.tree_unflatten(treedef, [one(kind, i, leaf) for i, leaf in enumerate(leaves)]) for kind in range(kinds)
        )

    def noise_like(self, field, row, x, args):
        return noise_shape(self.equation(field), x, args, row.t0)

    def nfe(self, field, args):
        """The right-hand sides of a step times the cost of each. `None` where the cost depends on the time."""
        equation = self.equation(field)
        count, cost = step_evaluations(self.solver, equation.noisy), equation.cost(jnp.zeros(()), args)
        return None if count is None or not isinstance(cost, int) else count * cost

    def log_ratio(self, field, target, row, x, x1, args, state, target_state):
        """The log-ratio of two Gaussian steps, `(|w|^2 - |w_target|^2) / 2` with `w = A^+ (x1 - m) / k`.

        A Gaussian step is `x1 = m + k A z` with a normal `z`. Here `m` is the step without noise, `A` the map of the
        source, and the number `k` is the same for both fields.

        A step is Gaussian if it evaluates the field only at its start and the coefficient of the noise does not depend
        on the state. This holds for `diffrax.Euler()`, and for multistep solvers without a corrector. (A corrector
        remembers the noise of the step before.) Other solvers raise. The ratio is not finite for a step without noise,
        as one with eta = 0.
        """
        equation: Any = self.equation(field)
        mapped = noise_map(equation.field.path.source)
        spread = equation.diffusion(row.t0, x, args, row.eta) if self._gaussian(equation) else None
        if spread is None or jnp.ndim(spread) != 0:
            raise ValueError(
                "Weights of particles must have a Gaussian step: noise with a number for its coefficient, drawn by the "
                "loop, and diffrax.Euler() or a multistep solver without a corrector. "
                f"Got {type(self.solver).__name__}() with eta={self.eta!r}: take jflow.FixedSteps(times, eta=1.0)."
            )
        k = spread * safe_sqrt(row.variance) * (1 if row.leave is None else row.leave)
        mean, target_mean = (
            self.step(f, row, x, memory, None, args)[0] for f, memory in ((field, state), (target, target_state))
        )

        def white(y):
            return mapped.solve(scale(1 / k, y), args)

        w, w_target = (white(combine((1, x1), (-1, m))) for m in (mean, target_mean))
        # |w|^2 - |w_target|^2 as a product, which does not subtract two large numbers
        products = jtu.tree_map(lambda a, b: jnp.sum((a - b) * (a + b)), w, w_target)
        return sum(jtu.tree_leaves(products)) / 2

    def _gaussian(self, equation):
        """Whether a step is the step without noise plus one normal of a known size."""
        solver = unwrapped(self.solver)
        plain = evaluation_nodes(self.solver, True) == (0.0,) and not takes_two_terms(self.solver)
        corrected = isinstance(solver, AbstractMultistep) and solver.corrected
        return plain and not corrected and equation.noisy and self.brownian is None

    def check(self, field, sampler):
        equation = self.equation(field)
        name, solver = type(self.solver).__name__, unwrapped(self.solver)
        if not equation.noisy and takes_two_terms(self.solver):
            raise ValueError(f"{name} must have an SDE. Got an equation without noise: take diffrax.Heun() or another.")
        traits = isinstance(solver, AbstractFieldSolver)
        asks = traits and solver.asks_inside
        drawn = equation.noisy and self.brownian is None
        known = explicit_tableau(self.solver) is not None or asks or (traits and solver.adds_noise)
        if drawn and not known and trial(self.solver, True).inside:
            raise ValueError(
                "On a fixed grid the noise must be queried over whole steps: it is one increment a step. Got "
                f"{name}, which queries it inside a step: pass brownian=, as jflow.brownian_tree makes it."
            )
        if isinstance(field, AbstractField):
            self._check_field(field, equation, sampler)

    def _check_field(self, field, equation, sampler):
        solver = unwrapped(self.solver)
        if isinstance(solver, AbstractFieldSolver) and solver.adds_noise:
            check_noise(field, f"{type(solver).__name__}, which adds noise,")
        elif self.eta is not None:
            check_noise(field, "eta")
        nodes = evaluation_nodes(self.solver, equation.noisy)
        if isinstance(self.eta, AbstractNoiseRule) and not (nodes == (0.0,) and self.clock.depends_on_eta):
            raise ValueError(
                f"{type(self.eta).__name__} must go with diffrax.Euler() in jflow.ThetaClock(). Got "
                f"{type(solver).__name__}() in {type(self.clock).__name__}(): pass a number eta, or leave both out."
            )
        memory = solver.memory if isinstance(solver, AbstractFieldSolver) else 0
        own = isinstance(solver, AbstractMultistep) and solver.clock is not None
        if (
            isinstance(solver, AbstractMultistep)
            and memory
            and not (own or self.clock.finite_end)
            and sampler.end != "stop"
        ):
            raise ValueError(
                f"{type(solver).__name__} must be in a clock that is finite at the data: over steps that grow without "
                f"bound its polynomial does not extrapolate. Got {type(self.clock).__name__}(), the default with eta: "
                "take jflow.DPMpp() or jflow.SASolver(), made for it, or without eta clock=jflow.RatioClock()."
            )
        if memory and self.eta is not None and (isinstance(self.eta, AbstractNoiseRule) or jnp.ndim(self.eta) == 1):
            raise ValueError(
                f"{type(solver).__name__} must have one eta for the whole grid: it remembers earlier steps, in a clock "
                f"that depends on eta. Got {self.eta!r}: pass a number, or take a one-step solver, as diffrax.Euler()."
            )


def source_time(equation: AbstractEquation, row: Interval) -> Callable[[Any], Any]:
    """Maps the clock's time to the time of a foreign Brownian path, within one step or interval.

    At the ends it returns the noise times of the table. Between the ends the result is cut to these: the inverse of a
    clock may round a time beyond an end, where the foreign path is not known.
    """

    def noise_time(tau):
        if row.s0 is None:
            return equation.noise_time(tau, row.eta)
        s = jnp.clip(equation.noise_time(tau, row.eta), row.s0, row.s1)
        return jnp.where(tau == row.tau0, row.s0, jnp.where(tau == row.tau1, row.s1, s))

    return noise_time


def choose_clock(field: Any, sampler: Any) -> AbstractClock:
    """The clock to integrate in: the clock of the sampler or of its solver, or else the default.

    Raises `ValueError` where sampler, solver and path do not go together.
    """
    solver = unwrapped(sampler.solver)
    own = solver.clock if isinstance(solver, AbstractFieldSolver) else None
    given = sampler.clock
    if own is not None and given is not None and type(own) is not type(given):
        raise ValueError(
            f"{type(solver).__name__}() must be in its own clock, {type(own).__name__}(), which it brings along. Got "
            f"{type(given).__name__}(): leave out clock=, or take a solver of any clock, as diffrax.Heun()."
        )
    if sampler.eta is not None and isinstance(solver, AbstractFieldSolver) and solver.ode_only:
        raise ValueError(
            f"{type(solver).__name__}() must have the ODE. Got eta={sampler.eta!r}: leave out eta=, or take one with a "
            "stochastic form, as jflow.SASolver() or jflow.DPMpp()."
        )
    if sampler.diffusion is not None and own is not None:
        raise ValueError(
            f"diffusion= must be in the path's own time. Got {type(solver).__name__}(), a method of "
            f"{type(own).__name__}(): pass eta= for noise in any clock, or a solver of any clock, as diffrax.Euler()."
        )
    clock = own or given or (PathClock() if sampler.eta is None else ThetaClock())
    if not clock.own_time and not isinstance(field.path, AbstractAffinePath):
        raise ValueError(
            f"{type(clock).__name__}() must have an affine path, with alpha and sigma. Got "
            f"{type(field.path).__name__}: leave out the clock, and take a solver that brings none along."
        )
    return clock
