"""The ODE of a field with the divergence accumulated beside the state."""

import math
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ._divergence import AbstractDivergence, Exact
from ._equation import FieldEquation
from ._misc import scale, size, state_dtype
from ._problem import AbstractProblem
from ._types import PRNGKey, Solution, Time


class Augmented(AbstractProblem):
    """The ODE of a field for `(x, a)`, where `a` accumulates the divergence: `da/dtau = div_u (du/dtau)`."""

    equation: FieldEquation
    divergence: AbstractDivergence
    probes: Any

    @property
    def noisy(self):
        return False

    def intervals(self, times):
        return self.equation.intervals(times)

    def scaled(self, factor, x):
        return scale(factor, x[0]), x[1]

    def time(self, t, eta):
        return self.equation.time(t, eta)

    def visible(self, x):
        return x[0]

    def noise_time(self, tau, eta):
        return tau

    def locate(self, tau, u, eta):
        t, x = self.equation.locate(tau, u[0], eta)
        return t, (x, u[1])

    def drift(self, t, x, args, eta):
        rate, trace = self.divergence(lambda y: self.equation.drift(t, y, args, eta), x[0], self.probes)
        factor = self.equation.clock.scale(self.equation.field.path, t, eta)
        return rate, trace if factor is None else trace / factor

    def cost(self, t, args):
        return self.equation.cost(t, args)

    def diffusion(self, t, x, args, eta):
        raise NotImplementedError

    def log_scale(self, t):
        """Logarithm of the determinant of `u = scale x`, without its factor of the dimension."""
        factor = self.equation.clock.scale(self.equation.field.path, t, 0.0)
        return 0.0 if factor is None else jnp.log(factor)


def augmented(
    equation: FieldEquation, x: PyTree, divergence: AbstractDivergence | None, key: PRNGKey | None
) -> tuple[Augmented, tuple[PyTree, Array]]:
    """The augmented problem of an ODE, and its state at `x` with nothing accumulated."""
    divergence = Exact() if divergence is None else divergence
    probes = divergence.probes(key, x)
    return Augmented(equation, divergence, probes), (x, jnp.zeros(divergence.estimates, state_dtype(x)))


def base_log_prob(path: Any, base: Any, t: Time, x: PyTree) -> Float[Array, ""]:
    """Log-density of the state at the noise end, in nats: that of `base`, or of `N(0, sigma(t)^2 I)`."""
    if base is not None:
        return base.log_prob(x)
    sigma = path.sigma(jnp.asarray(t, state_dtype(x)))
    squares = sum(jnp.sum((leaf / sigma) ** 2) for leaf in jtu.tree_leaves(x))
    return -squares / 2 - size(x) * (jnp.log(sigma) + math.log(2 * math.pi) / 2)


def with_density(problem: Augmented, solution: Solution, t0: Any, t1: Any, base: Any, start: Any) -> Solution:
    """The solution with its density: `log p(t1) = log p(t0) - integral of the divergence`.

    `start` is the state at `t0` for a forward solve, `None` for a backward one, which ends there.
    """
    x, total = solution.x
    if start is None:
        start, total = x, -total  # backward, the accumulator holds minus the integral
    path, dtype = problem.equation.field.path, state_dtype(x)
    t0, t1 = jnp.asarray(t0).astype(dtype), jnp.asarray(t1).astype(dtype)
    change = size(x) * (problem.log_scale(t1) - problem.log_scale(t0))
    values = base_log_prob(path, base, t0, start) - total + change
    se = None
    if values.ndim:
        n = values.shape[0]
        se = jnp.std(values, ddof=1) / math.sqrt(n) if n > 1 else jnp.full((), jnp.nan, dtype)
    return Solution(
        x=x, log_prob=jnp.mean(values), log_prob_se=se, nfe=solution.nfe, status=solution.status, t=solution.t,
        ts=solution.ts, xs=solution.xs, interpolation=solution.interpolation,
    )  # fmt: skip
