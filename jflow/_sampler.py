"""Samplers: how a field is integrated, as one noun that prints, compares and travels through every verb."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._clock import AbstractClock
from ._code import as_code
from ._grid import AbstractGridRule
from ._noise_rule import AbstractNoiseRule
from ._path import AbstractPath
from ._rule import AbstractStepRule
from ._solver import unwrapped
from ._types import Checked, Noun, Number, Time
from ._validate import as_array, check_count, concrete, is_real, parameter, shown

End = Literal["denoise", "stop"]
"""How a grid ends: by the data prediction in the place of its last step, or like its other steps."""

GridLike = AbstractGridRule | ArrayLike | Sequence[Time]
"""A grid rule, or the times themselves."""

Eta = ArrayLike | Sequence[Number] | AbstractNoiseRule | None
"""The amplitude of the noise: a number, a value a step, or a noise rule; `None` for the ODE."""


class _Quiet:
    """A value for messages. All of these are equal, so that another value needs no new program."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Quiet)

    def __hash__(self) -> int:
        return 0


class Facts(NamedTuple):
    """What is known of a grid without computing. `None` stands for unknown, as for a traced array."""

    starts_at_zero: bool | None = None
    ends_at_one: bool | None = None
    repeats_last: bool | None = None
    increases: bool | None = None  # strictly, but for a last point that stands twice
    decreases: bool | None = None
    within: bool | None = None  # [0, 1]
    narrow: bool = True  # whether no two times are one in float32
    note: _Quiet = _Quiet("")


class FixedSteps(Noun):
    """A sampler of fixed steps: a grid, a solver, a clock, the noise, and how the grid ends.

    ```python
    sampler = jf.FixedSteps(jf.KarrasGrid(18), dfx.Heun(), clock=jf.SigmaClock())  # EDM
    assert sampler.n == 18 and repr(sampler) == "jf.FixedSteps(jf.KarrasGrid(18), dfx.Heun(), clock=jf.SigmaClock())"
    assert eval(repr(sampler)) == sampler
    ```
    """

    times: PyTree
    solver: dfx.AbstractSolver | AbstractStepRule | None
    clock: AbstractClock | None
    eta: PyTree
    diffusion: Callable[[Array], ArrayLike] | None
    end: End | None = eqx.field(static=True)
    _facts: Facts = eqx.field(static=True, repr=False)

    def __init__(
        self,
        times: Checked[GridLike],
        solver: dfx.AbstractSolver | AbstractStepRule | None = None,
        *,
        clock: AbstractClock | None = None,
        eta: Checked[Eta] = None,
        diffusion: Callable[[Array], ArrayLike] | None = None,
        end: Checked[End | None] = None,
    ):
        """Makes a sampler. What depends on a field too is checked when `jflow.sample` or another verb gets both.

        Args:
            times: A grid rule, as `UniformGrid(32)`, or the times themselves: `n` steps have `n + 1` points.
            solver: Any explicit diffrax solver, `diffrax.Euler()` by default, or an `AbstractStepRule`.
            clock: The time in which it is integrated. By default the clock that the solver brings (as `DPMpp` does),
                else `ThetaClock()` if `eta` is given, else the path's own time.
            eta: `None` for the ODE. Else the amplitude of the noise: 1 is the reverse SDE. A number, or for one-step
                solvers an array with a value a step, or a noise rule as `Ancestral(0.5)`.
            diffusion: In place of `eta` the lecture's diffusion coefficient `g(t)`, in the path's own time: the drift
                is `velocity + g^2/2 score`.
            end: With `"denoise"` the last step is `x = data prediction`, one evaluation. With `"stop"` it is like all
                other steps. The default is `"denoise"` if the grid ends at t = 1 or repeats its last point, and the
                field predicts the data or the clock is infinite where sigma = 0. Otherwise it is `"stop"`.

        Raises `ValueError` or `TypeError` for parts that do not go together.
        """
        if not (isinstance(times, AbstractGridRule) or (isinstance(times, jax.Array) and is_real(times))):
            times = as_array(times, "times must be a grid rule, as jflow.UniformGrid(32), or: they", float)
        self.times, self.solver, self.clock, self._facts = times, solver, clock, _facts(times)
        self.eta, self.diffusion, self.end = _swept(eta), diffusion, end

    def __check_init__(self):
        if isinstance(unwrapped(self.solver), dfx.AbstractImplicitSolver):
            raise ValueError(
                f"Fixed steps must have an explicit solver. Got {type(self.solver).__name__}, which is implicit: take "
                "jflow.AdaptiveSteps(solver), with controller=diffrax.StepTo(times) for given steps."
            )
        _check_noise(self)
        if isinstance(self.eta, (jax.Array, np.ndarray)) and self.eta.ndim == 1 and len(self.eta) != self.n:
            raise ValueError(f"eta must have one value for each of the {self.n} steps. Got {len(self.eta)} values.")

    @property
    def n(self) -> int:
        """The number of steps."""
        return self.times.n if isinstance(self.times, AbstractGridRule) else self.times.shape[0] - 1

    def grid(self, path: AbstractPath | None = None) -> Float[Array, " points"]:
        """The times along a path, `n + 1` of them."""
        return self.times.times(path) if isinstance(self.times, AbstractGridRule) else jnp.asarray(self.times)

    @property
    def facts(self) -> Facts:
        """What is known of the grid without computing."""
        return self._facts

    def __repr__(self) -> str:
        return as_code(self)


class AdaptiveSteps(Noun):
    """A sampler of adaptive steps, by `diffrax.diffeqsolve`: also implicit solvers, events, dense output.

    ```python
    sampler = jf.AdaptiveSteps(dfx.Tsit5(), rtol=1e-6, atol=1e-6)
    world = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
    assert jf.sample(world.field(jf.CondOT()), jr.key(0), (2,), sampler).status == 0
    ```
    """

    solver: dfx.AbstractSolver | None
    controller: dfx.AbstractStepSizeController | None
    t0: PyTree
    t1: PyTree
    clock: AbstractClock | None
    eta: PyTree
    diffusion: Callable[[Array], ArrayLike] | None
    dt0: PyTree
    max_steps: int | None = eqx.field(static=True)
    adjoint: dfx.AbstractAdjoint | None
    _facts: Facts = eqx.field(static=True, repr=False)

    def __init__(
        self,
        solver: dfx.AbstractSolver | None = None,
        controller: dfx.AbstractStepSizeController | None = None,
        *,
        t0: Time | None = None,
        t1: Time | None = None,
        clock: AbstractClock | None = None,
        eta: Checked[Eta] = None,
        diffusion: Callable[[Array], ArrayLike] | None = None,
        dt0: Time | None = None,
        max_steps: int | None = 4096,
        adjoint: dfx.AbstractAdjoint | None = None,
        rtol: Number | Array | None = None,
        atol: Number | Array | None = None,
    ):
        """Makes a sampler. What depends on a field too is checked when `jflow.sample` or another verb gets both.

        Args:
            solver: Any diffrax solver; `diffrax.Tsit5()` by default.
            controller: `diffrax.PIDController(1e-5, 1e-5)` by default; `rtol` and `atol` are short for one. Here a step
                is held to `atol + rtol |x|` with the smaller of the sizes that the state has at its two ends.
            t0: Where generation starts, 0 by default.
            t1: Where it ends, 1 by default.
            clock: As in `FixedSteps`.
            eta: As in `FixedSteps`, a number; the noise is then passed as `brownian=`.
            diffusion: As in `FixedSteps`.
            dt0: The first step, in the path's time. By default at most 1/16 in the time of the clock, and shorter where
                the state changes its course fast; to find that costs one evaluation, or two for a solver whose last
                stage is not the first of the next step.
            max_steps: The largest number of steps.
            adjoint: How gradients are taken; `diffrax.RecursiveCheckpointAdjoint()` by default. Not
                `BacksolveAdjoint` or `ImplicitAdjoint`, which keep the end alone.
            rtol: Relative tolerance.
            atol: Absolute tolerance.

        Raises `ValueError` or `TypeError` for parts that do not go together.
        """
        for name, value in (("t0", t0), ("t1", t1), ("dt0", dt0), ("rtol", rtol), ("atol", atol)):
            if value is not None:
                parameter(value, name, positive="tol" in name)
        if rtol is not None or atol is not None:
            if controller is not None:
                raise ValueError("rtol and atol must stand without controller=, for which they are short. Got both.")
            controller = dfx.PIDController(1e-5 if rtol is None else rtol, 1e-5 if atol is None else atol)
        self.solver, self.controller, self.t0, self.t1 = solver, controller, t0, t1
        self.clock, self.eta, self.diffusion = clock, _swept(eta), diffusion
        self.dt0, self.max_steps, self.adjoint = dt0, max_steps, adjoint
        start = np.asarray(0.0) if t0 is None else concrete(t0)
        stop = np.asarray(1.0) if t1 is None else concrete(t1)
        first, last = None if start is None else bool(start == 0), None if stop is None else bool(stop == 1)
        if start is None or stop is None:
            self._facts = Facts(first, last, False)
        else:
            within, note = min(start, stop) >= 0 and max(start, stop) <= 1, _Quiet(f"t0 = {start}, t1 = {stop}")
            self._facts = Facts(first, last, False, bool(start <= stop), bool(start >= stop), bool(within), True, note)

    def __check_init__(self):
        if (dt0 := concrete(self.dt0)) is not None and not (dt0 > 0 or (dt0 < 0 and not self._facts.increases)):
            raise ValueError(f"dt0 must be positive, the length of the first step. Got {self.dt0!r}.")
        if self.max_steps is not None:
            check_count(max_steps=self.max_steps)
        _check_noise(self)
        if isinstance(self.eta, AbstractNoiseRule) or (self.eta is not None and jnp.ndim(self.eta) == 1):
            raise ValueError(f"eta of adaptive steps must be a number. Got {self.eta!r}: take jflow.FixedSteps.")
        if isinstance(self.adjoint, dfx.BacksolveAdjoint | dfx.ImplicitAdjoint):
            name = type(self.adjoint).__name__
            raise ValueError(
                f"adjoint must keep what a solve saves. Got {name}(): take diffrax.DirectAdjoint() or none."
            )

    @property
    def facts(self) -> Facts:
        """What is known of the interval without computing."""
        return self._facts

    def __repr__(self) -> str:
        return as_code(self)


Sampler = FixedSteps | AdaptiveSteps
SamplerLike = Sampler | GridLike


def as_sampler(sampler: Any) -> Sampler:
    """A sampler; a grid rule or an array of times is short for `FixedSteps(times)`."""
    if isinstance(sampler, (FixedSteps, AdaptiveSteps)):
        return sampler
    if isinstance(sampler, (AbstractGridRule, jax.Array, np.ndarray, list, tuple)):
        return FixedSteps(sampler)
    rule = "A sampler must be jflow.FixedSteps(...) or AdaptiveSteps(...), a grid as jflow.UniformGrid(32), or times."
    raise TypeError(f"{rule} Got {shown(sampler)}.")


def _swept(value: Any) -> Any:
    """An integer as a float, a list as an array. A new value of such a number needs no new program."""
    if isinstance(value, (list, tuple)) and is_real(value):
        return as_array(value, "eta", float)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_noise(sampler: Any) -> None:
    """Raises where clock, eta and diffusion do not go together."""
    clock, eta = sampler.clock, sampler.eta
    if sampler.diffusion is not None and (eta is not None or not (clock is None or clock.own_time)):
        raise ValueError(
            "diffusion= is a coefficient in the path's own time: it must stand without eta= and without another "
            "clock. For noise in any clock use eta=."
        )
    if eta is None or isinstance(eta, AbstractNoiseRule):
        return
    if not is_real(eta):
        raise TypeError(f"eta must be a number, an array with a value a step, or a noise rule. Got {shown(eta)}.")
    known = concrete(eta)
    if known is not None and (known.ndim > 1 or not np.isfinite(known).all() or (known < 0).any()):
        raise ValueError(f"eta must be at least 0 (0 the ODE, 1 the reverse SDE), a value a step or one. Got {eta}.")


def _facts(times: Any) -> Facts:
    if isinstance(times, AbstractGridRule):
        increases, decreases = times.direction
        plain = increases and times.within and not times.repeats_last  # no message is about it, and printing takes time
        return Facts(
            times.starts_at_zero, times.ends_at_one, times.repeats_last, increases, decreases, times.within, True,
            _Quiet("" if plain else str(times)),
        )  # fmt: skip
    if jnp.ndim(times) != 1 or jnp.shape(times)[0] < 2:
        raise ValueError(
            f"A grid must be a vector of at least two times (one step). Got shape {jnp.shape(times)}; "
            "n steps are jflow.UniformGrid(n)."
        )
    if (grid := concrete(times)) is None:
        return Facts()
    if not np.isfinite(grid).all():
        raise ValueError("The times of a grid must be finite. Got a non-finite one.")
    steps = np.diff(grid)
    narrow = np.diff(grid.astype(np.float32))
    repeats = bool(steps[-1] == 0)
    increases = bool((steps[:-1] > 0).all() and steps[-1] >= 0)
    decreases = bool((steps < 0).all())
    if not (increases or decreases):
        raise ValueError(
            "The times of a grid must increase strictly, or for the ODE of jflow.solve decrease: t = 0 is noise, "
            f"t = 1 is data. Got steps between {steps.min():.4g} and {steps.max():.4g}."
        )
    return Facts(
        bool(grid[0] == 0), bool(grid[-1] == 1), repeats, increases, decreases,
        bool(grid.min() >= 0 and grid.max() <= 1), bool((narrow[: -1 if repeats else None] != 0).all()),
        _Quiet(f"t = {grid[0]} to {grid[-1]}"),
    )  # fmt: skip
