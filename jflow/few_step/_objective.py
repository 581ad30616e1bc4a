"""Objectives of flow maps: the error of one example at one pair of times, whose mean square is minimised.

A flow map `X_{s,t}(x) = x + (t - s) u(s, t, x)` of a velocity `v` has three properties, each of which determines it:

    Eulerian     u = v + (t - s) (d_s u + d_x u v)          from the start, at (s, x)
    Lagrangian   d_t X_{s,t}(x) = v(t, X_{s,t}(x))          from the end
    semigroup    X_{r,t}(X_{s,r}(x)) = X_{s,t}(x)           from a time between

with `u(t, t, x) = v(t, x)` on the diagonal. An objective is the residual of such a property, with the stop-gradient
where its paper has it. `v` is the conditional velocity of the example where the residual is linear in it, so that its
mean is that of the field; else the map's own diagonal, or a teacher's velocity.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .._event import combine
from .._field import AbstractField
from .._flow_map import FlowMap
from .._kinds import check_kinds
from .._source import UNPADDED
from .._trainable import frozen
from .._types import Event, Noun, PRNGKey, Time
from .._validate import check_count, concrete, parameter
from ..laws import LogitNormal
from ._law import AbstractPairLaw, DyadicPairs, TimePairs, ToData

_hold = jax.lax.stop_gradient


class Example(eqx.Module):
    """One example at one pair of times: the state `x` on the path at `s`, the velocity `v` there, and its two ends.

    ```python
    s, t, x0, x1 = jnp.array(0.25), jnp.array(0.75), jnp.zeros(2), jnp.ones(2)
    example = jf.few_step.Example(s, t, s * x1, x1 - x0, x0, x1, None, jr.key(0))
    exact = jf.FlowMap(lambda s, t, x, args: jnp.ones_like(x), jf.CondOT())  # of data at x1 and noise at x0
    assert jnp.allclose(jf.few_step.ImprovedMeanFlow().errors(exact, example), 0)
    ```
    """

    s: Float[Array, ""]
    t: Float[Array, ""]
    x: PyTree
    v: PyTree
    x0: PyTree
    x1: PyTree
    args: PyTree
    key: PRNGKey


class AbstractObjective(Noun):
    """The error of a flow map on one example. Only `law` and `errors` are abstract.

    ```python
    class OnTheDiagonal(jf.few_step.AbstractObjective):  # flow matching alone
        law = jf.few_step.TimePairs(diagonal=1.0)

        def errors(self, flow_map, example):
            return flow_map.velocity(example.s, example.x, example.args) - example.v

    net = lambda s, t, x, args: (s - t) * x
    loss = jf.few_step.flow_map_loss(
        jf.FlowMap(net, jf.CondOT()), jr.key(0), jnp.ones(2), objective=OnTheDiagonal()
    )
    assert loss >= 0
    ```
    """

    law: eqx.AbstractVar[AbstractPairLaw]
    """The default law of the times."""
    teacher: ClassVar[AbstractField | None] = None
    """The field that it distils, `None` for none."""
    needs_diagonal: ClassVar[bool] = False
    """Whether the velocity is learned on the diagonal alone, so that a law without one is an error."""
    needs_average: ClassVar[bool] = True
    """Whether it is written in the average velocity, so that maps of another output are an error."""

    @abc.abstractmethod
    def errors(self, flow_map: FlowMap, example: Example) -> Event:
        """The residual, of the event's shape; its derivative is the gradient's."""


class MeanFlow(AbstractObjective):
    """`u - sg(v + (t - s) D_s u)`, `D_s u = d_s u + d_x u v` along the conditional velocity `v`: the Eulerian property.

    Its value at the optimum is not zero; its gradient is, in the mean.

    Source: Geng et al. 2025, arXiv:2505.13447, equations 6 and 11; its time is 1 minus ours.

    ```python
    shift = jf.FlowMap(lambda s, t, x, args: jnp.full_like(x, (s + t) / 2), jf.CondOT())  # by (t^2 - s^2)/2
    loss = jf.few_step.flow_map_loss(shift, jr.key(0), jnp.ones(2), objective=jf.few_step.MeanFlow())
    assert loss >= 0
    ```
    """

    difference: float | None = eqx.field(static=True, default=None)
    """The step of a central difference in the place of the jvp, for networks whose kernels have none; 0.005 serves."""
    law: ClassVar[AbstractPairLaw] = TimePairs(LogitNormal(0.4, 1.0), diagonal=0.75)

    def __check_init__(self):
        _check_difference(self.difference)

    def errors(self, flow_map: FlowMap, example: Example) -> Event:
        u, rate = _along(flow_map, example, example.v, self.difference)
        return combine((1, u), (-1, _hold(combine((1, example.v), (example.t - example.s, rate)))))


class ImprovedMeanFlow(AbstractObjective):
    """`u - (t - s) sg(D_s u) - v`, with `D_s u` along the map's own velocity: a regression on the conditional velocity.

    Its value at the optimum is the conditional variance of the velocity.

    Source: Geng et al. 2025, arXiv:2512.02012, section 4; its time is 1 minus ours.

    ```python
    shift = jf.FlowMap(lambda s, t, x, args: jnp.full_like(x, (s + t) / 2), jf.CondOT())  # by (t^2 - s^2)/2
    loss = jf.few_step.flow_map_loss(shift, jr.key(0), jnp.ones(2), objective=jf.few_step.ImprovedMeanFlow())
    assert loss >= 0
    ```
    """

    difference: float | None = eqx.field(static=True, default=None)
    """As in `MeanFlow`."""
    law: ClassVar[AbstractPairLaw] = TimePairs(LogitNormal(0.4, 1.0), diagonal=0.5)

    def __check_init__(self):
        _check_difference(self.difference)

    def errors(self, flow_map: FlowMap, example: Example) -> Event:
        own = _hold(flow_map.velocity(example.s, example.x, example.args))
        u, rate = _along(flow_map, example, own, self.difference)
        return combine((1, u), (example.s - example.t, _hold(rate)), (-1, example.v))


class Lagrangian(AbstractObjective):
    """`d_t X_{s,t}(x) - sg(v(t, X_{s,t}(x)))`: the Lagrangian property, `v` the map's own diagonal or a teacher's
    velocity; on the diagonal `u - v`, flow matching.

    Without a teacher the map learns from its own diagonal, at states where its own error carries it. With half of the
    pairs on the diagonal the error of a fresh network grows from step to step; with three quarters, the default, flow
    matching holds it.

    Source: Boffi et al. 2025, arXiv:2505.18825, equation 11; with a teacher Boffi et al. 2024, arXiv:2406.07507,
    equation 12.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), std=1.0)
    objective = jf.few_step.Lagrangian(teacher=world.field(jf.CondOT()))
    std = lambda t: jnp.sqrt(t**2 + (1 - t) ** 2)
    exact = jf.FlowMap(lambda s, t, x, args: x * (std(t) / std(s) - 1) / (t - s), jf.CondOT())
    law = jf.few_step.TimePairs(diagonal=0.0)
    assert jf.few_step.flow_map_loss(exact, jr.key(0), jnp.ones(2), objective=objective, law=law) < 1e-9
    ```
    """

    teacher: AbstractField | None = frozen(default=None)
    law: ClassVar[AbstractPairLaw] = TimePairs(diagonal=0.75)
    needs_average: ClassVar[bool] = False

    @property
    def needs_diagonal(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.teacher is None

    def errors(self, flow_map: FlowMap, example: Example) -> Event:
        s, t, x, args = example.s, example.t, example.x, example.args
        end, rate = jax.jvp(lambda t: flow_map.jump(s, t, x, args), (t,), (jnp.ones_like(t),))
        field = flow_map if self.teacher is None else self.teacher
        target = field.velocity(t, _hold(end), args)
        if self.teacher is None:
            target = jtu.tree_map(lambda own, v: jnp.where(s == t, v, own), target, example.v)
        return combine((1, rate), (-1, _hold(target)))


class Semigroup(AbstractObjective):
    """`u(s, t, x) - sg(q u(s, r, x) + (1 - q) u(r, t, X_{s,r}(x)))`, `r = s + q (t - s)`: the semigroup property.

    On the diagonal it is `u - v`, flow matching.

    Source: Boffi et al. 2025, arXiv:2505.18825, equation 13.

    ```python
    shift = jf.FlowMap(lambda s, t, x, args: jnp.full_like(x, (s + t) / 2), jf.CondOT())  # by (t^2 - s^2)/2
    loss = jf.few_step.flow_map_loss(shift, jr.key(0), jnp.ones(2), objective=jf.few_step.Semigroup(0.5))
    assert loss >= 0
    ```
    """

    share: Array | None = frozen()
    law: ClassVar[AbstractPairLaw] = TimePairs(diagonal=0.5)
    needs_diagonal: ClassVar[bool] = True

    def __init__(self, share: Time | None = None):
        """`share` the share `q` of the step before `r`; `None` draws it uniformly.

        Raises `ValueError` for a number outside of (0, 1).
        """
        self.share = None if share is None else parameter(share, "share")
        known = concrete(self.share)
        if known is not None and not known < 1:
            raise ValueError(f"share must lie between 0 and 1. Got {share!r}: take 0.5, the midpoint.")

    def errors(self, flow_map: FlowMap, example: Example) -> Event:
        share = jr.uniform(example.key) if self.share is None else self.share
        return _composed(flow_map, example, share.astype(example.s.dtype))


class Shortcut(AbstractObjective):
    """The semigroup property at the midpoint, for steps of lengths `2^-k` from multiples of their length; on the
    diagonal `u - v`, flow matching.

    Source: Frans et al. 2024, arXiv:2410.12557, equation 5; its networks take the length of the step.

    ```python
    shift = jf.FlowMap(lambda s, t, x, args: jnp.full_like(x, (s + t) / 2), jf.CondOT())  # by (t^2 - s^2)/2
    loss = jf.few_step.flow_map_loss(shift, jr.key(0), jnp.ones(2), objective=jf.few_step.Shortcut())
    assert loss >= 0
    ```
    """

    law: ClassVar[AbstractPairLaw] = DyadicPairs()
    needs_diagonal: ClassVar[bool] = True

    def errors(self, flow_map: FlowMap, example: Example) -> Event:
        return _composed(flow_map, example, jnp.asarray(0.5, example.s.dtype))


class Consistency(AbstractObjective):
    """The consistency function `f(s, x) = X_{s,1}(x)` does not change along the flow: `d/ds f(s, x_s) = 0`.

    - Continuous (`steps=None`): `f - sg(f + g / (|g| + c))`, with the tangent `g = d/ds f(s, x_s)` and its root mean
      square `|g|`. `warmup` from 0 to 1 is the share of the network's own derivative in `g`.
    - Discrete (`steps=n`): `(f(s, x_s) - sg(f(r, x_r))) sqrt(n)` with `r = min(s + 1/n, 1)`; `n` grows in training.

    `v` and `x_r` are the example's own (consistency training), or a teacher's velocity and an Euler step of it
    (distillation). With a normalised tangent the optimum of consistency training is not the flow map: the mean of
    `g/(|g| + c)` vanishes for `c` large, or with a teacher.

    Source: Song et al. 2023, arXiv:2303.01469, algorithms 2 and 3; Lu & Song 2024, arXiv:2410.11081, section 4.1, whose
    `|g|` is the norm over the event.

    ```python
    f = jf.FlowMap(lambda s, t, x, args: x, jf.Cosine(), predicts="v")
    loss = jf.few_step.flow_map_loss(f, jr.key(0), jnp.ones(2), objective=jf.few_step.Consistency(warmup=0.5))
    assert 0 <= loss < 1
    ```
    """

    steps: Array | None = frozen()
    teacher: AbstractField | None = frozen()
    warmup: Array = frozen()
    c: Array = frozen()
    law: ClassVar[AbstractPairLaw] = ToData()
    needs_average: ClassVar[bool] = False

    def __init__(
        self, steps: Time | None = None, teacher: AbstractField | None = None, warmup: Time = 1.0, c: Time = 0.1
    ):
        """Makes the objective.

        Args:
            steps: The number of steps of the discrete form, which may be traced; `None` for the continuous one.
            teacher: The field whose flow it learns; `None` for that of the data.
            warmup: The share of the network's own derivative in the tangent.
            c: A positive number, in the unit of the data.

        Raises `ValueError` for numbers out of range.
        """
        check_kinds(Consistency.__init__, locals())
        if isinstance(steps, int):
            check_count(steps=steps)
        self.steps = None if steps is None else parameter(steps, "steps")
        self.teacher, self.warmup, self.c = teacher, parameter(warmup, "warmup", positive=False), parameter(c, "c")
        known = concrete(self.warmup)
        if known is not None and not 0 <= known <= 1:
            raise ValueError(f"warmup must lie between 0 and 1. Got {warmup!r}.")

    def errors(self, flow_map: FlowMap, example: Example) -> Event:
        s, x, args = example.s, example.x, example.args
        v = example.v if self.teacher is None else _hold(self.teacher.velocity(s, x, args))
        one = jnp.ones_like(s)
        if self.steps is None:
            damped = eqx.tree_at(lambda m: m.net, flow_map, _Damped(flow_map.net, self.warmup))
            f, g = jax.jvp(lambda s, x: damped.jump(s, one, x, args), (s, x), (one, v))
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jtu.tree_leaves(g)) / UNPADDED.rank(g, args))
            return combine((1, f), (-1, _hold(combine((1, f), (1 / (norm + self.c.astype(s.dtype)), g)))))
        n = self.steps.astype(s.dtype)
        r = jnp.minimum(s + 1 / n, 1)
        there = (
            flow_map.path.interpolate(r, example.x0, example.x1)
            if self.teacher is None
            else combine((1, x), (r - s, v))
        )
        before = flow_map.jump(jnp.where(r < 1, r, s), one, there, args)
        target = jtu.tree_map(lambda a, b: jnp.where(r < 1, a, b), before, there)
        return combine((jnp.sqrt(n), flow_map.jump(s, one, x, args)), (-jnp.sqrt(n), _hold(target)))


class _Damped(eqx.Module):
    """A network whose derivative in `s` and `x` is multiplied by `share`; not that in its parameters."""

    net: Callable[..., Any]
    share: Array

    def __call__(self, s, t, x, args):
        def damped(leaf):  # the value exactly, for any share
            return _hold(leaf) + self.share.astype(leaf.dtype) * (leaf - _hold(leaf))

        return self.net(damped(s), t, jtu.tree_map(damped, x), args)


def _check_difference(difference):
    if isinstance(difference, (int, float)) and not difference > 0:
        raise ValueError(f"difference must be a positive number, the step of the difference. Got {difference}.")


def _along(flow_map, example, v, difference):
    """`u(s, t, x)`, and its derivative in `s` along the velocity `v`: in float32 or wider, for the state is."""
    s, t, x = example.s, example.t, example.x

    def u(s, x):
        return flow_map.average(s, t, x, example.args)

    if difference is None:
        return jax.jvp(u, (s, x), (jnp.ones_like(s), v))
    h = jnp.asarray(difference, s.dtype)
    ahead, behind = (_hold(u(s + k, combine((1, x), (k, v)))) for k in (h, -h))
    return u(s, x), combine((1 / (2 * h), ahead), (-1 / (2 * h), behind))


def _composed(flow_map, example, share):
    """The semigroup's residual in the average velocity, and flow matching's on the diagonal."""
    s, t, x, args = example.s, example.t, example.x, example.args
    r = s + share * (t - s)
    first = flow_map.average(s, r, x, args)
    second = flow_map.average(r, t, combine((1, x), (r - s, first)), args)
    target = combine((share, first), (1 - share, second))
    target = jtu.tree_map(lambda own, v: jnp.where(s == t, v, own), target, example.v)
    return combine((1, flow_map.average(s, t, x, args)), (-1, _hold(target)))
