"""Checks of how a solve is asked for: a grid or an adaptive one, its times, its noise."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ._misc import concrete
from ._path import VE, AbstractPath


def check_mode(times: Any, t0: Any, t1: Any, dt0: Any, controller: Any, adjoint: Any, event: Any) -> None:
    """Raises `ValueError` unless the call is either a fixed grid or an adaptive solve."""
    if times is None:
        if t0 is None or t1 is None:
            raise ValueError(
                "A solve takes either a grid, times=jflow.uniform_times(n), or both ends, t0= and t1=. "
                f"Got times=None, t0={t0}, t1={t1}."
            )
        return
    extra = {"t0": t0, "t1": t1, "dt0": dt0, "stepsize_controller": controller, "adjoint": adjoint, "event": event}
    given = [name for name, value in extra.items() if value is not None]
    if given:
        raise ValueError(
            f"A fixed grid (times=) takes the steps it is given; {', '.join(given)} belongs to an adaptive solve "
            "(t0= and t1=). Drop one of the two."
        )


def check_times(times: Any, *, backward: bool, repeat_last: bool = False) -> None:
    """Raises `ValueError` where the grid is too short, non-finite, or not monotone, as far as it is concrete."""
    if jnp.ndim(times) != 1 or jnp.shape(times)[0] < 2:
        raise ValueError(
            f"A grid is a vector of at least two times (one step). Got shape {jnp.shape(times)}; "
            "n steps are jflow.uniform_times(n)."
        )
    if (grid := concrete(times)) is None:
        return
    if not np.isfinite(grid).all():
        raise ValueError("The times of a grid are finite. Got a non-finite one.")
    steps = np.diff(grid)
    forward = (steps[:-1] > 0).all() and (steps[-1] > 0 or (repeat_last and steps[-1] == 0))
    if not (forward or (backward and (steps < 0).all())):
        twice = "; a last point twice, as karras_times has it on VE, is for a sample's end='denoise'"
        hint = twice if steps[-1] == 0 else ""
        raise ValueError(
            f"The times of a grid increase{', or for an ODE decrease,' if backward else ''} strictly: t = 0 is noise, "
            f"t = 1 is data. Got steps between {steps.min():.4g} and {steps.max():.4g}{hint}."
        )


def path_times(path: AbstractPath, times: Any, *, repeat_last: bool = False) -> Any:
    """An increasing grid of path times, checked; of numpy where it is known, so that it stays so inside `jax.jit`."""
    check_times(times, backward=False, repeat_last=repeat_last)
    known = concrete(times)
    times = jnp.asarray(times) if known is None else known
    check_span(path, times[0], times[-1])
    return times


def check_span(path: AbstractPath, t0: Any, t1: Any) -> None:
    """Raises `ValueError` where known ends of a solve are out of order, or not on the path."""
    start, stop = concrete(t0), concrete(t1)
    if start is not None and stop is not None and start > stop:
        raise ValueError(
            f"A path's times increase from noise (t = 0) to data (t = 1). Got t0 = {start:g} after t1 = {stop:g}: swap "
            "them (jflow.encode carries data to noise, and takes the same t0 and t1)."
        )
    for t in (start, stop):
        if t is not None and not isinstance(path, VE) and not 0 <= t <= 1:
            raise ValueError(
                f"{type(path).__name__} has times from 0 (noise) to 1 (data). Got t = {t:g}; steps numbered from data "
                "to noise, as 0 to 1000, are t = 1 - step/1000."
            )


def check_noise(brownian: Any, noisy: bool) -> None:
    """Raises `ValueError` where a source of noise is given for an ODE."""
    if brownian is not None and not noisy:
        raise ValueError(
            "brownian= is the noise of an SDE. Got an ODE: drop it, or give eta= or diffusion= for the level of noise."
        )
