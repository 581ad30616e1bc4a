"""Noise on a fixed grid: the increment of a step and its Lévy areas, in the form in which diffrax queries them."""

import math
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._event import combine, safe_sqrt, scale


class StepBrownianPath(dfx.AbstractBrownianPath):
    """A Brownian path over one step only, given by its increment and Lévy areas.

    Every query returns the increment of the whole step. Solvers that query another interval are found by a trial step
    before tracing (`count.trial`), and raise. Solvers that declare `asks_inside` query the noise from the start of the
    step to a time inside it. For those `share` maps that time, in the clock, to the share of the step's variance.
    """

    t0: Any
    t1: Any
    increment: Any
    levy_area: Any = eqx.field(static=True)
    share: Any = None

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        if self.share is None:
            return self.increment if use_levy else self.increment.W
        return self._inside(self.share(t1))

    def _inside(self, share):
        """The increment `W_q` up to a share `q` of the step, given the increment `W` over the whole step.

        It is a Brownian bridge, `W_q = q W + sqrt(q (1 - q) V) Z`, with `V` the variance of `W` and `Z` a normal
        independent of `W`. The area `H` is such a normal with the variance `V/12`, so the second term is
        `sqrt(12 q (1 - q)) H`. The pair `(W, W_q)` has the law that it has along one Brownian path. The triple with the
        area has not: `count.levy_kinds` draws the second normal for one of the two uses.
        """
        return combine((share, self.increment.W), (safe_sqrt(12 * share * (1 - share)), self.increment.H))


def step_path(t0: Any, t1: Any, variance: Any, normals: tuple[PyTree, ...], share: Any = None) -> StepBrownianPath:
    """The path of one step from its normals.

    The first normal gives the increment, of variance `variance`. The second and third, where given, are the space-time
    and the space-time-time Lévy area, of variances `variance/12` and `variance/720`.

    Source: Foster, dos Reis & Strange 2023, arXiv:2210.17543, section 1.
    """
    std = safe_sqrt(jnp.asarray(variance))
    names, factors = ("W", "H", "K")[: len(normals)], (1.0, 1 / math.sqrt(12), 1 / math.sqrt(720))
    values = {k: scale(f * std, z) for k, f, z in zip(names, factors, normals, strict=False)}
    kind = (dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea)[len(normals) - 1]
    return StepBrownianPath(t0, t1, kind(dt=t1 - t0, **values), kind, share)


class NoiseTerm(dfx.AbstractTerm):
    """`diffusion dW`. The coefficient is a number, an array of the state's shape (a diagonal matrix), or a matrix.

    The noise is cast to the types of the state `like`, since a foreign Brownian path may have other types.
    """

    coefficient: Any
    control: Any
    like: PyTree
    noise_time: Any = None  # maps tau to the time of a foreign path; `None`: it runs in tau
    colour: Any = None  # the linear map of the source, for white increments

    def vf(self, t, y, args):
        return self.coefficient(t, y, args)

    def contr(self, t0, t1, **kwargs):
        ends = (t0, t1) if self.noise_time is None else (self.noise_time(t0), self.noise_time(t1))
        return self.control.evaluate(*ends, **kwargs)

    def prod(self, vf, control):
        control = jtu.tree_map(lambda w, x: w.astype(x.dtype), control, self.like)
        if self.colour is not None:
            control = self.colour(control)
        if not isinstance(vf, (dict, list, tuple)) and jnp.ndim(vf) == 0:
            return scale(vf, control)
        return jtu.tree_map(_leaf_product, vf, control)


def _leaf_product(g, w):
    product = g @ w if jnp.ndim(g) == w.ndim + 1 else g * w
    return product.astype(w.dtype)
