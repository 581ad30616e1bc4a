"""Networks whose data prediction keeps to the bounds of the data."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._types import Event, Noun, PRNGKey

SLOPE, LEAST = 0.05, 0.05


class Bounded(Noun):
    """A network of the velocity along `CondOT`, of one time or of two, that knows the bounds of the data.

    The data prediction `y = x + (1 - t) u(t, x)` is a mean of data, so it lies between their bounds. So does that of an
    average velocity, `y = x + (1 - s) u(s, t, x)`, which is a mean over the steps from s to t. Where the network's is
    beyond a bound, it is led back but for a twentieth:

        u' = u + 0.95 (clip(y, low, high) - y) / max(1 - s, 0.05)

    Images whose background is at a bound, as digits, have one without grain: the network may be anywhere beyond it.
    The floor of `1 - s` keeps the velocity at the end of a solve from growing.

    Source: derived; data prediction under the loss of the velocity, with that floor: Li & He 2025, arXiv:2511.13720;
    for flow maps: Lu et al. 2026, arXiv:2601.22158.

    ```python
    field = jf.Field(jf.nn.Bounded(lambda t, x, args: jnp.full_like(x, 9.0)), jf.CondOT(), "velocity")
    assert jnp.allclose(field.data(0.0, jnp.zeros(2)), 1 + 0.05 * 8)
    ```
    """

    net: Callable[..., PyTree]
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, net: Callable[..., PyTree], low: float = -1.0, high: float = 1.0):
        """Wraps a network.

        Args:
            net: `net(t, x, args)`, or `net(s, t, x, args)` of a flow map.
            low: The lowest number in the data.
            high: The highest.

        Raises `ValueError` for bounds that are not in order.
        """
        self.net, self.low, self.high = net, float(low), float(high)

    def __check_init__(self):
        if not self.low < self.high:
            raise ValueError(f"The bounds must be in order, low < high. Got low={self.low:g} and high={self.high:g}.")

    def __call__(self, *given: PyTree, **options: PRNGKey | None) -> Event:
        """The velocity; `given` is that of the network, `(t, x, args)` or `(s, t, x, args)`."""
        left = 1 - jnp.asarray(given[0])

        def led(x, u):
            end = x + left * u
            return u + (1 - SLOPE) * (jnp.clip(end, self.low, self.high) - end) / jnp.maximum(left, LEAST)

        return jtu.tree_map(led, given[-2], self.net(*given, **options))
