"""Distribution matching: the draws of a map follow the law of a teacher, whichever noise leads to which draw."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from .._event import as_state, combine, state_dtype
from .._field import AbstractField
from .._flow_map import FlowMap
from .._kinds import check_kinds
from .._loss import matching_loss, mean_present
from .._source import noise_map
from .._types import PRNGKey
from .._validate import streams
from ..laws import AbstractLaw, Uniform
from ._loss import check_path

_hold = jax.lax.stop_gradient
_LAW = Uniform(0.02, 0.98)


def distribution_matching_loss(
    pair: tuple[FlowMap, AbstractField],
    key: PRNGKey,
    x1: PyTree,
    args: Any = None,
    *,
    teacher: AbstractField,
    law: AbstractLaw | None = None,
) -> Float[Array, ""]:
    """One example's loss of a map that draws in one call, and of a field that follows what it draws.

    The map's draw is `d = X_{0,1}(x0)`, and `x_t = alpha d + sigma x0'` with another noise. The gradient of
    `KL(draws || data of the teacher)`, both noised to t, is a difference of data predictions: that of a field `fake`
    which learns the draws, and that of the teacher. With `g = (fake - teacher) / mean |d - teacher|` the loss is

        mean (d - sg(d - g))^2 / 2 + matching_loss(fake, sg(d))

    The map gets its gradient from the first term alone, the field from the second. At the optimum the draws have the
    teacher's law. Which noise leads to which draw is free, so a small network is enough. Begin with a map of some
    quality, as one of `flow_map_loss`, and with `fake` a copy of the teacher. `fake` must keep up with the map: give it
    about six times the rate, by `optax.partition`. With equal rates the draws get worse.

    Args:
        pair: The map and `fake`, both trained: `jf.train.init((flow_map, fake), ...)`.
        key: Decides the noises and the time.
        x1: One data example, of which the shape and the type alone are used.
        args: The bare condition of the draw.
        teacher: A field along the map's path, which is held.
        law: The law of t, `jf.laws.Uniform(0.02, 0.98)` by default.

    Returns:
        The loss, a scalar.

    Raises `ValueError` for fields along other paths than the map's, `TypeError` for a pair of something else.

    Source: Yin et al. 2023, arXiv:2311.18828, equations 7 and 8; without its regression on pairs, as Yin et al. 2024,
    arXiv:2405.14867, section 4.1.

    ```python
    world = jf.distributions.Gaussian(jnp.ones(2), std=0.5)
    teacher = world.field(jf.CondOT())
    exact = jf.FlowMap(lambda s, t, x, args: 1 - 0.5 * x, jf.CondOT())  # its jump from 0 to 1 draws the world
    loss = jf.few_step.distribution_matching_loss((exact, teacher), jr.key(0), jnp.ones(2), teacher=teacher)
    assert loss >= 0
    ```
    """
    check_kinds(distribution_matching_loss, locals())
    flow_map, fake = _checked(pair, teacher)
    path, law = flow_map.path, _LAW if law is None else law
    key_source, key_time, key_noise, key_fake = streams(key, "distribution_matching_loss", 4)
    x1 = as_state(x1, "Data")
    t = law.sample(key_time, path).astype(state_dtype(x1))
    start, noise = (
        noise_map(path.source).project(path.source.sample(k, x1, args), args) for k in (key_source, key_noise)
    )
    draw = flow_map.jump(jnp.zeros_like(t), jnp.ones_like(t), start, args)
    known = _hold(draw)
    x = path.interpolate(t, noise, known)
    real, own = (_hold(field.data(t, x, args)) for field in (teacher, fake))
    scale = mean_present(jtu.tree_map(jnp.abs, combine((1, known), (-1, real))), args)
    error = combine((1, draw), (-1, known), (1 / scale, own), (-1 / scale, real))
    square = mean_present(jtu.tree_map(jnp.square, error), args)
    return square / 2 + matching_loss(fake, key_fake, known, args)


def _checked(pair, teacher):
    """The map and the field; raises where the parts do not go together."""
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], FlowMap)):
        raise TypeError(
            "distribution_matching_loss must have a pair (flow_map, fake), a jflow.FlowMap and a field. Got "
            f"{type(pair).__name__}: fake learns what the map draws, and may begin as a copy of the teacher."
        )
    for name, field in (("fake", pair[1]), ("teacher", teacher)):
        if not isinstance(field, AbstractField):
            raise TypeError(f"{name} must be a field, as jflow.Field(net, path, predicts). Got {type(field).__name__}.")
        check_path(field, pair[0], name)
    return pair
