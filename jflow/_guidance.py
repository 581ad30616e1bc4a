"""Guidance: fields made of fields."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import ArrayLike, PyTree

from ._field import AbstractNetwork
from ._misc import concrete
from ._prediction import Row
from ._types import Event, PRNGKey, Time


class Guided(AbstractNetwork):
    """Classifier-free guidance, `u_null + w (u_condition - u_null)`: `w = 0` unconditional, `1` conditional.

    Sampling takes `args = (condition, w)`; both evaluations are one batched call of the network, and nfe counts 2.
    `(condition, None)` is unguided and costs one. Training takes the bare condition as `args`, replaced by the null
    condition now and then with `drop_condition`. The weights sum to one, so guiding any of the predictions is the same.

    Source: Ho & Salimans 2022, arXiv:2207.12598, equation 6, whose weight is our `w - 1`.
    """

    field: AbstractNetwork
    null: PyTree

    def __init__(self, field: AbstractNetwork, null: PyTree):
        """`field` the field to guide; `null` the null condition, a pytree like the condition; it is not trained."""
        self.field = field
        self.null = jtu.tree_map(jnp.asarray, null)

    @property
    def path(self):
        return self.field.path

    @property
    def predicts(self):
        return self.field.predicts

    def __call__(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._guide(self.field, t, x, args)

    def conditional(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self.field.conditional(t, x, args)

    def velocity(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._guide(self.field.velocity, t, x, args)

    def data(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._guide(self.field.data, t, x, args)

    def noise(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._guide(self.field.noise, t, x, args)

    def score(self, t: Time, x: PyTree, args: Any = None) -> Event:
        return self._guide(self.field.score, t, x, args)

    def mixed(self, rows: tuple[Row, ...], t: Time, x: PyTree, args: Any = None) -> tuple[Event, ...]:
        return self._guide(lambda *point: self.field.mixed(rows, *point), t, x, args)

    def evaluations(self, args: Any = None) -> int:
        condition, weight = _split(args)
        return self.field.evaluations(condition) * (1 if weight is None else 2)

    def _guide(self, prediction, t, x, args):
        condition, weight = _split(args)
        if weight is None:
            return prediction(t, x, condition)
        both = jax.vmap(lambda c: prediction(t, x, c))(_stack(condition, self.null))

        def leaf(pair):
            return pair[1] + jnp.asarray(weight, pair.dtype) * (pair[0] - pair[1])

        return jtu.tree_map(leaf, both)


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


def _split(args):
    if not (isinstance(args, tuple) and len(args) == 2):
        raise ValueError(
            "A guided field takes args = (condition, scale), or (condition, None) for no guidance. "
            f"Got {type(args).__name__}. (In training, args is the bare condition: use matching_loss.)"
        )
    weight = args[1]
    if weight is not None and jnp.ndim(weight) != 0:
        raise ValueError(
            f"A guidance scale is one number for one example. Got shape {jnp.shape(weight)}; vmap over it."
        )
    return args


def _stack(condition, null):
    """Condition and null condition along a new leading axis."""
    if jtu.tree_structure(condition) != jtu.tree_structure(null):
        raise ValueError(
            "The null condition is a pytree like the condition. Got "
            f"{jtu.tree_structure(null)} for a condition {jtu.tree_structure(condition)}."
        )

    def leaf(c, n):
        c, n = jnp.asarray(c), jnp.asarray(n)
        if c.shape != n.shape:
            raise ValueError(f"The null condition has the shape of the condition. Got {n.shape} for {c.shape}.")
        return jnp.stack([c, n.astype(c.dtype)])

    return jtu.tree_map(leaf, condition, null)
