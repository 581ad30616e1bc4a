"""A Brownian path for adaptive SDEs, in the noise time of a clock."""

import diffrax as dfx

from ._event import event_like
from ._field import AbstractField
from ._kinds import check_kinds
from ._sample import noise_span
from ._sampler import SamplerLike, as_sampler
from ._types import Checked, Number, PRNGKey, Shape
from ._validate import check_key, parameter, stream


def brownian_tree(
    field: AbstractField,
    sampler: Checked[SamplerLike],
    key: PRNGKey,
    shape: Checked[Shape],
    *,
    resolution: Number = 2**-12,
    levy_area: type[dfx.BrownianIncrement | dfx.SpaceTimeLevyArea | dfx.SpaceTimeTimeLevyArea] = dfx.BrownianIncrement,
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
        levy_area: What the solver needs beside the increment, as `diffrax.SpaceTimeLevyArea`.

    Raises `ValueError` for a resolution that is not positive, at which the tree would have no end.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sampler = jf.AdaptiveSteps(dfx.SRA1(), rtol=1e-2, atol=1e-2, t0=0.01, t1=0.99, eta=1.0)
    tree = jf.brownian_tree(field, sampler, jr.key(1), (2,), levy_area=dfx.SpaceTimeLevyArea)
    assert jf.sample(field, jr.key(0), (2,), sampler, brownian=tree).status == 0
    ```
    """
    check_kinds(brownian_tree, locals())
    check_key(key, "brownian_tree")
    start, stop = noise_span(field, as_sampler(sampler))
    margin = 1e-4 * (stop - start)
    return dfx.VirtualBrownianTree(
        start - margin, stop + margin, (stop - start) * parameter(resolution, "resolution"), event_like(shape),
        stream(key, "brownian_tree"), levy_area=levy_area,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
