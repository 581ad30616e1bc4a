"""Samplers by the names that the field knows them by, each one line: `jf.samplers.ddim(50)`.

Every function but `dpm_adaptive` takes the number of steps and returns `FixedSteps`, without a path. The grid is
`UniformGrid(n)` unless said: equal steps of t, which on VE are equal in log sigma and on VP those of the diffusion's
own time. Another grid is passed as `grid=`, a rule as `jf.KarrasGrid(n, 0.03, 15.0)`, or `n + 1` times. The last step
is the data prediction where the libraries append `sigma = 0` to their levels. `shift` is the time shift of flow models,
`ShiftedGrid`.

`dpm_2`, `dpm_2_ancestral`, `lms`, `deis` and `heun_edm` count in `sigma/alpha`, which is infinite where alpha = 0: on
CondOT and other paths that start there they must have a grid with a first level, as `jf.KarrasGrid(n, 0.002, 80.0)`.
"""

import difflib
import inspect
import math
import sys
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ._clock import SigmaClock, ThetaClock
from ._grid import AbstractGridRule, KarrasGrid, ShiftedGrid, UniformGrid
from ._kinds import check_kinds
from ._noise_rule import Ancestral
from ._path import TablePath
from ._sampler import AdaptiveSteps, Eta, FixedSteps
from ._solver import DEIS, DPM2, Adams, DPMpp, DPMppSinglestep, EDMChurn, SASolver, UniPC
from ._types import Checked, Number, Time
from ._validate import check_count

_STILL = 0.0, 0.0, math.inf, 1.0  # the defaults of churn
_Grid = AbstractGridRule | Float[Array, " points"] | None


def flow_euler(n: int, *, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """Euler in the path's own time, the sampler of flow matching; `n` evaluations.

    diffusers' `FlowMatchEulerDiscreteScheduler`, with its `shift`. For fields with a velocity at every time of the
    grid.

    Args:
        n: The number of steps.
        shift: The time shift of the grid, `ShiftedGrid(rule, shift)`; by default the grid is not shifted.
        grid: A grid rule of `n` steps, or `n + 1` times in place of a rule; `UniformGrid(n)` by default.

    Source: Lipman et al. 2023, arXiv:2210.02747; of the shift, Esser et al. 2024, arXiv:2403.03206, equation 23.

    ```python
    assert jf.samplers.flow_euler(8, shift=3.0) == jf.FixedSteps(jf.ShiftedGrid(jf.UniformGrid(8), 3.0), end="stop")
    ```
    """
    check_kinds(flow_euler, locals())
    return FixedSteps(_grid(n, shift, grid), end="stop")


def heun_flow(n: int, *, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """Heun in the path's own time, for flow matching: `x' = x + h/2 (v(t, x) + v(t + h, x + h v(t, x)))`, a trapezoidal
    rule of order 2; `2 n` evaluations.

    flow_matching's `method="heun2"`. diffusers' `FlowMatchHeunDiscreteScheduler` ends with an Euler step in place of
    its last Heun step. For fields with a velocity at every time of the grid, the last one included.

    Args:
        n: The number of steps.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Hairer, Norsett & Wanner 1993, section II.1; of the shift, Esser et al. 2024, arXiv:2403.03206, equation 23.

    ```python
    assert jf.samplers.heun_flow(10) == jf.FixedSteps(jf.UniformGrid(10), dfx.Heun(), end="stop")
    ```
    """
    check_kinds(heun_flow, locals())
    return FixedSteps(_grid(n, shift, grid), dfx.Heun(), end="stop")


def ddim(n: int, *, eta: Checked[Time] = 0.0, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """DDIM, with its own `eta`: 0 the ODE, 1 DDPM's noise; `n` evaluations.

    `x' = alpha' data + sqrt(sigma'^2 - s^2) noise + s z`, `s = eta sigma' sqrt(1 - e^(-2h))` with `h` the step in half
    log-SNR. The last step is the data prediction.

    Args:
        n: The number of steps.
        eta: DDIM's `eta`, from 0 to 1, as in `Ancestral`.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Song et al. 2021, arXiv:2010.02502, equations 12 and 16.

    ```python
    assert jf.samplers.ddim(50).eta is None and jf.samplers.ddim(50, eta=0.5).eta == jf.Ancestral(0.5)
    ```
    """
    check_kinds(ddim, locals())
    noise = None if _none(eta) else Ancestral(eta)
    return FixedSteps(_grid(n, shift, grid), clock=ThetaClock(), eta=noise, end="denoise")


def ddpm(n: int, *, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """DDPM's ancestral sampling: `ddim` at `eta = 1`; `n` evaluations.

    Args:
        n: The number of steps.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2, with the posterior's variance.

    ```python
    assert jf.samplers.ddpm(50) == jf.samplers.ddim(50, eta=1.0)
    ```
    """
    check_kinds(ddpm, locals())
    return ddim(n, eta=1.0, shift=shift, grid=grid)


def euler_ancestral(n: int, *, eta: Checked[Time] = 1.0, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """k-diffusion's `euler_ancestral`: an Euler step in sigma down to `sigma_down`, then noise up to `sigma'`; `n`
    evaluations. It is `ddim` with the same `eta`, 1 by default.

    Args:
        n: The number of steps.
        eta: As in `ddim`.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    ```python
    assert jf.samplers.euler_ancestral(20) == jf.samplers.ddim(20, eta=1.0)
    ```
    """
    check_kinds(euler_ancestral, locals())
    return ddim(n, eta=eta, shift=shift, grid=grid)


def heun_edm(
    n: int,
    *,
    sigma_min: Time | None = None,
    sigma_max: Time | None = None,
    rho: Time = 7.0,
    s_churn: Time = 0.0,
    s_min: Time = 0.0,
    s_max: Time = math.inf,
    s_noise: Time = 1.0,
) -> FixedSteps:
    """EDM's sampler, k-diffusion's `heun`: Heun in sigma on the Karras grid; `2 n - 1` evaluations.

    With `s_churn` it is EDM's stochastic sampler: each step first raises its level by a share of at most
    `min(s_churn/n, sqrt(2) - 1)`, from `s_min` to `s_max`, with noise of the standard deviation `s_noise`, as
    `EDMChurn` says. On VE the bounds of the grid are the path's own. On a path of infinite log-SNR they must be given,
    as 0.002 and 80, levels of `sigma/alpha`.

    Args:
        n: The number of steps.
        sigma_min: The last level of noise above 0; by default that of the path.
        sigma_max: The first level of noise; by default that of the path.
        rho: The exponent of the Karras grid.
        s_churn: The amount of new noise; 0 is the ODE.
        s_min: The lowest level at which noise is added.
        s_max: The highest such level.
        s_noise: The standard deviation of the noise.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2, and equation 5.

    ```python
    edm = jf.FixedSteps(jf.KarrasGrid(18), dfx.Heun(), clock=jf.SigmaClock(), end="denoise")
    assert jf.samplers.heun_edm(18) == edm
    assert jf.samplers.heun_edm(18, s_churn=40.0, s_max=50.0).solver == jf.EDMChurn(40.0, s_max=50.0)
    ```
    """
    check_kinds(heun_edm, locals())
    churn = (s_churn, s_min, s_max, s_noise)
    solver = EDMChurn(*churn)  # raises for numbers that do not go together
    if _none(s_churn):
        if any(not isinstance(value, Number) or value != still for value, still in zip(churn, _STILL, strict=True)):
            raise ValueError(
                f"s_min, s_max and s_noise must go with s_churn, the amount of noise. Got s_churn={s_churn}: pass one, "
                "as s_churn=40.0, or leave them out."
            )
        solver = dfx.Heun()
    return FixedSteps(KarrasGrid(n, sigma_min, sigma_max, rho), solver, clock=SigmaClock(), end="denoise")


def dpm_2(n: int, *, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """DPM-Solver-2, k-diffusion's `dpm_2`: the midpoint rule in sigma, with the middle in its logarithm; `2 n - 1`
    evaluations.

    With `s = sigma/alpha` and `y = x/alpha`: `y_m = y + (m - s) noise(s, y)`, `m = sqrt(s s')`, and
    `y' = y + (s' - s) noise(m, y_m)`. diffusers' `KDPM2DiscreteScheduler`. `s` must be finite at the first time.

    Args:
        n: The number of steps.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 1 with `r_1 = 1/2`; k-diffusion's `sample_dpm_2`.

    ```python
    sampler = jf.samplers.dpm_2(10, grid=jf.KarrasGrid(10, 0.002, 80.0))
    assert sampler == jf.FixedSteps(jf.KarrasGrid(10, 0.002, 80.0), jf.DPM2(), end="denoise")
    ```
    """
    check_kinds(dpm_2, locals())
    return FixedSteps(_grid(n, shift, grid), DPM2(), end="denoise")


def dpm_2_ancestral(n: int, *, eta: Checked[Time] = 1.0, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """k-diffusion's `dpm_2_ancestral`: a step of `dpm_2` down to `sigma_down`, then noise up to `sigma'`; `2 n - 1`
    evaluations.

    `s_up = eta s' sqrt(1 - (s'/s)^2)`, `s_down = sqrt(s'^2 - s_up^2)`: `eta` is that of `euler_ancestral`, from 0 to 1.
    diffusers' `KDPM2AncestralDiscreteScheduler`. `s = sigma/alpha` must be finite at the first time.

    Args:
        n: The number of steps.
        eta: From 0 to 1; 0 is `dpm_2`.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: k-diffusion's `sample_dpm_2_ancestral`.

    ```python
    assert jf.samplers.dpm_2_ancestral(10).solver == jf.DPM2("noise", eta=1.0)
    ```
    """
    check_kinds(dpm_2_ancestral, locals())
    return FixedSteps(_grid(n, shift, grid), DPM2("noise", None if _none(eta) else eta), end="denoise")


def lms(n: int, *, order: int = 4, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """Linear multistep, k-diffusion's `lms`: Adams-Bashforth in sigma, with weights for the steps as they are; `n`
    evaluations.

    `y' = y + int_s^s' P(r) dr` for `P` the polynomial in `s = sigma/alpha` through the latest `order` noise
    predictions, as many as there are. The last step is the data prediction, where k-diffusion and diffusers'
    `LMSDiscreteScheduler` integrate to `sigma = 0`. `s` must be finite at the first time.

    Args:
        n: The number of steps.
        order: The number of noise predictions, 1 to 4.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Hairer, Norsett & Wanner 1993, section III.5; k-diffusion's `sample_lms`.

    ```python
    assert jf.samplers.lms(20).solver == jf.Adams(4) and jf.samplers.lms(20).clock == jf.SigmaClock()
    ```
    """
    check_kinds(lms, locals())
    return FixedSteps(_grid(n, shift, grid), Adams(order), clock=SigmaClock(), end="denoise")


def deis(n: int, *, order: int = 3, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """DEIS: `y' = y + int_s^s' P(log r) dr`, for `P` the polynomial in `log s` through the latest `order` noise
    predictions; `n` evaluations, the last step the data prediction.

    diffusers' `DEISMultistepScheduler`. `s = sigma/alpha` must be finite at the first time.

    Args:
        n: The number of steps.
        order: The number of noise predictions, 1 to 3.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Zhang & Chen 2023, arXiv:2204.13902, equations 14 and 15.

    ```python
    assert jf.samplers.deis(10).solver == jf.DEIS(3)
    ```
    """
    check_kinds(deis, locals())
    return FixedSteps(_grid(n, shift, grid), DEIS(order), end="denoise")


def dpmpp_2m(n: int, *, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """DPM-Solver++(2M) in its popular midpoint form; `n` evaluations, the last step the data prediction.

    k-diffusion's `dpmpp_2m`, diffusers' `DPMSolverMultistepScheduler`.

    Args:
        n: The number of steps.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.

    ```python
    assert jf.samplers.dpmpp_2m(20).solver == jf.DPMpp(2, "midpoint")
    ```
    """
    check_kinds(dpmpp_2m, locals())
    return FixedSteps(_grid(n, shift, grid), DPMpp(2, "midpoint"), end="denoise")


def dpmpp_2m_sde(
    n: int, *, eta: Checked[Time] = 1.0, solver_type: str = "midpoint", shift: Time | None = None, grid: _Grid = None
) -> FixedSteps:
    """DPM-Solver++(2M) SDE, with k-diffusion's `eta`, the square of jflow's; `n` evaluations.

    `x' = (sigma'/sigma) e^(-eta h) x + alpha' int_0^h (1 + eta) e^(-(1 + eta)(h - u)) P(u) du + sigma' sqrt(1 -
    e^(-2 eta h)) z`, with `h` the step in half log-SNR and `P` the line through the latest two data predictions.
    `solver_type` is k-diffusion's too: `"midpoint"` takes `P` in the middle of the step, `"heun"` integrates exactly.

    Args:
        n: The number of steps.
        eta: k-diffusion's `eta`, at least 0; 0 is `dpmpp_2m`.
        solver_type: `"midpoint"` or `"heun"`.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Lu et al. 2022, arXiv:2211.01095, section 4.3; k-diffusion's `sample_dpmpp_2m_sde`.

    ```python
    assert jf.samplers.dpmpp_2m_sde(20, eta=0.25).eta == 0.5
    assert jf.samplers.dpmpp_2m_sde(20, solver_type="heun").solver == jf.DPMpp(2)
    ```
    """
    check_kinds(dpmpp_2m_sde, locals())
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun'. Got {solver_type!r}.")
    solver = DPMpp(2, "midpoint" if solver_type == "midpoint" else "exact")
    return FixedSteps(_grid(n, shift, grid), solver, eta=_root(eta), end="denoise")


def dpmpp_3m_sde(n: int, *, eta: Checked[Time] = 1.0, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """DPM-Solver++(3M) SDE as k-diffusion has it, with its `eta`, the square of jflow's; `n` evaluations.

    The integral is that of `dpmpp_2m_sde`, with `P` the parabola through the latest three data predictions. Its second
    difference has half the weight that the exact integral gives it, so the order is 2: `DPMpp(3)` is of order 3.

    Args:
        n: The number of steps.
        eta: As in `dpmpp_2m_sde`.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: k-diffusion's `sample_dpmpp_3m_sde`.

    ```python
    assert jf.samplers.dpmpp_3m_sde(20).solver == jf.DPMpp(3, "half_curvature")
    ```
    """
    check_kinds(dpmpp_3m_sde, locals())
    return FixedSteps(_grid(n, shift, grid), DPMpp(3, "half_curvature"), eta=_root(eta), end="denoise")


def dpmpp_2s(n: int, *, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """DPM-Solver++(2S): two calls within a step, the second in its middle in log-SNR; `2 n - 1` evaluations.

    With `s = sigma/alpha` and `y = x/alpha`: `y_m = (m/s) y + (1 - m/s) data(s, y)`, `m = sqrt(s s')`, and
    `y' = (s'/s) y + (1 - s'/s) data(m, y_m)`.

    diffusers' `DPMSolverSinglestepScheduler` takes the middle of a step from its grid: there `n` counts calls.

    Args:
        n: The number of steps.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 with `r = 1/2`.

    ```python
    assert jf.samplers.dpmpp_2s(10).solver == jf.DPMppSinglestep(2)
    ```
    """
    check_kinds(dpmpp_2s, locals())
    return FixedSteps(_grid(n, shift, grid), DPMppSinglestep(2), end="denoise")


def dpmpp_2s_ancestral(
    n: int, *, eta: Checked[Time] = 1.0, shift: Time | None = None, grid: _Grid = None
) -> FixedSteps:
    """k-diffusion's `dpmpp_2s_ancestral`: a step of `dpmpp_2s` down to `sigma_down`, then noise up to `sigma'`;
    `2 n - 1` evaluations.

    `s_up = eta s' sqrt(1 - (s'/s)^2)`, `s_down = sqrt(s'^2 - s_up^2)`: `eta` is that of `euler_ancestral`, from 0 to 1;
    at 0 it is `dpmpp_2s`.

    Args:
        n: The number of steps.
        eta: From 0 to 1; 0 is `dpmpp_2s`.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: k-diffusion's `sample_dpmpp_2s_ancestral`.

    ```python
    assert jf.samplers.dpmpp_2s_ancestral(10).solver == jf.DPM2("data", eta=1.0)
    assert jf.samplers.dpmpp_2s_ancestral(10, eta=0.0) == jf.samplers.dpmpp_2s(10)
    ```
    """
    check_kinds(dpmpp_2s_ancestral, locals())
    solver = DPMppSinglestep(2) if _none(eta) else DPM2("data", eta)
    return FixedSteps(_grid(n, shift, grid), solver, end="denoise")


def dpmpp_sde(n: int, *, eta: Checked[ArrayLike] = 1.0, shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """DPM-Solver++ SDE, of two calls a step; `2 n - 1` evaluations.

    With `h` the step in half log-SNR, `x' = (sigma'/sigma) e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) data_m + sigma'
    sqrt(1 - e^(-2 eta h)) z`, where `data_m` is the data prediction in the middle. A step of the same form leads there,
    with the data prediction of the start. Both noises belong to one Brownian path. `eta` is the square of jflow's, as
    in `dpmpp_2m_sde`. k-diffusion's `sample_dpmpp_sde` is the same at 0 and 1; in between its `eta` is that of
    `euler_ancestral`.

    Args:
        n: The number of steps.
        eta: The square of jflow's `eta`: a number of at least 0, or an array with a value for each step.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Lu et al. 2022, arXiv:2211.01095, section 4.3; k-diffusion's `sample_dpmpp_sde`.

    ```python
    assert jf.samplers.dpmpp_sde(10) == jf.FixedSteps(jf.UniformGrid(10), jf.DPMppSinglestep(2), eta=1.0, end="denoise")
    ```
    """
    check_kinds(dpmpp_sde, locals())
    return FixedSteps(_grid(n, shift, grid), DPMppSinglestep(2), eta=_root(eta), end="denoise")


def dpm_adaptive(
    rtol: Time = 0.05, atol: Time = 0.0078, *, t0: Time | None = None, t1: Time | None = 0.999
) -> AdaptiveSteps:
    """Adaptive DPM-Solver++(3S), with the distance to (2S) for its error.

    A step costs three evaluations, a rejected one too, and the choice of the first step two.

    The tolerances are k-diffusion's. Its `dpm_adaptive` is the same for the noise prediction (DPM-Solver-23). Where
    sigma = 0 the clock is infinite, so that the solve stops before: the noise of `t1` stays in the sample. On VE,
    which keeps `sigma > 0`, `t1=1.0` is the end.

    Args:
        rtol: The relative tolerance.
        atol: The absolute tolerance.
        t0: The first time, 0 by default.
        t1: The last time; `None` is 1.

    Source: Lu et al. 2022, arXiv:2206.00927, appendix C, and arXiv:2211.01095; k-diffusion's `sample_dpm_adaptive`.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.sample(field, jr.key(0), (2,), jf.samplers.dpm_adaptive(1e-3, 1e-3))
    assert sol.status == 0 and (sol.nfe - 2) % 3 == 0
    ```
    """
    check_kinds(dpm_adaptive, locals())
    return AdaptiveSteps(DPMppSinglestep(3), t0=t0, t1=t1, rtol=rtol, atol=atol)  # pyright: ignore[reportArgumentType]


def sa_solver(
    n: int,
    *,
    predictor: int = 3,
    corrector: int = 3,
    eta: Checked[Eta] = 1.0,
    shift: Time | None = None,
    grid: _Grid = None,
) -> FixedSteps:
    """SA-Solver: stochastic Adams, a predictor and a corrector that share one evaluation; `n` evaluations, the last
    step the data prediction.

    The integral is that of `dpmpp_2m_sde` with `eta^2` for its `eta`, and `P` the polynomial through the latest data
    predictions: `predictor` and `corrector` count those known that each takes into account. `eta` is the paper's tau,
    the amplitude of the noise; 0 is the ODE. diffusers' `SASolverScheduler`, whose `corrector_order` counts one
    more.

    Args:
        n: The number of steps.
        predictor: The data predictions of the predictor, 1 to 3.
        corrector: Those of the corrector, 1 to 3.
        eta: The paper's tau, as `eta` of `FixedSteps`.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Xue et al. 2023, arXiv:2309.05019, algorithm 1.

    ```python
    assert jf.samplers.sa_solver(10, predictor=2, corrector=1).solver == jf.SASolver(2, 1)
    ```
    """
    check_kinds(sa_solver, locals())
    return FixedSteps(_grid(n, shift, grid), SASolver(predictor, corrector), eta=eta, end="denoise")


def unipc(n: int, *, order: int = 2, variant: str = "bh2", shift: Time | None = None, grid: _Grid = None) -> FixedSteps:
    """UniPC, a predictor and a corrector that share one evaluation; `n` evaluations, the last step the data prediction.

    Args:
        n: The number of steps.
        order: The order of the predictor, 1 to 3.
        variant: The paper's `B(h)`: `"bh1"` or `"bh2"`.
        shift: As in `flow_euler`.
        grid: As in `flow_euler`.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2.

    ```python
    assert jf.samplers.unipc(10).solver == jf.UniPC(2, "bh2")
    ```
    """
    check_kinds(unipc, locals())
    return FixedSteps(_grid(n, shift, grid), UniPC(order, variant), end="denoise")  # pyright: ignore[reportArgumentType]


def table_times(path: TablePath, n: int, spacing: str = "leading", offset: int = 0) -> Float[Array, "{n}+1"]:
    """A grid on the times of `n` entries of a table of betas, and then t = 1: `ddim(50, grid=table_times(path, 50))`.

    Args:
        path: The path of the table, of `T` entries.
        n: The number of steps, at most `T`.
        spacing: Which entries, diffusers' `timestep_spacing`: `"leading"`, every `T // n`-th from entry `offset` on;
            `"trailing"`, every `T/n`-th from the last one down; `"linspace"`, from the last one to the first.
        offset: diffusers' `steps_offset`, for `"leading"`.

    Raises `ValueError` for another spacing, and where the table has no such entries.

    Source: Lin et al. 2024, arXiv:2305.08891, table 2.

    ```python
    path = jf.TablePath(np.linspace(1e-4, 0.02, 1000))
    times = jf.samplers.table_times(path, 4)
    assert jnp.allclose(times, 1 - np.array([751, 501, 251, 1, 0]) / 1000)
    assert jnp.allclose(jf.samplers.table_times(path, 4, "trailing"), jf.UniformGrid(4).times())
    ```
    """
    check_kinds(table_times, locals())
    check_count(n=n)
    total = len(path.betas)
    spacings = {
        "leading": np.arange(n)[::-1] * (total // n) + offset,
        "trailing": np.round(total - np.arange(n) * total / n) - 1,
        "linspace": np.round(np.linspace(total - 1, 0, n)),
    }
    if spacing not in spacings:
        raise ValueError(f"spacing must be one of {', '.join(map(repr, spacings))}. Got {spacing!r}.")
    entries = spacings[spacing]
    if n > total or entries[-1] < 0 or entries[0] >= total:
        raise ValueError(
            f"table_times must have {n} of the {total} entries of the table. Got {entries[0]:g} down to "
            f"{entries[-1]:g}: take at most {total} steps, or a smaller offset."
        )
    return jnp.asarray(1 - np.append(entries + 1, 0) / total, float)


def names() -> list[str]:
    """The names of all samplers.

    ```python
    assert "ddim" in jf.samplers.names()
    ```
    """
    module = sys.modules[__name__]
    return sorted(
        name
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == __name__ and not name.startswith("_") and name not in ("names", "by_name", "table_times")
    )


def by_name(name: str, n: int | None = None, **options: object) -> FixedSteps | AdaptiveSteps:
    """A sampler by its name, with `n` steps and the options that are not `None`; `dpm_adaptive` takes no `n`.

    Args:
        name: One of `names()`.
        n: The number of steps; `None` for `dpm_adaptive`.
        **options: Keyword arguments of the sampler.

    Raises `ValueError` for an unknown name, with the nearest ones, for an option that the sampler does not take, and
    where `n` is missing.

    ```python
    assert jf.samplers.by_name("ddim", 20, eta=0.5) == jf.samplers.ddim(20, eta=0.5)
    assert jf.samplers.by_name("dpm_adaptive", rtol=0.01) == jf.samplers.dpm_adaptive(rtol=0.01)
    ```
    """
    check_kinds(by_name, locals())
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3, 0.3) or names()
        raise ValueError(
            f"A sampler must be one of {', '.join(names())}. Got {name!r}: did you mean {' or '.join(near)}?"
        )
    function = vars(sys.modules[__name__])[name]
    given = {key: value for key, value in {"n": n, **options}.items() if value is not None}
    taken = set(inspect.signature(function).parameters)
    if unknown := sorted(set(given) - taken):
        known = ", ".join(sorted(taken - {"n"}))
        raise ValueError(f"{name} must have options among {known}. Got {', '.join(unknown)}.")
    if "n" in taken and n is None:
        raise ValueError(f"{name} must have a number of steps. Got none: pass one, as jf.samplers.{name}(20).")
    return function(**given)


def _grid(n: int, shift: Any, grid: Any) -> Any:
    if grid is not None and (steps := grid.n if isinstance(grid, AbstractGridRule) else jnp.size(grid) - 1) != n:
        raise ValueError(f"grid must have the {n} steps of the sampler. Got one of {steps} steps.")
    rule = UniformGrid(n) if grid is None else grid
    return rule if shift is None else ShiftedGrid(rule, shift)


def _none(level: Any) -> bool:
    """Whether a level of noise is known to be zero."""
    return isinstance(level, Number) and level == 0


def _root(eta: Any) -> Any:
    """The amplitude of the noise from its square; a negative number stays, and `FixedSteps` raises for it."""
    if isinstance(eta, Number):
        return math.sqrt(eta) if eta >= 0 else eta
    return jnp.sqrt(eta)
