"""A Brownian path for adaptive SDEs, in the noise time of a clock."""

from typing import Any

import diffrax as dfx
import jax.numpy as jnp

from ._engine import SolverRule, adaptive_equation, meet
from ._event import event_like
from ._field import AbstractField
from ._kinds import check_kinds
from ._noise_rule import AbstractNoiseRule
from ._sample import ends
from ._sampler import AdaptiveSteps, as_sampler
from ._types import Number, PRNGKey
from ._validate import check_key, stream


def brownian_tree(
    field: AbstractField,
    sampler: Any,
    key: PRNGKey,
    shape: Any,
    *,
    resolution: Number = 2**-12,
    levy_area: type[dfx.AbstractBrownianIncrement] = dfx.BrownianIncrement,
) -> dfx.VirtualBrownianTree:
    """A Brownian path known at every time, for `brownian=` of a sampler whose steps are adaptive or look inside.

    It runs in the noise time of the sampler's clock, over a little more than the sampler's interval, so that rounding
    does not lead out of it.

    Args:
        field: The field to sample.
        sampler: The sampler, with `eta` or `diffusion`.
        key: Decides the path.
        shape: The event's shape, as in `sample`.
        resolution: Its tolerance, in units of the whole interval.
        levy_area: What the solver asks for beside the increment, as `diffrax.SpaceTimeLevyArea`.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sampler = jf.AdaptiveSteps(dfx.SRA1(), rtol=1e-2, atol=1e-2, t0=0.01, t1=0.99, eta=1.0)
    tree = jf.brownian_tree(field, sampler, jr.key(1), (2,), levy_area=dfx.SpaceTimeLevyArea)
    assert jf.sample(field, jr.key(0), (2,), sampler, brownian=tree).status == 0
    ```
    """
    check_kinds(brownian_tree, locals())
    check_key(key, "brownian_tree")
    sampler = as_sampler(sampler)
    equation: Any
    if isinstance(sampler, AdaptiveSteps):
        equation, (t0, t1) = adaptive_equation(field, sampler), ends(sampler)
    else:
        rule, end = meet(field, sampler, object())  # the checks of a sampler that is given a source
        if not isinstance(rule, SolverRule):
            raise ValueError(
                f"A Brownian path must go with a diffrax solver. Got {type(rule).__name__}, which has its own noise."
            )
        times = sampler.times if isinstance(sampler.times, jnp.ndarray) else sampler.times.times(field.path)
        last = -2 if end == "denoise" else -1  # the data prediction takes no noise
        equation, t0, t1 = rule.equation(field), times[0], times[last]
    if not equation.noisy:
        raise ValueError("A Brownian path must go with an SDE. Got a sampler without noise: give eta= or diffusion=.")
    if isinstance(sampler.eta, AbstractNoiseRule) or jnp.ndim(0.0 if sampler.eta is None else sampler.eta):
        raise ValueError(
            f"A Brownian path must have one eta, since the time of the noise depends on it. Got {sampler.eta!r}."
        )
    path: Any = equation.field.path
    clock, eta = equation.clock, jnp.asarray(0.0 if sampler.eta is None else sampler.eta)
    start, stop = (clock.noise_time(path, jnp.asarray(t, float), eta) for t in (t0, t1))
    margin = 1e-4 * (stop - start)
    return dfx.VirtualBrownianTree(
        start - margin, stop + margin, (stop - start) * resolution, event_like(shape), stream(key, "brownian_tree"),
        levy_area=levy_area,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
