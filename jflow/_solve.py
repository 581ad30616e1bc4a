"""The lecture's ODE and SDE: any drift, any deterministic diffusion coefficient, any grid."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
from jaxtyping import Array, PyTree

from ._brownian import Recorded
from ._engine import DriftEquation, check_source, check_tree, drift_stepper, run_adaptive, run_grid
from ._event import as_state, rounded, state_dtype
from ._front import as_arrays, numbers, run
from ._grid import AbstractGridRule, UniformGrid
from ._kinds import check_kinds
from ._rule import AbstractStepRule
from ._sample import ends
from ._sampler import AdaptiveSteps, FixedSteps, Sampler, SamplerLike, as_sampler
from ._solver import AbstractFieldSolver, unwrapped
from ._types import Checked, DType, Noun, PRNGKey, Solution, Time
from ._validate import stream


def solve(
    drift: Callable[[Array, PyTree, PyTree], PyTree],
    x0: PyTree,
    sampler: Checked[SamplerLike],
    *,
    args: Any = None,
    diffusion: Callable[[Array, PyTree, PyTree], PyTree] | None = None,
    key: PRNGKey | None = None,
    brownian: Checked[dfx.AbstractPath | Recorded | None] = None,
    event: dfx.Event | None = None,
    saveat: dfx.SaveAt | None = None,
    dtype: DType = None,
) -> Solution:
    """Solves `dx = drift(t, x, args) dt + diffusion(t, x, args) dW` from `x0`, for one example.

    Args:
        drift: A function `(t, x, args)` of the shape of `x`.
        x0: The start, an array of any shape or a pytree of arrays.
        sampler: `UniformGrid(n)` over [0, 1], an array of times, which for an ODE may decrease, `FixedSteps(times,
            solver)`, or `AdaptiveSteps(solver, t0=, t1=)`; without clock, `eta`, `diffusion` or `end`, which are for
            fields. `diffrax.Euler()` is the solver of fixed steps by default: Euler-Maruyama for an SDE.
        args: What drift and diffusion are given.
        diffusion: A function `(t, x, args)`: a number, of the shape of `x` (diagonal), or a matrix. Without one the
            equation is an ODE. With Euler the SDE is Itô's; with `diffrax.Heun` and others that diffrax calls
            Stratonovich solvers it is Stratonovich's.
        key: The noise; on a fixed grid its increments are keyed by the index of the step.
        brownian: Another source of noise: any diffrax Brownian path, or on a fixed grid `jflow.Recorded`.
        event: Where an adaptive solve stops, as in diffrax.
        saveat: As in diffrax; on a fixed grid only its `steps` and `t0` may be set.
        dtype: The type of the state, float32 or wider.

    Returns:
        A `Solution`; `nfe` counts evaluations of the drift. A failed solve is a status, not an exception.

    Raises `ValueError` or `TypeError` where the arguments do not go together.

    Source: Kloeden & Platen 1992, sections 10.2 and 14.1 for Euler-Maruyama.

    ```python
    sol = jf.solve(lambda t, x, args: -x, jnp.ones(2), jf.UniformGrid(1000))
    assert jnp.allclose(sol.x, jnp.exp(-1.0), atol=1e-3) and sol.nfe == 1000
    ```
    """
    check_kinds(solve, locals())
    sampler = _checked(as_sampler(sampler))
    equation = DriftEquation(drift, diffusion)
    x0 = as_state(x0 if dtype is None else rounded(as_state(x0), dtype))
    if brownian is not None and diffusion is None:
        raise ValueError("brownian= must go with an SDE. Got an ODE: drop it, or give diffusion=.")
    if isinstance(brownian, dfx.VirtualBrownianTree):
        check_tree(brownian, *(ends(sampler) if isinstance(sampler, AdaptiveSteps) else sampler.grid()[:: sampler.n]))
    if isinstance(sampler, FixedSteps):
        if event is not None:
            raise ValueError("event= must go with adaptive steps. Got a fixed grid: take jflow.AdaptiveSteps(...).")
        if sampler.facts.repeats_last or (diffusion is not None and sampler.facts.increases is False):
            raise ValueError(
                "The times of a grid must increase strictly, or for an ODE decrease. Got "
                f"{sampler.facts.note.value}{', with diffusion=' if diffusion is not None else ', a last point twice'}."
            )
    elif diffusion is not None:
        check_source(brownian)
    return run(_solve, (equation, x0, key, numbers(sampler), as_arrays(args), brownian, saveat, event))


def _solve(equation, x0, key, sampler, args, brownian, saveat, event):
    if isinstance(sampler, AdaptiveSteps):
        t0, t1 = ends(sampler)
        return run_adaptive(equation, x0, args, sampler, t0=t0, t1=t1, brownian=brownian, saveat=saveat, event=event)
    path, recorded = (None, brownian) if isinstance(brownian, Recorded) else (brownian, None)
    steps = drift_stepper(equation, sampler, state_dtype(x0), path)
    key = None if key is None else stream(key, "solve")
    return run_grid(steps, x0, args, key=key, recorded=recorded, saveat=saveat)


def _checked(sampler: Sampler) -> Sampler:
    """The sampler; raises `ValueError` for what belongs to a field."""
    parts = {"clock": sampler.clock, "eta": sampler.eta, "diffusion": sampler.diffusion}
    if isinstance(sampler, FixedSteps):
        parts["end"] = sampler.end
        if isinstance(sampler.times, AbstractGridRule) and not isinstance(sampler.times, UniformGrid):
            raise ValueError(
                f"A grid of jflow.solve must be UniformGrid or an array: there is no path. Got {sampler.times!r}: pass "
                "rule.times(path)."
            )
        if isinstance(sampler.solver, AbstractStepRule):
            raise ValueError(f"jflow.solve must have a diffrax solver. Got {type(sampler.solver).__name__}.")
    if given := [name for name, value in parts.items() if value is not None]:
        raise ValueError(
            f"The sampler of jflow.solve must be without {', '.join(given)}=: these are for fields. The noise of an "
            "SDE is diffusion=, an argument of solve."
        )
    solver = unwrapped(sampler.solver)
    if isinstance(solver, AbstractFieldSolver) and (solver.clock is not None or solver.adds_noise):
        raise ValueError(
            f"A drift must be integrated in its own time. Got {type(solver).__name__}(), a method of a field's clock: "
            "take a solver of any clock, as diffrax.Heun() or jflow.Adams(3)."
        )
    return sampler


class ODEFlow(Noun):
    """The flow `x0 -> psi(x0)` of the ODE `dx/dt = velocity(t, x, args)` from `t0` to `t1`, as a function.

    It is differentiable in `x0`, in what `velocity` and `args` hold, and in both times; with the times swapped it is
    its inverse. `t0 == t1` is the identity.

    ```python
    flow = jf.ODEFlow(lambda t, x, args: -x, 0.0, 1.0)
    back = jf.ODEFlow(lambda t, x, args: -x, 1.0, 0.0)
    assert jnp.allclose(back(flow(jnp.ones(2))), 1.0, atol=1e-3)
    ```
    """

    velocity: Callable[[Time, PyTree, PyTree], PyTree]
    t0: Time
    t1: Time
    args: PyTree
    sampler: AdaptiveSteps

    def __init__(
        self,
        velocity: Callable[[Time, PyTree, PyTree], PyTree],
        t0: Time,
        t1: Time,
        *,
        args: Any = None,
        sampler: AdaptiveSteps | None = None,
    ):
        """Makes the flow.

        Args:
            velocity: A function `(t, x, args)`.
            t0: The time at the start.
            t1: The time at the end.
            args: What the velocity is given.
            sampler: Solver and tolerances, `AdaptiveSteps()` by default, at 1e-5; its own times are not used.
        """
        self.velocity, self.t0, self.t1, self.args = velocity, t0, t1, args
        self.sampler = AdaptiveSteps() if sampler is None else sampler

    def __call__(self, x0: PyTree) -> PyTree:
        """The state at `t1` from that at `t0`."""
        options: PyTree = self.sampler.arguments() | {"t0": self.t0, "t1": self.t1}
        sol = solve(self.velocity, x0, AdaptiveSteps(**options), args=self.args)
        return sol.x
