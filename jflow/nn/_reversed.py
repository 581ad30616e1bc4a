"""Networks whose time runs the other way."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._field import check_net
from .._prediction import Prediction, heads
from .._types import Event, Noun, PRNGKey, Time


class Reversed(Noun):
    """A network trained with time reversed, `t = 1` noise and `t = 0` data, as a network in our time.

    `net(1 - t, x, args)`, with the other sign for a velocity, since `dx/ds = -dx/dt` where `s = 1 - t`; data, noise,
    score and v are the same in both times. The field's path is that of the paper in our time, as `CondOT` for
    `(1 - s) data + s noise`.

    ```python
    def net(s, x, args):  # of a paper in which x_s = (1 - s) data + s noise, for data that are 2
        return (x - 2) / s  # dx/ds = noise - data

    field = jf.Field(jf.nn.Reversed(net, "velocity"), jf.CondOT(), "velocity")
    assert jnp.allclose(field.data(0.3, jnp.ones(3)), 2.0)
    ```
    """

    net: Callable[..., PyTree]
    predicts: Prediction | tuple[Prediction, ...] = eqx.field(static=True)

    def __init__(self, net: Callable[..., PyTree], predicts: Prediction | tuple[Prediction, ...]):
        """Wraps `net(s, x, args)`, which predicts `predicts`, a name or a tuple of names for several heads.

        Raises `ValueError` for an unknown prediction, `TypeError` where the network does not take these arguments.
        """
        self.net, self.predicts = net, predicts

    def __check_init__(self):
        heads(self.predicts)
        check_net(self.net, False)

    def __call__(self, t: Time, x: PyTree, args: Any = None, key: PRNGKey | None = None) -> Event:
        """The prediction at our time `t`; `key` is for a network that draws."""
        value, own = self.net(1 - t, x, args, **({} if key is None else {"key": key})), heads(self.predicts)
        values = value if isinstance(self.predicts, tuple) else (value,)
        if not isinstance(values, (tuple, list)) or len(values) != len(own):
            raise ValueError(
                f"A network of {len(own)} heads must return a tuple of {len(own)} outputs. Got {type(value).__name__}."
            )
        pairs = zip(values, own, strict=True)
        turned = tuple(jtu.tree_map(jnp.negative, v) if head.name == "velocity" else v for v, head in pairs)
        return turned if isinstance(self.predicts, tuple) else turned[0]
