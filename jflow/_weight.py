"""Weights of the loss: functions of the whole log-SNR, of which the numbers are arrays."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array

from ._prediction import Prediction, as_prediction
from ._trainable import frozen
from ._types import Noun, Time
from ._validate import parameter

# A weight of the data loss has a form for each prediction: noise loss = SNR data loss, and along a variance-preserving
# path v loss = (1 + SNR) data loss. Each form is finite wherever its limit is.


class EDMWeight(Noun):
    """What `edm_weight` returns."""

    sigma_data: Array = frozen()

    def __call__(self, log_snr: Array) -> Array:
        return jnp.exp(log_snr) + 1 / self.sigma_data.astype(log_snr.dtype) ** 2


class MinSNRWeight(Noun):
    """What `min_snr_weight` returns."""

    predicts: str = eqx.field(static=True)
    gamma: Array = frozen()

    def __call__(self, log_snr: Array) -> Array:
        gamma = self.gamma.astype(log_snr.dtype)
        if self.predicts == "data":
            return jnp.minimum(jnp.exp(log_snr), gamma)
        if self.predicts == "noise":
            return jnp.minimum(1, gamma * jnp.exp(-log_snr))
        return jnp.minimum(sigmoid(log_snr), gamma * sigmoid(-log_snr))


class SoftMinSNRWeight(Noun):
    """What `soft_min_snr_weight` returns."""

    predicts: str = eqx.field(static=True)
    gamma: Array = frozen()

    def __call__(self, log_snr: Array) -> Array:
        gamma = self.gamma.astype(log_snr.dtype)
        over = log_snr - jnp.log(gamma)
        if self.predicts == "noise":
            return sigmoid(-over)
        return gamma * sigmoid(over) * (1 if self.predicts == "data" else sigmoid(-log_snr))


class SigmoidWeight(Noun):
    """What `sigmoid_weight` returns."""

    predicts: str = eqx.field(static=True)
    bias: Array = frozen()

    def __call__(self, log_snr: Array) -> Array:
        bias = self.bias.astype(log_snr.dtype)
        if self.predicts == "noise":
            return sigmoid(bias - log_snr)
        return jnp.exp(-jnp.logaddexp(-log_snr, -bias)) * (1 if self.predicts == "data" else sigmoid(-log_snr))


class LikelihoodWeight(Noun):
    """What `likelihood_weight` returns."""

    predicts: str = eqx.field(static=True)

    def __call__(self, log_snr: Array) -> Array:
        return {"data": jnp.exp, "noise": jnp.ones_like, "v": sigmoid}[self.predicts](log_snr)


def edm_weight(sigma_data: Time) -> EDMWeight:
    """EDM's weight of a data loss, `(s^2 + sigma_data^2)/(s sigma_data)^2` with `s = sigma/alpha`.

    Args:
        sigma_data: The standard deviation of the data.

    Raises `ValueError` for a `sigma_data` that is not positive.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.

    ```python
    weight = jf.edm_weight(0.5)
    assert weight(jnp.array(0.0)) == 5.0  # s = 1
    ```
    """
    return EDMWeight(parameter(sigma_data, "sigma_data"))


def min_snr_weight(gamma: Time = 5.0, *, predicts: Prediction = "data") -> MinSNRWeight:
    """Min-SNR-gamma: the data loss times `min(SNR, gamma)`.

    Args:
        gamma: The largest weight of the data loss.
        predicts: What the field predicts, `"data"`, `"noise"` or `"v"`: the weight is that of its loss.

    Raises `ValueError` for a `gamma` that is not positive, or another prediction.

    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4.

    ```python
    weight = jf.min_snr_weight(5.0, predicts="noise")
    assert weight(jnp.array(0.0)) == 1.0 and weight(jnp.log(10.0)) < 0.51
    ```
    """
    return MinSNRWeight(_name(predicts), parameter(gamma, "gamma"))


def soft_min_snr_weight(gamma: Time = 5.0, *, predicts: Prediction = "data") -> SoftMinSNRWeight:
    """Soft-min-SNR: the data loss times `SNR gamma / (SNR + gamma)`, a smooth form of `min(SNR, gamma)`.

    With `gamma = 1/sigma_data^2` it is `1/(s^2 + sigma_data^2)`, `s = sigma/alpha`, which k-diffusion has.

    Args:
        gamma: The limit of the weight of the data loss for little noise.
        predicts: What the field predicts, `"data"`, `"noise"` or `"v"`: the weight is that of its loss.

    Raises `ValueError` for a `gamma` that is not positive, or another prediction.

    Source: Crowson et al. 2024, arXiv:2401.11605.

    ```python
    weight = jf.soft_min_snr_weight(4.0)
    assert jnp.allclose(weight(jnp.array(0.0)), 0.8)
    ```
    """
    return SoftMinSNRWeight(_name(predicts), parameter(gamma, "gamma"))


def sigmoid_weight(bias: Time = 0.0, *, predicts: Prediction = "data") -> SigmoidWeight:
    """Sigmoid weighting: `sigmoid(bias - log_snr)` on the noise loss.

    Args:
        bias: The log-SNR at which the weight of the noise loss is one half.
        predicts: What the field predicts, `"data"`, `"noise"` or `"v"`: the weight is that of its loss.

    Raises `ValueError` for a `bias` that is not finite, or another prediction.

    Source: Kingma & Gao 2023, arXiv:2303.00848, section 5; Hoogeboom et al. 2024, arXiv:2410.19324, section 3.1.

    ```python
    weight = jf.sigmoid_weight(-2.0, predicts="noise")
    assert weight(jnp.array(-2.0)) == 0.5
    ```
    """
    return SigmoidWeight(_name(predicts), parameter(bias, "bias", positive=False))


def likelihood_weight(*, predicts: Prediction = "noise") -> LikelihoodWeight:
    """The weight of maximum likelihood: constant on the noise loss per unit of log-SNR.

    Under a law of times with density `p` it must be divided by `p(t)/log_snr'(t)`, which is a constant for
    `jflow.laws.UniformLogSNR`.

    Args:
        predicts: What the field predicts, `"data"`, `"noise"` or `"v"`: the weight is that of its loss.

    Raises `ValueError` for another prediction.

    Source: Kingma et al. 2021, arXiv:2107.00630, equation 14; Song et al. 2021, arXiv:2101.09258, theorem 1.

    ```python
    weight = jf.likelihood_weight(predicts="data")
    assert jnp.allclose(weight(jnp.log(3.0)), 3.0)  # the SNR
    ```
    """
    return LikelihoodWeight(_name(predicts))


def _name(predicts: Any) -> str:
    name = as_prediction(predicts).name
    if name not in ("data", "noise", "v"):
        raise ValueError(
            "predicts must be 'data', 'noise' or 'v': for these alone the weight is a function of log-SNR. "
            f"Got {name!r}, whose weight depends on the path too: write your own, as weight=lambda log_snr: ..."
        )
    return name
