"""Equations in a clock: what the loops solve."""

import abc
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ._misc import concrete, scale


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
    s0: Any = None  # the noise times of its ends, None where the noise runs in tau
    s1: Any = None


class AbstractProblem(eqx.Module):
    """An equation for a state `u` in a time `tau`, and how these belong to the path's `x` and `t`."""

    @abc.abstractmethod
    def intervals(self, times: Float[Array, "..."]) -> Interval:
        """The table of steps of a grid of path times."""

    @abc.abstractmethod
    def scaled(self, factor: Any, x: PyTree) -> PyTree:
        """`u` from `x`, or back, by a factor of the state."""

    def time(self, t: Any, eta: Any) -> Any:
        """`tau` of a path time."""
        return t

    def visible(self, x: PyTree) -> PyTree:
        """What a function of the caller's sees of the state."""
        return x

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


def located(problem: AbstractProblem, interval: Interval, x0: PyTree, u0: PyTree, tau: Any, u: PyTree) -> Any:
    """`(t, x)` of `(tau, u)` in an interval from `x0`, which `u0` does not tell where alpha = 0: the scale of a noisy
    clock is zero there.
    """
    if interval.enter is None or not problem.noisy:
        return problem.locate(tau, u, interval.eta)
    same = [jnp.all(a == b) for a, b in zip(jtu.tree_leaves(u), jtu.tree_leaves(u0), strict=True)]
    still = jnp.all(jnp.stack(same)) & (tau == interval.tau0)
    t, x = problem.locate(jnp.where(still, interval.tau1, tau), u, interval.eta)  # finite derivatives there too
    return jnp.where(still, interval.t0, t), jtu.tree_map(lambda a, b: jnp.where(still, a, b), x0, x)


def check_start(solver: Any, interval: Interval) -> None:
    """Raises `ValueError` where a solver moves the state by noise before its first call, and the start has no scale."""
    tableau = solver.tableau if isinstance(solver, dfx.AbstractSRK) else None
    if tableau is None or not tableau.is_additive_noise() or (enter := concrete(interval.enter)) is None:
        return
    noise = (tableau.coeffs_w, tableau.coeffs_hh, tableau.coeffs_kk)
    if enter.flat[0] == 0 and any(weights is not None and weights.a[0] != 0 for weights in noise):
        raise ValueError(
            f"{type(solver).__name__} calls the field at the start of a step in a state that noise has moved, which a "
            "clock tells where its scale is not zero. Got a start with alpha = 0: start a little later, as "
            "times=jnp.linspace(1e-3, 1.0, n + 1), or take diffrax.SRA1(), diffrax.SPaRK() or diffrax.SlowRK()."
        )


def noise_clock(problem: AbstractProblem, interval: Interval, source: Any = None) -> Callable[[Any], Any]:
    """The noise time in an interval: at its ends the grid's own, and not past these or the source's by rounding."""
    s0, s1 = (_end_of(source, s) for s in (interval.s0, interval.s1))

    def noise_time(tau):
        if s0 is None:
            return problem.noise_time(tau, interval.eta)
        if tau is interval.tau0 or tau is interval.tau1:
            return s0 if tau is interval.tau0 else s1
        s = jnp.clip(problem.noise_time(tau, interval.eta), s0, s1)
        return jnp.where(tau == interval.tau0, s0, jnp.where(tau == interval.tau1, s1, s))

    return noise_time


def _end_of(source: Any, s: Any) -> Any:
    """The noise time `s`, or the end of the source that it is but for rounding: programs differ in the last bits."""
    if s is None or getattr(source, "t1", None) is None:
        return s
    inside = jnp.clip(s, source.t0, source.t1).astype(s.dtype)
    return jnp.where(jnp.abs(s - inside) <= 16 * jnp.finfo(s.dtype).eps * jnp.abs(s), inside, s)


class NoiseTerm(dfx.AbstractTerm):
    """`diffusion dW` for a coefficient that is a number, diagonal (of the state's shape) or a matrix, in the types of
    the state `like`, whatever the source's.
    """

    coefficient: Any
    control: Any
    like: PyTree
    noise_time: Any = lambda tau: tau  # in which a source of noise is asked

    def vf(self, t, y, args):
        return self.coefficient(t, y, args)

    def contr(self, t0, t1, **kwargs):
        return self.control.evaluate(self.noise_time(t0), self.noise_time(t1), **kwargs)

    def prod(self, vf, control):
        control = jtu.tree_map(lambda w, x: w.astype(x.dtype), control, self.like)
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
