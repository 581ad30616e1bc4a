"""The regression that trains every field, and its weights."""

import functools as ft
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax.nn import sigmoid
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._field import AbstractField, AbstractNetwork
from ._misc import as_state, cast_like, check_key, combine, normal_like, scalar_time, size, state_dtype
from ._prediction import Prediction, check_prediction, prediction_row
from ._times import AbstractLaw, Uniform
from ._types import PRNGKey, Time


def matching_loss(
    field: AbstractNetwork,
    key: PRNGKey,
    x1: PyTree,
    args: Any = None,
    *,
    x0: PyTree | None = None,
    t: Time | None = None,
    law: AbstractLaw | None = None,
    weight: Callable[[Array], Array] | None = None,
) -> Float[Array, ""]:
    """One example's regression of a field on its own prediction: flow matching, denoising or noise prediction.

    `weight(log_snr(t)) mean((prediction(t, x_t, args) - target)^2)`, `x_t = alpha x1 + sigma x0`, the target being
    `alpha' x1 + sigma' x0` for a velocity, `x1` for data, `x0` for noise, `-x0/sigma` for a score and
    `alpha x0 - sigma x1` for v. The mean runs over the components of the event.

    **Arguments:** `x1` one data example; `args` its bare condition; `x0` its noise (drawn by default);
    `t` its time (drawn from `law`, by default `Uniform(0, 1)`); `weight` a function of the whole log-SNR.

    Raises `ValueError` where the expectation is infinite: a velocity up to t = 1 along a path whose `sigma'` is
    infinite there, a score up to t = 1 along a path that ends at the data.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 14; Ho et al. 2020, arXiv:2006.11239, equation 14.
    """
    if not isinstance(field, AbstractField):
        raise TypeError(
            f"matching_loss takes a field, as jflow.Field(net, path, predicts). Got {type(field).__name__}."
        )
    check_key(key, "matching_loss")
    law = Uniform() if law is None else law
    if not isinstance(law, AbstractLaw):
        raise TypeError(f"law is a law of training times, as jflow.LogitNormal(). Got {law!r}.")
    if not (weight is None or callable(weight)):
        raise TypeError(f"weight is a function of the log-SNR, as jflow.edm_weight(0.5). Got {weight!r}.")
    if t is None:
        _check_expectation(field, law, weight)
    key_time, key_noise = jr.split(key)
    x1 = as_state(x1)
    t = law.sample(key_time, field.path) if t is None else scalar_time(t)
    t = t.astype(state_dtype(x1))
    x0 = normal_like(key_noise, x1) if x0 is None else cast_like(x0, x1, "x0")
    x_t = field.path.interpolate(t, x0, x1)
    s, a, b = prediction_row(field.path, field.predicts, t)
    target = combine((a / s, x1), (b / s, x0))
    error = jtu.tree_map(lambda u, v: jnp.sum((u - v) ** 2), field.conditional(t, x_t, args), target)
    loss = ft.reduce(operator.add, jtu.tree_leaves(error)) / size(x1)
    return loss if weight is None else weight(field.path.log_snr(t)) * loss


def _check_expectation(field, law, weight):
    path, name = field.path, field.predicts
    diverges = (name == "velocity" and not path.finite_sigma_dot) or (name == "score" and path.ends_at_data)
    if law.reaches_data and diverges and weight is None:
        raise ValueError(
            f"The {name} loss along {type(path).__name__} has an infinite expectation for times up to t = 1, where "
            f"{'sigma prime is infinite' if name == 'velocity' else 'the score is'}. Stop short, as "
            "law=jflow.Uniform(0.0, 0.999), or train a field that predicts 'data', 'noise' or 'v' and sample it alike."
        )


def edm_weight(sigma_data: ArrayLike) -> Callable[[Array], Array]:
    """EDM's weight of a data loss, `(s^2 + sigma_data^2)/(s sigma_data)^2` with `s = sigma/alpha`.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """
    return lambda log_snr: jnp.exp(log_snr) + 1 / jnp.asarray(sigma_data, log_snr.dtype) ** 2


def min_snr_weight(gamma: ArrayLike = 5.0, *, predicts: Prediction = "data") -> Callable[[Array], Array]:
    """Min-SNR-gamma: the data loss times `min(SNR, gamma)`, for a field that predicts data, noise or v.

    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """
    return _data_weight(
        predicts,
        data=lambda l: jnp.minimum(jnp.exp(l), gamma),
        noise=lambda l: jnp.minimum(1, gamma * jnp.exp(-l)),
        v=lambda l: jnp.minimum(sigmoid(l), gamma * sigmoid(-l)),
    )


def sigmoid_weight(bias: ArrayLike = 0.0, *, predicts: Prediction = "data") -> Callable[[Array], Array]:
    """Sigmoid weighting: `sigmoid(bias - log_snr)` on the noise loss, for a field that predicts data, noise or v.

    Source: Kingma & Gao 2023, arXiv:2303.00848, section 5; Hoogeboom et al. 2024, arXiv:2410.19324, section 3.1.
    """
    return _data_weight(
        predicts,
        data=lambda l: jnp.exp(bias) * sigmoid(l - bias),
        noise=lambda l: sigmoid(bias - l),
        v=lambda l: jnp.exp(bias) * sigmoid(l - bias) * sigmoid(-l),
    )


def likelihood_weight(*, predicts: Prediction = "noise") -> Callable[[Array], Array]:
    """The weight of maximum likelihood: constant on the noise loss per unit of log-SNR.

    Under a law of times with density `p` it is to be divided by `p(t)/log_snr'(t)`: take a law uniform in log-SNR.

    Source: Kingma et al. 2021, arXiv:2107.00630, equation 14; Song et al. 2021, arXiv:2101.09258, theorem 1.
    """
    return _data_weight(predicts, data=jnp.exp, noise=jnp.ones_like, v=sigmoid)


def _data_weight(predicts, **weights):
    """The form that a weight of the data loss takes for the prediction: noise loss = SNR data loss, and along a
    variance-preserving path v loss = (1 + SNR) data loss. Each form is finite wherever its limit is.
    """
    check_prediction(predicts)
    if predicts not in weights:
        raise ValueError(
            "As a function of log-SNR alone this weight exists for the predictions 'data', 'noise' and 'v'. "
            f"Got {predicts!r}; a velocity's or a score's depends on the path too."
        )
    return weights[predicts]
