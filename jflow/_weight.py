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
# path v loss = (1 + SNR) data loss. Each form is finite wherever its limit is. `l` is the log-SNR.
_FORMS = {
    "edm": {"data": lambda l, sigma_data: jnp.exp(l) + 1 / sigma_data**2},
    "min_snr": {
        "data": lambda l, gamma: jnp.minimum(jnp.exp(l), gamma),
        "noise": lambda l, gamma: jnp.minimum(1, gamma * jnp.exp(-l)),
        "v": lambda l, gamma: jnp.minimum(sigmoid(l), gamma * sigmoid(-l)),
    },
    "soft_min_snr": {
        "data": lambda l, gamma: gamma * sigmoid(l - jnp.log(gamma)),
        "noise": lambda l, gamma: sigmoid(jnp.log(gamma) - l),
        "v": lambda l, gamma: gamma * sigmoid(l - jnp.log(gamma)) * sigmoid(-l),
    },
    "sigmoid": {
        "data": lambda l, bias: jnp.exp(-jnp.logaddexp(-l, -bias)),
        "noise": lambda l, bias: sigmoid(bias - l),
        "v": lambda l, bias: jnp.exp(-jnp.logaddexp(-l, -bias)) * sigmoid(-l),
    },
    "likelihood": {
        "data": lambda l, _: jnp.exp(l),
        "noise": lambda l, _: jnp.ones_like(l),
        "v": lambda l, _: sigmoid(l),
    },
}


class LogSNRWeight(Noun):
    """A weight by its rule and the prediction whose loss it multiplies; the number of the rule does not retrace."""

    rule: str = eqx.field(static=True)
    predicts: str = eqx.field(static=True)
    number: Array = frozen()

    def __call__(self, log_snr: Array) -> Array:
        return _FORMS[self.rule][self.predicts](log_snr, self.number.astype(log_snr.dtype))


def edm_weight(sigma_data: Time) -> LogSNRWeight:
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
    return LogSNRWeight("edm", "data", parameter(sigma_data, "sigma_data"))


def min_snr_weight(gamma: Time = 5.0, *, predicts: Prediction = "data") -> LogSNRWeight:
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
    return LogSNRWeight("min_snr", _name(predicts), parameter(gamma, "gamma"))


def soft_min_snr_weight(gamma: Time = 5.0, *, predicts: Prediction = "data") -> LogSNRWeight:
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
    return LogSNRWeight("soft_min_snr", _name(predicts), parameter(gamma, "gamma"))


def sigmoid_weight(bias: Time = 0.0, *, predicts: Prediction = "data") -> LogSNRWeight:
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
    return LogSNRWeight("sigmoid", _name(predicts), parameter(bias, "bias", positive=False))


def likelihood_weight(*, predicts: Prediction = "noise") -> LogSNRWeight:
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
    return LogSNRWeight("likelihood", _name(predicts), jnp.ones(()))


def _name(predicts: Any) -> str:
    name = as_prediction(predicts).name
    if name not in ("data", "noise", "v"):
        raise ValueError(
            "predicts must be 'data', 'noise' or 'v': for these alone the weight is a function of log-SNR. "
            f"Got {name!r}, whose weight depends on the path too: write your own, as weight=lambda log_snr: ..."
        )
    return name
