"""One sample of a field: from noise to data and back."""

import dataclasses
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._brownian import Recorded
from ._divergence import AbstractDivergence
from ._engine import (
    SolverRule,
    Stepper,
    adaptive_equation,
    check_is_ode,
    check_source,
    check_tree,
    lowered,
    meet,
    meet_ode,
    ode_stepper,
    rule_evaluations,
    run_adaptive,
    run_grid,
    stepper,
    with_density,
    with_divergence,
)
from ._event import as_state, cast_like, event_like, rounded, state_dtype, widened
from ._field import AbstractField
from ._front import as_arrays, numbers, run
from ._kinds import check_kinds
from ._noise_rule import AbstractNoiseRule
from ._path import AbstractDifferentiablePath
from ._recommended import recommended
from ._sampler import AdaptiveSteps, FixedSteps, Sampler, SamplerLike, as_sampler
from ._solver import carried
from ._source import has_score, noise_map
from ._types import Checked, DType, PRNGKey, Shape, Solution
from ._validate import check_key, stream, streams


def sample(
    field: AbstractField,
    key: PRNGKey,
    shape: Checked[Shape],
    sampler: Checked[SamplerLike | None] = None,
    *,
    args: Any = None,
    start: PyTree = None,
    brownian: Checked[dfx.AbstractPath | Recorded | None] = None,
    log_prob: bool = False,
    divergence: AbstractDivergence | None = None,
    saveat: dfx.SaveAt | None = None,
    dtype: DType = None,
) -> Solution:
    """Draws one sample: a draw of the source, as the state at the first time, carried to data.

    Args:
        field: What knows its path and predicts along it.
        key: One typed key; it decides the start and the noise, and nothing else does.
        shape: The event's shape, or a pytree of `jax.ShapeDtypeStruct`.
        sampler: `FixedSteps`, `AdaptiveSteps`, or a grid, which is short for `FixedSteps(grid)`; by default
            `recommended(field)`.
        args: The condition, any pytree, or `Args(condition, scale=...)` for a guided field.
        start: A distribution of the state at the first time, with `sample(key)`; by default that of the path,
            `sigma(t) x0`.
        brownian: Another source of noise: `jflow.Recorded` normals for a fixed grid, or a diffrax path as
            `jflow.brownian_tree` makes it.
        log_prob: Whether the sample's log-density in nats is wanted beside it, for an ODE whose every step is a step of
            the solver, or for steps that are maps, as `Jump()` (see `log_prob`).
        divergence: How the divergence is computed for it; `ExactDivergence()` by default.
        saveat: As in diffrax, in times and states of the path; on a fixed grid `steps` and `t0`.
        dtype: The type of the state that the network is given, and of the result; the loop carries float32 or wider.

    Returns:
        A `Solution`, with the sample in `x`.

    Raises `ValueError` or `TypeError` where the arguments do not go together, or the grid touches a time at which the
    field does not determine the right-hand side.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(16), dfx.Heun()))
    assert sol.x.shape == (2,) and sol.status == 0 and sol.nfe == 32
    ```
    """
    check_kinds(sample, locals())
    check_key(key, "sample")
    like = widened(event_like(shape, letters=field.path.letters), dtype)
    sampler = _checked(field, sampler, args, log_prob, brownian, start)
    operands = field, None, key, numbers(sampler), as_arrays(args), start, brownian, divergence, saveat, None
    return run(_carry, operands, _Shape(like), log_prob, dtype)


class _Shape:
    """The shape of an event, as a static argument."""

    def __init__(self, like: PyTree):
        self.like = like

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and self.like == other.like

    def __hash__(self) -> int:
        return hash(str(self.like))


def draw_start(field: AbstractField, key: PRNGKey, like: PyTree, sampler: Sampler, args: Any, start: PyTree) -> PyTree:
    """The state at the first time: the path's, from a draw of its source, or a draw of `start`."""
    if start is not None:
        x = as_state(start.sample(key), "A start", letters=field.path.letters)
        cast_like(x, like, "A draw of start")  # raises where the shapes differ; a wider type than the shape's is kept
        return widened(x, state_dtype(like))
    x0 = field.path.source.sample(key, like, args)
    return field.path.start(first_time(field, sampler, like), x0)


def first_time(field: AbstractField, sampler: Sampler, like: PyTree) -> Any:
    """The first time of a sampler, in the type of the state."""
    if isinstance(sampler, AdaptiveSteps):
        return jnp.asarray(ends(sampler)[0], state_dtype(like))
    return sampler.grid(field.path)[0].astype(state_dtype(like))


def decode(
    field: AbstractField,
    x: PyTree,
    sampler: Checked[SamplerLike | None] = None,
    *,
    key: PRNGKey | None = None,
    args: Any = None,
    brownian: Checked[dfx.AbstractPath | Recorded | None] = None,
    event: dfx.Event | None = None,
    log_prob: bool = False,
    divergence: AbstractDivergence | None = None,
    saveat: dfx.SaveAt | None = None,
    dtype: DType = None,
) -> Solution:
    """Carries a given state at the first time to data: `sample` without its draw.

    With `FixedSteps(times[k:])` a partly noised state is carried on, as in image to image.

    Args:
        field: As in `sample`.
        x: The state at the first time of the sampler.
        sampler: As in `sample`.
        key: The noise, where the sampler has any.
        args: As in `sample`.
        brownian: As in `sample`.
        event: Where an adaptive solve stops, as in diffrax; the status is then 3.
        log_prob: As in `sample`, with the density of the path's start at `x`.
        divergence: As in `sample`.
        saveat: As in `sample`.
        dtype: As in `sample`.

    Returns:
        A `Solution`, with the state at the last time in `x`.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.decode(field, jnp.ones(2), jf.UniformGrid(200))
    assert jnp.allclose(sol.x, 0.5, atol=0.01)  # the flow of this Gaussian
    ```
    """
    check_kinds(decode, locals())
    x = widened(as_state(x, letters=field.path.letters), dtype)
    sampler = _checked(field, sampler, args, log_prob, brownian)
    if event is not None and isinstance(sampler, FixedSteps):
        raise ValueError("event= must go with adaptive steps. Got a fixed grid: take jflow.AdaptiveSteps(...).")
    operands = field, x, key, numbers(sampler), as_arrays(args), None, brownian, divergence, saveat, event
    return run(_carry, operands, None, log_prob, dtype)


def _carry(field, x, key, sampler, args, start, brownian, divergence, saveat, event, shape, log_prob, dtype):
    """The core of `sample`, `decode` and `generate`: a state `x`, or a draw of the `shape`, carried to data."""
    if shape is None:
        key = None if key is None else stream(key, "decode")
    else:
        key_start, key = streams(key, "sample", 2)
        x = draw_start(field, key_start, shape.like, sampler, args, start)
    field = lowered(field, dtype)
    if log_prob:
        density, out, t0, t1 = transport(field, x, sampler, args, "log_prob=True", True, divergence, key, saveat, event)
        out = with_density(field.path, density, out, t0, t1, start, x, args)
    elif isinstance(sampler, AdaptiveSteps):
        equation, (t0, t1) = adaptive_equation(field, sampler), ends(sampler)
        out = run_adaptive(equation, x, args, sampler, t0=t0, t1=t1, brownian=brownian, saveat=saveat, event=event)
    else:
        given, recorded = (None, brownian) if isinstance(brownian, Recorded) else (brownian, None)
        steps = stepper(field, sampler, dtype=state_dtype(x), brownian=given)
        out = run_grid(steps, x, args, key=key, recorded=recorded, saveat=saveat)
    return typed(out, dtype)


def transport(
    field: AbstractField, x: PyTree, sampler: Sampler, args: Any, what: str, forward: bool, divergence: Any = None,
    key: PRNGKey | None = None, saveat: dfx.SaveAt | None = None, event: dfx.Event | None = None,
) -> tuple[Any, Solution, Any, Any]:  # fmt: skip
    """The state, in the space of the source, carried along the ODE, with the divergence accumulated beside it unless
    that is `False`: the equation, the solution, the first and the last time of the sampler.
    """
    dense, x = divergence is not False, noise_map(field.path.source).project(x, args)
    if isinstance(sampler, AdaptiveSteps):
        equation, times = adaptive_equation(field, sampler), ends(sampler)
        equation, state = with_divergence(equation, x, divergence, key) if dense else (equation, x)
        t0, t1 = times if forward else times[::-1]
        out = run_adaptive(equation, state, args, sampler, t0=t0, t1=t1, saveat=saveat, event=event)
        return equation, out, *times
    steps = ode_stepper(field, sampler, what, state_dtype(x), forward=forward)
    if steps.rule.is_map:
        each = rule_evaluations(steps.rule, field, steps.row(0), x, None, args)
        rule, state = carried(steps.rule, field, x, divergence, key, forward)
        out = run_grid(rule.along(steps), state, args, saveat=saveat, visible=rule.visible)
        return rule, rule.finished(out, each), steps.times[0], steps.times[-1]
    equation: Any = steps.rule.equation(field)  # pyright: ignore[reportAttributeAccessIssue]
    equation, state = with_divergence(equation, x, divergence, key) if dense else (equation, x)
    steps = Stepper(steps.rule, equation, steps.times, steps.rows, steps.n, steps.end)
    out = run_grid(steps, state, args, saveat=saveat, visible=equation.visible)
    return equation, out, *steps.times[:: steps.n if forward else -steps.n]


def encode(
    field: AbstractField,
    x: PyTree,
    sampler: Checked[SamplerLike | None] = None,
    *,
    args: Any = None,
    saveat: dfx.SaveAt | None = None,
    dtype: DType = None,
) -> Solution:
    """Carries data to noise: `x` at the last time of the sampler along the ODE back to the first.

    Args:
        field: As in `sample`.
        x: The data, or a state at the last time.
        sampler: That of `sample`, of the ODE: its times increase. `AdaptiveSteps()` by default. Steps that are maps, as
            `Jump()`, are inverted.
        args: As in `sample`.
        saveat: As in `sample`.
        dtype: As in `sample`.

    Returns:
        A `Solution`, with the encoded state in `x`.

    Raises `ValueError` where the velocity is undefined at the start: stop the grid short of t = 1, which treats the
    data as a state of that earlier time.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    z = jf.encode(field, jnp.ones(2)).x
    assert jnp.allclose(jf.decode(field, z, jf.AdaptiveSteps()).x, 1.0, atol=1e-3)
    ```
    """
    check_kinds(encode, locals())
    x = widened(as_state(x), dtype)
    sampler = AdaptiveSteps() if sampler is None else as_sampler(sampler)
    check_ode(field, sampler, "encode", forward=False)
    return run(_encode, (field, x, numbers(sampler), as_arrays(args), saveat), dtype)


def _encode(field, x, sampler, args, saveat, dtype):
    _, out, *_ = transport(lowered(field, dtype), x, sampler, args, "encode", False, False, saveat=saveat)
    return typed(out, dtype)


def ends(sampler: AdaptiveSteps) -> tuple[Any, Any]:
    """The first and the last time of an adaptive sampler."""
    return 0.0 if sampler.t0 is None else sampler.t0, 1.0 if sampler.t1 is None else sampler.t1


def noise_span(field: AbstractField, sampler: Sampler) -> tuple[Any, Any]:
    """The time of the noise at the ends of a sampler that is given a source of it.

    Raises `ValueError` for a sampler without noise, or with more than one eta.
    """
    equation: Any
    if isinstance(sampler, AdaptiveSteps):
        equation, (t0, t1) = adaptive_equation(field, sampler), ends(sampler)
    else:
        rule, end = meet(field, sampler, object())  # the checks of a sampler that is given a source
        if not isinstance(rule, SolverRule):
            raise ValueError(
                f"A Brownian path must go with a diffrax solver. Got {type(rule).__name__}, which has its own noise."
            )
        times = sampler.grid(field.path)
        last = -2 if end == "denoise" else -1  # the data prediction takes no noise
        equation, t0, t1 = rule.equation(field), times[0], times[last]
    if not equation.noisy:
        raise ValueError("A Brownian path must go with an SDE. Got a sampler without noise: give eta= or diffusion=.")
    if isinstance(sampler.eta, AbstractNoiseRule) or jnp.ndim(0.0 if sampler.eta is None else sampler.eta):
        raise ValueError(f"A Brownian path must have one eta: its time depends on it. Got {sampler.eta!r}.")
    path: Any = equation.field.path
    clock, eta = equation.clock, jnp.asarray(0.0 if sampler.eta is None else sampler.eta)
    start, stop = (clock.noise_time(path, jnp.asarray(t, float), eta) for t in (t0, t1))
    return start, stop


def _checked(field, sampler, args, log_prob, brownian, start=None):
    """The sampler, its checks with the field made before tracing."""
    sampler = recommended(field, args=args) if sampler is None else as_sampler(sampler)
    if log_prob:
        check_density(field)
        check_ode(field, sampler, "log_prob=True", forward=True)
        noisy = False
    elif isinstance(sampler, AdaptiveSteps):
        noisy = adaptive_equation(field, sampler).noisy
        if noisy:
            check_source(brownian)
    else:
        rule, _ = meet(field, sampler, brownian)
        noisy = rule.noisy or (brownian is not None and isinstance(rule, SolverRule) and rule.equation(field).noisy)
    check_start(start, *(("sample", "log_prob") if log_prob else ("sample",)))
    if start is not None and noisy and has_score(field.path.source):
        raise ValueError(
            "start= must go with the ODE: the noise of an SDE belongs to the marginals of the path's own source, and "
            "from another start its law is wrong. Got a sampler with noise: give the path that source; a draw of a "
            "true marginal is carried by jflow.decode(field, x, sampler, key=key)."
        )
    if brownian is not None and not noisy:
        raise ValueError("brownian= must go with an SDE. Got an ODE: drop it, or give eta= or diffusion=.")
    if isinstance(brownian, dfx.VirtualBrownianTree) and jnp.ndim(0.0 if sampler.eta is None else sampler.eta) == 0:
        with jax.ensure_compile_time_eval():
            check_tree(brownian, *noise_span(field, sampler))
    return sampler


def check_start(start: Any, *methods: str) -> None:
    """Raises `TypeError` for a start that is no distribution."""
    for name in methods:
        if start is not None and (isinstance(start, type) or not callable(getattr(start, name, None))):
            raise TypeError(
                f"start must be a distribution of the state at the first time, with a method {name}, as "
                f"jflow.distributions.Gaussian(mean, std=1.0). Got {start!r}: a given state is carried by jflow.decode."
            )


def check_ode(field: AbstractField, sampler: Sampler, what: str, *, forward: bool) -> None:
    """Raises where a sampler is not one of the field's ODE; nothing is computed."""
    if isinstance(sampler, FixedSteps):
        meet_ode(field, sampler, what, forward=forward)
        return
    check_is_ode(sampler, what)
    adaptive_equation(field, sampler)


def check_density(field: AbstractField) -> None:
    """Raises `ValueError` where a change of variables gives no density."""
    path = field.path
    if not (path.flat and isinstance(path, AbstractDifferentiablePath)) or path.letters:
        why = "is curved" if not path.flat else "has no velocity"
        raise ValueError(
            f"A log-density must be along a flat path with a velocity. Got {type(path).__name__}, it {why}."
        )


def typed(solution: Solution, dtype: DType) -> Solution:
    """The solution with its state in the type `dtype`."""
    if dtype is None:
        return solution
    done: Any = solution.status
    wide = solution.x, solution.xs
    x, xs = rounded(wide, dtype)
    lost = jtu.tree_map(lambda a, b: jnp.any(jnp.isfinite(a) & ~jnp.isfinite(b)), wide, (x, xs))
    status = jnp.where((done == 0) & jnp.any(jnp.stack(jtu.tree_leaves(lost))), 1, done)  # beyond the type's range
    return dataclasses.replace(solution, x=x, xs=xs, status=status)
