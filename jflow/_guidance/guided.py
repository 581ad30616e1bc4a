"""Classifier-free guidance and its kin: two predictions, and a rule that combines them."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._args import Args
from .._field import AbstractField
from .._front import as_arrays, canonical
from .._kinds import check_kinds
from .._prediction import Prediction, Target, given
from .._trainable import frozen
from .._types import Event, PRNGKey, Time
from .._validate import as_array, concrete, parameter, scalar_time, shown, stream
from ._guide import AbstractGuide, check_scale, entries, guides, without
from ._rule import AbstractGuidanceRule, extrapolate


class Guided(AbstractGuide):
    """Guidance, `u_other + w (u_condition - u_other)`. The scale `w = 0` gives `u_other`, `w = 1` gives `u_condition`.

    The prediction `u_other` may come from three places:

    - `Guided(field, null)`, classifier-free guidance: the field under the null condition, equal for all samples.
    - `args = Args(condition, negative=other, scale=w)`: the field under a negative condition, given for each sample. It
      has priority over `null`.
    - `Guided(field, weak=other)`, autoguidance: a smaller or less trained field under the same condition.

    Sampling takes `args = Args(condition, scale=w)`. `nfe` counts both predictions; two predictions of the same network
    are one batched call. Without a scale there is no guidance, and a call costs one evaluation. Training takes the bare
    condition as `args`; `drop_condition` replaces it by the null condition now and then.

    The weights sum to one, so guidance of any prediction gives the same result. A `rule` (`APG`, `Rescaled`, `CFGZero`)
    replaces the weights, and applies to the prediction that it is written for. With an `interval` of times there is
    guidance only inside it. On a fixed grid the other prediction is not computed outside.

    All other entries of `args` go to the field, for both predictions. A guide inside raises if it takes the same names,
    or if it reads the condition. `ClassifierGuided` reads the condition, so it goes outside.

    Source: Ho & Salimans 2022, arXiv:2207.12598, equation 6, whose weight is our `w - 1`; Karras et al. 2024,
    arXiv:2406.02507 (autoguidance); Kynkäänniemi et al. 2024, arXiv:2404.07724 (interval).

    ```python
    guided = jf.Guided(jf.Field(lambda t, x, y: x * y, jf.CondOT(), "velocity"), null=0.0)
    x = jnp.ones(2)
    assert (guided.velocity(0.5, x, jf.Args(1.0, scale=3.0)) == 3).all()
    assert (guided.velocity(0.5, x, jf.Args(1.0, negative=2.0, scale=3.0)) == -1).all()
    assert (guided.velocity(0.5, x, 1.0) == 1).all()
    ```
    """

    field: AbstractField
    scale: str = eqx.field(static=True)
    negative: str = eqx.field(static=True)
    null: PyTree = frozen()
    weak: AbstractField | None = frozen()
    rule: AbstractGuidanceRule | None = frozen()
    interval: tuple[Array, Array] | None = frozen()

    def __init__(
        self,
        field: AbstractField,
        null: PyTree = None,
        *,
        weak: AbstractField | None = None,
        rule: AbstractGuidanceRule | None = None,
        interval: tuple[ArrayLike, ArrayLike] | None = None,
        scale: str = "scale",
        negative: str = "negative",
    ):
        """Makes the guide; neither null condition, weak field, rule nor interval is trained.

        Args:
            field: The field to guide.
            null: The null condition, a pytree like the condition.
            weak: A field along the same path.
            rule: How the predictions are combined.
            interval: The times `[start, stop)` of guidance, which for noise levels `sigma_high` to `sigma_low` of
                `sigma/alpha` are `path.log_snr_inverse(-2 log(sigma))` of both.
            scale: The name of the entry of `Args` that holds `w`.
            negative: The name of the entry that holds the negative condition.

        Raises `ValueError` for both a null condition and a weak field, a weak field along another path, an empty
        interval, names that a guide inside takes too, or a guide inside that reads the condition.
        """
        check_kinds(Guided.__init__, locals())
        self.field, self.weak, self.rule = field, weak, rule
        self.scale, self.negative = scale, negative
        self.null = jtu.tree_map(lambda leaf: as_array(leaf, "A null condition"), as_arrays(null))
        self.interval = None
        if interval is not None:
            if not isinstance(interval, (tuple, list)) or len(interval) != 2:
                raise ValueError(f"An interval of guidance must be (start, stop). Got {shown(interval)}.")
            start, stop = interval
            self.interval = parameter(start, "interval", positive=False), parameter(stop, "interval", positive=False)

    def __check_init__(self):
        if self.weak is not None and self.null is not None:
            raise ValueError(
                "Guided must have a null condition or a weak field, which gets the same condition as the field. Got "
                "both: leave out one."
            )
        if self.weak is not None:
            same = concrete(eqx.tree_equal(self.weak.path, self.field.path))
            if same is not None and not same:
                raise ValueError(
                    "A weak field must be along the path of the field it guides. Got another path, "
                    f"{type(self.weak.path).__name__}: pass weak=jflow.change_path(weak, field.path)."
                )
        readers = [guide for guide in guides(self.field) if guide.reads_condition]
        if readers and self.weak is None:
            name = type(readers[0]).__name__
            raise ValueError(
                f"A guide that reads the condition must be outside Guided, which replaces it. Got {name} inside, which "
                f"would be called with the null condition too: make it {name}(Guided(field, null), ...)."
            )
        if self.interval is not None:
            start, stop = (concrete(t) for t in self.interval)
            if start is not None and stop is not None and not start < stop:
                raise ValueError(
                    f"An interval of guidance must be (start, stop), increasing times. Got ({start:g}, {stop:g})."
                )

    @property
    def takes(self) -> tuple[str, ...]:
        return (self.scale, self.negative) if self.weak is None else (self.scale,)

    @property
    def parts(self) -> tuple[AbstractField, ...]:
        return (self.field,) if self.weak is None else (self.field, self.weak)

    @property
    def sources(self) -> tuple[Prediction, ...]:
        own = self.field.sources if self.rule is None else (self.rule.predicts, *self.field.sources)
        return own if self.weak is None else (*own, *self.weak.sources)

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        scale, strong, other = self._split(args)
        one = self.field.evaluations(strong, t)
        if scale is None:
            return one
        both = one + (self.field if self.weak is None else self.weak).evaluations(other, t)
        if self.interval is None:
            return both
        if t is None:
            raise ValueError(
                "Guidance on an interval must be counted at a time, for it costs more inside. Got none: pass "
                "evaluations(args, t)."
            )
        return jnp.where(self._inside(t), both, one).astype(jnp.int32)

    def predict(self, targets: tuple[Target, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        scale, strong, other = self._split(args)

        def alone():
            return self.field.predict(targets, t, x, strong)

        def guided():
            if self.rule is None:
                pair = self._pair(targets, t, x, strong, other)
                return tuple(extrapolate(first, second, scale) for first, second in zip(*pair, strict=True))
            (first,), (second,) = self._pair((self.rule.predicts,), t, x, strong, other)
            value = self.rule(t, first, second, scale)
            return given(self.path, t, x, (value,), (self.rule.predicts,), targets, strong)

        if scale is None:
            return alone()
        return guided() if self.interval is None else lax.cond(self._inside(t), guided, alone)

    def _pair(self, targets, t, x, strong, other):
        """The targets with the condition, and the other ones."""
        if self.weak is not None:
            return self.field.predict(targets, t, x, strong), self.weak.predict(targets, t, x, other)
        # One call of the network, mapped over the two conditions; the other entries are shared.
        stacked = _stack(strong.condition, other.condition)
        both = jax.vmap(lambda c: self.field.predict(targets, t, x, strong.replace(c)))(stacked)
        return tuple(jtu.tree_map(lambda pair, i=i: pair[i], both) for i in (0, 1))

    def _inside(self, t):
        t = scalar_time(t)
        start, stop = (end.astype(t.dtype) for end in self.interval)  # pyright: ignore[reportOptionalIterable]
        return (start <= t) & (t < stop)

    def _split(self, args):
        """The scale, the `Args` of the field, and the `Args` of the other prediction.

        Without a scale there is no other prediction, and both `Args` are equal.
        """
        args = Args.of(args)
        scale, rest = args.get(self.scale), without(args, self.takes)
        if self.weak is not None:
            # Each of the two fields gets what its own guides take, or its network would find an entry unread.
            inside, beside = entries(self.field), entries(self.weak)
            strong, other = without(rest, beside - inside), without(rest, inside - beside)
        else:
            negative = args.get(self.negative)
            strong, other = rest, rest.replace(self.null if negative is None else negative)
        if scale is None:
            return None, strong, strong
        check_scale(scale)
        if self.weak is None and other.condition is None:
            raise ValueError(
                "Guided must have a null condition, a weak field, or a negative condition in args. Got none of them: "
                f"pass Guided(field, null), or args=jflow.Args(condition, {self.negative}=other, {self.scale}=w)."
            )
        return scale, strong, other


def drop_condition(key: PRNGKey, condition: PyTree, null: PyTree, rate: ArrayLike) -> PyTree:
    """The condition of one training example, replaced by the null condition with probability `rate`.

    Args:
        key: One typed key.
        condition: The condition.
        null: The null condition, a pytree alike.
        rate: The probability, in [0, 1].

    Returns:
        A new pytree of the types of `condition`; the type of integers grows where it must, to hold the null condition.
        Raises `ValueError` for a rate outside [0, 1], and where a condition of integers has a null that is no integer.

    Source: Ho & Salimans 2022, arXiv:2207.12598, algorithm 1.

    ```python
    labels = jax.vmap(lambda k: jf.drop_condition(k, 3, 10, 0.5))(jr.split(jr.key(0), 100))
    assert set(labels.tolist()) == {3, 10}
    ```
    """
    check_kinds(drop_condition, locals())
    number = concrete(parameter(rate, "rate", positive=False))
    if number is not None and not 0 <= number <= 1:
        raise ValueError(f"The rate of dropped conditions must be a probability, in [0, 1]. Got {rate}.")
    drop = jr.bernoulli(stream(key, "drop_condition"), jnp.asarray(rate, float))
    return jtu.tree_map(lambda pair: jnp.where(drop, pair[1], pair[0]), _stack(condition, null))


def _stack(condition, other):
    """A condition and the null or negative one, along a new leading axis."""
    if jtu.tree_structure(condition) != jtu.tree_structure(other):
        raise ValueError(
            "A null or negative condition must be a pytree like the condition. Got "
            f"{jtu.tree_structure(other)} for a condition {jtu.tree_structure(condition)}."
        )

    def leaf(c, n):
        c, n = as_array(canonical(c), "A condition"), as_array(canonical(n), "A null or negative condition")
        if c.shape != n.shape:
            raise ValueError(
                f"A null or negative condition must have the shape of the condition. Got {n.shape} for {c.shape}."
            )
        kind = c.dtype if jnp.issubdtype(c.dtype, jnp.inexact) else np.promote_types(c.dtype, n.dtype)
        known, wide = concrete(n), jnp.iinfo(kind).bits if jnp.issubdtype(kind, jnp.integer) else 0
        if wide > jax.dtypes.canonicalize_dtype(kind).itemsize * 8:
            kind = c.dtype  # of 32 bits with and without a sign: what holds both is not there
        if (
            (jnp.issubdtype(kind, jnp.inexact) and not jnp.issubdtype(c.dtype, jnp.inexact))
            or (known is not None and not np.array_equal(np.isfinite(known), np.isfinite(known.astype(kind))))
            or (known is not None and known.dtype.kind in "iub" and (known.astype(kind) != known).any())
        ):
            raise ValueError(
                "A null or negative condition must be of values that the type of the condition holds. Got "
                f"{n.dtype if known is None else known} for a condition of {c.dtype}: give both one type, as "
                "condition.astype(jnp.float32)."
            )
        return jnp.stack([c.astype(kind), n.astype(kind)])

    return jtu.tree_map(leaf, condition, other)
