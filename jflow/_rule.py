"""Step rules: what takes one step of a grid, where it is not a diffrax solver."""

import abc
from typing import Any, ClassVar, NamedTuple

import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ._event import float_type, shape_of, size
from ._types import Event, Noun, PRNGKey


class Times(NamedTuple):
    """The row of a step that knows its two path times alone."""

    t0: Float[Array, "..."]
    t1: Float[Array, "..."]


class AbstractStepRule(Noun):
    """One step of a grid: only `step` is abstract. It goes in the place of a diffrax solver, `FixedSteps(times, rule)`.

    The loop calls `rows` once, `init` before the first step, and `step` on each row with the noise of that step.
    A `row` is what a step must know, a pytree that `rows` returns with a leading axis of length n. The step is in the
    time of the path: with a rule, `clock=`, `eta=` and `diffusion=` raise.

    ```python
    class Euler(jf.AbstractStepRule):
        def step(self, field, row, x, state, noise, args):
            return x + (row.t1 - row.t0) * field.velocity(row.t0, x, args), state

    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    mine = jf.sample(field, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(8), Euler()))
    assert mine.nfe == 8 and jnp.allclose(mine.x, jf.sample(field, jr.key(0), (2,), jf.UniformGrid(8)).x, atol=1e-5)
    ```
    """

    noisy: ClassVar[bool] = False
    """Whether a step takes noise."""
    is_map: ClassVar[bool] = False
    """Whether a step is a map, without noise and memory: then it has a log-determinant, an inverse and a density."""

    @abc.abstractmethod
    def step(
        self, field: PyTree, row: PyTree, x: PyTree, state: PyTree, noise: PyTree, args: Any
    ) -> tuple[Event, PyTree]:
        """The state after the step of `row`, and the memory; `noise` is `None` for a rule that is not `noisy`, else
        white noise as `draw` gives it.
        """

    def rows(self, field: PyTree, times: Float[Array, " points"]) -> PyTree:
        """What each step must know; by default its path times, `row.t0` and `row.t1`."""
        return Times(times[:-1], times[1:])

    def init(self, field: PyTree, row: PyTree, x: PyTree, args: Any) -> PyTree:
        """The memory before the first step; by default `None`."""
        return None

    def draw(self, key: PRNGKey, n: int, like: PyTree) -> PyTree:
        """White noise of `n` consecutive steps, with a leading axis of length n; by default standard normals."""
        leaves, treedef = jtu.tree_flatten(like)
        keys = [key] if len(leaves) == 1 else list(jr.split(key, len(leaves)))
        draws = [jr.normal(k, (n, *leaf.shape), float_type(leaf)) for k, leaf in zip(keys, leaves, strict=True)]
        return jtu.tree_unflatten(treedef, draws)

    def noise_like(self, field: PyTree, row: PyTree, x: PyTree, args: Any) -> PyTree:
        """Shapes of the noise of a step; by default those of the state."""
        return shape_of(x)

    def block(self, like: PyTree) -> int:
        """How many steps share a key, for speed: the noise of step i is `draw(fold_in(key, i // b), b, like)[i % b]`.

        Deriving a key costs more than the numbers it gives where the event is small; where it is large, large blocks
        leave the cache.
        """
        return max(1, min(20, 64 // max(size(like), 1)))

    def nfe(self, field: PyTree, args: Any) -> int | None:
        """Network evaluations of a step; by default `None`, and then they are counted on one abstract step."""
        return None

    def check(self, field: PyTree, sampler: PyTree) -> None:
        """Raises `ValueError` where field and sampler do not go with the rule."""
        return

    def log_ratio(
        self, field: PyTree, target: PyTree, row: PyTree, x: PyTree, x1: PyTree, args: Any, state: PyTree,
        target_state: PyTree,
    ) -> Float[Array, ""]:  # fmt: skip
        """`log p_target(x1 | x) - log p_field(x1 | x)` of one step, for weights of particles; `target_state` is the
        target's own memory. By default it raises, since no density of a step is known.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a log_ratio for weights of particles. Got none.")
