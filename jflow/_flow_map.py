"""Flow maps: networks of two times, whose steps are jumps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from ._args import bare
from ._event import cast_like, combine, safe_sqrt
from ._field import AbstractField, check_affine
from ._grid import UniformGrid
from ._path import AbstractAffinePath
from ._prediction import Row, Target, given
from ._rule import AbstractStepRule
from ._sampler import FixedSteps
from ._source import check_score, noise_map
from ._trainable import frozen
from ._types import Event, Time
from ._validate import concrete, parameter, scalar_time


class FlowMap(AbstractField):
    """A flow map `X_{s,t}`: a network of two times that gives the average velocity.

    `X_{s,t}(x) = x + (t - s) u(s, t, x)`, and `net(s, t, x, args)` is `u`. On its diagonal it is the velocity, so it is
    a field, which samplers, guides and likelihoods take; `Jump()` steps by one evaluation over any interval.

    Source: Boffi et al. 2024, arXiv:2406.07507; Geng et al. 2025, arXiv:2505.13447 (MeanFlow).

    ```python
    straight = jf.FlowMap(lambda s, t, x, args: jnp.ones_like(x), jf.CondOT())
    assert jnp.allclose(straight.jump(0.0, 1.0, jnp.zeros(2)), 1.0)
    ```
    """

    net: Callable[[Time, Time, PyTree, PyTree], PyTree]
    path: AbstractAffinePath
    predicts: str = eqx.field(static=True)

    def __init__(self, net: Callable[..., PyTree], path: AbstractAffinePath, predicts: str = "velocity"):
        """Makes a flow map of a network.

        Args:
            net: The network, `net(s, t, x, args)`.
            path: The path it is trained along.
            predicts: What it outputs: `"velocity"` the average velocity; `"data"`, `"noise"` or `"v"` a prediction at
                `(s, x)`, with which the map is `X_{s,t}(x) = alpha(t) data + sigma(t) noise`. Either is the identity
                at `s = t`.
        """
        self.net, self.path, self.predicts = net, path, predicts

    def __check_init__(self):
        check_affine(self.path, "A flow map")
        if self.predicts not in ("velocity", "data", "noise", "v"):
            raise ValueError(f"predicts must be 'velocity', 'data', 'noise' or 'v'. Got {self.predicts!r}.")

    def average(self, s: Time, t: Time, x: PyTree, args: Any = None) -> Event:
        """The output of the network: `u(s, t, x)`, the average velocity from s to t, where it predicts that."""
        value = cast_like(self.net(scalar_time(s), scalar_time(t), x, bare(args)), x, "A flow map's output")
        return noise_map(self.path.source).project(value, args)

    def jump(self, s: Time, t: Time, x: PyTree, args: Any = None) -> Event:
        """`X_{s,t}(x)`, the state at t from the state `x` at s. Raises `ValueError` for `s > t`."""
        s, t = scalar_time(s), scalar_time(t)
        known = concrete(s), concrete(t)
        if None not in known and known[0] > known[1]:
            raise ValueError(f"A jump must be forward, s <= t. Got {s} to {t}: jflow.encode inverts jumps.")
        value = self.average(s, t, x, args)
        if self.predicts == "velocity":
            return combine((1, x), (t - s, value))
        end = Row(jnp.ones_like(t), self.path.alpha(t), self.path.sigma(t))
        return given(self.path, s, x, (value,), (self.predicts,), (end,), args)[0]

    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        t = scalar_time(t)
        return given(self.path, t, x, (self.average(t, t, x, args),), (self.predicts,), targets, args)

    def recommended(self, nfe: int, args: Any = None) -> PyTree:
        """One jump an evaluation, at most four."""
        return FixedSteps(UniformGrid(min(nfe, 4)), Jump(), end="stop")


class Jump(AbstractStepRule):
    """The step of a flow map, `x' = X_{s,t}(x)`: one evaluation, whatever the length of the step.

    With `renoise` the sampler is stochastic. A step from s to t jumps to a time t' > t where `sigma/alpha` is `sqrt(1 -
    renoise^2)` times its value at t. Then it adds the noise that leads back to t. `renoise=1.0` jumps to the data and
    adds all of the noise again: the multistep sampling of consistency models.

    Source: Kim et al. 2024, arXiv:2310.02279, algorithm 3 (gamma-sampling); Song et al. 2023, arXiv:2303.01469,
    algorithm 1.

    ```python
    straight = jf.FlowMap(lambda s, t, x, args: jnp.ones_like(x), jf.CondOT())
    sol = jf.sample(straight, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(2), jf.Jump()))
    assert sol.nfe == 2
    ```
    """

    renoise: PyTree = frozen(default=None)

    def __check_init__(self):
        known = None if self.renoise is None else concrete(parameter(self.renoise, "renoise", positive=False))
        if known is not None and not 0 <= known <= 1:
            raise ValueError(f"renoise must be a number from 0 to 1. Got {self.renoise!r}.")

    @property
    def noisy(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a step takes noise."""
        return self.renoise is not None

    @property
    def is_map(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a step is a map: unless it draws."""
        return self.renoise is None

    def step(self, field, row, x, state, noise, args):
        if self.renoise is None:
            return field.jump(row.t0, row.t1, x, args), state
        path, t, amount = field.path, row.t1, jnp.asarray(self.renoise).astype(row.t1.dtype)
        kept = (1 - amount) * (1 + amount)
        ahead = jnp.where(kept == 0, 1, path.log_snr_inverse(path.log_snr(t) - jnp.log(jnp.where(kept == 0, 1, kept))))
        back = path.alpha(t) / path.alpha(ahead)
        std = safe_sqrt(path.sigma(t) ** 2 - (back * path.sigma(ahead)) ** 2)
        noise = noise_map(path.source).apply(noise, args)
        return combine((back, field.jump(row.t0, ahead, x, args)), (std, noise)), state

    def nfe(self, field: PyTree, args: Any) -> int | None:
        return field.evaluations(args)

    def check(self, field: PyTree, sampler: PyTree) -> None:
        if not isinstance(field, FlowMap):
            raise TypeError(
                f"Jump() must have a flow map, jflow.FlowMap(net, path). Got {type(field).__name__}, which has one "
                "time: take a diffrax solver; a guide over a flow map is a field, and has no jump."
            )
        if self.renoise is not None:
            check_score(field.path.source, "Jump(renoise=)")
