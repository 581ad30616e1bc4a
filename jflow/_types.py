"""Aliases, the base of every noun, and the result of a solve."""

from typing import TYPE_CHECKING, Annotated, TypeVar

import equinox as eqx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree, Shaped

from ._code import Written
from ._kinds import check_kinds

Event = PyTree[Shaped[Array, "..."]]
"""One example: an array of any shape, or a pytree of arrays."""

Time = Shaped[ArrayLike, ""]
"""A time: a scalar, t = 0 noise, t = 1 data."""

Number = float | int
"""A Python number."""

PRNGKey = Key[Array, ""]
"""One typed key, as `jax.random.key` makes it."""

DType = DTypeLike | None
"""A type of numbers; `None` leaves the type as it is."""

Shape = tuple[int, ...] | PyTree
"""The shape of an event, as a tuple or as a pytree of shapes with types."""

if TYPE_CHECKING:
    _T = TypeVar("_T")
    Checked = Annotated[_T, "checked by jflow"]
else:

    class Checked:
        """`Checked[T]` is `T` for an editor, and anything at run time.

        It annotates an argument that the function checks itself. The message of that check says the rule and the fix;
        the message of a run-time type checker would come first and say neither.
        """

        def __class_getitem__(cls, kind):
            return Annotated[object, kind]


class Noun(Written, eqx.Module):
    """The base of every object that a user hands to a verb: paths, sources, fields, clocks, rules, samplers.

    A plain function that a noun holds itself may read Python globals, so an eager call compiles it anew; what a
    network or a diffrax object holds is compiled once.

    ```python
    grid = jf.UniformGrid(8)
    assert isinstance(grid, jf.Noun) and grid == jf.UniformGrid(8) and jf.from_json(jf.to_json(grid)) == grid
    ```
    """

    def __check_init__(self):
        check_kinds(type(self), vars(self))


class Solution(eqx.Module):
    """What a solve returns. What was not requested is `None`.

    - `x`: the final state, of the event's shape.
    - `log_prob`, `log_prob_se`: log-density in nats and its standard error.
    - `nfe`: one-example network evaluations this sample would have needed alone: a guided step counts 2, rejected
      steps count, JVPs do not; `None` where the number is not known, as for implicit solvers.
    - `vjps`: the vector-Jacobian products that a guide made beside them, where it counts them.
    - `status`: 0 ok, 1 diverged (a non-finite state, or a step shorter than the rounding error of the time), 2 out of
      steps, 3 stopped by an event, 4 a map that folds at this point.
    - `t`: the time reached.
    - `ts`, `xs`: saved times and states of the path, the leading axis running over the saves; infinite where nothing
      was saved, pytrees where `saveat` holds a pytree of `diffrax.SubSaveAt`.
    - `interpolation`: diffrax's dense output, in the time and state that were integrated.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.sample(field, jr.key(0), (2,))
    assert sol.status == 0 and sol.t == 1 and sol.x.shape == (2,)
    ```
    """

    x: PyTree
    log_prob: Float[Array, "*batch"] | None = None
    log_prob_se: Float[Array, "*batch"] | None = None
    nfe: Int[Array, "*batch"] | None = None
    vjps: Int[Array, "*batch"] | None = None
    status: Int[Array, "*batch"] | None = None
    t: Float[Array, "*batch"] | None = None
    ts: PyTree = None
    xs: PyTree = None
    interpolation: PyTree = None
