"""Checks of paths and of fields."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._field import AbstractField, check_affine
from .._kinds import check_kinds
from .._path import AbstractAffinePath
from .._path.custom import BOUND
from .._types import Number, PRNGKey
from .._validate import check_count
from ..distributions import AbstractDensity
from ._report import Report, bounded

_NAMES = "alpha", "sigma", "alpha'", "sigma sigma'", "sigma (sigma alpha' - alpha sigma')"


def check_path(path: AbstractAffinePath) -> Report:
    """Checks an affine path that you wrote.

    It checks its ends, an increasing signal-to-noise ratio, derivatives against automatic differentiation, the inverse
    of its log-SNR, finite coefficients at both ends in float32 and bfloat16 (but for derivatives that automatic
    differentiation finds infinite at t = 0 too), and that the flags `ends_at_data`, `starts_at_noise`,
    `finite_sigma_dot` and `finite_alpha_dot` say what is so. Derivatives are compared in float64.

    Raises `ValueError` for a path without alpha and sigma.

    ```python
    class Squares(jf.AbstractAffinePath):
        source: jf.AbstractSource = jf.Normal()

        def alpha(self, t):
            return t**2

        def sigma(self, t):
            return 1 - t

    jf.testing.check_path(Squares()).check()
    ```
    """
    check_kinds(check_path, locals())
    check_affine(path, "check_path")

    def rows():
        with jax.enable_x64(True):
            t = jnp.linspace(0.0, 1.0, 201)
            alpha, sigma = _along(path.alpha, t), _along(path.sigma, t)
            yield bounded("alpha(0)/sigma(0)", alpha[0] / sigma[0], BOUND)
            yield bounded("sigma(1)/alpha(1)", sigma[-1] / alpha[-1], BOUND)
            inside = t[1:-1]
            log_snr = _along(path.log_snr, inside)
            yield bounded("largest fall of log-SNR", jnp.max(-jnp.diff(log_snr)), 0.0, "on 199 inner times")
            own, auto = _along(path.alpha_dot, inside), _along(jax.grad(path.alpha), inside)
            yield bounded("alpha' against autodiff", _relative(own, auto), 1e-7)
            auto = _along(jax.grad(lambda t: path.sigma(t) ** 2 / 2), inside)
            own = _along(path.sigma_sigma_dot, inside)
            yield bounded("sigma sigma' against autodiff", _relative(own, auto), 1e-7)
            back = _along(path.log_snr_inverse, log_snr)
            yield bounded("inverse of log-SNR", jnp.max(jnp.abs(back - inside)), 1e-7)
        for dtype in (jnp.float32, jnp.bfloat16):
            ends = jnp.asarray([0.0, 1.0], dtype)
            functions = path.alpha, path.sigma, path.alpha_dot, path.sigma_sigma_dot, path.sigma_w
            values = jnp.stack([_along(f, ends).astype(jnp.float32) for f in functions])
            slopes = jnp.stack([jax.grad(f)(ends[0]) for f in functions[:2]])
            steep = jnp.any(jnp.isinf(slopes)) & jnp.zeros_like(values, bool).at[2:, 0].set(True)
            bad = ~jnp.isfinite(values) & ~steep
            named = ", ".join(f"{_NAMES[i]} at t = {end}" for i, end in np.argwhere(bad))
            what = f"of 10 coefficients{named and ': '}{named}"
            yield bounded(f"not finite at the ends, {jnp.dtype(dtype).name}", jnp.sum(bad), 0.0, what)
        yield from _flag_rows(path)

    return Report(f"path {type(path).__name__}", rows())


def _flag_rows(path):
    """The static facts that a path states against its values, in float32 as `CustomPath` looks at them."""
    zero, one = jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)
    facts = {
        "ends_at_data": ("sigma(1) = 0", path.ends_at_data, path.sigma(one) == 0),
        "starts_at_noise": ("alpha(0) = 0", path.starts_at_noise, path.alpha(zero) == 0),
        "finite_sigma_dot": ("sigma'(1)", path.finite_sigma_dot, _finite(jax.grad(path.sigma)(one))),
        "finite_alpha_dot": ("alpha'(0)", path.finite_alpha_dot, _finite(jax.grad(path.alpha)(zero))),
    }
    for flag, (value, stated, seen) in facts.items():
        differs = seen is not None and bool(stated) != bool(seen)
        yield bounded(f"{flag} against {value}", differs, 0.0, f"it says {bool(stated)}")


def _finite(slope):
    """Whether a derivative is finite; `None` where automatic differentiation does not know, as `0 inf`."""
    return None if jnp.isnan(slope) else jnp.isfinite(slope)


def _along(f, times):
    """A function of time at many times, compiled as one."""
    return jax.jit(jax.vmap(f))(times)


def _relative(a, b):
    """Norm of the difference over the norm, with one where the reference vanishes."""
    norm = jnp.linalg.norm(b)
    return jnp.linalg.norm(a - b) / jnp.where(norm == 0, 1, norm)


def check_field(
    field: AbstractField,
    distribution: AbstractDensity,
    *,
    args: Any = None,
    times: Sequence[Number] = (0.1, 0.3, 0.5, 0.7, 0.9),
    n: int = 256,
    tolerance: Number = 1e-3,
    key: PRNGKey | None = None,
) -> Report:
    """Checks a field against the exact field of a distribution, and by the continuity equation.

    At each time, on `n` draws of the marginal `p_t`, it takes the norm of the difference of the velocities over the
    norm, the same for the data prediction, and the residual of `d log p_t/dt + div u + u . grad log p_t = 0` over the
    norm of its first term. The figure is the largest over the times.

    Args:
        field: A field along an affine path whose source is white noise.
        distribution: The law of the data.
        args: The condition. The draws are those of every condition.
        times: Where to look.
        n: How many draws at each time.
        tolerance: The bound of each figure.
        key: The key of the draws; `jax.random.key(0)` by default.

    Returns:
        A `Report`.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
    jf.testing.check_field(world.field(jf.VP()), world, n=16).check()
    ```
    """
    check_kinds(check_field, locals())
    check_count(n=n)
    if not len(times):
        raise ValueError("times must be one or more. Got none: pass those to look at, as (0.1, 0.5, 0.9).")
    exact = distribution.field(field.path)
    path = exact.path
    key = jr.key(0) if key is None else key

    def log_p(t, x):
        return distribution.moments(path.alpha(t), path.sigma(t), x, args).log_prob

    def one(t, x):
        def velocity(y):
            return field.velocity(t, y, args)

        u, rate = velocity(x), jax.grad(log_p)(t, x)
        divergence = jnp.trace(jax.jacfwd(velocity)(x).reshape(x.size, x.size))
        residual = rate + divergence + jnp.sum(u * jax.grad(log_p, 1)(t, x))
        return u, exact.velocity(t, x, args), field.data(t, x, args), exact.data(t, x, args), rate, residual

    @jax.jit
    def at(key, t):
        draws = jax.vmap(distribution.at(path, t).sample)(jr.split(key, n))
        xs = draws[0] if isinstance(draws, tuple) else draws  # without their conditions
        return jax.vmap(lambda x: one(t, x))(xs)

    figures = []
    for i, t in enumerate(times):
        u, u_exact, data, data_exact, rate, residual = at(jr.fold_in(key, i), jnp.asarray(t))
        chex.assert_equal_shape([u, u_exact])
        continuity = jnp.linalg.norm(residual) / jnp.linalg.norm(rate)
        figures.append((_relative(u, u_exact), _relative(data, data_exact), continuity))
    worst = np.max(np.asarray(figures), axis=0)
    names = ("velocity against the exact one", "data prediction against the exact one", "continuity equation")
    return Report(
        f"field of {type(distribution).__name__} along {type(path).__name__}",
        (bounded(name, figure, tolerance, f"{len(times)} times") for name, figure in zip(names, worst, strict=True)),
    )
