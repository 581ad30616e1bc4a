"""Grid rules: from a path to the times of a grid, one rule a class."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._path import AbstractAffinePath, AbstractPath
from ._types import Noun, Time
from ._validate import check_count, concrete, parameter


class AbstractGridRule(Noun):
    """A rule that gives the `n + 1` times of `n` steps along any path. Only `n` and `times` are abstract.

    A rule prints, compares and goes to JSON. It follows a path that is learned. The numbers in it may be Python's or
    arrays, traced ones too. A loop must know how a grid ends before it runs, so a rule says static facts about its
    times that hold on every path: `None` stands for what is not known.

    ```python
    class Squares(jf.AbstractGridRule):
        n: int = eqx.field(static=True)
        starts_at_zero = ends_at_one = within = True

        def times(self, path=None):
            return jnp.linspace(0.0, 1.0, self.n + 1) ** 2

    assert Squares(4)(jf.CondOT())[2] == 0.25 and Squares(4) == Squares(4)
    ```
    """

    n: eqx.AbstractVar[int]
    """The number of steps, static."""

    starts_at_zero: ClassVar[bool | None] = None
    """Whether the first time is 0. False for a first time of a given log-SNR, which is finite."""
    ends_at_one: ClassVar[bool | None] = None
    """Whether the last time is 1. False for a last time of a given log-SNR, which is finite."""
    repeats_last: ClassVar[bool] = False
    """Whether the last point may stand twice; all others are distinct."""
    direction: ClassVar[tuple[bool | None, bool | None]] = (True, False)
    """Whether the times increase, and whether they decrease."""
    within: ClassVar[bool | None] = None
    """Whether all times lie in [0, 1]."""

    @abc.abstractmethod
    def times(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        """The times on a path, `n + 1` of them."""

    def __call__(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        """The times on a path: `rule(path)` is `rule.times(path)`."""
        return self.times(path)


class UniformGrid(AbstractGridRule):
    """`n` equal steps: `t_i = t0 + i/n (t1 - t0)`.

    It needs no path. For `jflow.solve` it may decrease, or leave [0, 1].

    ```python
    assert (jf.UniformGrid(4).times() == jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])).all()
    assert jf.UniformGrid(4, t0=0.2).times()[0] == jnp.float32(0.2)
    ```
    """

    n: int = eqx.field(static=True)
    starts_at_zero: bool | None = eqx.field(static=True, repr=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    ends_at_one: bool | None = eqx.field(static=True, repr=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    direction: tuple[bool | None, bool | None] = eqx.field(static=True, repr=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    within: bool | None = eqx.field(static=True, repr=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    t0: Time | None = None
    t1: Time | None = None

    def __init__(self, n: int, t0: Time | None = None, t1: Time | None = None):
        """Makes the rule.

        Args:
            n: The number of steps.
            t0: The first time; `None` is 0.
            t1: The last time; `None` is 1.

        Raises `ValueError` for `n < 1`, a time that is not finite, or `t0 == t1`.
        """
        self.n, self.t0, self.t1 = n, t0, t1
        start = 0.0 if t0 is None else concrete(parameter(t0, "t0", positive=False))
        stop = 1.0 if t1 is None else concrete(parameter(t1, "t1", positive=False))
        self.starts_at_zero, self.ends_at_one = (
            None if end is None else bool(end == known) for end, known in ((start, 0), (stop, 1))
        )
        self.direction, self.within = (None, None), None
        if start is not None and stop is not None:
            self.direction = bool(start < stop), bool(start > stop)
            self.within = bool(min(start, stop) >= 0 and max(start, stop) <= 1)

    def __check_init__(self):
        check_count(n=self.n)
        if self.direction == (False, False):
            raise ValueError(f"The ends of a grid must differ. Got t0 = t1 = {0.0 if self.t0 is None else self.t0}.")

    def times(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        if self.t0 is None and self.t1 is None:
            with jax.ensure_compile_time_eval():  # a value inside `jax.jit` too
                return jnp.linspace(0.0, 1.0, self.n + 1)
        start = 0.0 if self.t0 is None else parameter(self.t0, "t0", positive=False)
        stop = 1.0 if self.t1 is None else parameter(self.t1, "t1", positive=False)
        return jnp.linspace(start, stop, self.n + 1)


class KarrasGrid(AbstractGridRule):
    """The grid of EDM: `n` noise levels, then the data.

    The levels are `sigma/alpha = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho` for
    `i = 0, ..., n-1`, and the last point is t = 1. On VE, whose own last level is `sigma_min`, the last two points
    coincide: the last step is the denoising one.

    Args:
        n: The number of steps.
        sigma_min: The last level of `sigma/alpha`; `None` is that of the path at t = 1, where it is not zero.
        sigma_max: The first level; `None` is that of the path at t = 0, where it is finite.
        rho: The exponent: the larger, the shorter the steps near the data.

    Raises `ValueError` for `n < 1`, a number that is not positive, or levels out of order; `times` raises for a level
    that the path does not have.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.

    ```python
    path = jf.VE(sigma_min=0.002, sigma_max=80.0)
    times = jf.KarrasGrid(18).times(path)
    assert times.shape == (19,) and times[0] == 0 and times[-2] == times[-1] == 1
    assert jf.KarrasGrid(18, sigma_min=0.002, sigma_max=80.0).times(jf.CondOT())[-1] == 1
    ```
    """

    n: int = eqx.field(static=True)
    sigma_min: Time | None = None
    sigma_max: Time | None = None
    rho: Time = 7.0

    ends_at_one: ClassVar[bool | None] = True

    def __check_init__(self):
        check_count(n=self.n)
        parameter(self.rho, "rho")
        high, low = _given(self.sigma_max, "sigma_max"), _given(self.sigma_min, "sigma_min")
        _check_order(high, low, "KarrasGrid must have sigma_max above sigma_min")

    @property
    def starts_at_zero(self):
        return self.sigma_max is None

    @property
    def repeats_last(self):
        return self.sigma_min is None

    @property
    def within(self):
        return True if self.sigma_max is None else None

    def times(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        affine = affine_path(path, "KarrasGrid")
        low = self._level(affine, self.sigma_min, "sigma_min", 1.0)
        high = self._level(affine, self.sigma_max, "sigma_max", 0.0)
        _check_order(high, low, "KarrasGrid must have sigma_max above sigma_min")
        rho = parameter(self.rho, "rho")
        ramp = jnp.linspace(0.0, 1.0, self.n) if self.n > 1 else jnp.zeros(1)
        levels = ((1 - ramp) * high ** (1 / rho) + ramp * low ** (1 / rho)) ** rho
        times = jax.vmap(lambda level: affine.log_snr_inverse(-2 * jnp.log(level)))(levels)
        times = jnp.concatenate([times, jnp.ones(1, times.dtype)])
        return _ended(times, 0.0 if self.sigma_max is None else None, 1.0)

    def _level(self, path, value, name, t):
        if value is not None:
            return parameter(value, name)
        return jnp.exp(-log_snr_bound(path, t, None, name, "KarrasGrid") / 2)


class LogSNRGrid(AbstractGridRule):
    """`n` steps equal in log-SNR, from `lo` to `hi` (`log(alpha^2/sigma^2)`, whole, not half).

    With `rho` the poly-exponential grid, `log_snr = hi - (1 - i/n)^rho (hi - lo)`: above 1 the steps are shorter
    towards the data, below 1 towards the noise. The noise of the level `hi` stays in a sample.

    Args:
        n: The number of steps.
        lo: The first log-SNR; `None` is that of the path at t = 0, where it is finite.
        hi: The last log-SNR; `None` is that of the path at t = 1, where it is finite.
        rho: The exponent.

    Raises `ValueError` for `n < 1`, `lo >= hi`, or a `rho` that is not positive; `times` raises for a bound that the
    path does not have.

    Source: Lu et al. 2022, arXiv:2206.00927, section 3 (half log-SNR there); with `rho`, k-diffusion's
    `get_sigmas_polyexponential`.

    ```python
    path = jf.CondOT()
    times = jf.LogSNRGrid(4, lo=-8.0, hi=8.0).times(path)
    assert jnp.allclose(jax.vmap(path.log_snr)(times), jnp.linspace(-8.0, 8.0, 5), atol=1e-4)
    ```
    """

    n: int = eqx.field(static=True)
    lo: Time | None = None
    hi: Time | None = None
    rho: Time = 1.0

    def __check_init__(self):
        check_count(n=self.n)
        parameter(self.rho, "rho")
        high, low = _given(self.hi, "hi", positive=False), _given(self.lo, "lo", positive=False)
        _check_order(high, low, "LogSNRGrid must have hi above lo")

    @property
    def starts_at_zero(self):
        return self.lo is None

    @property
    def ends_at_one(self):
        return self.hi is None

    @property
    def within(self):
        return True if self.lo is None and self.hi is None else None

    def times(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        affine = affine_path(path, "LogSNRGrid")
        low = log_snr_bound(affine, 0.0, self.lo, "lo", "LogSNRGrid")
        high = log_snr_bound(affine, 1.0, self.hi, "hi", "LogSNRGrid")
        _check_order(high, low, "LogSNRGrid must have hi above lo")
        left = jnp.linspace(1.0, 0.0, self.n + 1) ** parameter(self.rho, "rho")
        times = jax.vmap(affine.log_snr_inverse)((1 - left) * high + left * low)
        return _ended(times, 0.0 if self.lo is None else None, 1.0 if self.hi is None else None)


class _AbstractWholeGrid(AbstractGridRule):
    """`n` steps from t = 0 to t = 1."""

    n: int = eqx.field(static=True)

    starts_at_zero: ClassVar[bool | None] = True
    ends_at_one: ClassVar[bool | None] = True
    within: ClassVar[bool | None] = True

    def __check_init__(self):
        check_count(n=self.n)


class RatioGrid(_AbstractWholeGrid):
    """`n` steps equal in `alpha/(alpha + sigma)`, the time of `RatioClock`, from t = 0 to t = 1.

    On CondOT these are the times of `UniformGrid(n)`; on another path the times of equal signal-to-noise ratio.

    Args:
        n: The number of steps.

    Raises `ValueError` for `n < 1`.

    ```python
    assert jnp.allclose(jf.RatioGrid(4).times(jf.CondOT()), jf.UniformGrid(4).times())
    ```
    """

    def times(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        return _at_shares(jnp.linspace(0.0, 1.0, self.n + 1), affine_path(path, "RatioGrid"))


class CosineGrid(_AbstractWholeGrid):
    """`n` steps from t = 0 to t = 1 that grow from noise to data, `t_i = 1 - cos(pi i / (2 n))`. It needs no path.

    Args:
        n: The number of steps.

    Raises `ValueError` for `n < 1`. Source: Du et al. 2024, arXiv:2407.05407, section 2.3.

    ```python
    assert jnp.allclose(jf.CosineGrid(2).times()[1], 1 - jnp.cos(jnp.pi / 4))
    ```
    """

    def times(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        return _ended(2 * jnp.sin(jnp.pi / 4 * jnp.linspace(0.0, 1.0, self.n + 1)) ** 2, 0.0, 1.0)


class EasedGrid(_AbstractWholeGrid):
    """`n` steps that are shorter at both ends, from t = 0 to t = 1, for multistep methods of few calls.

    The ratio clock's time `tau = alpha/(alpha + sigma)` has come a share `1 - (1 - s^first)^last` of its way at
    `s = i/n`. At exponents 1 and 1 this is `RatioGrid`. The defaults were chosen on mixtures of Gaussians; see
    docs/which_sampler.md.

    Args:
        n: The number of steps.
        first: The larger, the shorter the first steps, which know little of the past.
        last: The larger, the shorter the last steps, near the data.

    Raises `ValueError` for `n < 1` or an exponent that is not positive.

    ```python
    steps = jnp.diff(jf.EasedGrid(8).times(jf.CondOT()))
    assert steps[0] < steps[3] > steps[-1]
    ```
    """

    first: Time = 1.2
    last: Time = 1.3

    def __check_init__(self):
        parameter(self.first, "first")
        parameter(self.last, "last")

    def times(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        first, last = parameter(self.first, "first"), parameter(self.last, "last")
        return _at_shares(eased_shares(self.n, first, last), affine_path(path, "EasedGrid"))


class ShiftedGrid(AbstractGridRule):
    """The times of another rule, each moved by `path.shift`: its log-SNR changes by `-2 log(factor)`.

    An end at t = 0 or t = 1, where the log-SNR is infinite, stays. Above 1 the times move towards the noise. On CondOT
    this is the time shift of Stable Diffusion 3, called `shift` or `flow_shift` elsewhere.

    Raises `ValueError` for a `factor` that is not positive; `times` raises where the rule has an end at t = 0 or 1 and
    the log-SNR of the path is finite there, since such an end would neither move nor stay.

    Source: Esser et al. 2024, arXiv:2403.03206, equation 23; Hoogeboom et al. 2023, arXiv:2301.11093, section 3.1.

    ```python
    times = jf.ShiftedGrid(jf.UniformGrid(4), 3.0).times(jf.CondOT())
    s = 1 - jf.UniformGrid(4).times()
    assert jnp.allclose(1 - times, 3 * s / (1 + 2 * s))
    ```
    """

    rule: AbstractGridRule
    factor: Time

    def __init__(self, rule: AbstractGridRule, factor: Time):
        """`rule` the rule that is shifted; `factor` a positive number, 1 for no change."""
        self.rule, self.factor = rule, factor

    def __check_init__(self):
        parameter(self.factor, "factor")

    @property
    def n(self) -> int:
        """The number of steps, that of the rule."""
        return self.rule.n

    @property
    def starts_at_zero(self):
        return self.rule.starts_at_zero

    @property
    def ends_at_one(self):
        return self.rule.ends_at_one

    @property
    def repeats_last(self):
        return self.rule.repeats_last

    @property
    def direction(self):
        return self.rule.direction

    @property
    def within(self):
        return True if self.starts_at_zero and self.ends_at_one else None

    def times(self, path: AbstractPath | None = None) -> Float[Array, "{self.n}+1"]:
        affine, factor = affine_path(path, "ShiftedGrid"), parameter(self.factor, "factor")
        starts, ends = bool(self.starts_at_zero), bool(self.ends_at_one)
        for t, stays, infinite in ((0, starts, affine.starts_at_noise), (1, ends, affine.ends_at_data)):
            if stays and not infinite:
                raise ValueError(
                    f"A shifted grid with an end at t = {t} must have a path whose log-SNR is infinite there. Got "
                    f"{type(path).__name__}: shift a rule that stays inside, as UniformGrid(n, t0=0.1, t1=0.9), "
                    "or take LogSNRGrid(n, lo, hi) with shifted bounds."
                )
        times = self.rule.times(path)
        inner = times[starts : self.n + 1 - ends]  # ends that stay have no derivative in the factor
        moved = jax.vmap(affine.shift, (0, None))(inner, factor).astype(times.dtype)
        whole = jnp.concatenate([jnp.zeros(starts, times.dtype), moved, jnp.ones(ends, times.dtype)])
        if self.direction[0] is not True:
            return whole
        return _ended(whole, 0.0 if starts else None, 1.0 if ends else None)


def eased_shares(n: int, first: Time = 1.2, last: Time = 1.3) -> Float[Array, "{n}+1"]:
    """`1 - (1 - s^first)^last` at `s = i/n`."""
    inner = jnp.linspace(0.0, 1.0, n + 1)[1:-1]  # the ends stay, and have no derivative in the exponents
    return jnp.concatenate([jnp.zeros(1), 1 - (1 - inner**first) ** last, jnp.ones(1)])


def affine_path(path: Any, what: str) -> AbstractAffinePath:
    """`path`; raises `ValueError` where it has no log-SNR."""
    if not isinstance(path, AbstractAffinePath):
        raise ValueError(
            f"{what} must have an affine path, for it counts in signal-to-noise ratio. Got "
            f"{'none' if path is None else type(path).__name__}: pass one, as jflow.CondOT()."
        )
    return path


def log_snr_bound(path: AbstractAffinePath, t: float, value: Any, name: str, what: str) -> Array:
    """A bound of the log-SNR: the one given, or the path's own at the end `t` where its class says that it is finite.

    It goes by the class, not by the value, so that it says the same of a path that is traced.
    """
    if value is not None:
        return parameter(value, name, positive=False)
    if path.ends_at_data if t == 1 else path.starts_at_noise:
        raise ValueError(
            f"{what} must have {name} on {type(path).__name__}, whose log-SNR is infinite at t = {t:g}. Got none: pass "
            f"{name}=, as 0.002 or 80 for a sigma, -8 or 8 for a log-SNR."
        )
    return path.log_snr(jnp.asarray(t))


def _given(value, name, *, positive=True):
    """A bound, checked, where it is given."""
    return None if value is None else parameter(value, name, positive=positive)


def _check_order(high, low, rule):
    """Raises `ValueError` where two known bounds are out of order."""
    high, low = concrete(high), concrete(low)
    if high is not None and low is not None and not high > low:
        raise ValueError(f"{rule}. Got {float(high):.4g} and {float(low):.4g}.")


def _at_shares(shares, path):
    """The times at which `alpha/(alpha + sigma)` has covered the shares of its way from t = 0 to t = 1."""
    first, last = (jax.nn.sigmoid(path.log_snr(jnp.asarray(t, shares.dtype)) / 2) for t in (0.0, 1.0))
    inner = first + (last - first) * shares[1:-1]
    times = jax.vmap(lambda tau: path.log_snr_inverse(2 * jax.scipy.special.logit(tau)))(inner)
    return _ended(jnp.concatenate([jnp.zeros(1, times.dtype), times, jnp.ones(1, times.dtype)]), 0.0, 1.0)


def _ended(times, first, last):
    """The grid with its ends as they are meant, where they are; rounding of an inverse must not turn it around."""
    if first is not None:
        times = jnp.maximum(times, first).at[0].set(first)
    if last is not None:
        times = jnp.minimum(times, last).at[-1].set(last)
    return jax.lax.cummax(times)
