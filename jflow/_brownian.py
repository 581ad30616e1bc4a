"""Noise on a fixed grid: increments keyed by the index of the step."""

import math
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, PyTree, Shaped

from ._misc import combine, safe_sqrt, scale, size
from ._types import PRNGKey


class Recorded(eqx.Module):
    """Noise given beforehand: one standard normal event for each step of a fixed grid.

    `normals` has the steps as its leading axis; step `i` takes `sqrt(length of the step) normals[i]`.
    """

    normals: PyTree[Shaped[Array, "n ..."]]


def dyadic_noise(key: PRNGKey, n: int, shape: Any) -> Recorded:
    """One Brownian path seen on uniform grids of `n = 1, 2, 4, ...` steps: noise that refines consistently.

    From the normals `z` of a grid those of the grid twice as fine are `(z + e)/sqrt(2)` and `(z - e)/sqrt(2)`, with
    `e` independent of them (Lévy's construction): for one key, two steps of `2 n` add up to the step of `n`.

    **Arguments:** `n` a power of two; `shape` of the event, or a pytree of `jax.ShapeDtypeStruct`.

    Raises `ValueError` for another `n`. Source: Karatzas & Shreve 1991, section 2.3.
    """
    if n < 1 or n & (n - 1):
        raise ValueError(f"Dyadic noise halves its steps: n is a power of two. Got {n}.")
    if isinstance(shape, tuple):
        shape = jax.ShapeDtypeStruct(shape, jnp.float32)
    leaves, treedef = jtu.tree_flatten(shape)
    keys = jr.split(key, len(leaves))

    def leaf(key, like):
        z = jr.normal(jr.fold_in(key, 0), (1, *like.shape), like.dtype)
        while z.shape[0] < n:
            e = jr.normal(jr.fold_in(key, z.shape[0]), z.shape, like.dtype)
            z = jnp.stack([z + e, z - e], axis=1).reshape(-1, *like.shape) / math.sqrt(2)
        return z

    return Recorded(jtu.tree_unflatten(treedef, [leaf(k, like) for k, like in zip(keys, leaves, strict=True)]))


class StepBrownianPath(dfx.AbstractBrownianPath):
    """A Brownian path known over one step `[t0, t1]` only, through its increment and Lévy areas."""

    t0: Any
    t1: Any
    increment: Any
    levy_area: Any = eqx.field(static=True)
    noise_time: Any = None  # of a solver that asks for the noise up to one time inside the step

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        """The increment over the step; raises `ValueError` for another interval, but for one from `t0` to a time inside
        where there is a second normal for it.
        """
        if t0 is self.t0 and t1 is self.t1:
            return self.increment if use_levy else self.increment.W
        if t0 is self.t0 and self.noise_time is not None:
            return self._inside(t1)
        raise ValueError(
            "On a fixed grid the noise is one increment a step, and this solver asks for it inside a step. "
            "Pass brownian=diffrax.VirtualBrownianTree(...), which knows the path at every time."
        )

    def _inside(self, t):
        """The increment `W_q` up to a share `q` of the step, given that over the step, `W`: the Brownian bridge
        `q W + sqrt(12 q (1 - q)) H`, whose normal is that of the Lévy area (of variance a twelfth of that of `W`, and
        independent of it). The pair has the law it has along one path; the area itself then is not that of the path.
        """
        start, inside, stop = (self.noise_time(s) for s in (self.t0, t, self.t1))
        moves = stop > start
        share = jnp.where(moves, (inside - start) / jnp.where(moves, stop - start, 1), 0)
        return combine((share, self.increment.W), (safe_sqrt(12 * share * (1 - share)), self.increment.H))


def step_path(t0: Any, t1: Any, variance: Any, normals: tuple[PyTree, ...], noise_time: Any = None) -> StepBrownianPath:
    """The path of one step from its normals: the increment, then, where given, the space-time and the
    space-time-time Lévy areas, of variances `variance`, `variance/12` and `variance/720`. With `noise_time`, a function
    of the time, the second normal serves for a time inside.

    Source: Foster, dos Reis & Strange 2023, arXiv:2210.17543, section 1.
    """
    std = safe_sqrt(variance)
    names, factors = ("W", "H", "K")[: len(normals)], (1.0, 1 / math.sqrt(12), 1 / math.sqrt(720))
    values = {k: scale(f * std, z) for k, f, z in zip(names, factors, normals, strict=False)}
    kind = (dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea)[len(normals) - 1]
    return StepBrownianPath(t0, t1, kind(dt=t1 - t0, **values), kind, noise_time)


def block_length(x: PyTree) -> int:
    """Steps whose normals come from one key: a fixed function of the event's size.

    Deriving a key costs more than the numbers it gives where the event is small; where it is large, large blocks
    leave the cache.
    """
    return max(1, min(20, 64 // max(size(x), 1)))


def block_normals(key: PRNGKey, block: Any, x: PyTree, kinds: int) -> tuple[PyTree, ...]:
    """`kinds` standard normals for each step of a block, stacked along a leading axis of `block_length(x)`."""
    leaves, treedef = jtu.tree_flatten(x)
    keys = jr.split(jr.fold_in(key, block), (kinds, len(leaves))) if kinds * len(leaves) > 1 else None
    rows = []
    for kind in range(kinds):
        draws = [
            jr.normal(
                jr.fold_in(key, block) if keys is None else keys[kind, i],
                (block_length(x), *leaf.shape),
                leaf.dtype,
            )
            for i, leaf in enumerate(leaves)
        ]
        rows.append(jtu.tree_unflatten(treedef, draws))
    return tuple(rows)


def levy_kinds(solver: dfx.AbstractSolver) -> int:
    """How many normals a step of the solver takes: the increment, and the Lévy areas or the inner time it asks for."""
    if getattr(solver, "asks_inside", False):
        return 2
    area = getattr(solver, "minimal_levy_area", dfx.AbstractBrownianIncrement)
    if issubclass(area, dfx.AbstractSpaceTimeTimeLevyArea):
        return 3
    return 2 if issubclass(area, dfx.AbstractSpaceTimeLevyArea) else 1


def shape_of(x: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types of an event."""
    return jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
