"""Gaussian data pushed through a sampler: its output, and what it shows to the field, as affine maps of its noise."""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._field import AbstractField, AbstractWrappedField
from .._path import AbstractAffinePath
from ..distributions import Gaussian

_MEAN, _COV = np.array([1.0, -0.5]), np.array([[0.45, 0.12], [0.12, 0.2]])
_SAMPLES = 2
FAR = 30.0
"""How far out, in standard deviations, a sampler must still be affine."""


class World:
    """Correlated Gaussian data along a path, for a sampler that carries states from `t0` to `t1`."""

    def __init__(self, sampler: Callable[..., Any], path: AbstractAffinePath, t0: float, t1: float, key: Any):
        self.sampler, self.path, self.t0, self.t1, self.key = sampler, path, t0, t1, key
        self.field = Gaussian(jnp.asarray(_MEAN), cov=jnp.asarray(_COV)).field(path)
        self.values, self.basis = np.linalg.eigh(_COV)
        alpha, sigma = self.weights(t1)
        # what the data prediction as a last step takes away, relative to the smallest variance
        self.slack = (sigma / alpha) ** 2 / self.values.min()

    def weights(self, t: Any) -> tuple[float, float]:
        """`alpha(t), sigma(t)`."""
        t = jnp.asarray(t, jnp.float64)
        return float(self.path.alpha(t)), float(self.path.sigma(t))

    def spread(self, t: Any) -> np.ndarray:
        """The symmetric root of the covariance at `t`."""
        alpha, sigma = self.weights(t)
        return self.basis @ np.diag(np.sqrt(alpha**2 * self.values + sigma**2)) @ self.basis.T

    def start(self) -> np.ndarray:
        """The mean of the state at `t0`."""
        return self.weights(self.t0)[0] * _MEAN

    def law(self, t: Any, offset: np.ndarray, weights: np.ndarray, noisy: bool) -> np.ndarray:
        """What is wrong with the state `offset + weights w` at `t`, for standard normals `w`, in units of the marginal.

        For a sampler with noise the errors of mean and covariance, halved as for a deviation; for one without those of
        the exact flow, `x_t = m_t + C_t^(1/2) w`: the ODE of a Gaussian keeps the directions of its covariance.
        """
        inverse = np.linalg.inv(self.spread(t))
        mean, white = inverse @ (offset - self.weights(t)[0] * _MEAN), inverse @ weights
        rest = (white @ white.T - np.eye(2)) / 2 if noisy else white[:, :2] - np.eye(2)
        return np.concatenate([mean, rest.ravel()])

    def push(self, n: int) -> "Pushed":
        """The sampler in `n` steps, on two samples at once: at zero, at every unit vector of their start and normals,
        and at points near and far that show whether it is affine.
        """
        size = 2 + 2 * n
        probes = np.array(jr.normal(self.key, (8, _SAMPLES * size)))
        probes[4:] *= FAR
        inputs = np.concatenate([np.zeros((1, _SAMPLES * size)), np.eye(_SAMPLES * size), probes])
        start, spread, seen = jnp.asarray(self.start()), jnp.asarray(self.spread(self.t0)), []

        def note(targets, *words):
            seen.append([targets, *(np.ascontiguousarray(v).view(np.float64)[..., 0] for v in words)])
            return words[1]

        def one(w, at):
            field = _Watched(_Bumped(self.field, at), note)
            x = self.sampler(field, start + spread @ w[:2], w[2:].reshape(n, 2))
            if getattr(x, "shape", None) != (2,):
                got = f"shape {x.shape}" if hasattr(x, "shape") else type(x).__name__
                raise ValueError(
                    f"A sampler must return the state, of shape (2,). Got {got}: of a Solution, return its x."
                )
            return x

        run = jax.jit(jax.vmap(jax.vmap(one, (0, None))))
        w = jnp.asarray(inputs.reshape(-1, _SAMPLES, size))
        out = np.asarray(run(w, jnp.full(len(w), -9.0)), float)
        times = np.asarray([np.broadcast_to(t, out.shape[:2]) for _, t, _ in seen], float)
        states = np.asarray([np.broadcast_to(x, out.shape) for *_, x in seen], float)

        offset, columns = out[0], out[1:-8] - out[0]
        linear, size_of = (np.einsum("pm,mbd->pbd", f(probes), f(columns)) for f in (np.asarray, np.abs))
        gap = np.abs(out[-8:] - offset - linear) / (size_of + np.abs(offset)).max(-1, keepdims=True)
        own = columns[:size, 0].T
        noisy = bool(np.abs(own[:, 2:]).max() > 1e-12)
        pushed = Pushed(
            noisy, np.max(gap), max(np.abs(columns[size:, 0]).max(), np.abs(columns[:size, 1]).max()),
            self.law(self.t1, offset[0], own, noisy),
        )  # fmt: skip
        if not np.isfinite(out).all() or len(times) == 0 or np.ptp(times, axis=(1, 2)).max() > 0:
            return pushed
        times, probe = times[:, 0, 0], states[:, -8, 0]
        points = [(t, *x) for t, x in zip(times, probe, strict=True)]
        new = np.asarray([point not in points[:i] for i, point in enumerate(points)])
        asked = [(name, *point) for (name, *_), point in zip(seen, points, strict=True)]
        times, states = times[new], states[new]
        idle = []  # calls whose answer could be another, and nothing would change
        for at in np.array_split(times, -(-len(times) // len(w))):
            padded = np.pad(at, (0, len(w) - len(at)), constant_values=-9.0)
            moved = np.asarray(run(jnp.zeros_like(w), jnp.asarray(padded)))[: len(at), 0] - offset[0]
            idle.extend(np.abs(moved).max(-1) <= 1e-13)
        weights = np.moveaxis(states[:, 1 : 1 + size, 0] - states[:, :1, 0], 1, 2)
        return pushed._replace(
            times=times,
            offsets=states[:, 0, 0],
            weights=weights,
            idle=np.asarray(idle),
            twice=len(asked) - len(set(asked)),
        )


class Pushed(NamedTuple):
    """A sampler's output and the states of its calls as affine maps, each state once; `times` is `None` where the calls
    depend on the sample.
    """

    noisy: bool
    bend: Any
    """Distance from an affine map."""
    cross: Any
    """Influence of the one sample on the other."""
    end: np.ndarray
    """Errors of the law at the end."""
    times: Any = None
    offsets: Any = None
    weights: Any = None
    idle: Any = None
    """Which calls have no influence."""
    twice: int = 0
    """How many calls ask again what was asked before."""

    @property
    def counting(self) -> int:
        """The calls that count: at a new state, and with influence."""
        return int((~self.idle).sum())

    def laws(self, world: World, stride: int) -> np.ndarray:
        """Errors of the law at each `stride`-th call."""
        calls = range(0, len(self.times), stride)
        return np.asarray([world.law(self.times[k], self.offsets[k], self.weights[k], self.noisy) for k in calls])

    def jump(self, world: World, stride: int) -> float:
        """The largest change of the errors of the law from one of these calls to the next, the end included."""
        laws = self.laws(world, stride)
        inner = np.abs(np.diff(laws, axis=0)).max(initial=0.0)
        return max(inner, np.abs(self.end - laws[-1]).max() - world.slack)

    def memory(self, world: World, stride: int) -> float:
        """The largest covariance of a state with an earlier one, given the state between."""
        ks = range(0, len(self.times), stride)
        white = [np.linalg.inv(world.spread(self.times[k])) @ self.weights[k] for k in ks]
        worst = 0.0
        for k in range(1, len(white) - 1):
            now, after = white[k : k + 2]
            fresh = after - (after @ now.T) @ np.linalg.pinv(now @ now.T) @ now  # what is new, given the state now
            worst = max(worst, np.abs(fresh @ np.concatenate(white[:k]).T).max())
        return worst


class _Watched(AbstractWrappedField):
    """A field that hands on the times and states of its calls, of a whole batch at once."""

    note: Callable[..., Any]

    def __init__(self, field: AbstractField, note: Callable[..., Any]):
        self.field, self.note = field, note

    def predict(self, targets, t, x, args=None):
        # in words of 32 bits: the thread of a callback need not have wider types switched on
        words = [jax.lax.bitcast_convert_type(jnp.asarray(v, jnp.float64), jnp.uint32) for v in (t, x)]
        asked = tuple(target if isinstance(target, str) else type(target).__name__ for target in targets)
        like = jax.ShapeDtypeStruct(words[1].shape, jnp.uint32)
        seen = jax.pure_callback(ft.partial(self.note, asked), like, *words, vmap_method="broadcast_all")
        x = jax.lax.bitcast_convert_type(seen, jnp.float64).astype(x.dtype)
        return self.field.predict(targets, t, x, args)


class _Bumped(AbstractWrappedField):
    """A field whose answers at one time are larger by one."""

    at: Any

    def __init__(self, field: AbstractField, at: Any):
        self.field, self.at = field, at

    def predict(self, targets, t, x, args=None):
        bump = jnp.where(jnp.abs(t - self.at) < 1e-10, 1.0, 0.0)
        return tuple(value + bump for value in self.field.predict(targets, t, x, args))
