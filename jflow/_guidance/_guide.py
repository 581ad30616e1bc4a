"""What every field made of a field shares."""

from collections.abc import Iterable
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._args import Args
from .._field import AbstractField, _Rematched
from .._kinds import check_kinds
from .._path import AbstractPath
from .._prediction import Prediction
from .._rule import AbstractStepRule
from .._types import PRNGKey, Time
from .._validate import as_array


class AbstractGuide(AbstractField):
    """A field that changes the sampling of another: its path, its prediction and its training are the other's.

    Only `predict` is abstract. A guide reads entries of `Args` by name, `Args.of(args).take(name)`, and hands the rest
    on to its field; the innermost field gives the network the bare condition. What it computes from one prediction
    goes to all targets by `jflow.given`.

    ```python
    class Halved(jf.AbstractGuide):
        field: jf.AbstractField

        def predict(self, targets, t, x, args=None):
            data = self.field.data(t, x, args) / 2
            return jf.given(self.path, t, x, (data,), ("data",), targets, args)

    field = jf.Field(lambda t, x, args: x, jf.CondOT(), "data")
    assert (Halved(field).data(0.5, jnp.ones(2)) == 0.5).all()
    ```
    """

    field: eqx.AbstractVar[AbstractField]

    reads_condition: ClassVar[bool] = False
    """Whether it reads the condition itself, as a classifier does. Such a guide goes outside one that replaces the
    condition.
    """

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of the entries of `Args` that it takes and does not hand on; by default none."""
        return ()

    @property
    def parts(self) -> tuple[AbstractField, ...]:
        """The fields that it is made of; by default `field` alone."""
        return (self.field,)

    def __check_init__(self):
        check_kinds(type(self), vars(self))
        twice = sorted(set(self.takes) & frozenset().union(*map(entries, self.parts)))
        if twice:
            raise ValueError(
                f"Two guides of one field must take other names from Args. Got {', '.join(map(repr, twice))} twice: "
                f"give one of them another name, as {twice[0]}='classifier_{twice[0]}', and pass that entry too."
            )

    @property
    def path(self) -> AbstractPath:
        return self.field.path

    @property
    def predicts(self) -> Prediction | tuple[Prediction, ...]:
        return self.field.predicts

    @property
    def sources(self) -> tuple[Prediction, ...]:
        return self.field.sources

    def conditional(self, t: Time, x: PyTree, args: Any = None, key: PRNGKey | None = None) -> PyTree:
        return self.field.conditional(t, x, args, key)

    def evaluations(self, args: Any = None, t: Time | None = None) -> int | Int[Array, ""]:
        return self.field.evaluations(without(args, self.takes), t)

    def recommended(self, nfe: int, args: Any = None) -> PyTree:
        """The default sampler of the field inside, for its share of the evaluations; `None` where that has a step rule,
        as the jump of a flow map: a step rule knows its own kind of field.
        """
        rest = without(args, self.takes)
        inner, own = self.field.evaluations(rest, 0.5), self.evaluations(args, 0.5)
        share = nfe * inner // own if isinstance(inner, int) and isinstance(own, int) else nfe // 2
        sampler = self.field.recommended(share, rest)
        return None if sampler is None or isinstance(sampler.solver, AbstractStepRule) else sampler

    def undefined(self, t: float) -> str | None:
        return next((why for part in self.parts if (why := part.undefined(t)) is not None), None)


def check_scale(scale: ArrayLike) -> None:
    """Raises `ValueError` unless a scale of guidance is one number."""
    shape = as_array(scale, "A guidance scale").shape
    if shape:
        raise ValueError(f"A guidance scale must be one number for one example. Got shape {shape}; vmap over it.")


def without(args: Any, names: Iterable[str]) -> Args:
    """`args` as `Args` without the entries of these names."""
    rest = Args.of(args)
    for name in names:
        _, rest = rest.take(name)
    return rest


def entries(field: AbstractField) -> frozenset[str]:
    """The names of the entries of `Args` that a field takes, with all the guides inside it."""
    return frozenset().union(*(guide.takes for guide in guides(field)))


def guides(field: AbstractField) -> list[AbstractGuide]:
    """The guides that a field is made of, itself among them; a change of path is looked through."""
    if isinstance(field, _Rematched):
        return guides(field.field)
    if not isinstance(field, AbstractGuide):
        return []
    return [field, *(guide for part in field.parts for guide in guides(part))]
