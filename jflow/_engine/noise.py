"""Noise on a fixed grid: increments keyed by the index of the step, and what a solver asks of them."""

import math
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._event import combine, safe_sqrt, scale


class StepBrownianPath(dfx.AbstractBrownianPath):
    """A Brownian path known over one step only, through its increment and Lévy areas.

    A solver that asks for any other interval was found out on a trial step (`count.trial`), before tracing; so the
    increment is the answer to every query. `share`, a function of the clock's time, is given where a solver asks
    for the noise up to a time inside the step.
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
        """The increment `W_q` up to a share `q` of the step, given that over the step, `W`: the Brownian bridge
        `q W + sqrt(12 q (1 - q)) H`, whose normal is that of the Lévy area (of variance a twelfth of that of `W`, and
        independent of it). The pair has the law it has along one path; the area itself then is not that of the path.
        """
        return combine((share, self.increment.W), (safe_sqrt(12 * share * (1 - share)), self.increment.H))


def step_path(t0: Any, t1: Any, variance: Any, normals: tuple[PyTree, ...], share: Any = None) -> StepBrownianPath:
    """The path of one step from its normals: the increment, then, where given, the space-time and the
    space-time-time Lévy areas, of variances `variance`, `variance/12` and `variance/720`.

    Source: Foster, dos Reis & Strange 2023, arXiv:2210.17543, section 1.
    """
    std = safe_sqrt(jnp.asarray(variance))
    names, factors = ("W", "H", "K")[: len(normals)], (1.0, 1 / math.sqrt(12), 1 / math.sqrt(720))
    values = {k: scale(f * std, z) for k, f, z in zip(names, factors, normals, strict=False)}
    kind = (dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea)[len(normals) - 1]
    return StepBrownianPath(t0, t1, kind(dt=t1 - t0, **values), kind, share)


class NoiseTerm(dfx.AbstractTerm):
    """`diffusion dW` for a coefficient that is a number, diagonal (of the state's shape) or a matrix, in the types of
    the state `like`, whatever the source's.
    """

    coefficient: Any
    control: Any
    like: PyTree
    noise_time: Any = None  # the time in which a foreign source is asked; `None` for the clock's own
    colour: Any = None  # the linear map of the source, applied to white increments

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
