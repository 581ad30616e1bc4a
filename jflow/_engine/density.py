"""The change of the log-density along the ODE of a field.

Along `dx/dt = v(t, x)` the log-density obeys `d/dt log p_t(x_t) = -div v(t, x_t)`. The divergence is integrated beside
the state, by the same solver and on the same steps.

In a clock the integrated state is `u = scale x`. The density of `u` differs from that of `x` by the factor
`scale^(-d)`, with `d` the dimension of the space. `with_density` adds this term once, at both ends.

Source: Chen et al. 2018, arXiv:1806.07366, theorem 1.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._divergence import AbstractDivergence, ExactDivergence
from .._event import scale, state_dtype
from .._source import noise_map
from .._types import PRNGKey, Solution
from .equation import FieldEquation


class DensityEquation(FieldEquation):
    """The ODE of a field for the pair `(x, a)`: `a` accumulates the divergence, `da/dtau = div_u (du/dtau)`.

    Where the source fills a subspace, as point clouds with zero centre of mass and padded events, `f` is replaced by
    `P f(P x)`, with the projection `P` to it: the divergence is then the one within the subspace.
    """

    divergence: AbstractDivergence
    probes: Any

    def scaled(self, factor, x):
        return scale(factor, x[0]), x[1]

    def visible(self, x):
        return x[0]

    def drift(self, t, x, args, eta):
        mapped, plain = noise_map(self.field.path.source), super().drift

        def rate(y):
            return mapped.project(plain(t, mapped.project(y, args), args, eta), args)

        value, trace = self.divergence(rate, x[0], self.probes)
        factor = self._scale(t, eta)
        return value, trace if factor is None else trace / factor

    def _scale(self, t, eta):
        """`u / x`; `None` stands for 1."""
        return None if self.own_time else self.clock.scale(self.field.path, t, eta)  # pyright: ignore[reportArgumentType]

    def log_scale(self, t):
        """`log(u / x)`: what each dimension adds to the log-determinant of the clock's scaling."""
        factor = self._scale(t, 0.0)
        return 0.0 if factor is None else jnp.log(factor)


def with_divergence(
    equation: FieldEquation, x: PyTree, divergence: AbstractDivergence | None, key: PRNGKey | None
) -> tuple[DensityEquation, tuple[PyTree, Array]]:
    """The ODE with its divergence, and the first state: `x` and zeros."""
    divergence = ExactDivergence() if divergence is None else divergence
    dense = DensityEquation(equation.field, equation.clock, None, None, divergence, divergence.probes(key, x))
    return dense, (x, jnp.zeros(divergence.estimates, state_dtype(x)))


def with_density(
    path: Any, density: Any, solution: Solution, t0: Any, t1: Any, start: Any, first: Any, args: Any
) -> Solution:
    """The solution with its density: `log p(t1) = log p(t0) - integral of the divergence from t0 to t1`.

    `density` is the equation. Where the steps are maps it is their rule, and the integral is their log-determinant.

    `start` is the distribution of the state at `t0`, by default the path's own. `first` is the state at `t0` of a
    forward solve. A backward solve ends at `t0`, so there `first` is `None` and the state is in the solution.
    """
    x, total = solution.x
    if first is None:
        first, total = x, -total  # a backward solve accumulates minus the integral
    dtype = state_dtype(x)
    t0, t1 = jnp.asarray(t0).astype(dtype), jnp.asarray(t1).astype(dtype)
    change = path.source.dimension(x, args) * (density.log_scale(t1) - density.log_scale(t0))
    log_p0 = path.start_log_prob(t0, first, args) if start is None else start.log_prob(first)
    values = log_p0 - total + change
    n = values.size
    se = jnp.std(values, ddof=1) / math.sqrt(n) if n > 1 else None  # of one value none is known
    value = jnp.mean(values)
    done: Any = solution.status
    status = jnp.where((done == 0) & ~jnp.isfinite(value if se is None else value + se), 1, done)
    return dataclasses.replace(solution, x=x, log_prob=value, log_prob_se=se, status=status)
