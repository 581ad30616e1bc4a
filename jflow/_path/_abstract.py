"""The three storeys of paths: any interpolation, one with a velocity, an affine one with alpha and sigma."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .._event import combine, scale, state_dtype
from .._source import AbstractSource
from .._types import Event, Noun, PRNGKey, Time
from .._validate import scalar_time


class AbstractPath(Noun):
    """A conditional path: where `x_t` lies between `x0`, drawn from the `source` at t = 0, and the data `x1` at t = 1.

    Every method takes one example and one scalar time. What a path does not say has a default.

    ```python
    class Masking(jf.AbstractPath):  # a letter is the data with probability t, else the mask, which is x0
        source: jf.AbstractSource = jf.GIVEN
        letters = True

        def latent(self, key, like, args=None):
            return jr.uniform(key, like.shape)

        def interpolate(self, t, x0, x1, z=None):
            return jnp.where(z < t, x1, x0)

    x1, x0 = jnp.array([1, 2]), jnp.array([9, 9])
    assert Masking().interpolate(0.5, x0, x1, jnp.array([0.2, 0.8])).tolist() == [1, 9]
    ```
    """

    source: eqx.AbstractVar[AbstractSource]

    flat: ClassVar[bool] = True
    """Whether its space is flat: `log_prob` raises for others."""
    letters: ClassVar[bool] = False
    """Whether its events are letters, integers that stay as they are."""
    interval: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """The first and the last time that its formulas hold for; generation runs from 0 to 1."""
    ends_at_data: ClassVar[bool] = True
    """Whether `x_1` is the data itself."""
    starts_at_noise: ClassVar[bool] = True
    """Whether `x_0` is the draw of the source, independent of what the data are."""

    @abc.abstractmethod
    def interpolate(self, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None) -> Event:
        """`x_t`, for one example of the event's shape and the latent `z`."""

    def latent(self, key: PRNGKey, like: PyTree, args: Any = None) -> PyTree:
        """What the path draws beside x0; by default `None`."""
        return None

    def start(self, t: Time, x0: PyTree) -> Event:
        """The state at the first time `t` of a sample, from a draw of the source; by default that draw."""
        return x0

    def start_log_prob(self, t: Time, x: PyTree, args: Any = None) -> Float[Array, ""]:
        """The log-density in nats of the state at the first time; by default that of the source."""
        return self.source.log_prob(x, args)

    def recommended(self, field: PyTree, nfe: int, args: Any = None) -> PyTree:
        """The default sampler of fields along this path; by default `None`, the one of affine paths."""
        return None


class AbstractDifferentiablePath(AbstractPath):
    """A path with a conditional velocity, `d x_t / dt` for given ends: its fields have an ODE.

    ```python
    class Wave(jf.AbstractDifferentiablePath):
        source: jf.AbstractSource = jf.Normal()

        def interpolate(self, t, x0, x1, z=None):
            return x0 + jnp.sin(jnp.pi * t / 2) * (x1 - x0)

    assert jnp.allclose(Wave().velocity(0.0, jnp.zeros(2), jnp.ones(2)), jnp.pi / 2)
    ```
    """

    def velocity(self, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None) -> Event:
        """`d/dt interpolate(t, x0, x1, z)`; by default by forward-mode differentiation."""
        t = scalar_time(t)
        return jax.jvp(lambda s: self.interpolate(s, x0, x1, z), (t,), (jnp.ones_like(t),))[1]


class AbstractAffinePath(AbstractDifferentiablePath):
    """`x_t = alpha(t) x1 + sigma(t) x0` with an increasing signal-to-noise ratio `alpha^2/sigma^2`.

    Only `alpha` and `sigma` are abstract. The defaults differentiate them, at the ends as limits from inside, and
    invert the log-SNR by bisection; a class with closed forms overrides them. Where `sigma'` is infinite at t = 1
    (VP, LinearVP, `sqrt(1 - t)`) `finite_sigma_dot` must be `False`; the products `sigma sigma'` and `sigma W`, with
    `W = sigma alpha' - alpha sigma'`, stay finite.

    Source: Lipman et al. 2023, arXiv:2210.02747, section 4; Albergo et al. 2023, arXiv:2303.08797.

    ```python
    class Power(jf.AbstractAffinePath):
        power: jax.Array  # learned: not declared frozen
        source: jf.AbstractSource = jf.Normal()

        def alpha(self, t):
            return jnp.asarray(t, float) ** self.power

        def sigma(self, t):
            return 1 - jnp.asarray(t, float)

    path = Power(jnp.array(2.0))
    assert jnp.allclose(path.velocity(0.5, jnp.zeros(2), jnp.ones(2)), 1.0) and jf.trainable(path).power
    ```
    """

    finite_sigma_dot: ClassVar[bool] = True
    """Whether `sigma'` is finite at t = 1."""
    finite_alpha_dot: ClassVar[bool] = True
    """Whether `alpha'` is finite at t = 0."""
    ends_at_data: ClassVar[bool] = True
    """Whether `sigma(1) = 0`."""
    starts_at_noise: ClassVar[bool] = True
    """Whether `alpha(0) = 0`."""

    @abc.abstractmethod
    def alpha(self, t: Time) -> Float[Array, ""]:
        """`alpha(t)`, the weight of the data."""

    @abc.abstractmethod
    def sigma(self, t: Time) -> Float[Array, ""]:
        """`sigma(t)`, the weight of the noise."""

    def alpha_dot(self, t: Time) -> Float[Array, ""]:
        """`alpha'(t)`."""
        return slope(self.alpha, t, steep=not self.finite_alpha_dot)

    def sigma_sigma_dot(self, t: Time) -> Float[Array, ""]:
        """`sigma(t) sigma'(t) = (sigma^2)'/2`, finite at both ends."""
        return self.sigma(inside(t)) * self._sigma_slope(t)

    def _sigma_slope(self, t: Time) -> Float[Array, ""]:
        return slope(self.sigma, t)

    def velocity_row(self, t: Time) -> tuple[Array, Array, Array]:
        """`(s, a, b)`, all finite, with `s velocity = a data + b noise`: `(1, alpha', sigma')`, times sigma where
        `sigma'` is infinite at t = 1.
        """
        alpha_dot = self.alpha_dot(t)
        if not self.finite_sigma_dot:
            sigma = self.sigma(t)
            return sigma, sigma * alpha_dot, self.sigma_sigma_dot(t)
        return jnp.ones_like(alpha_dot), alpha_dot, self._sigma_slope(t)

    def log_snr(self, t: Time) -> Float[Array, ""]:
        """`log(alpha^2 / sigma^2)`: the whole log signal-to-noise ratio, infinite where the mathematics is."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def log_snr_inverse(self, log_snr: Time) -> Float[Array, ""]:
        """The time at which `log_snr` takes the given value; plus or minus infinity give the ends."""
        return _bisect(self, scalar_time(log_snr))

    def sigma_dot(self, t: Time) -> Float[Array, ""]:
        """`sigma'(t)`, minus infinity at t = 1 where it is infinite."""
        s, _, b = self.velocity_row(t)
        return b / s

    def sigma_w(self, t: Time) -> Float[Array, ""]:
        """`sigma W = sigma^2 alpha' - alpha sigma sigma'`, finite at both ends.

        `2 sigma W / alpha = -sigma^2 d(1/SNR) SNR/dt` is the squared diffusion coefficient of the reverse SDE.
        """
        return self.sigma(t) ** 2 * self.alpha_dot(t) - self.alpha(t) * self.sigma_sigma_dot(t)

    def shift(self, t: Time, factor: Time) -> Float[Array, ""]:
        """The time whose log-SNR is that of `t` minus `2 log(factor)`.

        On CondOT, with `s = 1 - t`, this is `s -> factor s / (1 + (factor - 1) s)`: the time shift of Stable
        Diffusion 3 (Esser et al. 2024, arXiv:2403.03206, equation 23, whose t is our 1 - t), and with
        `factor = d / d_ref` the resolution shift of Hoogeboom et al. 2023, arXiv:2301.11093, section 3.1.
        A whole grid is shifted by `jflow.ShiftedGrid`.
        """
        return self.log_snr_inverse(self.log_snr(t) - 2 * jnp.log(jnp.asarray(factor)))

    def interpolate(self, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None) -> Event:
        """`x_t = alpha(t) x1 + sigma(t) x0`, for one example of the event's shape."""
        t = scalar_time(t)
        return combine((self.alpha(t), x1), (self.sigma(t), x0))

    def velocity(self, t: Time, x0: PyTree, x1: PyTree, z: PyTree = None) -> Event:
        """`alpha' x1 + sigma' x0`."""
        s, a, b = self.velocity_row(scalar_time(t))
        return combine((a / s, x1), (b / s, x0))

    def start(self, t: Time, x0: PyTree) -> Event:
        """`sigma(t) x0`: what `alpha(t) x1` adds is neglected, and is zero for a start at pure noise."""
        return scale(self.sigma(scalar_time(t)), x0)

    def start_log_prob(self, t: Time, x: PyTree, args: Any = None) -> Float[Array, ""]:
        """The log-density in nats of `sigma(t) x0` at `x`."""
        sigma = self.sigma(jnp.asarray(t, state_dtype(x)))
        white = jtu.tree_map(lambda leaf: leaf / sigma, x)
        return self.source.log_prob(white, args) - self.source.dimension(x, args) * jnp.log(sigma)


class AbstractRatePath(AbstractAffinePath):
    """A variance-preserving path by its noise rate: `log alpha = -int_t^1 rate`, `sigma^2 = 1 - alpha^2`; `sigma'` is
    infinite at t = 1.
    """

    finite_sigma_dot: ClassVar[bool] = False
    starts_at_noise: ClassVar[bool] = False

    @abc.abstractmethod
    def _rate(self, t: Time) -> tuple[Array, Array]:
        """`-log alpha` and its negated derivative in t."""

    def alpha(self, t):
        return jnp.exp(-self._rate(t)[0])

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-2 * self._rate(t)[0]))

    def alpha_dot(self, t):
        return self.alpha(t) * self._rate(t)[1]

    def sigma_sigma_dot(self, t):
        return -self.alpha(t) * self.alpha_dot(t)


def slope(fn: Any, t: Any, *, steep: bool = False) -> Array:
    """The derivative of a function of time; where that is `steep`, infinite at t = 0."""
    value = jax.grad(fn)(inside(t))
    return jnp.where(scalar_time(t) == 0, jnp.sign(value) * jnp.inf, value) if steep else value


def inside(t: Any) -> Array:
    """`t`, or the float beside it where it is an end: derivatives at an end are limits from inside."""
    t = scalar_time(t)
    info = jnp.finfo(t.dtype)
    return jnp.clip(t, info.tiny, 1 - info.epsneg)


@eqx.filter_custom_jvp
def _bisect(path, log_snr):
    """The time at which `path.log_snr` is `log_snr`, to the last bit of its type."""

    def body(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        below = path.log_snr(middle) < log_snr
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bounds = jnp.zeros_like(log_snr), jnp.ones_like(log_snr)
    low, high = jax.lax.fori_loop(0, 2 * jnp.finfo(log_snr.dtype).nmant, body, bounds)
    middle = (low + high) / 2
    return jnp.where(log_snr == jnp.inf, 1.0, jnp.where(log_snr == -jnp.inf, 0.0, middle))


@_bisect.def_jvp
def _bisect_jvp(primals, tangents):
    """The inverse-function rule, in the value and in what the path holds."""
    path, log_snr = primals
    t = _bisect(path, log_snr)
    at = inside(t)
    _, moved = eqx.filter_jvp(lambda p: p.log_snr(at), (path,), (tangents[0],))
    change = jnp.zeros_like(t) if tangents[1] is None else tangents[1]
    return t, (change if moved is None else change - moved) / jax.grad(path.log_snr)(at)
