"""Checks of flow maps: how far a map is from the properties of a flow, and from the flow of an exact world."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float, PyTree

from .._event import combine, event_like, size, state_dtype
from .._field import AbstractField
from .._flow_map import FlowMap
from .._kinds import check_kinds
from .._sample import decode, draw_start
from .._sampler import AdaptiveSteps, FixedSteps
from .._types import Checked, Number, PRNGKey, Shape
from .._validate import check_count, check_key, stream
from ..distributions import AbstractDensity
from ._report import Report, bounded


class Residuals(NamedTuple):
    """What `diagnose` returns, an interval of the grid a row: means of squares a component, and their standard errors.

    - `lagrangian`: of `d_t X_{s,t}(x) - v(t, X_{s,t}(x))`.
    - `eulerian`: of `(t - s) (d_s u + d_x u v) + v - u` where the map gives `u`, that is of `d_s X_{s,t}(x) + d_x X v`.
    - `semigroup`: of `X_{r,t}(X_{s,r}(x)) - X_{s,t}(x)` with `r` the midpoint.

    ```python
    straight = jf.FlowMap(lambda s, t, x, args: jnp.ones_like(x), jf.CondOT())
    residuals = jf.testing.diagnose(straight, jr.key(0), (2,), (0.0, 0.5, 1.0), n=8)
    assert isinstance(residuals, jf.testing.Residuals) and residuals.lagrangian.shape == (2,)
    ```
    """

    lagrangian: Float[np.ndarray, " intervals"]
    lagrangian_se: Float[np.ndarray, " intervals"]
    eulerian: Float[np.ndarray, " intervals"]
    eulerian_se: Float[np.ndarray, " intervals"]
    semigroup: Float[np.ndarray, " intervals"]
    semigroup_se: Float[np.ndarray, " intervals"]


def diagnose(
    flow_map: FlowMap,
    key: PRNGKey,
    shape: Checked[Shape],
    times: Sequence[Number] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    args: Any = None,
    teacher: AbstractField | None = None,
    n: int = 1024,
) -> Residuals:
    """How far a flow map is from a flow, on its own trajectories: the residuals of its three properties.

    The states are those of its jumps along the grid, from draws of the path's source. All three are zero for the flow
    map of `v`, the map's own diagonal or a teacher's velocity. A small Lagrangian or Eulerian residual bounds the
    distance to that flow's samples (Boffi et al. 2025, arXiv:2505.18825, propositions 1 and 2).

    Args:
        flow_map: The map.
        key: The key of the draws.
        shape: The event's shape.
        times: The grid.
        args: The condition of every draw.
        teacher: The field of `v`; by default the map itself.
        n: The number of draws.

    Returns:
        `Residuals`, numpy arrays.

    Raises `ValueError` for a grid that does not increase, `n < 2`, or residuals that are not finite.

    ```python
    straight = jf.FlowMap(lambda s, t, x, args: jnp.ones_like(x), jf.CondOT())  # x moves by t - s
    residuals = jf.testing.diagnose(straight, jr.key(0), (2,), n=8)
    assert residuals.semigroup.max() < 1e-12
    ```
    """
    check_kinds(diagnose, locals())
    grid = _grid(times)
    check_key(key, "diagnose")
    check_count(2, n=n)
    field = flow_map if teacher is None else teacher
    like = event_like(tuple(shape) if isinstance(shape, list) else shape)

    def squares(event):
        return sum(jnp.sum(leaf**2) for leaf in jtu.tree_leaves(event)) / size(event)

    def at(s, t, x):
        end, along = jax.jvp(lambda t: flow_map.jump(s, t, x, args), (t,), (jnp.ones_like(t),))
        v = field.velocity(s, x, args)
        _, still = jax.jvp(lambda s, x: flow_map.jump(s, t, x, args), (s, x), (jnp.ones_like(s), v))
        r = (s + t) / 2
        twice = flow_map.jump(r, t, flow_map.jump(s, r, x, args), args)
        lagrangian = combine((1, along), (-1, field.velocity(t, end, args)))
        return end, (squares(lagrangian), squares(still), squares(combine((1, twice), (-1, end))))

    def one(key):
        x = draw_start(flow_map, key, like, FixedSteps(grid), args, None)
        rows = []
        for s, t in zip(grid[:-1], grid[1:], strict=True):
            dtype = state_dtype(x)
            x, row = at(jnp.asarray(s, dtype), jnp.asarray(t, dtype), x)
            rows.append(row)
        return jnp.asarray(rows)

    values = np.asarray(jax.jit(jax.vmap(one))(jr.split(stream(key, "diagnose"), n)), float)
    if not (fine := np.isfinite(values).all((0, 2))).all():
        i = int(np.argmin(fine))
        raise ValueError(
            f"Residuals must be finite. Got others from t = {grid[i]:g} to {grid[i + 1]:g}: the network, a derivative "
            "of it or the teacher's velocity is not finite there. Take times that end short of it."
        )
    mean, se = values.mean(0), values.std(0, ddof=1) / np.sqrt(n)
    return Residuals(*(column for i in range(3) for column in (mean[:, i], se[:, i])))


def check_map(
    flow_map: FlowMap,
    distribution: AbstractDensity,
    times: Sequence[Number] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    args: Any = None,
    n: int = 64,
    tolerance: Number = 1e-3,
    key: PRNGKey | None = None,
) -> Report:
    """Checks a flow map against the exact flow of a distribution, interval by interval, on draws of its marginals.

    The exact map is `jflow.decode` of the exact field, adaptive at tolerances of 1e-10 in float64. The figure is the
    root mean square of the difference, a component.

    Args:
        flow_map: The map.
        distribution: The law of the data.
        times: The grid.
        args: The condition.
        n: How many draws at each time.
        tolerance: The bound of each figure.
        key: The key of the draws; `jax.random.key(0)` by default.

    Returns:
        A `Report`.

    ```python
    world = jf.distributions.Gaussian(jnp.zeros(2), std=1.0)
    net = lambda s, t, x, args: jnp.zeros_like(x)  # not the flow, but right from 0 to 1
    jf.testing.check_map(jf.FlowMap(net, jf.CondOT()), world, (0.0, 1.0), n=4).check()
    ```
    """
    check_kinds(check_map, locals())
    check_count(n=n)
    grid, key = _grid(times), jr.key(0) if key is None else key
    field = distribution.field(flow_map.path)

    def rows():
        with jax.enable_x64(True):
            for i, (s, t) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
                draws = jax.vmap(distribution.at(flow_map.path, jnp.asarray(s)).sample)(jr.split(jr.fold_in(key, i), n))
                xs: PyTree = draws[0] if isinstance(draws, tuple) else draws
                sampler = AdaptiveSteps(t0=float(s), t1=float(t), rtol=1e-10, atol=1e-10)
                exact = jax.jit(jax.vmap(lambda x: decode(field, x, sampler, args=args).x))(xs)  # noqa: B023
                given = jax.jit(jax.vmap(lambda x: flow_map.jump(s, t, x, args)))(xs)  # noqa: B023
                figure = jnp.sqrt(jnp.mean((jnp.asarray(given) - exact) ** 2))
                yield bounded(f"from t = {s:g} to {t:g}", figure, tolerance, f"{n} draws")

    return Report(f"flow map to {type(distribution).__name__}", rows())


def _grid(times):
    grid = np.asarray(times, float)
    if grid.ndim != 1 or len(grid) < 2 or not (np.diff(grid) > 0).all():
        raise ValueError(f"times must be at least two, and increase. Got {times!r}.")
    return grid
