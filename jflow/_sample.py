"""One sample of a field: from noise to data and back."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ._adaptive import adaptive
from ._augmented import augmented, with_density
from ._checks import check_mode, check_noise, check_span, check_times, path_times
from ._clock import AbstractClock
from ._divergence import AbstractDivergence
from ._end import End, on_grid, resolve_end
from ._equation import FieldEquation, check_field, check_singular, field_equation, stage_times
from ._field import AbstractField, check_overlap
from ._misc import as_state, check_key, normal_like, scale
from ._solve import fixed
from ._solver import EDMChurn, adds_noise, check_ode_solver, choose_clock
from ._types import PRNGKey, Solution, Time


def sample(
    field: AbstractField,
    key: PRNGKey,
    shape: Any,
    *,
    args: Any = None,
    times: Any = None,
    solver: dfx.AbstractSolver | None = None,
    clock: AbstractClock | None = None,
    eta: Any = None,
    diffusion: Callable[..., Any] | None = None,
    end: End | None = None,
    base: Any = None,
    brownian: Any = None,
    saveat: dfx.SaveAt | None = None,
    t0: Time | None = None,
    t1: Time | None = None,
    dt0: Time | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    event: dfx.Event | None = None,
    max_steps: int = 4096,
    dtype: Any = None,
    log_prob: bool = False,
    divergence: AbstractDivergence | None = None,
) -> Solution:
    """Draws one sample: the state at `times[0]`, `sigma(times[0]) eps`, carried to data.

    **Arguments:**

    - `field`: what knows its path and predicts along it.
    - `key`: one typed key; it decides the start and the noise, and nothing else does.
    - `shape`: the event's shape, or a pytree of `jax.ShapeDtypeStruct`.
    - `args`: the condition; `(condition, scale)` for a guided field.
    - `times`: an increasing grid of path times, as `uniform_times(n)`; or `t0`, `t1` for an adaptive solve.
    - `solver`: any diffrax solver; `diffrax.Euler()` on a grid, `diffrax.Tsit5()` adaptively.
    - `clock`: in which time it is integrated; the one a solver brings along (as `DPMpp` does), else the path's own,
      or `ThetaClock()` where `eta` is given.
    - `eta`: `None` for the ODE, else the level of the SDE with the same marginals: 1 is the reverse SDE.
      A number, or on a grid a function of t.
    - `diffusion`: instead of `eta`, an absolute coefficient `g(t, x, args)`: the drift is `velocity + g^2/2 score`.
    - `end`: the last step of a grid. `"denoise"`: it is `x = data prediction`, one call; `"stop"`: it is like the
      others; or a solver for it. By default `"stop"`, but `"denoise"` for a field that predicts the data, and for a
      clock that is infinite where sigma = 0, on a grid that ends there or repeats its last point.
    - `base`: a distribution to draw the state at `times[0]` from, by `base.sample(key)`.
    - `brownian`: a source of noise in the clock's noise time (`clock.noise_time`), or `jflow.Recorded` normals.
    - `saveat`, `t0`, `t1`, `dt0`, `stepsize_controller`, `adjoint`, `event`, `max_steps`, `dtype`: as in `solve`, in
      times and states of the path whatever the clock (`dt0` the first step; constant ones are so in the clock).
    - `log_prob`, `divergence`: the sample's log-density in nats beside it, as `jflow.log_prob` computes it, for
      an ODE whose every step is a step of the solver (`end="stop"`).

    **Returns:** a `Solution`, with the sample in `x`.

    Raises `ValueError` where the arguments do not belong together, or the grid touches a time at which the field
    does not determine the right-hand side.
    """
    check_key(key, "A sample")
    check_field(field)
    check_mode(times, t0, t1, dt0, stepsize_controller, adjoint, event)
    key_start, key_noise = jr.split(key)
    x0 = as_state(draw_start(field, key_start, shape, times if times is not None else t0, base, dtype), dtype)
    if log_prob:
        if eta is not None or diffusion is not None:
            raise ValueError("A sample of an SDE has no density by a change of variables: log_prob=True takes the ODE.")
        return _with_log_prob(
            field, x0, key_noise, args, times, t0, t1, clock, end, divergence, base, solver=solver, saveat=saveat,
            options={"dt0": dt0, "stepsize_controller": stepsize_controller, "adjoint": adjoint, "event": event,
                     "max_steps": max_steps},
        )  # fmt: skip
    return decode(
        field, x0, key=key_noise, args=args, times=times, solver=solver, clock=clock, eta=eta, diffusion=diffusion,
        end=end, brownian=brownian, saveat=saveat, t0=t0, t1=t1, dt0=dt0, stepsize_controller=stepsize_controller,
        adjoint=adjoint, event=event, max_steps=max_steps, dtype=dtype,
    )  # fmt: skip


def draw_start(field: AbstractField, key: PRNGKey, shape: Any, times: Any, base: Any, dtype: Any) -> PyTree:
    """The state at the first of the times: `sigma eps`, or a draw of the base."""
    if base is not None:
        return base.sample(key)
    first = jnp.asarray(times).reshape(-1)[0]
    return scale(field.path.sigma(first), normal_like(key, _event(shape, dtype)))


def _with_log_prob(field, x0, key, args, times, t0, t1, clock, end, divergence, base, *, solver, saveat, options):
    """The sample of an ODE with its density; the probes take the key that noise would have taken."""
    check_ode_solver(solver, "log_prob=True takes the ODE")
    equation = field_equation(field, choose_clock(solver, clock, None), None, None)
    problem, state = augmented(equation, x0, divergence, key)
    if times is None:
        check_span(field.path, t0, t1)
        check_singular(equation, (t0, t1))
        out = adaptive(
            problem, state, args, t0, t1, solver=solver, key=None, brownian=None, saveat=saveat, **options
        )  # fmt: skip
    else:
        times, solver = path_times(field.path, times), dfx.Euler() if solver is None else solver
        if resolve_end(equation, end, times) != "stop":
            raise ValueError(
                "A denoising or foreign last step has no divergence: log_prob=True takes end='stop'. For a field that "
                "predicts data, stop the grid short of t = 1 too."
            )
        t0, t1 = times[0], times[-1]
        check_singular(equation, stage_times(times, solver), times[-1])
        out = fixed(problem, state, args, times, solver=solver, key=None, brownian=None, saveat=saveat)
    return with_density(problem, out, t0, t1, base, state[0])


def _event(shape, dtype):
    """Zeros of the event's shape."""
    if isinstance(shape, tuple) and all(isinstance(n, (int, np.integer)) for n in shape):
        return jnp.zeros(shape, jnp.float32 if dtype is None else dtype)
    if any(not isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jtu.tree_leaves(shape)):
        raise ValueError(
            "shape is the shape of one event, a tuple of integers as (28, 28, 1), or a pytree of "
            f"jax.ShapeDtypeStruct. Got {shape!r}."
        )
    return as_state(jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape), dtype)


def decode(
    field: AbstractField,
    x: PyTree,
    *,
    key: PRNGKey | None = None,
    args: Any = None,
    times: Any = None,
    solver: dfx.AbstractSolver | None = None,
    clock: AbstractClock | None = None,
    eta: Any = None,
    diffusion: Callable[..., Any] | None = None,
    end: End | None = None,
    brownian: Any = None,
    saveat: dfx.SaveAt | None = None,
    t0: Time | None = None,
    t1: Time | None = None,
    dt0: Time | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    event: dfx.Event | None = None,
    max_steps: int = 4096,
    dtype: Any = None,
) -> Solution:
    """Carries a given state at `times[0]` to data: `sample` without its draw.

    With `times=ts[k:]` a partly noised state is carried on. The arguments are those of `sample`; `key` is needed
    where the equation is an SDE. Returns a `Solution`.
    """
    problem, solver, end = plan(
        field, times=times, solver=solver, clock=clock, eta=eta, diffusion=diffusion, end=end, t0=t0, t1=t1, dt0=dt0,
        stepsize_controller=stepsize_controller, adjoint=adjoint, event=event,
    )  # fmt: skip
    check_noise(brownian, problem.noisy)
    x = as_state(x, dtype)
    if times is None:
        return adaptive(
            problem, x, args, t0, t1, dt0=dt0, solver=solver, stepsize_controller=stepsize_controller, key=key,
            brownian=brownian, saveat=saveat, adjoint=adjoint, event=event, max_steps=max_steps,
        )  # fmt: skip
    return on_grid(problem, x, args, jnp.asarray(times), solver, end, key, brownian, saveat)


def plan(
    field: AbstractField,
    *,
    times: Any = None,
    solver: dfx.AbstractSolver | None = None,
    clock: AbstractClock | None = None,
    eta: Any = None,
    diffusion: Callable[..., Any] | None = None,
    end: End | None = None,
    t0: Any = None,
    t1: Any = None,
    dt0: Any = None,
    stepsize_controller: Any = None,
    adjoint: Any = None,
    event: Any = None,
    **_: Any,
) -> tuple[FieldEquation, Any, Any]:
    """The equation, the solver and the end policy of a sample, checked as far as the arguments are concrete."""
    churns = adds_noise(solver)
    if churns and not (eta is None and diffusion is None and times is not None):
        raise ValueError(
            f"{type(solver).__name__} adds noise of its own to the ODE, on a fixed grid: it goes without eta=, "
            "diffusion= and adaptive steps. Drop these and pass times=, or take another solver, as diffrax.Heun()."
        )
    eta = 0.0 if churns else eta  # the ODE, with a normal for each step
    problem = field_equation(field, choose_clock(solver, clock, eta), eta, diffusion)
    check_mode(times, t0, t1, dt0, stepsize_controller, adjoint, event)
    if times is None:
        for name, given in {"end": end is not None, "eta as a function of t": callable(eta)}.items():
            if given:
                raise ValueError(f"{name} is for a fixed grid. Got an adaptive solve: drop it, or pass times=.")
        check_span(field.path, t0, t1)
        check_singular(problem, (t0, t1))
        return problem, solver, None
    times = path_times(field.path, times, repeat_last=True)
    policy = resolve_end(problem, end, times)
    solver = dfx.Euler() if solver is None else solver
    if isinstance(solver, EDMChurn):
        solver = solver.on_grid(times.shape[0] - 1)
    if isinstance(policy, jax.Array):  # of a traced grid, of which nothing is known
        return problem, solver, policy
    denoises = policy == "denoise"
    check_times(times, backward=False, repeat_last=denoises)
    check_singular(problem, stage_times(times, solver, policy), None if denoises else times[-1])
    if denoises:
        check_overlap(field, times[0])
        check_overlap(field, times[-2])
    return problem, solver, policy


def encode(
    field: AbstractField,
    x: PyTree,
    *,
    args: Any = None,
    times: Any = None,
    solver: dfx.AbstractSolver | None = None,
    clock: AbstractClock | None = None,
    saveat: dfx.SaveAt | None = None,
    t0: Time | None = None,
    t1: Time | None = None,
    dt0: Time | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    event: dfx.Event | None = None,
    max_steps: int = 4096,
    dtype: Any = None,
) -> Solution:
    """Carries data to noise: `x` at `times[-1]` (or `t1`) along the ODE back to `times[0]` (or `t0`).

    The grid is the one of `sample`, increasing; the arguments are those of `sample`. Returns a `Solution`, with the
    encoded state in `x`. Raises `ValueError` where the velocity is undefined at the start: stop the grid short of
    t = 1, which treats the data as a state of that earlier time.
    """
    check_mode(times, t0, t1, dt0, stepsize_controller, adjoint, event)
    check_ode_solver(solver, "encode follows the ODE")
    x = as_state(x, dtype)
    problem = field_equation(field, choose_clock(solver, clock, None), None, None)
    if times is None:
        check_span(field.path, t0, t1)
        check_singular(problem, (t1, t0))
        return adaptive(
            problem, x, args, t1, t0, dt0=dt0, solver=solver, stepsize_controller=stepsize_controller, key=None,
            brownian=None, saveat=saveat, adjoint=adjoint, event=event, max_steps=max_steps,
        )  # fmt: skip
    times = path_times(field.path, times)
    solver = dfx.Euler() if solver is None else solver
    check_singular(problem, (times[-1], stage_times(times[::-1], solver)[1]), times[0])
    return fixed(problem, x, args, times[::-1], solver=solver, key=None, brownian=None, saveat=saveat)
