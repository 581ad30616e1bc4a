"""Samplers by the names that the field knows them by, each one line: `jf.samplers.ddim(50)`.

Every function takes the number of steps and returns `FixedSteps`, without a path. The grid is `UniformGrid(n)` unless
said: equal steps of t, which on VE are equal in log sigma and on VP those of the diffusion's own time; another one is
passed as `grid=`, as `jf.KarrasGrid(n, 0.03, 15.0)`. The last step is the data prediction where the libraries append
`sigma = 0` to their levels. `shift` is the time shift of flow models, `ShiftedGrid`.
"""

import difflib
import inspect
import sys
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import numpy as np

from ._clock import SigmaClock, ThetaClock
from ._grid import AbstractGridRule, KarrasGrid, ShiftedGrid, UniformGrid
from ._kinds import check_kinds
from ._noise_rule import Ancestral
from ._sampler import FixedSteps
from ._solver import DPMpp, UniPC
from ._types import Time
from ._validate import as_array


def flow_euler(n: int, *, shift: Time | None = None, grid: AbstractGridRule | None = None) -> FixedSteps:
    """Euler in the path's own time, the sampler of flow matching; `n` evaluations.

    diffusers' `FlowMatchEulerDiscreteScheduler`, with its `shift`. For fields with a velocity at every time of the
    grid.

    Source: Lipman et al. 2023, arXiv:2210.02747; of the shift, Esser et al. 2024, arXiv:2403.03206, equation 23.

    ```python
    assert jf.samplers.flow_euler(8, shift=3.0) == jf.FixedSteps(jf.ShiftedGrid(jf.UniformGrid(8), 3.0), end="stop")
    ```
    """
    check_kinds(flow_euler, locals())
    return FixedSteps(_grid(n, shift, grid), end="stop")


def heun_flow(n: int, *, shift: Time | None = None, grid: AbstractGridRule | None = None) -> FixedSteps:
    """Heun in the path's own time, for flow matching: `x' = x + h/2 (v(t, x) + v(t + h, x + h v(t, x)))`, a trapezoidal
    rule of order 2; `2 n` evaluations.

    flow_matching's `method="heun2"`. diffusers' `FlowMatchHeunDiscreteScheduler` ends with an Euler step in place of
    its last Heun step. For fields with a velocity at every time of the grid, the last one included.

    Source: Hairer, Norsett & Wanner 1993, section II.1; of the shift, Esser et al. 2024, arXiv:2403.03206, equation 23.

    ```python
    assert jf.samplers.heun_flow(10) == jf.FixedSteps(jf.UniformGrid(10), dfx.Heun(), end="stop")
    ```
    """
    check_kinds(heun_flow, locals())
    return FixedSteps(_grid(n, shift, grid), dfx.Heun(), end="stop")


def ddim(n: int, *, eta: Any = 0.0, shift: Time | None = None, grid: AbstractGridRule | None = None) -> FixedSteps:
    """DDIM, with its own `eta`: 0 the ODE, 1 DDPM's noise; `n` evaluations.

    `x' = alpha' data + sqrt(sigma'^2 - s^2) noise + s z`, `s = eta sigma' sqrt(1 - e^(-2h))` with `h` the step in half
    log-SNR. The last step is the data prediction.

    Source: Song et al. 2021, arXiv:2010.02502, equations 12 and 16.

    ```python
    assert jf.samplers.ddim(50).eta is None and jf.samplers.ddim(50, eta=0.5).eta == jf.Ancestral(0.5)
    ```
    """
    check_kinds(ddim, locals())
    noise = None if isinstance(eta, (int, float)) and eta == 0 else Ancestral(eta)
    return FixedSteps(_grid(n, shift, grid), clock=ThetaClock(), eta=noise, end="denoise")


def ddpm(n: int, *, shift: Time | None = None, grid: AbstractGridRule | None = None) -> FixedSteps:
    """DDPM's ancestral sampling: `ddim` at `eta = 1`; `n` evaluations.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2, with the posterior's variance.

    ```python
    assert jf.samplers.ddpm(50) == jf.samplers.ddim(50, eta=1.0)
    ```
    """
    check_kinds(ddpm, locals())
    return ddim(n, eta=1.0, shift=shift, grid=grid)


def euler_ancestral(
    n: int, *, eta: Any = 1.0, shift: Time | None = None, grid: AbstractGridRule | None = None
) -> FixedSteps:
    """k-diffusion's `euler_ancestral`: an Euler step in sigma down to `sigma_down`, then noise up to `sigma'`; `n`
    evaluations. It is `ddim` with the same `eta`, 1 by default.

    ```python
    assert jf.samplers.euler_ancestral(20) == jf.samplers.ddim(20, eta=1.0)
    ```
    """
    check_kinds(euler_ancestral, locals())
    return ddim(n, eta=eta, shift=shift, grid=grid)


def heun_edm(n: int, *, sigma_min: Time | None = None, sigma_max: Time | None = None, rho: Time = 7.0) -> FixedSteps:
    """EDM's deterministic sampler: Heun in sigma on the Karras grid; `2 n - 1` evaluations.

    On VE the bounds are the path's own. On a path of infinite log-SNR they must be given, as 0.002 and 80, levels of
    `sigma/alpha`.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1 and equation 5.

    ```python
    edm = jf.FixedSteps(jf.KarrasGrid(18), dfx.Heun(), clock=jf.SigmaClock(), end="denoise")
    assert jf.samplers.heun_edm(18) == edm
    ```
    """
    check_kinds(heun_edm, locals())
    grid = KarrasGrid(n, sigma_min, sigma_max, rho)
    return FixedSteps(grid, dfx.Heun(), clock=SigmaClock(), end="denoise")


def dpmpp_2m(n: int, *, shift: Time | None = None, grid: AbstractGridRule | None = None) -> FixedSteps:
    """DPM-Solver++(2M) in its popular midpoint form; `n` evaluations, the last step the data prediction.

    k-diffusion's `dpmpp_2m`, diffusers' `DPMSolverMultistepScheduler`.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.

    ```python
    assert jf.samplers.dpmpp_2m(20).solver == jf.DPMpp(2, "midpoint")
    ```
    """
    check_kinds(dpmpp_2m, locals())
    return FixedSteps(_grid(n, shift, grid), DPMpp(2, "midpoint"), end="denoise")


def dpmpp_2m_sde(
    n: int, *, eta: Any = 1.0, shift: Time | None = None, grid: AbstractGridRule | None = None
) -> FixedSteps:
    """DPM-Solver++(2M) SDE in its midpoint form, with k-diffusion's `eta`, the square of jflow's; `n` evaluations.

    Source: Lu et al. 2022, arXiv:2211.01095, section 4.3; k-diffusion's `sample_dpmpp_2m_sde`.

    ```python
    assert jf.samplers.dpmpp_2m_sde(20, eta=0.25).eta == 0.5
    ```
    """
    check_kinds(dpmpp_2m_sde, locals())
    if isinstance(eta, (int, float)):
        root = float(np.sqrt(eta)) if eta >= 0 else eta
    else:
        root = jnp.sqrt(as_array(eta, "eta"))
    return FixedSteps(_grid(n, shift, grid), DPMpp(2, "midpoint"), eta=root, end="denoise")


def unipc(
    n: int, *, order: int = 2, variant: str = "bh2", shift: Time | None = None, grid: AbstractGridRule | None = None
) -> FixedSteps:
    """UniPC, a predictor and a corrector that share one evaluation; `n` evaluations, the last step the data prediction.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2.

    ```python
    assert jf.samplers.unipc(10).solver == jf.UniPC(2, "bh2")
    ```
    """
    check_kinds(unipc, locals())
    return FixedSteps(_grid(n, shift, grid), UniPC(order, variant), end="denoise")


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
        if value.__module__ == __name__ and not name.startswith("_") and name not in ("names", "by_name")
    )


def by_name(name: str, n: int, **options: Any) -> FixedSteps:
    """A sampler by its name, with the options that are not `None`.

    Raises `ValueError` for an unknown name, with the nearest ones, and for an option that the sampler does not take.

    ```python
    assert jf.samplers.by_name("ddim", 20, eta=0.5) == jf.samplers.ddim(20, eta=0.5)
    ```
    """
    check_kinds(by_name, locals())
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3, 0.3) or names()
        raise ValueError(
            f"A sampler must be one of {', '.join(names())}. Got {name!r}: did you mean {' or '.join(near)}?"
        )
    function = vars(sys.modules[__name__])[name]
    given = {key: value for key, value in options.items() if value is not None}
    taken = set(inspect.signature(function).parameters) - {"n"}
    if unknown := sorted(set(given) - taken):
        raise ValueError(f"{name} must have options among {', '.join(sorted(taken))}. Got {', '.join(unknown)}.")
    return function(n, **given)


def _grid(n: int, shift: Any, grid: Any) -> Any:
    if grid is not None and grid.n != n:
        raise ValueError(f"grid must have the {n} steps that are asked for. Got one of {grid.n} steps.")
    rule = UniformGrid(n) if grid is None else grid
    return rule if shift is None else ShiftedGrid(rule, shift)
