"""Joint laws of the two times of a flow map, and of whether the condition is dropped."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from .._kinds import check_kinds
from .._path import AbstractPath
from .._trainable import frozen
from .._types import Noun, PRNGKey, Time
from .._validate import check_count, concrete, parameter
from ..laws import AbstractLaw, LogitNormal, Uniform


class Pair(NamedTuple):
    """A draw of a joint law: `s <= t`, and whether the condition is dropped.

    ```python
    pair = jf.few_step.TimePairs(dropped=1.0).sample(jr.key(0))
    assert isinstance(pair, jf.few_step.Pair) and pair.s <= pair.t and pair.dropped
    ```
    """

    s: Float[Array, ""]
    t: Float[Array, ""]
    dropped: Bool[Array, ""]


class AbstractPairLaw(Noun):
    """A joint law of `(s, t, dropped)` with `0 <= s <= t <= 1`, one draw an example.

    Every example draws its own, so that no row of a batch is special.

    ```python
    class Halves(jf.few_step.AbstractPairLaw):
        diagonal = 0.0

        def sample(self, key, path=None):
            s = jr.uniform(key, maxval=0.5)
            return jf.few_step.Pair(s, s + 0.5, jnp.zeros((), bool))

    assert Halves().sample(jr.key(0)).t >= 0.5
    ```
    """

    diagonal: eqx.AbstractVar[float]
    """The probability of `s = t`, where a self-distilled map learns its velocity."""

    @abc.abstractmethod
    def sample(self, key: PRNGKey, path: AbstractPath | None = None) -> Pair:
        """One draw."""


class TimePairs(AbstractPairLaw):
    """Two independent times in order, equal with the probability `diagonal`.

    Source: Geng et al. 2025, arXiv:2505.13447, section 4.1 (three quarters on the diagonal).

    ```python
    pair = jf.few_step.TimePairs().sample(jr.key(0))
    assert 0 <= pair.s <= pair.t <= 1 and not pair.dropped
    ```
    """

    law: AbstractLaw
    diagonal: float = eqx.field(static=True)
    dropped: Array = frozen()

    def __init__(self, law: AbstractLaw | None = None, diagonal: float = 0.5, dropped: Time = 0.0):
        """Makes the law.

        Args:
            law: The law of each time, `jf.laws.Uniform()` by default.
            diagonal: The probability of `s = t`.
            dropped: The probability that the condition is dropped, independent of the times.

        Raises `ValueError` for a probability outside of [0, 1].
        """
        check_kinds(TimePairs.__init__, locals())
        self.law = Uniform() if law is None else law
        self.diagonal, self.dropped = _probability(diagonal, "diagonal"), _share(dropped, "dropped")

    def sample(self, key: PRNGKey, path: AbstractPath | None = None) -> Pair:
        key_first, key_second, key_equal, key_drop = jr.split(key, 4)
        a, b = self.law.sample(key_first, path), self.law.sample(key_second, path)
        s = jnp.minimum(a, b)
        t = jnp.where(jr.bernoulli(key_equal, self.diagonal), s, jnp.maximum(a, b))
        return Pair(s, t, jr.bernoulli(key_drop, self.dropped))


class DyadicPairs(AbstractPairLaw):
    """Steps of length `2^-k`, `k = 0, ..., levels - 1` with equal probability, from a multiple of their length; equal
    times, uniform, with the probability `diagonal`.

    Source: Frans et al. 2024, arXiv:2410.12557, section 3.2.

    ```python
    pair = jf.few_step.DyadicPairs(3, diagonal=0.0).sample(jr.key(0))
    assert pair.t - pair.s in (1.0, 0.5, 0.25) and pair.s % (pair.t - pair.s) == 0
    ```
    """

    levels: int = eqx.field(static=True)
    diagonal: float = eqx.field(static=True)
    dropped: Array = frozen()

    def __init__(self, levels: int = 7, diagonal: float = 0.75, dropped: Time = 0.0):
        """Makes the law.

        Args:
            levels: The number of lengths; the shortest step is `2^(1 - levels)`.
            diagonal: The probability of `s = t`.
            dropped: The probability that the condition is dropped.

        Raises `ValueError` for `levels < 1`, or a probability outside of [0, 1].
        """
        check_count(levels=levels)
        self.levels = levels
        self.diagonal, self.dropped = _probability(diagonal, "diagonal"), _share(dropped, "dropped")

    def sample(self, key: PRNGKey, path: AbstractPath | None = None) -> Pair:
        key_level, key_place, key_equal, key_drop = jr.split(key, 4)
        length = 2.0 ** -jr.randint(key_level, (), 0, self.levels).astype(jnp.result_type(float))
        place = jr.uniform(key_place)
        s = jnp.floor(place / length) * length
        equal = jr.bernoulli(key_equal, self.diagonal)
        return Pair(
            jnp.where(equal, place, s), jnp.where(equal, place, s + length), jr.bernoulli(key_drop, self.dropped)
        )


class ToData(AbstractPairLaw):
    """`(s, 1)` with `s` of a law: the pairs of a consistency function, which jumps to the data.

    ```python
    assert jf.few_step.ToData().sample(jr.key(0)).t == 1
    ```
    """

    law: AbstractLaw
    dropped: Array = frozen()
    diagonal = 0.0

    def __init__(self, law: AbstractLaw | None = None, dropped: Time = 0.0):
        """Makes the law.

        Args:
            law: The law of `s`, `jf.laws.LogitNormal()` by default.
            dropped: The probability that the condition is dropped.

        Raises `ValueError` for a probability outside of [0, 1].
        """
        check_kinds(ToData.__init__, locals())
        self.law = LogitNormal() if law is None else law
        self.dropped = _share(dropped, "dropped")

    def sample(self, key: PRNGKey, path: AbstractPath | None = None) -> Pair:
        key_time, key_drop = jr.split(key)
        s = self.law.sample(key_time, path)
        return Pair(s, jnp.ones_like(s), jr.bernoulli(key_drop, self.dropped))


def _share(value, name):
    array = parameter(value, name, positive=False)
    known = concrete(array)
    if known is not None and not 0 <= known <= 1:
        raise ValueError(f"{name} must be a probability, from 0 to 1. Got {value!r}.")
    return array


def _probability(value, name):
    """A probability that a loss must know before it is traced."""
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"{name} must be a Python number: an objective asks whether it is positive. Got a tracer.")
    return float(concrete(_share(value, name)))
