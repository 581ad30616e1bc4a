"""Likelihood: the density that a field's ODE carries from noise to data."""

import math
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._adaptive import adaptive
from ._augmented import augmented, with_density
from ._checks import check_mode, check_span, path_times
from ._clock import AbstractClock
from ._divergence import AbstractDivergence
from ._equation import check_singular, field_equation, stage_times
from ._field import AbstractField
from ._misc import as_state
from ._solve import fixed
from ._solver import check_ode_solver, choose_clock
from ._types import Number, PRNGKey, Solution, Time


def log_prob(
    field: AbstractField,
    x: PyTree,
    *,
    args: Any = None,
    times: Any = None,
    t0: Time | None = None,
    t1: Time | None = None,
    divergence: AbstractDivergence | None = None,
    key: PRNGKey | None = None,
    base: Any = None,
    solver: dfx.AbstractSolver | None = None,
    clock: AbstractClock | None = None,
    saveat: dfx.SaveAt | None = None,
    dt0: Time | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    adjoint: dfx.AbstractAdjoint | None = None,
    event: dfx.Event | None = None,
    max_steps: int = 4096,
    dtype: Any = None,
) -> Solution:
    """The log-density of one example under a field's ODE, in nats: `log p_1(x) = log p_0(x_0) - int div u dt`.

    The ODE carries `x` from `times[-1]` (or `t1`) back to `times[0]` (or `t0`), with the divergence beside it; without
    either it runs adaptively between 0 and 1.

    **Arguments:**

    - `field`, `x`, `args`: the field, one example, its condition.
    - `divergence`: `Exact()` by default, `Hutchinson(probes)` or `HutchPlusPlus(...)`, whose probes come from `key`,
      once per solve: the same `x` and `key` give the same number.
    - `base`: a distribution with `log_prob` for the state at the noise end; by default `N(0, sigma(t0)^2 I)`, which
      neglects `alpha(t0) x1`.
    - the rest: as in `encode`.

    A field that is singular at t = 1 (one that predicts data, noise or a score, with sigma(1) = 0) asks for an end
    `t1 < 1`. The number is then the density of `alpha(t1) x1 + sigma(t1) x0` at `x`: the data's density smoothed
    by noise of that level, which in d dimensions moves the value by about `d sigma(t1)^2 / (2 s^2)` nats where the
    data has a spread `s`, and by any amount where the data has none.

    **Returns:** a `Solution`: `log_prob`; `log_prob_se`, the standard error over the probes (NaN for one probe, `None`
    where the divergence is exact); and in `x` the encoded state.

    Source: Chen et al. 2018, arXiv:1806.07366, theorem 1; Song et al. 2021, arXiv:2011.13456, appendix D.2 (in
    reversed time).
    """
    if times is None and t0 is None and t1 is None:
        t0, t1 = 0.0, 1.0
    check_mode(times, t0, t1, dt0, stepsize_controller, adjoint, event)
    check_ode_solver(solver, "log_prob follows the ODE")
    x = as_state(x, dtype)
    equation = field_equation(field, choose_clock(solver, clock, None), None, None)
    problem, state = augmented(equation, x, divergence, key)
    if times is None:
        check_span(field.path, t0, t1)
        check_singular(equation, (t1, t0))
        out = adaptive(
            problem, state, args, t1, t0, dt0=dt0, solver=solver, stepsize_controller=stepsize_controller, key=None,
            brownian=None, saveat=saveat, adjoint=adjoint, event=event, max_steps=max_steps,
        )  # fmt: skip
    else:
        times = path_times(field.path, times)
        t0, t1, solver = times[0], times[-1], dfx.Euler() if solver is None else solver
        check_singular(equation, (t1, stage_times(times[::-1], solver)[1]), t0)
        out = fixed(problem, state, args, times[::-1], solver=solver, key=None, brownian=None, saveat=saveat)
    return with_density(problem, out, t0, t1, base, None)


def bits_per_dim(
    log_prob: ArrayLike, dimension: int, *, bins: int = 256, low: Number = -1.0, high: Number = 1.0
) -> Float[Array, "*batch"]:
    """Bits per dimension of data with `bins` levels, spread over `[low, high]` by `dequantize`.

    `-log_prob / (dimension log 2) + log2(bins / (high - low))`: an upper bound on the discrete code length.

    **Arguments:** `log_prob` in nats, of an event with `dimension` components scaled to `[low, high]`.

    Source: Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1.
    """
    return -jnp.asarray(log_prob) / (dimension * math.log(2)) + math.log2(bins / (high - low))


def dequantize(
    key: PRNGKey, levels: ArrayLike, *, bins: int = 256, low: Number = -1.0, high: Number = 1.0
) -> Float[Array, "..."]:
    """Uniform dequantisation of one example: `low + (levels + U) (high - low) / bins`, `U` uniform in [0, 1).

    **Arguments:** `levels`, integers from 0 to `bins - 1`, of any shape.

    Source: Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1.
    """
    levels = jnp.asarray(levels, jnp.float32)
    return low + (levels + jr.uniform(key, levels.shape)) * ((high - low) / bins)
