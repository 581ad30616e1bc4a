"""Noise that a user hands in for a fixed grid: recorded normals, and normals that refine consistently."""

import math

import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, PyTree, Shaped

from ._event import event_like, float_type
from ._kinds import check_kinds
from ._types import Checked, Noun, PRNGKey, Shape
from ._validate import check_count, check_key, is_real, shown, stream


class Recorded(Noun):
    """Noise given beforehand: one standard normal event for each step of a fixed grid.

    `normals` has the steps as its leading axis; step `i` takes `sqrt(length of the step) normals[i]`, the length in
    the time of the noise. A pytree of events has a pytree of normals.

    ```python
    normals, motion = jr.normal(jr.key(0), (4, 2)), jf.processes.BrownianMotion()
    noise = {"diffusion": motion.diffusion, "brownian": jf.Recorded(normals)}
    sol = jf.solve(motion.drift, jnp.zeros(2), jf.UniformGrid(4), **noise)
    assert jnp.allclose(sol.x, normals.sum(0) / 2, atol=1e-6)
    ```
    """

    normals: PyTree[Shaped[Array, "n ..."]]

    def __check_init__(self):
        if not all(map(is_real, jtu.tree_leaves(self.normals))):
            raise TypeError(f"Recorded normals must be arrays of real numbers. Got {shown(self.normals)}.")


def dyadic_noise(key: PRNGKey, n: int, shape: Checked[Shape]) -> Recorded:
    """One Brownian path seen on uniform grids of `n = 1, 2, 4, ...` steps: noise that refines consistently.

    From the normals `z` of a grid those of the grid twice as fine are `(z + e)/sqrt(2)` and `(z - e)/sqrt(2)`, with
    `e` independent of them (Lévy's construction): for one key, two steps of `2 n` add up to the step of `n`.

    Args:
        key: One typed key.
        n: The number of steps, a power of two.
        shape: The shape of the event, or a pytree of `jax.ShapeDtypeStruct`.

    Raises `ValueError` for another `n`. Source: Karatzas & Shreve 1991, section 2.3.

    ```python
    coarse, fine = (jf.dyadic_noise(jr.key(0), n, (3,)).normals for n in (4, 8))
    assert jnp.allclose(fine.reshape(4, 2, 3).sum(1) / jnp.sqrt(2), coarse, atol=1e-6)
    ```
    """
    check_kinds(dyadic_noise, locals())
    check_key(key, "dyadic_noise")
    check_count(n=n)
    if n & (n - 1):
        raise ValueError(f"n must be a power of two, since dyadic noise halves its steps. Got {n}.")
    leaves, treedef = jtu.tree_flatten(event_like(shape))
    keys = jr.split(stream(key, "dyadic_noise"), len(leaves))

    def leaf(key, like):
        dtype = float_type(like)
        z = jr.normal(jr.fold_in(key, 0), (1, *like.shape), dtype)
        while z.shape[0] < n:
            e = jr.normal(jr.fold_in(key, z.shape[0]), z.shape, dtype)
            z = jnp.stack([z + e, z - e], axis=1).reshape(-1, *like.shape) / math.sqrt(2)
        return z

    return Recorded(jtu.tree_unflatten(treedef, [leaf(k, like) for k, like in zip(keys, leaves, strict=True)]))
