"""Uniform distributions on boxes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._kinds import check_kinds
from .._path import AbstractPath
from .._types import Number, PRNGKey, Time
from .._validate import check_count, concrete, stream
from ._abstract import AbstractDensity, Moments, Numbers, log_weights, marginal_weights, values
from ._mixing import draw, mix
from ._truncated import interval_moments


class Boxes(AbstractDensity):
    """A mixture of uniform distributions on boxes `[low_k, high_k]`.

    Given `x_t`, the data in a box is normal, `N(x/alpha, (sigma/alpha)^2)`, truncated to the box; its mean and
    the box's weight come from tail functions that keep their digits on both sides of the box, and for noise that is
    wide beside it. Where sigma = 0 and `x` lies in no box, the data is the limit, the nearest point of the nearest box;
    velocity, noise and score are infinite there, and come as NaN.

    ```python
    world = jf.distributions.Boxes([[0.0, 0.0]], [[2.0, 1.0]])
    assert jnp.allclose(world.log_prob(jnp.array([0.5, 0.5])), -jnp.log(2))
    ```
    """

    lows: Array
    highs: Array
    log_weights: Array
    noise: Array

    def __init__(
        self,
        lows: Numbers,
        highs: Numbers,
        weights: Numbers | None = None,
    ):
        """Makes the mixture of its boxes.

        Args:
            lows: The low corners, of shape `(k, *event)`.
            highs: The high corners, of the same shape.
            weights: Weights of any positive sum; by default proportional to the volumes, so that boxes that do not
                overlap have one density.

        Raises `ValueError` unless each low is below its high, and the shapes fit.
        """
        self.lows, self.highs = values(lows, "Corners of boxes"), values(highs, "Corners of boxes")
        if self.lows.shape != self.highs.shape or self.lows.ndim == 0 or self.lows.shape[0] == 0:
            raise ValueError(
                "lows and highs must have the same shape, (k, *event), k the number of boxes. "
                f"Got {self.lows.shape} and {self.highs.shape}."
            )
        low, high = concrete(self.lows), concrete(self.highs)
        if low is not None and high is not None and not (low < high).all():
            raise ValueError(
                "A box must have its low corner below its high one in every component. Got one that does not."
            )
        k = self.lows.shape[0]
        if weights is None:
            log_volumes = jnp.sum(jnp.log(self.highs - self.lows).reshape(k, -1), axis=1)
            self.log_weights = jax.nn.log_softmax(log_volumes)
        else:
            self.log_weights = log_weights(weights, k)
        self.noise = jnp.zeros((), self.lows.dtype)

    @property
    def shape(self):
        return self.lows.shape[1:]

    def sample(self, key: PRNGKey) -> Float[Array, "..."]:
        key_box, key_point, key_noise = jr.split(stream(key, "Boxes"), 3)
        k = draw(key_box, self.log_weights)
        share = jr.uniform(key_point, self.shape, self.lows.dtype)
        point = self.lows[k] + (self.highs[k] - self.lows[k]) * share
        return point + self.noise * jr.normal(key_noise, self.shape, self.lows.dtype)

    def at(self, path: AbstractPath, t: Time) -> "Boxes":
        """Boxes scaled by alpha, blurred with a Gaussian of variance sigma^2 (beside the blur they had)."""
        alpha, sigma = marginal_weights(path, t)
        marginal = alpha * self.lows, alpha * self.highs, jnp.hypot(alpha * self.noise, sigma)
        return eqx.tree_at(lambda b: (b.lows, b.highs, b.noise), self, marginal)

    def _moments(self, alpha, sigma, x, args):
        root = jnp.hypot(alpha * self.noise, sigma)
        sharp = root == 0

        def component(row: PyTree) -> Moments:
            log_prob, inner, score = interval_moments(x, alpha, root, *row)
            # of the blur at hand, alpha noise / root belongs to the data
            share = alpha * (self.noise / jnp.where(sharp, 1, root)) ** 2
            # without blur the nearest box takes all the weight, as for a tiny one
            tiny = -((x - alpha * inner) ** 2) / jnp.asarray(2e-30, x.dtype)
            log_prob = jnp.sum(jnp.where(sharp & (log_prob == -jnp.inf), tiny, log_prob))
            return Moments(log_prob, inner + share * (x - alpha * inner), score)

        moments = mix(component, (self.lows, self.highs), self.log_weights, x)
        within = jax.vmap(lambda low, high: jnp.all((x >= alpha * low) & (x <= alpha * high)))(self.lows, self.highs)
        outside = sharp & ~jnp.any(within)
        log_prob = jnp.where(outside, -jnp.inf, moments.log_prob)
        return Moments(log_prob, moments.data, jnp.where(outside, jnp.nan, moments.score))


def checkerboard(cells: int = 4, half_width: Number = 5.0) -> Boxes:
    """The squares of a board on `[-half_width, half_width]^2`, `cells` to a side, where `i + j` is even.

    With the defaults the density is 1/50 on the squares, and `E|x|^2 = 50/3`. Raises `ValueError` for `cells` below 1.

    ```python
    assert jnp.allclose(jf.distributions.checkerboard().log_prob(jnp.array([-4.0, -4.0])), -jnp.log(50))
    ```
    """
    check_kinds(checkerboard, locals())
    check_count(cells=cells)
    squares = np.asarray([(i, j) for i in range(cells) for j in range(i % 2, cells, 2)], np.float64)
    side = 2 * half_width / cells
    return Boxes(squares * side - half_width, (squares + 1) * side - half_width)
