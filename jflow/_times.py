"""Grids of path times, and laws of training times."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from ._misc import check_key, concrete, parameter
from ._path import AbstractPath
from ._types import PRNGKey, Time


def uniform_times(n: int) -> Float[Array, "{n}+1"]:
    """`n` equal steps from t = 0 to t = 1: `n + 1` points. Raises `ValueError` for `n < 1`."""
    _check_steps(n)
    with jax.ensure_compile_time_eval():  # known inside `jax.jit` too, so that what does not go with it is refused
        return jnp.linspace(0.0, 1.0, n + 1)


def karras_times(
    n: int,
    path: AbstractPath,
    sigma_min: Time | None = None,
    sigma_max: Time | None = None,
    rho: Time = 7.0,
) -> Float[Array, "{n}+1"]:
    """`n` steps along the grid of EDM: `n` noise levels, then the data.

    The levels are `sigma/alpha = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho` for
    `i = 0, ..., n-1`, and the last point is t = 1. On VE, whose own last level is `sigma_min`, the last two points
    coincide: the last step is the denoising one.

    **Arguments:** `sigma_min`, `sigma_max`: bounds of `sigma/alpha`; may be left out where the path's are finite.

    Raises `ValueError` for `n < 1`, a bound that is missing, or bounds out of order.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    _check_steps(n)
    low, high = _level(path, 1.0, sigma_min, "sigma_min"), _level(path, 0.0, sigma_max, "sigma_max")
    _check_order(high, low, "sigma_max above sigma_min")
    ramp = jnp.linspace(0.0, 1.0, n) if n > 1 else jnp.zeros(1)
    levels = ((1 - ramp) * high ** (1 / rho) + ramp * low ** (1 / rho)) ** rho
    times = jax.vmap(lambda level: path.log_snr_inverse(-2 * jnp.log(level)))(levels)
    return _ended(jnp.concatenate([times, jnp.ones(1, times.dtype)]), 0.0 if sigma_max is None else None, 1.0)


def log_snr_times(
    n: int, path: AbstractPath, lo: Time | None = None, hi: Time | None = None, rho: Time = 1.0
) -> Float[Array, "{n}+1"]:
    """`n` steps equal in log-SNR, from `lo` to `hi` (`log(alpha^2/sigma^2)`, whole, not half): `n + 1` points.

    With `rho` the poly-exponential grid, `log_snr = hi - (1 - i/n)^rho (hi - lo)`: above 1 the steps are shorter
    towards the data, below 1 towards the noise. The noise of the level `hi` stays in a sample; with t = 1 appended it
    ends at the data.

    **Arguments:** `lo`, `hi`: bounds; may be left out where the path's log-SNR is finite at that end.

    Raises `ValueError` for `n < 1`, a bound that is missing, `lo >= hi`, or a `rho` that is not positive.

    Source: Lu et al. 2022, arXiv:2206.00927, section 3 (half log-SNR there); with `rho`, k-diffusion's
    `get_sigmas_polyexponential`.
    """
    _check_steps(n)
    low, high = _bound(path, 0.0, lo, "lo"), _bound(path, 1.0, hi, "hi")
    _check_order(high, low, "hi above lo")
    left = jnp.linspace(1.0, 0.0, n + 1) ** parameter(rho, "rho")
    times = jax.vmap(path.log_snr_inverse)((1 - left) * high + left * low)
    return _ended(times, 0.0 if lo is None else None, 1.0 if hi is None else None)


def ratio_times(n: int, path: AbstractPath) -> Float[Array, "{n}+1"]:
    """`n` steps equal in `alpha/(alpha + sigma)`, the time of `RatioClock`, from t = 0 to t = 1: `n + 1` points.

    On CondOT these are `uniform_times(n)`; on another path the times of equal signal-to-noise ratio.

    Raises `ValueError` for `n < 1`.
    """
    _check_steps(n)
    return _ratio_grid(jnp.linspace(0.0, 1.0, n + 1), path)


def cosine_times(n: int) -> Float[Array, "{n}+1"]:
    """`n` steps from t = 0 to t = 1 that grow from noise to data, `t = 1 - cos(pi i / (2 n))`: `n + 1` points.

    Raises `ValueError` for `n < 1`. Source: Du et al. 2024, arXiv:2407.05407, section 2.3.
    """
    _check_steps(n)
    return _ended(2 * jnp.sin(jnp.pi / 4 * jnp.linspace(0.0, 1.0, n + 1)) ** 2, 0.0, 1.0)


def eased_times(n: int, path: AbstractPath, first: Time = 1.2, last: Time = 1.3) -> Float[Array, "{n}+1"]:
    """`n` steps that are shorter at both ends, from t = 0 to t = 1, for multistep methods of few calls.

    The ratio clock's time `tau = alpha/(alpha + sigma)` has come a share `1 - (1 - s^first)^last` of its way at
    `s = i/n`: the first steps, which know little of the past, are shorter the larger `first` is, and the last, near
    the data, the larger `last` is; at 1 and 1 these are `ratio_times`.

    Raises `ValueError` for `n < 1` or an exponent that is not positive. The defaults were chosen on mixtures of
    Gaussians; see docs/which_sampler.md.
    """
    _check_steps(n)
    return _ratio_grid(eased_shares(n, parameter(first, "first"), parameter(last, "last")), path)


def eased_shares(n: int, first: Time = 1.2, last: Time = 1.3) -> Float[Array, "{n}+1"]:
    """`1 - (1 - s^first)^last` at `s = i/n`."""
    inner = jnp.linspace(0.0, 1.0, n + 1)[1:-1]  # the ends stay, and have no derivative in the exponents
    return jnp.concatenate([jnp.zeros(1), 1 - (1 - inner**first) ** last, jnp.ones(1)])


def _ratio_grid(shares, path):
    """The times at which `alpha/(alpha + sigma)` has covered the shares of its way from t = 0 to t = 1."""
    first, last = (jax.nn.sigmoid(path.log_snr(jnp.asarray(t, shares.dtype)) / 2) for t in (0.0, 1.0))
    inner = first + (last - first) * shares[1:-1]
    times = jax.vmap(lambda tau: path.log_snr_inverse(2 * jax.scipy.special.logit(tau)))(inner)
    return _ended(jnp.concatenate([jnp.zeros(1, times.dtype), times, jnp.ones(1, times.dtype)]), 0.0, 1.0)


def _level(path, t, value, name):
    """A bound of `sigma/alpha`: the one given, or the path's own where it is finite."""
    return jnp.exp(-_bound(path, t, None, name) / 2) if value is None else parameter(value, name)


def _bound(path, t, value, name):
    """A bound of the log-SNR: the one given, or the path's own where it is finite."""
    if value is not None:
        return parameter(value, name, positive=False)
    own = path.log_snr(jnp.asarray(t))
    if (number := concrete(own)) is not None and not np.isfinite(number):
        raise ValueError(
            f"The log-SNR of {type(path).__name__} is infinite at t = {t:g}, so {name} has no default. "
            f"Pass {name}=, as 0.002 or 80 for a sigma, -8 or 8 for a log-SNR."
        )
    return own


def _check_order(high, low, what):
    if concrete(high) is not None and concrete(low) is not None and not concrete(high) > concrete(low):
        raise ValueError(f"A grid has {what}. Got {float(high):.4g} and {float(low):.4g}.")


def _check_steps(n: Any):
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"A grid has at least one step: n is an integer of at least 1. Got {n!r}.")


def _ended(times, first, last):
    """The grid with its ends as they are meant, where they are; rounding of an inverse must not turn it around."""
    if first is not None:
        times = jnp.maximum(times, first).at[0].set(first)
    if last is not None:
        times = jnp.minimum(times, last).at[-1].set(last)
    return jax.lax.cummax(times)


class AbstractLaw(eqx.Module):
    """A law of training times, given by its quantile function along a path."""

    reaches_data: eqx.AbstractVar[bool]
    """Whether its density does not vanish at t = 1, so that `E[1/(1 - t)]` is infinite."""

    @abc.abstractmethod
    def quantile(self, u: Time, path: AbstractPath | None) -> Float[Array, ""]:
        """The time below which a share `u` of the law lies."""

    def sample(self, key: PRNGKey, path: AbstractPath) -> Float[Array, ""]:
        """One time."""
        return self.quantile(jr.uniform(key, minval=jnp.finfo(jnp.float32).tiny), path)


class Uniform(AbstractLaw):
    """Uniform times in `[lo, hi)`."""

    lo: Array
    hi: Array
    reaches_data: bool = eqx.field(static=True)

    def __init__(self, lo: Time = 0.0, hi: Time = 1.0):
        """Raises `ValueError` unless `0 <= lo < hi <= 1`."""
        self.lo, self.hi = parameter(lo, "lo", positive=False), parameter(hi, "hi")
        low, high = concrete(self.lo), concrete(self.hi)
        if low is not None and high is not None and not 0 <= low < high <= 1:
            raise ValueError(f"Uniform(lo, hi) asks for 0 <= lo < hi <= 1. Got lo = {low}, hi = {high}.")
        self.reaches_data = bool(high is None or high >= 1)

    def quantile(self, u, path):
        lo, hi = self.lo.astype(jnp.result_type(u)), self.hi.astype(jnp.result_type(u))
        return lo + (hi - lo) * u


class LogitNormal(AbstractLaw):
    """`t = sigmoid(mean + std n)` with `n ~ N(0, 1)`.

    Source: Esser et al. 2024, arXiv:2403.03206, equation 19; its t is our 1 - t, so its mean is minus ours.
    """

    mean: Array
    std: Array
    reaches_data: ClassVar[bool] = False

    def __init__(self, mean: Time = 0.0, std: Time = 1.0):
        """Raises `ValueError` for a `std` that is not positive."""
        self.mean, self.std = parameter(mean, "mean", positive=False), parameter(std, "std")

    def quantile(self, u, path):
        u = jnp.asarray(u)
        return jax.nn.sigmoid(self.mean.astype(u.dtype) + self.std.astype(u.dtype) * ndtri(u))


class LogNormalSigma(AbstractLaw):
    """`log(sigma/alpha) ~ N(mean, std^2)`: EDM's law of noise levels, along any path.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 (`P_mean = -1.2`, `P_std = 1.2`).
    """

    mean: Array
    std: Array
    reaches_data: ClassVar[bool] = False

    def __init__(self, mean: Time = -1.2, std: Time = 1.2):
        """Raises `ValueError` for a `std` that is not positive."""
        self.mean, self.std = parameter(mean, "mean", positive=False), parameter(std, "std")

    def quantile(self, u, path):
        u = jnp.asarray(u)
        if path is None:
            raise ValueError("A law of noise levels needs the path, to turn a level into a time. Pass path=.")
        log_level = self.mean.astype(u.dtype) - self.std.astype(u.dtype) * ndtri(u)
        return path.log_snr_inverse(-2 * log_level)


def stratified_times(
    key: PRNGKey, n: int, law: AbstractLaw | None = None, path: AbstractPath | None = None
) -> Float[Array, "{n}"]:
    """`n` training times, one in each n-th of the law: `quantile((i + U_i)/n)`; a batch, passed as `t=`.

    Each time alone has the law, up to the order of the batch; their mean has a smaller variance.

    **Arguments:** `law`, by default `Uniform(0, 1)`; `path`, needed by laws of the noise level.

    Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.1 (one shared offset there).
    """
    _check_steps(n)
    check_key(key, "stratified_times")
    law = Uniform() if law is None else law
    u = jr.uniform(key, (n,))
    info = jnp.finfo(u.dtype)
    shares = jnp.clip((jnp.arange(n) + u) / n, info.tiny, 1 - info.epsneg)  # rounding must not reach an end
    return jax.vmap(lambda share: law.quantile(share, path))(shares)
