"""The regression that trains every field."""

import functools as ft
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ._args import Args
from ._event import as_state, cast_like, state_dtype
from ._field import AbstractField
from ._kinds import check_kinds
from ._path import AbstractAffinePath
from ._prediction import heads
from ._source import UNPADDED, AbstractGaussianSource, noise_map
from ._types import PRNGKey, Time
from ._validate import concrete, scalar_time, streams
from ._weight import LogSNRWeight
from .laws import AbstractLaw, Uniform


def matching_loss(
    field: AbstractField,
    key: PRNGKey,
    x1: PyTree,
    args: Any = None,
    *,
    x0: PyTree | None = None,
    t: Time | None = None,
    law: AbstractLaw | None = None,
    weight: Callable[[Array], Array] | None = None,
    mask: PyTree | None = None,
) -> Float[Array, ""]:
    """One example's regression of a field on its own prediction: flow matching, denoising or noise prediction.

    `weight(log_snr(t)) mean((prediction(t, x_t, args) - target)^2)`, `x_t = alpha x1 + sigma x0`, the target being
    `alpha' x1 + sigma' x0` for a velocity, `x1` for data, `x0` for noise, `-x0/sigma` for a score and
    `alpha x0 - sigma x1` for v; the cross-entropy of `x1` for logits. The mean runs over the components of the event;
    several heads add up.

    Args:
        field: The field.
        key: Decides the time, x0, the path's latent, and what the network draws.
        x1: One data example.
        args: Its bare condition.
        x0: Its partner at the noise end; by default a draw of the path's source. Pairs need a source that says so,
            `Normal(coupled=True)` or `GIVEN`.
        t: Its time; by default drawn from `law`.
        law: The law of times, `jf.laws.Uniform()` by default.
        weight: A function of the whole log-SNR, as `jf.edm_weight(0.5)`.
        mask: Which components of a padded event are there, of the first axes of the event: the mean runs over these.
            Source and path read it as the entry `mask` of `args`, which it is by default.

    Along an affine path `x1` and `x0` are taken within the space that the source fills: padding is zero, whatever
    stands there, and with `ZeroCentre` the data are centred.

    Returns:
        The loss, a scalar.

    Raises `ValueError` where the expectation is infinite: a velocity up to t = 1 along a path whose `sigma'` is
    infinite there, a score up to t = 1 along a path that ends at the data.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation 14; Ho et al. 2020, arXiv:2006.11239, equation 14.

    ```python
    field = jf.Field(jf.nn.MLP(2, rngs=nnx.Rngs(0)), jf.CondOT(), predicts="velocity")
    assert jf.matching_loss(field, jr.key(0), jnp.ones(2)).shape == ()
    ```
    """
    check_kinds(matching_loss, locals())
    law = Uniform() if law is None else law
    _check(field, x0, law, weight, t)
    path = field.path
    key_time, key_source, key_latent, key_net = streams(key, "matching_loss", 4)
    x1 = as_state(x1, "Data", letters=path.letters)
    t = law.sample(key_time, path) if t is None else scalar_time(t)  # pyright: ignore[reportArgumentType]
    t = t.astype(state_dtype(x1))
    if mask is not None:
        args = Args(Args.of(args).condition, **{**Args.of(args).entries, "mask": mask})
    if x0 is None:
        x0 = path.source.sample(key_source, x1, args)
    elif not path.letters:
        x0 = cast_like(as_state(x0, "x0"), x1, "x0")
    if isinstance(path, AbstractAffinePath):
        x0, x1 = (noise_map(path.source).project(x, args) for x in (x0, x1))
    z = path.latent(key_latent, x1, args)
    value = field.conditional(t, path.interpolate(t, x0, x1, z), args, key_net)
    values = value if isinstance(field.predicts, tuple) else (value,)
    loss = sum(
        mean_present(head.errors(v, head.target(path, t, x0, x1, z, args)), args)
        for head, v in zip(heads(field.predicts), values, strict=True)
    )
    return jnp.asarray(loss if weight is None else weight(path.log_snr(t)) * loss)  # pyright: ignore


def mean_present(errors: PyTree, args: Any) -> Array:
    """The mean of the errors over the components of the event that are there."""
    total = ft.reduce(operator.add, map(jnp.sum, jtu.tree_leaves(UNPADDED.apply(errors, args))))
    return total / jnp.asarray(UNPADDED.rank(errors, args), total.dtype)


def _check(field, x0, law, weight, t):
    if weight is not None and not isinstance(field.path, AbstractAffinePath):
        raise ValueError(f"weight must have an affine path: it takes the log-SNR. Got {type(field.path).__name__}.")
    if isinstance(weight, LogSNRWeight) and {head.name for head in heads(field.predicts)} != {weight.predicts}:
        why = f"Got that of a {weight.predicts!r} loss for a field that predicts {field.predicts!r}"
        raise ValueError(f"weight must be that of the field's own loss. {why}: pass predicts= where it is made.")
    known = None if t is None else concrete(t)
    if known is not None and not known.ndim and not 0 <= known <= 1:
        level = "for a noise level s = sigma/alpha it is path.log_snr_inverse(-2 * jnp.log(s))"
        raise ValueError(f"t must lie between 0, the noise, and 1, the data. Got {t!r}: {level}.")
    source = field.path.source
    if x0 is not None and isinstance(source, AbstractGaussianSource) and not source.coupled:
        raise ValueError(
            "Pairs must have a source that says so, for with dependent pairs the score is not -noise/sigma. Got x0= "
            f"along a path with the source {type(source).__name__}(): take jf.CondOT(source=jf.Normal(coupled=True)) "
            "where x0 is Gaussian, or source=jf.GIVEN."
        )
    path = field.path
    if t is not None or not isinstance(path, AbstractAffinePath) or not law.reaches_data or weight is not None:
        return
    for name in (head.name for head in heads(field.predicts)):
        if (name == "velocity" and not path.finite_sigma_dot) or (name == "score" and path.ends_at_data):
            why = "sigma prime is not finite" if name == "velocity" else "the score is"
            raise ValueError(
                f"The {name} loss must have a finite expectation. Got times up to t = 1 along {type(path).__name__}, "
                f"where {why}: stop short, as law=jf.laws.Uniform(0.0, 0.999), or predict 'data', 'noise' or 'v'."
            )
