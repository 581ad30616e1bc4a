"""Classifier-free guidance and its kin: two predictions, and a rule that combines them."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._field import AbstractNetwork
from .._memory import Remembered, Remembering
from .._misc import combine, concrete, parameter
from .._types import PRNGKey, Time
from ._guide import AbstractGuide, ask, split_args, turn
from ._rule import AbstractRule, extrapolate


class Guided(AbstractGuide):
    """Guidance, `u_other + w (u_condition - u_other)`: `w = 0` the other prediction, `1` the conditional one.

    What the other prediction is:

    - `Guided(field, null)`, classifier-free guidance: that of the null condition, the same for every sample.
    - `Guided(field)`, a negative condition for each sample: sampling takes `((condition, negative), w)`.
    - `Guided(field, weak=other)`, autoguidance: that of a smaller or less trained field, with the same condition.

    Sampling takes `args = (condition, w)`; nfe counts both predictions, which are one batched call of the network
    where they are of one. `(condition, None)` is unguided and costs one. Training takes the bare condition as `args`,
    replaced by the null condition now and then with `drop_condition`. The weights sum to one, so guiding any of the
    predictions is the same; a `rule` in their place (`APG`, `Rescaled`, `CFGZero`) is applied to the prediction it is
    written for. With an `interval` of times there is guidance in it alone: elsewhere, on a fixed grid, the other
    prediction is not computed.

    Source: Ho & Salimans 2022, arXiv:2207.12598, equation 6, whose weight is our `w - 1`; Karras et al. 2024,
    arXiv:2406.02507 (autoguidance); Kynkäänniemi et al. 2024, arXiv:2404.07724 (interval).
    """

    field: AbstractNetwork
    null: PyTree
    weak: AbstractNetwork | None
    rule: AbstractRule | None
    interval: tuple[Array, Array] | None

    def __init__(
        self,
        field: AbstractNetwork,
        null: PyTree = None,
        *,
        weak: AbstractNetwork | None = None,
        rule: AbstractRule | None = None,
        interval: tuple[ArrayLike, ArrayLike] | None = None,
    ):
        """`field` the field to guide; `null` the null condition, a pytree like the condition; `weak` a field along
        the same path; `rule` how the predictions are combined; `interval` the times `[start, stop)` of guidance, which
        for noise levels `sigma_high` to `sigma_low` of `sigma/alpha` are `path.log_snr_inverse(-2 log(sigma))` of both.
        Neither null condition, weak field, rule nor interval is trained.

        Raises `ValueError` for both a null condition and a weak field, a weak field along another path, or an interval
        that is none.
        """
        self.field, self.weak, self.rule = field, weak, rule
        self.null = jtu.tree_map(jnp.asarray, null)
        self.interval = None
        if interval is not None:
            start, stop = interval
            self.interval = parameter(start, "interval", positive=False), parameter(stop, "interval", positive=False)

    def __check_init__(self):
        if self.weak is not None and self.null is not None:
            raise ValueError(
                "Guided takes a null condition or a weak field, which gets the same condition as the field. Got both."
            )
        if self.weak is not None and not eqx.tree_equal(self.weak.path, self.field.path):
            raise ValueError(
                "A weak field is one along the path of the field it guides. Got another, "
                f"{type(self.weak.path).__name__}: pass weak=jflow.change_path(weak, field.path)."
            )
        if self.interval is not None:
            start, stop = (concrete(t) for t in self.interval)
            if start is not None and stop is not None and not start < stop:
                raise ValueError(
                    f"An interval of guidance is (start, stop), increasing times. Got ({start:g}, {stop:g})."
                )

    @property
    def sources(self):
        own = self.field.sources if self.rule is None else (self.rule.predicts, *self.field.sources)
        return own if self.weak is None else (*own, *self.weak.sources)

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        condition, other, scale = self._split(args)
        one = self.field.evaluations(condition, t)
        if scale is None:
            return one
        both = one + (self.field if self.weak is None else self.weak).evaluations(other, t)
        if self.interval is None:
            return both
        if t is None:
            raise ValueError(
                "Guidance on an interval costs more inside it: evaluations(args, t) takes a time. Got none."
            )
        return jnp.where(self._inside(t), both, one).astype(jnp.int32)

    def give(self, target, t, x, args: Any):
        condition, other, scale = self._split(args)
        if scale is None:
            return ask(self.field, target, t, x, condition)
        if isinstance(scale, Remembering) and self.rule is None:
            raise ValueError(
                "A momentum of guidance belongs to one prediction, so it takes a rule: Guided(..., rule=jflow.APG()), "
                "or rule=jflow.APG(parallel=1.0) for classifier-free guidance. Got a field without."
            )

        def guided():
            return self._combine(target, t, x, condition, other, scale)

        def alone():
            value = ask(self.field, target, t, x, condition)
            if not isinstance(scale, Remembering):
                return value
            if isinstance(target, tuple):
                return tuple(Remembered(v, scale.previous) for v in value)
            return Remembered(value, scale.previous)

        return guided() if self.interval is None else lax.cond(self._inside(t), guided, alone)

    def _combine(self, target, t, x, condition, other, scale):
        if self.rule is None:
            first, second = self._pair(target, t, x, condition, other)
            return extrapolate(first, second, scale)
        first, second = self._pair(self.rule.predicts, t, x, condition, other)
        if isinstance(scale, Remembering):
            change = combine((1, first), (-1, second), (scale.momentum, scale.previous))
            value = self.rule(t, first, combine((1, first), (-1, change)), scale.scale)
            value = Remembered(value, change)
        else:
            value = self.rule(t, first, second, scale)
        return turn(self.path, t, x, value, self.rule.predicts, target)

    def _pair(self, target, t, x, condition, other):
        """The prediction with the condition, and the other one."""
        if self.weak is not None:
            return ask(self.field, target, t, x, condition), ask(self.weak, target, t, x, other)
        both = jax.vmap(lambda c: ask(self.field, target, t, x, c))(_stack(condition, other))
        return tuple(jtu.tree_map(lambda pair, i=i: pair[i], both) for i in (0, 1))

    def _inside(self, t):
        assert self.interval is not None  # only asked where there is one
        start, stop = (end.astype(jnp.result_type(t)) for end in self.interval)
        return (start <= t) & (t < stop)

    def _split(self, args):
        """The condition, the one that the other prediction gets, and the scale."""
        condition, scale = split_args(args, "guided")
        if self.weak is not None:
            return condition, condition, scale
        if self.null is not None:
            return condition, self.null, scale
        if not (isinstance(condition, tuple) and len(condition) == 2):
            raise ValueError(
                "Guided(field), without a null condition, takes args = ((condition, negative), scale). "
                f"Got a condition {type(condition).__name__}: give each sample its negative condition, or pass null=."
            )
        return *condition, scale


def drop_condition(key: PRNGKey, condition: PyTree, null: PyTree, rate: ArrayLike) -> PyTree:
    """The condition of one training example, replaced by the null condition with probability `rate`.

    **Arguments:** `condition` and `null`, pytrees alike; `rate` in [0, 1].

    **Returns:** a new pytree of the types of `condition`. Raises `ValueError` for a rate outside [0, 1].

    Source: Ho & Salimans 2022, arXiv:2207.12598, algorithm 1.
    """
    number = concrete(rate)
    if number is not None and not 0 <= number <= 1:
        raise ValueError(f"The rate of dropped conditions is a probability, in [0, 1]. Got {rate}.")
    drop = jr.bernoulli(key, rate)
    return jtu.tree_map(lambda pair: jnp.where(drop, pair[1], pair[0]), _stack(condition, null))


def _stack(condition, other):
    """A condition and the null or negative one, along a new leading axis."""
    if jtu.tree_structure(condition) != jtu.tree_structure(other):
        raise ValueError(
            "A null or negative condition is a pytree like the condition. Got "
            f"{jtu.tree_structure(other)} for a condition {jtu.tree_structure(condition)}."
        )

    def leaf(c, n):
        c, n = jnp.asarray(c), jnp.asarray(n)
        if c.shape != n.shape:
            raise ValueError(
                f"A null or negative condition has the shape of the condition. Got {n.shape} for {c.shape}."
            )
        return jnp.stack([c, n.astype(c.dtype)])

    return jtu.tree_map(leaf, condition, other)
