"""Laws of training times: `Uniform`, `LogitNormal`, `LogNormalSigma`, `UniformLogSNR`, `Beta`, and stratified draws."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy import stats
from jax.scipy.special import betainc, logit, ndtri
from jaxtyping import Array, Float

from ._grid import affine_path, log_snr_bound
from ._kinds import check_kinds
from ._path import AbstractPath
from ._trainable import frozen
from ._types import Noun, PRNGKey, Time
from ._validate import check_count, concrete, parameter, scalar_time, stream

__all__ = ["AbstractLaw", "Beta", "LogNormalSigma", "LogitNormal", "Uniform", "UniformLogSNR", "stratified_times"]


class AbstractLaw(Noun):
    """A law of training times, given by its quantile function along a path.

    ```python
    class Early(jf.laws.AbstractLaw):
        reaches_data = True

        def quantile(self, u, path=None):
            return u**2

    density = jnp.exp(Early().log_density(0.25))  # 1/(2 sqrt(t))
    assert jnp.allclose(density, 1.0, atol=1e-5)
    ```
    """

    reaches_data: eqx.AbstractVar[bool]
    """Whether `E[1/(1 - t)]` is infinite, as it is where the density does not vanish at t = 1."""

    @abc.abstractmethod
    def quantile(self, u: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        """The time below which a share `u` of the law lies, for `u` in (0, 1)."""

    def log_density(self, t: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        """The log-density with respect to time, minus infinity outside the law's range.

        With it the importance weight `1/p(t)` makes the expectation of a loss that of uniform times. By default the
        quantile is inverted by bisection and differentiated.
        """
        t = scalar_time(t)
        info = jnp.finfo(t.dtype)

        def time(u):
            return self.quantile(u, path)

        low, high = time(jnp.asarray(info.tiny, t.dtype)), time(jnp.asarray(1 - info.epsneg, t.dtype))
        value = -jnp.log(jax.grad(time)(_inverse(time, t)))
        return jnp.where((low <= t) & (t <= high), value, -jnp.inf)

    def sample(self, key: PRNGKey, path: AbstractPath | None = None) -> Float[Array, ""]:
        """One time."""
        return self.quantile(jr.uniform(key, minval=jnp.finfo(jnp.float32).tiny), path)


class Uniform(AbstractLaw):
    """Uniform times in `[lo, hi)`.

    ```python
    assert jnp.allclose(jf.laws.Uniform(0.2, 0.6).quantile(0.5), 0.4)
    assert jf.laws.Uniform().reaches_data and not jf.laws.Uniform(0.0, 0.999).reaches_data
    ```
    """

    lo: Array = frozen()
    hi: Array = frozen()
    reaches_data: bool = eqx.field(static=True)

    def __init__(self, lo: Time = 0.0, hi: Time = 1.0):
        """Makes the law.

        Args:
            lo: The earliest time.
            hi: The latest time.

        Raises `ValueError` unless `0 <= lo < hi <= 1`.
        """
        self.lo, self.hi = _interval(lo, hi, "Uniform")
        self.reaches_data = _reaches_one(self.hi)

    def quantile(self, u: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        lo, hi = self.lo.astype(jnp.result_type(u)), self.hi.astype(jnp.result_type(u))
        return lo + (hi - lo) * u

    def log_density(self, t: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        t = scalar_time(t)
        lo, hi = self.lo.astype(t.dtype), self.hi.astype(t.dtype)
        return jnp.where((lo <= t) & (t <= hi), -jnp.log(hi - lo), -jnp.inf)


class LogitNormal(AbstractLaw):
    """`t = sigmoid(mean + std n)` with `n ~ N(0, 1)`.

    Source: Esser et al. 2024, arXiv:2403.03206, equation 19; its t is our 1 - t, so its mean is minus ours.

    ```python
    assert jf.laws.LogitNormal().quantile(0.5) == 0.5
    ```
    """

    mean: Array = frozen()
    std: Array = frozen()
    reaches_data: ClassVar[bool] = False

    def __init__(self, mean: Time = 0.0, std: Time = 1.0):
        """Makes the law.

        Args:
            mean: The mean of `logit(t)`.
            std: The standard deviation of `logit(t)`.

        Raises `ValueError` for a `std` that is not positive.
        """
        self.mean, self.std = parameter(mean, "mean", positive=False), parameter(std, "std")

    def quantile(self, u: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        u = jnp.asarray(u)
        return jax.nn.sigmoid(self.mean.astype(u.dtype) + self.std.astype(u.dtype) * ndtri(u))

    def log_density(self, t: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        t = scalar_time(t)
        value = stats.norm.logpdf(logit(t), self.mean.astype(t.dtype), self.std.astype(t.dtype))
        return jnp.where((t > 0) & (t < 1), value - jnp.log(t) - jnp.log1p(-t), -jnp.inf)


class LogNormalSigma(AbstractLaw):
    """`log(sigma/alpha) ~ N(mean, std^2)`: EDM's law of noise levels, along any affine path.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 (`P_mean = -1.2`, `P_std = 1.2`).

    ```python
    path = jf.CondOT()
    t = jf.laws.LogNormalSigma(-1.2, 1.2).quantile(0.5, path)
    assert jnp.allclose(jnp.log(path.sigma(t) / path.alpha(t)), -1.2, atol=1e-5)
    ```
    """

    mean: Array = frozen()
    std: Array = frozen()
    reaches_data: ClassVar[bool] = False

    def __init__(self, mean: Time = -1.2, std: Time = 1.2):
        """Makes the law.

        Args:
            mean: The mean of `log(sigma/alpha)`.
            std: The standard deviation of `log(sigma/alpha)`.

        Raises `ValueError` for a `std` that is not positive; drawing raises without an affine path.
        """
        self.mean, self.std = parameter(mean, "mean", positive=False), parameter(std, "std")

    def quantile(self, u: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        u = jnp.asarray(u)
        log_level = self.mean.astype(u.dtype) - self.std.astype(u.dtype) * ndtri(u)
        return affine_path(path, "LogNormalSigma").log_snr_inverse(-2 * log_level)

    def log_density(self, t: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        t, affine = scalar_time(t), affine_path(path, "LogNormalSigma")
        log_snr = affine.log_snr(t)
        value = stats.norm.logpdf(-log_snr / 2, self.mean.astype(t.dtype), self.std.astype(t.dtype))
        return jnp.where(jnp.isfinite(log_snr), value - jnp.log(2) + _log_slope(affine, t), -jnp.inf)


class UniformLogSNR(AbstractLaw):
    """Uniform in the log-SNR, `log(alpha^2/sigma^2)`, between two bounds, along any affine path.

    With `likelihood_weight` the loss is an unweighted integral over log-SNR, that of maximum likelihood.

    Source: Kingma et al. 2021, arXiv:2107.00630, section 5; Kingma & Gao 2023, arXiv:2303.00848.

    ```python
    path = jf.CondOT()
    t = jf.laws.UniformLogSNR(-10.0, 8.0).quantile(0.5, path)
    assert jnp.allclose(path.log_snr(t), -1.0, atol=1e-5)
    ```
    """

    lo: Array | None = frozen()
    hi: Array | None = frozen()
    reaches_data: ClassVar[bool] = False

    def __init__(self, lo: Time | None = None, hi: Time | None = None):
        """Makes the law.

        Args:
            lo: The lowest log-SNR; `None` is that of the path at t = 0, where it is finite.
            hi: The highest log-SNR; `None` is that of the path at t = 1, where it is finite.

        Raises `ValueError` for `lo >= hi`; drawing raises for a bound that the path does not have.
        """
        self.lo = None if lo is None else parameter(lo, "lo", positive=False)
        self.hi = None if hi is None else parameter(hi, "hi", positive=False)
        low, high = concrete(self.lo), concrete(self.hi)
        if low is not None and high is not None and not low < high:
            raise ValueError(f"UniformLogSNR must have lo below hi. Got lo = {low}, hi = {high}.")

    def quantile(self, u: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        u, affine = jnp.asarray(u), affine_path(path, "UniformLogSNR")
        low, high = self._bounds(affine, u.dtype)
        t = affine.log_snr_inverse(low + (high - low) * u)
        # an end of the path is meant where a bound is not given, and rounding of the inverse must not pass it
        t = jnp.maximum(t, 0.0) if self.lo is None else t
        return jnp.minimum(t, 1.0) if self.hi is None else t

    def log_density(self, t: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        t, affine = scalar_time(t), affine_path(path, "UniformLogSNR")
        low, high = self._bounds(affine, t.dtype)
        log_snr = affine.log_snr(t)
        inside = (low <= log_snr) & (log_snr <= high)
        return jnp.where(inside, _log_slope(affine, t) - jnp.log(high - low), -jnp.inf)

    def _bounds(self, path, dtype):
        low = log_snr_bound(path, 0.0, self.lo, "lo", "UniformLogSNR")
        high = log_snr_bound(path, 1.0, self.hi, "hi", "UniformLogSNR")
        return low.astype(dtype), high.astype(dtype)


class Beta(AbstractLaw):
    """`t = lo + (hi - lo) s` with `s ~ Beta(a, b)`, of density `s^(a-1) (1-s)^(b-1) / B(a, b)`.

    `Beta(1.0, 1.5, hi=0.999)` is the law of pi0: openpi draws its time, the share of noise, as `0.001 + 0.999 s` with
    `s ~ Beta(1.5, 1)`, and our t is 1 minus that. The quantile has a closed form where `a` or `b` is 1, and is found
    by bisection elsewhere, which takes a multiple of the time.

    Source: Black et al. 2024, arXiv:2410.24164, appendix B, whose t is ours.

    ```python
    law = jf.laws.Beta(1.0, 1.5, hi=0.999)
    u = 0.3
    assert jnp.allclose(law.quantile(u), 0.999 * (1 - (1 - u) ** (1 / 1.5)))
    ```
    """

    _ones: tuple[bool, bool] = eqx.field(static=True, repr=False)  # whether a and b are known to be 1
    reaches_data: bool = eqx.field(static=True)
    a: Array = frozen()
    b: Array = frozen()
    lo: Array = frozen()
    hi: Array = frozen()

    def __init__(self, a: Time = 1.0, b: Time = 1.5, lo: Time = 0.0, hi: Time = 1.0):
        """Makes the law; traced values of `a` and `b` go by bisection.

        Args:
            a: The exponent at `lo`, plus 1.
            b: The exponent at `hi`, plus 1.
            lo: The earliest time.
            hi: The latest time.

        Raises `ValueError` for `a` or `b` that is not positive, or unless `0 <= lo < hi <= 1`.
        """
        self.a, self.b = parameter(a, "a"), parameter(b, "b")
        self.lo, self.hi = _interval(lo, hi, "Beta")
        first, last = concrete(self.a), concrete(self.b)
        self.reaches_data = _reaches_one(self.hi) and bool(last is None or last <= 1)
        self._ones = (first is not None and bool(first == 1), last is not None and bool(last == 1))

    def quantile(self, u: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        u = jnp.asarray(u)
        a, b, lo, hi = (leaf.astype(u.dtype) for leaf in (self.a, self.b, self.lo, self.hi))
        if self._ones[0]:
            share = -jnp.expm1(jnp.log1p(-u) / b)
        elif self._ones[1]:
            share = u ** (1 / a)
        else:
            share = _inverse(lambda s: betainc(a, b, s), u)
        info = jnp.finfo(u.dtype)
        return lo + (hi - lo) * jnp.clip(share, info.tiny, 1 - info.epsneg)  # rounding must not reach an end

    def log_density(self, t: Time, path: AbstractPath | None = None) -> Float[Array, ""]:
        t = scalar_time(t)
        a, b, lo, hi = (leaf.astype(t.dtype) for leaf in (self.a, self.b, self.lo, self.hi))
        return stats.beta.logpdf(t, a, b, lo, hi - lo)


def stratified_times(
    key: PRNGKey, n: int, law: AbstractLaw | None = None, path: AbstractPath | None = None
) -> Float[Array, "{n}"]:
    """`n` training times, one in each n-th of the law: `quantile((i + U_i)/n)`; a batch, passed as `t=`.

    Each time alone has the law, up to the order of the batch; their mean has a smaller variance.

    Args:
        key: One key.
        n: The number of times.
        law: The law, by default `Uniform(0, 1)`.
        path: The path, needed by laws of the noise level.

    Raises `ValueError` for `n < 1`, a key that is not one typed key, or a law without the path it needs.

    Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.1 (one shared offset there).

    ```python
    times = jf.laws.stratified_times(jr.key(0), 4)
    assert (jnp.floor(4 * times) == jnp.arange(4)).all()
    ```
    """
    check_kinds(stratified_times, locals())
    check_count(n=n)
    law = Uniform() if law is None else law
    u = jr.uniform(stream(key, "stratified_times"), (n,))
    info = jnp.finfo(u.dtype)
    # rounding must not reach an end
    u = jnp.clip((jnp.arange(n, dtype=u.dtype) + u) / n, info.tiny, 1 - info.epsneg)
    return jax.vmap(lambda share: law.quantile(share, path))(u)


def _interval(lo: Any, hi: Any, what: str) -> tuple[Array, Array]:
    """Two times as arrays; raises `ValueError` where they are known and out of order."""
    low, high = parameter(lo, "lo", positive=False), parameter(hi, "hi")
    first, last = concrete(low), concrete(high)
    if first is not None and last is not None and not 0 <= first < last <= 1:
        raise ValueError(f"{what} must have 0 <= lo < hi <= 1. Got lo = {first}, hi = {last}.")
    return low, high


def _reaches_one(hi: Array) -> bool:
    """Whether a latest time is 1, or not known."""
    known = concrete(hi)
    return bool(known is None or known >= 1)


def _log_slope(path, t):
    """`log d log_snr/dt`, with `d log_snr/dt = 2 W / (alpha sigma)`."""
    return jnp.log(2 * path.sigma_w(t)) - jnp.log(path.alpha(t)) - 2 * jnp.log(path.sigma(t))


def _inverse(fn: Callable[[Array], Array], value: Array) -> Array:
    """Where an increasing function of [0, 1] takes a value, by bisection to the last bit."""

    def body(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        below = fn(middle) < value
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bounds = jnp.zeros_like(value), jnp.ones_like(value)
    low, high = jax.lax.fori_loop(0, 2 * jnp.finfo(value.dtype).nmant, body, bounds)
    return (low + high) / 2
