"""A path from two functions of time."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._kinds import check_kinds
from .._source import AbstractSource, Normal
from .._trainable import frozen
from .._validate import as_array, scalar_time
from ._abstract import AbstractAffinePath, slope

BOUND = 0.1
"""Of `alpha(0)/sigma(0)` and `sigma(1)/alpha(1)`: the noise end of Stable Diffusion's schedule has 0.068."""


class CustomPath(AbstractAffinePath):
    """A path from two functions of time, `CustomPath(alpha, sigma)`; derivatives come from automatic differentiation.

    These rules are checked once: finite values, `sigma(0) > 0`, `alpha(1) > 0`, an increasing signal-to-noise
    ratio, `alpha(0)/sigma(0)` and `sigma(1)/alpha(1)` at most 0.1. At the ends derivatives are the limits from
    inside, taken one float away, and infinite at t = 0 where autodiff finds them so, as `alpha'` of `sqrt(t)`;
    `log_snr_inverse` is a bisection, differentiable by the inverse-function rule.

    A root of a rounded difference, as `sqrt(1 - alpha(t)**2)`, has the derivative NaN at t = 1, where no velocity can
    be trained: write the difference as a product. Where `alpha'(0) = 0`, as below, a velocity does not determine the
    data at t = 0: sample it in `PathClock()`.

    Raises `ValueError` where the functions break a rule.

    ```python
    path = jf.CustomPath(lambda t: t**2, lambda t: 1 - t)
    assert jnp.allclose(path.alpha_dot(0.5), 1.0) and jnp.allclose(path.log_snr_inverse(path.log_snr(0.3)), 0.3)
    ```
    """

    # what is found of the two functions, in the place of the facts of a class
    finite_sigma_dot: bool = eqx.field(static=True, repr=False)  # pyright: ignore
    ends_at_data: bool = eqx.field(static=True, repr=False)  # pyright: ignore
    starts_at_noise: bool = eqx.field(static=True, repr=False)  # pyright: ignore
    finite_alpha_dot: bool = eqx.field(static=True, repr=False)  # pyright: ignore
    _steep: bool = eqx.field(static=True, repr=False)  # whether sigma'(0) is infinite
    alpha_fn: Callable[[Array], Array] = frozen()
    sigma_fn: Callable[[Array], Array] = frozen()
    source: AbstractSource = frozen()

    def __init__(
        self,
        alpha: Callable[[Array], Array],
        sigma: Callable[[Array], Array],
        *,
        source: AbstractSource | None = None,
    ):
        """Makes the path.

        Args:
            alpha: The weight of the data, a differentiable function of a scalar time in [0, 1].
            sigma: The weight of the noise, a differentiable function of a scalar time in [0, 1].
            source: The law of x0; `Normal()` by default.
        """
        check_kinds(CustomPath.__init__, locals())
        self.alpha_fn, self.sigma_fn = alpha, sigma
        self.source = Normal() if source is None else source
        with jax.ensure_compile_time_eval():
            zero, one = jnp.asarray(0.0, jnp.float32), jnp.asarray(1.0, jnp.float32)
            end, starts = jax.grad(self.sigma)(one), (jax.grad(self.alpha)(zero), jax.grad(self.sigma)(zero))
            sigma_1, alpha_0 = sigma(one), alpha(zero)
        if any(isinstance(value, jax.core.Tracer) for value in (end, *starts, sigma_1, alpha_0)):
            raise ValueError(
                "A CustomPath must see its ends when it is built, and functions of traced values hide them. Build it "
                "outside jax.jit, jax.vmap and jax.grad and pass it in: it is a pytree, like the field it belongs to."
            )
        self.finite_sigma_dot, self.ends_at_data = bool(np.isfinite(end)), bool(sigma_1 == 0)
        self.starts_at_noise, self.finite_alpha_dot = bool(alpha_0 == 0), not np.isinf(starts[0])
        self._steep = bool(np.isinf(starts[1]))

    def __check_init__(self):
        _check_ends(self)

    def alpha(self, t):
        t = scalar_time(t)
        return as_array(self.alpha_fn(t), "alpha(t)").astype(t.dtype)

    def sigma(self, t):
        t = scalar_time(t)
        return as_array(self.sigma_fn(t), "sigma(t)").astype(t.dtype)

    def _sigma_slope(self, t):
        return slope(self.sigma, t, steep=self._steep)


def _check_ends(path):
    """The rules a path built from a user's values keeps."""
    grid = np.linspace(0.0, 1.0, 101, dtype=np.float32)
    with jax.ensure_compile_time_eval():
        values = jax.vmap(lambda t: (path.alpha(t), path.sigma(t)))(jnp.asarray(grid))
        if any(isinstance(v, jax.core.Tracer) for v in values):
            return
        alpha, sigma = (np.asarray(v, dtype=np.float64) for v in values)
    if not (np.isfinite(alpha).all() and np.isfinite(sigma).all()):
        raise ValueError("alpha and sigma of a path must be finite on [0, 1]. Got a non-finite value.")
    if not (sigma[0] > 0 and alpha[-1] > 0):
        raise ValueError(
            f"A path must have sigma(0) > 0 and alpha(1) > 0. Got sigma(0) = {sigma[0]:.4g}, alpha(1) = "
            f"{alpha[-1]:.4g}. Time runs from noise (t = 0) to data (t = 1): are alpha and sigma swapped?"
        )
    if alpha[0] / sigma[0] > BOUND or sigma[-1] / alpha[-1] > BOUND:
        raise ValueError(
            f"A path must have alpha(0)/sigma(0) and sigma(1)/alpha(1) of at most {BOUND}, so that it starts at noise "
            f"and ends at data. Got {alpha[0] / sigma[0]:.4g} and {sigma[-1] / alpha[-1]:.4g}."
        )
    _check_signs(grid, alpha=alpha, sigma=sigma)
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha) - np.log(sigma)
    if not (np.diff(log_snr) > 0).all():
        raise ValueError(
            "The signal-to-noise ratio alpha^2/sigma^2 of a path must increase with time. Got one that does not; time "
            "runs from noise (t = 0) to data (t = 1)."
        )


def _check_signs(grid, **functions):
    for name, values in functions.items():
        least = int(values.argmin())
        if values[least] < 0:
            rounded = values[least] > -1e-6 * values.max()
            sine = "jnp.sin(jnp.pi * t / 2)" if name == "alpha" else "jnp.sin(jnp.pi * (1 - t) / 2)"
            fix = f", by rounding: let it be exactly zero, a cosine as {sine}, or take jflow.Cosine()"
            raise ValueError(
                f"alpha and sigma of a path must not be negative. Got {name}({grid[least]:g}) = {values[least]:.4g}"
                f"{fix if rounded else ''}."
            )
