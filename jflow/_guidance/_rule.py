"""How two predictions become one."""

import abc
import functools as ft
import operator

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .._prediction import Prediction
from .._types import Event, Noun, Time


class AbstractGuidanceRule(Noun):
    """How `Guided` combines the prediction with the condition and the one to move away from.

    Unlike classifier-free guidance, whose weights sum to one, a rule depends on the prediction it is written for; the
    other predictions follow from the result.

    ```python
    class Clipped(jf.AbstractGuidanceRule):
        predicts = "data"

        def __call__(self, t, conditional, other, scale):
            return jax.tree.map(lambda c, u: jnp.clip(u + scale * (c - u), -1, 1), conditional, other)

    guided = jf.Guided(jf.Field(lambda t, x, y: x + y, jf.CondOT(), "data"), null=0.0, rule=Clipped())
    assert (guided.data(0.5, jnp.ones(2), jf.Args(1.0, scale=3.0)) == 1).all()
    ```
    """

    predicts: eqx.AbstractClassVar[Prediction]

    @abc.abstractmethod
    def __call__(self, t: Time, conditional: Event, other: Event, scale: PyTree) -> Event:
        """The guided prediction, from a pair of them at the time `t`."""


def extrapolate(conditional: Event, other: Event, scale: PyTree) -> Event:
    """Classifier-free guidance, `other + scale (conditional - other)`."""
    return jtu.tree_map(lambda c, u: u + jnp.asarray(scale, u.dtype) * (c - u), conditional, other)


def inner(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """The inner product of two events, over all their components."""
    products = jtu.tree_map(lambda u, v: jnp.sum(u * v), a, b)
    return ft.reduce(operator.add, jtu.tree_leaves(products))


def ratio(a: Array, b: Array) -> Array:
    """`a / b`, zero where `b` is: an event that vanishes has no direction."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))
