"""Noise rules: amplitudes of the noise as other families count them, a value a step."""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._event import safe_sqrt
from ._path import AbstractAffinePath
from ._types import Noun
from ._validate import concrete, parameter


class AbstractNoiseRule(Noun):
    """A rule for the noise of each step of a grid, in the place of a number `eta`.

    A step with a frozen data prediction is `x' = (sigma'/sigma) q x + alpha' (1 - q e^(-h)) data + sigma'
    sqrt(1 - q^2) z`, with `h` the step in half log-SNR and `q` the share of the noise that is kept.

    ```python
    class Late(jf.AbstractNoiseRule):  # noise in the second half alone, where all of it is new
        def kept(self, path, times):
            return jnp.where(times[:-1] < 0.5, 1.0, 0.0)

    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sampler = jf.FixedSteps(jf.UniformGrid(8), clock=jf.ThetaClock(), eta=Late(), end="denoise")
    assert jf.sample(field, jr.key(0), (2,), sampler).status == 0
    ```
    """

    @abc.abstractmethod
    def kept(self, path: AbstractAffinePath, times: Float[Array, " points"]) -> Float[Array, " steps"]:
        """`q` of each step, in [0, 1]: `e^(-eta^2 h)` for the amplitude `eta`."""


class Ancestral(AbstractNoiseRule):
    """The noise of DDIM's and Euler-ancestral's `eta`: `q = sqrt(1 - eta^2 (1 - e^(-2 h)))`.

    In k-diffusion's words `sigma_up = eta sigma' sqrt(1 - e^(-2 h))` and `sigma_down = q sigma'`. It is another family
    than the amplitude `eta`, the same at 0, at 1 and for short steps. `q` is finite for a first step from
    `alpha = 0`, where `h` is infinite and no amplitude would give it. It goes with `diffrax.Euler()` in `ThetaClock()`.

    Source: Song et al. 2021, arXiv:2010.02502, equation 16.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
    sampler = jf.FixedSteps(jf.UniformGrid(20), clock=jf.ThetaClock(), eta=jf.Ancestral(0.5), end="denoise")
    assert jf.sample(world.field(jf.CondOT()), jr.key(0), (2,), sampler).status == 0
    ```
    """

    eta: PyTree

    def __check_init__(self):
        number = concrete(parameter(self.eta, "eta", positive=False))
        if number is not None and not 0 <= number <= 1:
            raise ValueError(f"The eta of DDIM must be a number from 0 to 1. Got {self.eta!r}.")

    def kept(self, path: AbstractAffinePath, times: Float[Array, " points"]) -> Float[Array, " steps"]:
        alpha, sigma = jax.vmap(path.alpha)(times), jax.vmap(path.sigma)(times)
        ratio = alpha[:-1] * sigma[1:] / (sigma[:-1] * alpha[1:])  # e^(-h)
        # 1 - e^(-2h), without cancellation for short steps
        short = ratio > 0.5
        change = jnp.where(short, -jnp.expm1(2 * jnp.log(jnp.where(short, ratio, 1))), 1 - ratio**2)
        eta = jnp.asarray(self.eta).astype(times.dtype)
        return safe_sqrt(1 - eta**2 * change)
