"""Equations in a clock: what the loops solve."""

import abc
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ._misc import scale


class Interval(eqx.Module):
    """One step of a grid. In a table of steps every field has a leading axis."""

    t0: Any
    t1: Any
    tau0: Any
    tau1: Any
    variance: Any  # of the noise of the step
    enter: Any  # u = enter x at its start, None for one
    leave: Any  # x = leave u at its end, None for one
    eta: Any


class AbstractProblem(eqx.Module):
    """An equation for a state `u` in a time `tau`, and how these belong to the path's `x` and `t`."""

    @abc.abstractmethod
    def intervals(self, times: Float[Array, "..."]) -> Interval:
        """The table of steps of a grid of path times."""

    @abc.abstractmethod
    def scaled(self, factor: Any, x: PyTree) -> PyTree:
        """`u` from `x`, or back, by a factor of the state."""

    @abc.abstractmethod
    def noise_time(self, tau: Any, eta: Any) -> Any:
        """The time in which the Brownian motion runs."""

    @abc.abstractmethod
    def locate(self, tau: Any, u: PyTree, eta: Any) -> tuple[Any, PyTree]:
        """`(t, x)` of `(tau, u)`."""

    @abc.abstractmethod
    def drift(self, t: Any, x: PyTree, args: Any, eta: Any) -> PyTree:
        """`du/dtau`."""

    @abc.abstractmethod
    def diffusion(self, t: Any, x: PyTree, args: Any, eta: Any) -> PyTree:
        """The diffusion coefficient of `u`."""

    def cost(self, t: Any, args: Any) -> int | Array:
        """Evaluations that one right-hand side counts; a Python number where it is the same at every time."""
        return 1

    @property
    @abc.abstractmethod
    def noisy(self) -> bool:
        """Whether there is a diffusion term at all."""


class NoiseTerm(dfx.AbstractTerm):
    """`diffusion dW` for a coefficient that is a number, diagonal (of the state's shape) or a matrix."""

    coefficient: Any
    control: Any
    noise_time: Any = lambda tau: tau  # in which a source of noise is asked

    def vf(self, t, y, args):
        return self.coefficient(t, y, args)

    def contr(self, t0, t1, **kwargs):
        return self.control.evaluate(self.noise_time(t0), self.noise_time(t1), **kwargs)

    def prod(self, vf, control):
        if not isinstance(vf, (dict, list, tuple)) and jnp.ndim(vf) == 0:
            return scale(vf, control)
        return jtu.tree_map(_leaf_product, vf, control)


def _leaf_product(g, w):
    product = g @ w if jnp.ndim(g) == w.ndim + 1 else g * w
    return product.astype(w.dtype)


def explicit_tableau(solver: Any) -> dfx.ButcherTableau | None:
    """The tableau of an explicit Runge-Kutta method; `None` for other solvers."""
    tableau = getattr(solver, "tableau", None)
    return tableau if isinstance(solver, dfx.AbstractERK) and isinstance(tableau, dfx.ButcherTableau) else None


def needed_stages(tableau: dfx.ButcherTableau) -> set[int]:
    """The stages that the solution of a step depends on."""
    needed = {i for i, b in enumerate(tableau.b_sol) if b != 0}
    for stage in range(tableau.num_stages - 1, 0, -1):
        if stage in needed:
            needed |= {i for i, a in enumerate(tableau.a_lower[stage - 1]) if a != 0}
    return needed
