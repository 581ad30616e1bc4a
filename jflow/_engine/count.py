"""How many right-hand sides a step of a solver evaluates, and at which times inside the step.

Three sources are tried in turn: what the solver declares (`AbstractFieldSolver.nodes`), its tableau, and a trial step
that records the calls. Everything here runs before the loop is traced.
"""

from typing import Any, NamedTuple, TypeGuard, TypeVar, get_origin

import diffrax as dfx
import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._field import AbstractField, AbstractWrappedField
from .._kinds import check_kinds
from .._solver import AbstractFieldSolver, unwrapped
from .._validate import concrete
from .noise import step_path

_Kind = TypeVar("_Kind")


def is_itself(solver: Any, kind: type[_Kind]) -> TypeGuard[_Kind]:
    """Whether the solver itself is of a kind. diffrax's `isinstance` is also true for a wrapper of such a solver."""
    return isinstance(solver, kind) and not isinstance(solver, dfx.AbstractWrappedSolver)


def explicit_tableau(solver: Any) -> dfx.ButcherTableau | None:
    """The tableau of an explicit Runge-Kutta method. `None` for other solvers."""
    tableau: Any = solver.tableau if is_itself(solver, dfx.AbstractERK) else None  # not a MultiButcherTableau
    return tableau


def needed_stages(tableau: dfx.ButcherTableau) -> set[int]:
    """The stages on which the solution of a step depends. The error estimate may need more of them."""
    needed = {i for i, b in enumerate(tableau.b_sol) if b != 0}
    for stage in range(tableau.num_stages - 1, 0, -1):
        if stage in needed:
            needed |= {i for i, a in enumerate(tableau.a_lower[stage - 1]) if a != 0}
    return needed


def levy_kinds(solver: dfx.AbstractSolver) -> int:
    """How many normals a step of the solver needs.

    One is for the increment. A second and a third are for the space-time and the space-time-time Lévy area. A solver
    that queries the noise inside the step uses the second normal for that.
    """
    solver = unwrapped(solver)
    if isinstance(solver, AbstractFieldSolver) and solver.asks_inside:
        return 2
    if not isinstance(solver, dfx.AbstractSRK):
        return 1
    area = solver.minimal_levy_area
    if issubclass(area, dfx.AbstractSpaceTimeTimeLevyArea):
        return 3
    return 2 if issubclass(area, dfx.AbstractSpaceTimeLevyArea) else 1


class Trial(NamedTuple):
    """What one step of a solver did."""

    nodes: tuple[float, ...] | None  # the times of its evaluations; `None` if it made them inside a traced loop
    inside: bool  # whether it queried the noise over another interval than the whole step
    still: bool  # whether it evaluated only at the start of the step, in the state at the start


_TRIALS: dict[Any, Trial] = {}


def trial(solver: dfx.AbstractSolver, noisy: bool) -> Trial:
    """One step of a solver from 0 to 1, with a right-hand side that records the times of its calls.

    The step runs in `jax.ensure_compile_time_eval`, so the recorded times are values and not tracers, inside `jax.jit`
    too. Only a solver that calls the right-hand side inside a loop, as `lax.scan`, passes tracers there.

    The result is stored by the structure and the numbers of the solver. A solver that holds a tracer has no numbers
    yet, so its trial is made each time.
    """
    leaves = [concrete(leaf) for leaf in jtu.tree_leaves(solver) if eqx.is_array_like(leaf)]
    traced = any(leaf is None for leaf in leaves)
    key = None if traced else (jtu.tree_structure(solver), noisy, tuple(leaf.tobytes() for leaf in leaves))
    if (found := _TRIALS.get(key)) is None:
        with jax.ensure_compile_time_eval():
            found = _trial(solver, noisy)
        if not traced:
            _TRIALS[key] = found
    return found


def _trial(solver, noisy):
    times: list[Any] = []
    queries: list[Any] = []
    moved: list[Any] = []
    zero, one, y0 = jnp.zeros(()), jnp.ones(()), jnp.zeros(1)

    def note(t, y, args):
        times.append(concrete(t))
        state = concrete(y)
        moved.append(state is None or state.any())
        return jnp.ones_like(y)

    terms: Any = dfx.ODETerm(note)
    if noisy:
        normals = (jnp.ones(1),) * levy_kinds(solver)
        control = _Noted(step_path(zero, one, one, normals), queries)  # pyright: ignore[reportCallIssue]
        terms = dfx.MultiTerm(terms, dfx.ControlTerm(lambda t, y, args: jnp.eye(1), control))
    state = solver.init(terms, zero, one, y0, None)
    times.clear()
    moved.clear()
    queries.clear()
    solver.step(terms, zero, one, y0, None, state, jnp.zeros((), bool))
    nodes = None if any(t is None for t in times) else tuple(float(t) for t in times)
    inside = any(ends != (0.0, 1.0) for ends in queries)  # `None` counts: a query made in a loop
    return Trial(nodes, inside, nodes == (0.0,) and not any(moved))


class _Noted(dfx.AbstractBrownianPath):
    """A Brownian path that records over which intervals it is queried."""

    inner: Any
    queries: list[Any] = eqx.field(static=True)
    t0: Any = 0.0
    t1: Any = 1.0
    levy_area: Any = eqx.field(static=True, default=dfx.BrownianIncrement)

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        ends = concrete(t0), concrete(t1)
        known = ends[0] is not None and ends[1] is not None
        self.queries.append(tuple(map(float, ends)) if known else None)
        return self.inner.evaluate(t0, t1, left, use_levy)


def evaluation_nodes(solver: dfx.AbstractSolver, noisy: bool = False) -> tuple[float, ...] | None:
    """Where in a step a solver evaluates the right-hand side, from 0 to 1 in the clock's time.

    The result is `None` where this is not known: for implicit solvers, and for solvers that evaluate in a loop.

    Args:
        solver: Any diffrax solver.
        noisy: Whether the equation is an SDE.

    ```python
    assert jf.evaluation_nodes(dfx.Heun()) == (0.0, 1.0) and jf.evaluation_nodes(dfx.ImplicitEuler()) is None
    ```
    """
    check_kinds(evaluation_nodes, locals())
    if isinstance(solver, dfx.AbstractImplicitSolver):
        return None
    if is_itself(solver, AbstractFieldSolver) and (declared := solver.nodes()) is not None:
        return declared
    if (tableau := explicit_tableau(solver)) is not None:
        return tuple(0.0 if stage == 0 else float(tableau.c[stage - 1]) for stage in sorted(needed_stages(tableau)))
    if is_itself(solver, dfx.AbstractSRK):
        return None
    return trial(solver, noisy).nodes


def evaluates_at_start(solver: dfx.AbstractSolver, noisy: bool) -> bool:
    """Whether a solver evaluates once a step, at the start of the step and in the state there.

    The grid knows the path's time and state at the start of a step, so the loop need not invert the clock.
    """
    if is_itself(solver, AbstractFieldSolver) and (declared := solver.nodes()) is not None:
        return declared == (0.0,)
    if isinstance(solver, (dfx.AbstractImplicitSolver, dfx.AbstractRungeKutta, dfx.AbstractSRK)):
        return False
    return trial(solver, noisy).still


def step_evaluations(solver: dfx.AbstractSolver, noisy: bool) -> int | None:
    """The number of right-hand sides that one step evaluates. `None` where it is not known."""
    if is_itself(solver, dfx.AbstractSRK):
        skipped = solver.tableau.ignore_stage_f
        return len(solver.tableau.b_sol) - (0 if skipped is None else int(sum(skipped)))
    nodes = evaluation_nodes(solver, noisy)
    return None if nodes is None else len(nodes)


def takes_two_terms(solver: dfx.AbstractSolver) -> bool:
    """Whether a solver is for SDEs only: it needs a drift term and a noise term."""
    return get_origin(solver.term_structure) is dfx.MultiTerm


MARK = "jflow_evaluations_"


def rule_evaluations(rule: Any, field: Any, row: Any, x: PyTree, noise: Any, args: Any) -> int | None:
    """The evaluations of one step of a rule. `None` where they are not known.

    A rule may declare them. Otherwise one step is traced with a stub instead of the field. A call of the stub is a
    jitted function whose name carries the cost, so the calls are found in the traced program. A call inside a loop of
    known length counts as often as the loop runs. All arguments are tracers there, and nothing is computed.
    """
    if (declared := rule.nfe(field, args)) is not None:
        return declared
    if not isinstance(field, AbstractField):
        return None
    stub = _Stub(field)  # pyright: ignore[reportCallIssue]

    def step(row, x, noise):
        return rule.step(stub, row, x, rule.init(field, row, x, args), noise, args)[0]

    return _marks(jax.make_jaxpr(step)(row, x, noise).jaxpr)


class _Stub(AbstractWrappedField):
    """A field that returns zeros. Each call appears in the traced program under a name that starts with `MARK`."""

    def predict(self, targets, t, x, args=None):
        cost = self.field.evaluations(args, t)
        like = jax.eval_shape(lambda t, x: self.field.predict(targets, t, x, args), t, x)

        def answer(x):
            first = jnp.sum(jtu.tree_leaves(x)[0]) * 0
            return jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) + first.astype(leaf.dtype), like)

        answer.__name__ = f"{MARK}{cost if isinstance(cost, int) else 'unknown'}"
        return jax.jit(answer)(x)


def _marks(jaxpr: Any) -> int | None:
    """The evaluations marked in a program. `None` where their number depends on values, as in a `while` loop."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.params.get("name", "")
        if isinstance(name, str) and name.startswith(MARK):
            cost = name.removeprefix(MARK)
            if not cost.isdecimal():
                return None
            total += int(cost)
            continue
        inner = [_marks(sub) for value in equation.params.values() for sub in _jaxprs(value)]
        if any(count is None for count in inner):
            return None
        known = [count for count in inner if count is not None]
        kind = equation.primitive.name
        if kind == "while" and sum(known):
            return None
        if kind == "cond":
            if len(set(known)) > 1:
                return None
            total += max(known, default=0)
        else:
            total += sum(known) * (equation.params["length"] if kind == "scan" else 1)
    return total


def _jaxprs(value: Any) -> list[Any]:
    """The programs inside a parameter of an operation, as the body of a loop."""
    if isinstance(value, (tuple, list)):
        return [sub for item in value for sub in _jaxprs(item)]
    if isinstance(value, jex.ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, jex.Jaxpr) else []
