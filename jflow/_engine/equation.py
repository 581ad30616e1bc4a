"""Equations in a clock: what the loops solve.

A loop integrates `du = D dtau + G dB(s)`. Here tau is the time of a clock, `u = scale x` the rescaled state, `D` the
right-hand side, `G` the diffusion coefficient, and `B` a Brownian motion in the noise time `s(tau)`. `jflow._clock`
derives the equation. In `ThetaClock`, for example, tau is theta, `D` is the data prediction and `G = 1`:
`du = D dtheta + dB`.

A table of steps (`Interval`) holds what the equation knows at both ends of each step: the two times, the two scales,
the variance of the noise. Every entry is computed from the grid's own path times. So a step starts and ends exactly on
the grid, and a solver that evaluates only at the ends of a step never inverts the clock.

All times, scales and values of eta below are tracers inside a verb. Which terms exist (`noisy`, `own_time`, `None`
entries of a table) is static.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .._clock import AbstractClock
from .._event import cast_like, combine, scale, shape_of
from .._field import AbstractField
from .._noise_rule import AbstractNoiseRule
from .._path import AbstractAffinePath
from .._prediction import Row, heads
from .._source import has_score, noise_map
from .._types import Noun


class Interval(NamedTuple):
    """One step of a grid, with what is known at both of its ends. A table of steps has a leading axis."""

    t0: Any
    t1: Any
    tau0: Any
    tau1: Any
    variance: Any  # of the noise of the step; `None` without noise
    enter: Any  # at the start `u = enter x`; `None` stands for 1
    leave: Any  # at the end `x = leave u`; `None` stands for 1
    eta: Any
    s0: Any = None  # the noise time at the start; `None` where the noise time is tau
    s1: Any = None  # the noise time at the end


class AbstractEquation(Noun):
    """An equation for a state `u` in a time `tau`, and the maps between these and the path's `x` and `t`."""

    @abc.abstractmethod
    def intervals(self, times: Float[Array, "..."]) -> Interval:
        """The table of steps of a grid of path times."""

    @abc.abstractmethod
    def drift(self, t: Any, x: PyTree, args: Any, eta: Any) -> PyTree:
        """`du/dtau`."""

    @property
    @abc.abstractmethod
    def noisy(self) -> bool:
        """Whether there is a diffusion term."""

    @abc.abstractmethod
    def diffusion(self, t: Any, x: PyTree, args: Any, eta: Any) -> PyTree:
        """The diffusion coefficient of `u`."""

    @property
    def own_time(self) -> bool:
        """Whether `tau = t` and `u = x`; by default true."""
        return True

    def time(self, t: Any, eta: Any) -> Any:
        """`tau` of a path time."""
        return t

    def noise_time(self, tau: Any, eta: Any) -> Any:
        """The time in which the Brownian motion runs."""
        return tau

    def locate(self, tau: Any, eta: Any) -> tuple[Any, Any]:
        """`t` and `x / u` at a time of the clock. `None` stands for the factor 1."""
        return tau, None

    def scaled(self, factor: Any, x: PyTree) -> PyTree:
        """The state times a factor: `u` from `x`, or `x` from `u`."""
        return scale(factor, x)

    def colour(self, white: PyTree, args: Any) -> PyTree:
        """The noise of the state, made of white noise; by default the white noise itself."""
        return white

    def visible(self, x: PyTree) -> PyTree:
        """The part of the state that a function of the caller's is given."""
        return x

    def cost(self, t: Any, args: Any) -> int | Array:
        """The evaluations that one right-hand side costs. It is a Python number if it is the same at every time."""
        return 1


class DriftEquation(AbstractEquation):
    """`dx = drift(t, x, args) dt + diffusion(t, x, args) dW`, in its own time."""

    rate: Callable[..., Any]
    coefficient: Callable[..., Any] | None

    @property
    def noisy(self):
        return self.coefficient is not None

    def intervals(self, times):
        t0, t1 = times[:-1], times[1:]
        return Interval(t0, t1, t0, t1, t1 - t0 if self.noisy else None, None, None, jnp.zeros_like(t0))

    def drift(self, t, x, args, eta):
        return cast_like(self.rate(t, x, args), x, "A drift")

    def diffusion(self, t, x, args, eta):
        return self.coefficient(t, x, args)  # pyright: ignore[reportOptionalCall]  # only called if `noisy`


class FieldEquation(AbstractEquation):
    """The ODE or SDE of a field, in a clock."""

    field: AbstractField
    clock: AbstractClock
    eta: Any  # `None`, a number, a value a step, or a noise rule
    coefficient: Callable[..., Any] | None  # g(t), in the path's own time

    @property
    def noisy(self):
        return self.eta is not None or self.coefficient is not None

    @property
    def own_time(self):
        return self.clock.own_time

    def intervals(self, times):
        clock, n = self.clock, times.shape[0] - 1
        path: Any = self.field.path  # affine, but in its own time
        if isinstance(self.eta, AbstractNoiseRule):
            return self._kept_intervals(times, self.eta.kept(path, times))
        levels = jnp.broadcast_to(jnp.asarray(0.0 if self.eta is None else self.eta, times.dtype), (n,))

        def one(t0, t1, eta):
            if clock.own_time:
                variance = t1 - t0 if self.noisy else None
                return Interval(t0, t1, t0, t1, variance, None, None, eta)
            enter, leave = clock.scale(path, t0, eta), clock.scale(path, t1, eta)
            s0 = s1 = variance = None
            if self.noisy:
                s0, s1 = (clock.noise_time(path, t, eta) for t in (t0, t1))
                variance = s1 - s0
            tau0, tau1 = clock.time(path, t0, eta), clock.time(path, t1, eta)
            leave = None if leave is None else 1 / leave
            return Interval(t0, t1, tau0, tau1, variance, enter, leave, eta, s0, s1)

        return jax.vmap(one)(times[:-1], times[1:], levels)

    def _kept_intervals(self, times, kept):
        """The table of steps for a noise rule, which gives the share `q` of the old noise that each step keeps.

        A step of `ThetaClock` with the amplitude eta has `q = e^(-eta^2 h)`, with `h` the step in lambda. At alpha = 0
        the step `h` is infinite and every amplitude gives `q = 0`. So the table is written in `q` itself, with theta in
        units of theta at the end of the step. In these units theta runs from `q e^(-h)` to 1, and `u` from
        `q (sigma'/sigma) x / alpha'` to `x'/alpha'`; both are finite at alpha = 0. The step itself stays
        `u' = u + (theta' - theta) data + noise`, with the variance `(1 - q^2) (sigma'/alpha')^2`.
        """
        path: Any = self.field.path

        def one(t0, t1, q):
            ratio = path.sigma(t1) / (path.sigma(t0) * path.alpha(t1))  # sigma'/(sigma alpha')
            level = path.sigma(t1) / path.alpha(t1)
            variance = (1 - q) * (1 + q) * level**2
            tau0, unit = q * path.alpha(t0) * ratio, jnp.ones_like(t0)
            return Interval(t0, t1, tau0, unit, variance, q * ratio, path.alpha(t1), jnp.zeros_like(t0))

        return jax.vmap(one)(times[:-1], times[1:], kept)

    def time(self, t, eta):
        return self.clock.time(self.field.path, t, eta)  # pyright: ignore[reportArgumentType]

    def noise_time(self, tau, eta):
        path = self.field.path
        return self.clock.noise_time(path, self.clock.path_time(path, tau, eta), eta)  # pyright: ignore

    def locate(self, tau, eta):
        if self.clock.own_time:
            return tau, None
        path: Any = self.field.path
        t = self.clock.path_time(path, tau, eta)
        factor = self.clock.scale(path, t, eta)
        return t, None if factor is None else 1 / factor

    def colour(self, white, args):
        return noise_map(self.field.path.source).apply(white, args)

    def drift(self, t, x, args, eta):
        if self.own_time and not self.noisy:
            return self.field.predict(("velocity",), t, x, args)[0]
        target = self.rhs(t, eta)
        values = self.field.predict(
            target if isinstance(target, tuple) and not isinstance(target, Row) else (target,), t, x, args
        )
        if len(values) == 1:
            return values[0]
        return combine((1, values[0]), (self._amplitude(t, x) ** 2 / 2, values[1]))

    def cost(self, t, args):
        return self.field.evaluations(args, t)

    def rhs(self, t, eta):
        """The right-hand side: a row of weights of data and noise, or names where the path has no rows.

        With `diffusion=` the drift is `velocity + g^2/2 score`. There is no term with the gradient of `g`, since `g`
        depends on t alone. Along an affine path `score = -noise/sigma`, so the drift is one row. The row is multiplied
        by sigma: `sigma velocity - g^2/2 noise` divides nothing by zero at t = 1.
        """
        path = self.field.path
        if self.coefficient is None:
            return self.clock.rhs(path, t, eta)  # pyright: ignore[reportArgumentType]
        if not (isinstance(path, AbstractAffinePath) and has_score(path.source)) or self._gives_score():
            return "velocity", "score"
        g = self._amplitude(t).astype(jnp.result_type(t))
        s, a, b = path.velocity_row(t)
        factor = path.sigma(t) if path.finite_sigma_dot else 1.0  # else the row has that factor already
        return Row(factor * s, factor * a, factor * b - g**2 / 2)

    def _amplitude(self, t, x=None):
        """`g(t)`. Raises `ValueError` unless it is a number, or an array of the shape of the state `x`."""
        g = self.coefficient(t)  # pyright: ignore[reportOptionalCall]
        if not eqx.is_array_like(g) or (
            x is not None and jnp.ndim(g) and {jnp.shape(g)} != {leaf.shape for leaf in jtu.tree_leaves(x)}
        ):
            raise ValueError(
                "diffusion= of a sampler must be a function g(t), one number or an array of the state's shape. Got "
                f"{f'shape {jnp.shape(g)}' if eqx.is_array_like(g) else type(g).__name__}: a matrix, or a function of "
                "the state, is for jflow.solve(drift, x0, sampler, diffusion=)."
            )
        return jnp.asarray(g)

    def _gives_score(self):
        """Whether the network has a head for the score. Then the score is not converted from the noise."""
        predicts = self.field.predicts
        return isinstance(predicts, tuple) and "score" in [head.name for head in heads(predicts)]

    def diffusion(self, t, x, args, eta):
        if self.coefficient is not None:
            return self._amplitude(t, x)
        return self.clock.diffusion(self.field.path, t, eta)  # pyright: ignore[reportArgumentType]


def located(equation: AbstractEquation, interval: Interval, x0: PyTree, tau: Any, u: PyTree) -> tuple[Any, PyTree]:
    """The path's `(t, x)` for the clock's `(tau, u)`, in a step that starts from `x0`.

    At the two ends of the step, time and scale come from the table of steps. Inside the step they come from the inverse
    of the clock. `tau` is a tracer, so both are computed and `where` selects. The inverse of a clock may have an
    infinite derivative at an end, and an infinity in the branch that is not selected makes a gradient NaN. So at the
    ends the inverse is evaluated at the middle of the step instead.

    The scale at the start is zero for `ThetaClock` with noise at alpha = 0. There `u = 0` for every `x`, so `u` does
    not determine `x`, and the result is `x0`. This is right for the first evaluation of a step. It would be wrong for a
    solver that moves the state by noise before its first evaluation; `stepper._check_start` raises for those.
    """
    if equation.own_time:
        return tau, u
    start, stop = tau == interval.tau0, tau == interval.tau1
    middle = (interval.tau0 + interval.tau1) / 2
    t, factor = equation.locate(jnp.where(start | stop, middle, tau), interval.eta)
    t = jnp.where(start, interval.t0, jnp.where(stop, interval.t1, t))
    if factor is None:
        return t, u
    lost = start & (interval.enter == 0)
    first = 1 / jnp.where(interval.enter == 0, 1, interval.enter)
    factor = jnp.where(start, first, jnp.where(stop, interval.leave, factor))
    x = equation.scaled(factor, u)
    if not equation.noisy:
        return t, x
    return t, jtu.tree_map(lambda a, b: jnp.where(lost, a, b), x0, x)


def noise_shape(equation: AbstractEquation, x0: PyTree, args: Any, t: Any) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes of the Brownian motion: the shapes of the state, or the number of columns of a matrix coefficient."""

    def coefficient(t, x, a):
        return jtu.tree_map(jnp.asarray, equation.diffusion(t, x, a, jnp.ones((), jnp.result_type(t))))

    g = eqx.filter_eval_shape(coefficient, t, x0, args)
    if isinstance(g, jax.ShapeDtypeStruct) and g.ndim == 0:
        return shape_of(x0)
    if jtu.tree_structure(g) != jtu.tree_structure(x0):
        raise ValueError("A diffusion coefficient must be a number, or a pytree like the state. Got another structure.")

    def leaf(x, coefficient):
        if coefficient.shape == x.shape:
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        if coefficient.ndim == x.ndim + 1 == 2 and coefficient.shape[0] == x.shape[0]:
            return jax.ShapeDtypeStruct(coefficient.shape[1:], x.dtype)
        raise ValueError(
            f"A diffusion coefficient must be a number, of the state's shape {x.shape}, or a matrix whose rows are the "
            f"components of a vector state. Got shape {coefficient.shape}."
        )

    return jtu.tree_map(leaf, x0, g)
