"""Likelihood: the density that a field's ODE carries from noise to data."""

import math
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._divergence import AbstractDivergence
from ._engine import lowered, with_density
from ._event import as_state, widened
from ._field import AbstractField
from ._front import as_arrays, numbers, run
from ._kinds import check_kinds
from ._sample import check_density, check_ode, check_start, transport
from ._sampler import AdaptiveSteps, SamplerLike, as_sampler
from ._types import Checked, DType, Number, PRNGKey, Solution
from ._validate import check_count, stream


def log_prob(
    field: AbstractField,
    x: PyTree,
    sampler: Checked[SamplerLike | None] = None,
    *,
    key: PRNGKey | None = None,
    args: Any = None,
    start: PyTree = None,
    divergence: AbstractDivergence | None = None,
    saveat: dfx.SaveAt | None = None,
    dtype: DType = None,
) -> Solution:
    """The log-density of one example under a field's ODE, in nats: `log p_1(x) = log p_0(x_0) - int div u dt`.

    The ODE carries `x` from the last time of the sampler back to the first, with the divergence beside it.

    With `FixedSteps(grid, Jump())` it is the density of what the jumps of a flow map sample, not that of its ODE:
    `log p(x) = log p_0(x_0) - sum log |det d_x X_{s,t}|` over the steps. Each jump is inverted by Newton's method.
    Status 4 marks a sample whose jumps fold there: no preimage was found, or two, or a determinant is negative. The
    density is then a sum over preimages, and the number that is given holds one term of it. A second preimage may go
    unseen, but each draw of `sample(log_prob=True)` with a negative determinant has status 4, and a map whose draws
    have none folds nowhere that matters. An estimate by `divergence` does not know the sign of a determinant, looks for
    no second preimage, and its standard error is that over the probes alone: for events of more than 32 components it
    is biased where `d_x X` is ill-conditioned.

    A field that is singular at t = 1 (one that predicts data, noise or a score, with sigma(1) = 0) needs an end below
    1. The number is then the density of `alpha(t1) x1 + sigma(t1) x0` at `x`: the data's density smoothed by noise of
    that level, which in d dimensions moves the value by about `d sigma(t1)^2 / (2 s^2)` nats where the data has a
    spread `s`, and by any amount where the data has none.

    Args:
        field: The field, along a path in a flat space.
        x: One example.
        sampler: That of `sample`, of the ODE or of maps; `AdaptiveSteps()`, at tolerance 1e-5 between 0 and 1, by
            default, also for a flow map, whose diagonal it follows.
        key: The probes of an estimate: the same `x` and `key` give the same number.
        args: The condition.
        start: A distribution with `log_prob` of the state at the noise end; by default the path's, `sigma(t0) x0`,
            which neglects `alpha(t0) x1`.
        divergence: `ExactDivergence()` by default, `Hutchinson(probes)` or `HutchPlusPlus(...)`.
        saveat: As in `sample`.
        dtype: As in `sample`.

    Returns:
        A `Solution`: `log_prob`; `log_prob_se`, the standard error over the probes (`None` for one probe, and where the
        divergence is exact); and in `x` the encoded state.

    Source: Chen et al. 2018, arXiv:1806.07366, theorem 1; Song et al. 2021, arXiv:2011.13456, appendix D.2 (in
    reversed time).

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
    sol = jf.log_prob(world.field(jf.CondOT()), jnp.ones(2))
    assert jnp.allclose(sol.log_prob, world.log_prob(jnp.ones(2)), atol=1e-3)
    ```
    """
    check_kinds(log_prob, locals())
    check_density(field)
    check_start(start, "log_prob")
    x = widened(as_state(x), dtype)
    sampler = AdaptiveSteps() if sampler is None else as_sampler(sampler)
    check_ode(field, sampler, "log_prob", forward=False)
    operands = field, x, key, numbers(sampler), as_arrays(args), start, divergence, saveat
    return run(_log_prob, operands, dtype)


def _log_prob(field, x, key, sampler, args, start, divergence, saveat, dtype):
    field = lowered(field, dtype)
    density, out, t0, t1 = transport(field, x, sampler, args, "log_prob", False, divergence, key, saveat)
    return with_density(field.path, density, out, t0, t1, start, None, args)


def bits_per_dim(
    log_prob: ArrayLike, dimension: int, *, bins: int = 256, low: Number = -1.0, high: Number = 1.0
) -> Float[Array, "*batch"]:
    """Bits per dimension of data with `bins` levels, spread over `[low, high]` by `dequantize`.

    `-log_prob / (dimension log 2) + log2(bins / (high - low))`: an upper bound on the discrete code length.

    Args:
        log_prob: In nats, of an event with `dimension` components scaled to `[low, high]`.
        dimension: The number of components of the event.
        bins: The number of levels.
        low: The lowest value.
        high: The highest value.

    Source: Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1.

    ```python
    assert jf.bits_per_dim(0.0, 784) == 7.0  # a density of one on [-1, 1]: log2(256 / 2)
    ```
    """
    check_kinds(bits_per_dim, locals())
    check_count(bins=bins, dimension=dimension)
    if not low < high:
        raise ValueError(f"The range of the data must have low below high. Got {low} and {high}.")
    return -jnp.asarray(log_prob) / (dimension * math.log(2)) + math.log2(bins / (high - low))


def dequantize(
    key: PRNGKey, levels: ArrayLike, *, bins: int = 256, low: Number = -1.0, high: Number = 1.0
) -> Float[Array, "..."]:
    """Uniform dequantisation of one example: `low + (levels + U) (high - low) / bins`, `U` uniform in [0, 1).

    Args:
        key: Decides `U`.
        levels: Integers from 0 to `bins - 1`, of any shape.
        bins: The number of levels.
        low: The lowest value.
        high: The highest value.

    Source: Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1.

    ```python
    x = jf.dequantize(jr.key(0), jnp.array([0, 255]))
    assert -1 <= x[0] < -1 + 2 / 256 and 1 - 2 / 256 <= x[1] <= 1
    ```
    """
    check_kinds(dequantize, locals())
    check_count(bins=bins)
    if not low < high:
        raise ValueError(f"The range of the data must have low below high. Got {low} and {high}.")
    levels = jnp.asarray(levels, jnp.float32)
    return low + (levels + jr.uniform(stream(key, "dequantize"), levels.shape)) * ((high - low) / bins)
