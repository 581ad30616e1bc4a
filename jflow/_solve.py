"""The lecture's ODE and SDE: any drift, any deterministic diffusion coefficient, any grid."""

from collections.abc import Callable
from typing import Any, get_origin

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._adaptive import adaptive
from ._brownian import Recorded, levy_kinds, shape_of
from ._checks import check_mode, check_noise, check_times
from ._clock import PathClock
from ._loop import Ending, scan_steps
from ._misc import as_state, cast_like, check_key, scale, state_dtype
from ._problem import AbstractProblem, Interval
from ._solver import NonStationary, check_same_clock
from ._types import PRNGKey, Solution, Time


class Equation(AbstractProblem):
    """`dx = drift(t, x, args) dt + diffusion(t, x, args) dW`, in its own time."""

    rate: Callable[..., Any]
    coefficient: Callable[..., Any] | None

    @property
    def noisy(self):
        return self.coefficient is not None

    def intervals(self, times):
        t0, t1 = times[:-1], times[1:]
        return Interval(t0, t1, t0, t1, t1 - t0 if self.noisy else None, None, None, None)

    def scaled(self, factor, x):
        return scale(factor, x)

    def noise_time(self, tau, eta):
        return tau

    def locate(self, tau, u, eta):
        return tau, u

    def drift(self, t, x, args, eta):
        return cast_like(self.rate(t, x, args), x, "A drift")

    def diffusion(self, t, x, args, eta):
        assert self.coefficient is not None  # only called where `noisy`
        return self.coefficient(t, x, args)


def solve(
    drift: Callable[..., Any],
    x0: PyTree,
    *,
    args: Any = None,
    diffusion: Callable[..., Any] | None = None,
    key: PRNGKey | None = None,
    brownian: Any = None,
    times: Any = None,
    t0: Time | None = None,
    t1: Time | None = None,
    dt0: Time | None = None,
    solver: dfx.AbstractSolver | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    saveat: dfx.SaveAt | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    event: dfx.Event | None = None,
    max_steps: int = 4096,
    dtype: Any = None,
) -> Solution:
    """Solves `dx = drift(t, x, args) dt + diffusion(t, x, args) dW` from `x0`, for one example.

    Either on a fixed grid, `times` (`n + 1` points, `n` steps), or adaptively from `t0` to `t1`.

    **Arguments:**

    - `drift`, `diffusion`: functions `(t, x, args)`. A diffusion coefficient is a number, of the shape of `x`
      (diagonal), or a matrix; without one the equation is an ODE. With Euler (Euler-Maruyama) the SDE is Itô's;
      with `diffrax.Heun` and others that diffrax calls Stratonovich solvers it is Stratonovich's.
    - `x0`: the start, an array of any shape or a pytree of arrays; `dtype` its type, float32 by default.
    - `key`: the noise; on a fixed grid its increments are keyed by the index of the step.
    - `brownian`: another source of noise: any diffrax Brownian path, or on a fixed grid `jflow.Recorded`.
    - `times`: an increasing grid; for an ODE it may decrease.
    - `solver`: any diffrax solver; `diffrax.Euler()` on a fixed grid, `diffrax.Tsit5()` adaptively.
    - `t0`, `t1`, `dt0`, `stepsize_controller`, `saveat`, `adjoint`, `event`, `max_steps`: as in
      `diffrax.diffeqsolve`; the controller is `PIDController(1e-5, 1e-5)` by default. On a fixed grid `saveat`
      may ask for `steps` and `t0`.

    **Returns:** a `Solution`; `nfe` counts evaluations of the drift. A failed solve is a status, not an exception.

    Raises `ValueError` where the arguments do not belong together.

    Source: Kloeden & Platen 1992, sections 10.2 and 14.1 for Euler-Maruyama.
    """
    check_same_clock(solver, PathClock(), "A drift is integrated")
    problem = Equation(drift, diffusion)
    x0 = as_state(x0, dtype)
    check_mode(times, t0, t1, dt0, stepsize_controller, adjoint, event)
    check_noise(brownian, problem.noisy)
    if times is not None:
        return fixed(problem, x0, args, times, solver=solver, key=key, brownian=brownian, saveat=saveat)
    return adaptive(
        problem, x0, args, t0, t1, dt0=dt0, solver=solver, stepsize_controller=stepsize_controller, key=key,
        brownian=brownian, saveat=saveat, adjoint=adjoint, event=event, max_steps=max_steps,
    )  # fmt: skip


def noise_shape(problem: AbstractProblem, x0: PyTree, args: Any, t: Any) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of the Brownian motion: those of the state, or the columns of a matrix coefficient."""
    if not problem.noisy:
        return shape_of(x0)

    def coefficient(t, x, a):
        return jtu.tree_map(jnp.asarray, problem.diffusion(t, x, a, jnp.ones(())))

    g = eqx.filter_eval_shape(coefficient, t, x0, args)
    if isinstance(g, jax.ShapeDtypeStruct) and g.ndim == 0:
        return shape_of(x0)
    if jtu.tree_structure(g) != jtu.tree_structure(x0):
        raise ValueError("A diffusion coefficient is a number, or a pytree like the state. Got another structure.")

    def leaf(x, coefficient):
        if coefficient.shape == x.shape:
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        if coefficient.ndim == x.ndim + 1 == 2 and coefficient.shape[0] == x.shape[0]:
            return jax.ShapeDtypeStruct(coefficient.shape[1:], x.dtype)
        raise ValueError(
            f"A diffusion coefficient is a number, of the state's shape {x.shape}, or a matrix whose rows are the "
            f"components of a vector state. Got shape {coefficient.shape}."
        )

    return jtu.tree_map(leaf, x0, g)


def _saves(saveat, problem):
    """What a fixed grid keeps: `(every k steps or 0, the start too, a function)`."""
    if saveat is None:
        return 0, False, lambda t, x, args: x
    subs = saveat.subs
    if saveat.dense or not isinstance(subs, dfx.SubSaveAt) or subs.ts is not None or subs.t1:
        raise ValueError(
            "On a fixed grid saveat asks for the steps, diffrax.SaveAt(t0=True, steps=True). The end is the solution's "
            "t and x without it; for other times or dense output solve adaptively, with t0= and t1=, or put the times "
            "into the grid."
        )
    return int(subs.steps), bool(subs.t0), lambda t, x, args: subs.fn(t, problem.visible(x), args)


def fixed(
    problem: AbstractProblem,
    x0: PyTree,
    args: Any,
    times: Any,
    *,
    solver: dfx.AbstractSolver | None,
    key: PRNGKey | None,
    brownian: Any,
    saveat: dfx.SaveAt | None,
    ending: Ending | None = None,
    unroll: bool = False,
) -> Solution:
    """The solve of a problem on a grid of path times."""
    check_times(times, backward=not problem.noisy, repeat_last=ending is not None)
    solver = dfx.Euler() if solver is None else solver
    _check_solver(solver, problem.noisy, len(times) - (1 if ending is None else 2))
    times = jnp.asarray(times).astype(state_dtype(x0))
    if problem.noisy and brownian is None:
        check_key(key, "An SDE")
    every, with_start, fn = _saves(saveat, problem)
    noise_like = noise_shape(problem, x0, args, times[0]) if problem.noisy else None
    if problem.noisy and isinstance(brownian, Recorded):
        _check_recorded(brownian, times.shape[0] - 1, noise_like, solver)
    out = scan_steps(
        problem, x0, args, times, solver=solver, key=key, brownian=brownian, noise_like=noise_like,
        save=(lambda t, x: fn(t, x, args)) if every else None, ending=ending, unroll=unroll,
    )  # fmt: skip
    ts = xs = None
    if every or with_start:
        keep = slice(every - 1, None, every) if every else slice(0, 0)
        ts = times[1:][keep]
        xs = jtu.tree_map(lambda leaf: leaf[keep], out.saved) if every else None
        if with_start:
            first = jtu.tree_map(lambda leaf: jnp.asarray(leaf)[None], fn(times[0], x0, args))
            ts = jnp.concatenate([times[:1], ts])
            xs = first if xs is None else jtu.tree_map(lambda a, b: jnp.concatenate([a, b]), first, xs)
    nfe = None if out.nfe is None else jnp.asarray(out.nfe, jnp.int32)
    return Solution(x=out.x, nfe=nfe, status=out.status, t=out.t, ts=ts, xs=xs)


def _check_solver(solver, noisy, n):
    """The loop of a fixed grid takes explicit solvers, an ODE none that is made for two terms, and weights of their own
    for each step as many steps as there are weights.
    """
    name = type(solver).__name__
    if isinstance(solver, NonStationary) and solver.steps != n:
        raise ValueError(
            f"NonStationary weights are of one number of steps, here {solver.steps}. Got a grid of {n} steps"
            ": pass the grid they were made for."
        )
    if isinstance(solver, dfx.AbstractImplicitSolver):
        raise ValueError(
            f"A fixed grid (times=) is for explicit solvers. Got {name}, which is implicit: solve with t0=, t1= and "
            "stepsize_controller=diffrax.StepTo(times), or adaptively."
        )
    if not noisy and get_origin(solver.term_structure) is dfx.MultiTerm:
        raise ValueError(f"{name} is a solver for SDEs. Got an equation without noise: take diffrax.Heun() or another.")


def _check_recorded(brownian, n, noise_like, solver):
    """Recorded normals are those that the loop would draw."""
    if levy_kinds(solver) > 1:
        raise ValueError(
            f"Recorded noise holds increments, and {type(solver).__name__} takes more: Lévy areas, or times inside "
            "a step. Pass key=, or brownian=diffrax.VirtualBrownianTree(...), with the levy_area it takes."
        )
    structure = jtu.tree_structure(noise_like)
    if jtu.tree_structure(brownian.normals) != structure:
        raise ValueError(f"Recorded noise has the structure of the noise, {structure}. Got another.")
    for normals, like in zip(jtu.tree_leaves(brownian.normals), jtu.tree_leaves(noise_like), strict=True):
        if jnp.shape(normals) != (n, *like.shape):
            raise ValueError(
                f"Recorded noise has one normal event a step: {n} for this grid, of shape {like.shape} each. "
                f"Got an array of shape {jnp.shape(normals)}, where {(n, *like.shape)} is due."
            )


def flow_map(
    velocity: Callable[..., Any], t0: Time, t1: Time, *, args: Any = None, **options: Any
) -> Callable[[PyTree], PyTree]:
    """The flow `x0 -> psi(x0)` of the ODE `dx/dt = velocity(t, x, args)` from `t0` to `t1`, as a function.

    It is differentiable in `x0`, in what `velocity` and `args` hold, and in both times; `flow_map(u, t1, t0)` is its
    inverse. `options` are those of `solve`; by default adaptive at `rtol = atol = 1e-5`. `t0 == t1` is the identity.
    """

    def flow(x0):
        return solve(velocity, x0, args=args, t0=t0, t1=t1, **options).x

    return flow
