"""The Langevin corrector of predictor-corrector sampling."""

from typing import Any, ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._event import combine, shape_of
from .._event import row as row_of
from .._field import check_affine
from .._rule import AbstractStepRule
from .._source import check_score, noise_map
from .._trainable import frozen
from .._types import Checked, Time
from .._validate import check_count, concrete
from ._traits import AbstractFieldSolver, AbstractWrappedRule, unwrapped


class Corrected(NamedTuple):
    """The row of a step: that of the step inside, and the time and noise level of the corrections."""

    inner: Any
    t: Any
    sigma: Any


class LangevinCorrector(AbstractWrappedRule):
    """Predictor-corrector sampling: a step of any one-step sampler, then `steps` of Langevin dynamics at the new time.

    It stands in the place of the sampler's solver; clock, noise and end are the sampler's as before. With `r = snr` a
    correction is

        x' = x + e score(t, x) + sqrt(2 e) z ,   e = 2 (r sigma)^2 ,

    one evaluation. The marginal at `t` is stationary as `r` goes to 0: on a Gaussian of variance `V` the corrections
    lead to `V / (1 - (r sigma)^2 / V)`. Where the paper has `e = 2 (r |z| / |score|)^2`, with norms averaged over a
    batch, `|z| / |score|` is `sigma` here, as it is for noise: it must not depend on the sample, since a step that
    does leads to another law. A source with a linear map `A` has `A A^T score` and `A z`. From `r = 1` on corrections
    are not stable.

    A correction makes what a multistep solver remembers stale, so these raise. At t = 1, where sigma = 0, there is
    no score: let the last step be the data prediction, `end="denoise"`.

    Source: Song et al. 2021, arXiv:2011.13456, algorithms 2 to 5 (time runs backwards there).

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    ddpm = jf.samplers.ddpm(20)
    corrected = jf.LangevinCorrector(ddpm.solver, snr=0.16)
    sampler = jf.FixedSteps(ddpm.times, corrected, clock=ddpm.clock, eta=ddpm.eta, end="denoise")
    assert jf.sample(field, jr.key(0), (2,), sampler).nfe == 39  # two in each step but the last
    ```
    """

    solver: PyTree
    steps: int = eqx.field(static=True)
    snr: PyTree = frozen()

    noisy: ClassVar[bool] = True

    def __init__(
        self,
        solver: Checked[dfx.AbstractSolver | AbstractStepRule | None] = None,
        snr: Checked[Time] = 0.16,
        steps: int = 1,
    ):
        """Makes the rule.

        Args:
            solver: The predictor, what `FixedSteps` takes as its solver; by default `diffrax.Euler()`.
            snr: The paper's signal-to-noise ratio r, above 0 and below 1.
            steps: Corrections a step.

        Raises `ValueError` for other numbers, and for a solver with a memory of earlier steps.
        """
        self.solver, self.snr, self.steps = solver, snr, steps

    def __check_init__(self):
        check_count(steps=self.steps)
        known = concrete(self.snr)
        if known is not None and not (known.ndim == 0 and known.dtype.kind in "iuf" and 0 < known < 1):
            raise ValueError(f"snr must be a number above 0 and below 1. Got {self.snr!r}.")
        inner = unwrapped(self.solver)
        if isinstance(inner, AbstractFieldSolver) and inner.memory:
            raise ValueError(self._stale(f"{type(inner).__name__}()"))

    def _stale(self, got):
        return (
            "LangevinCorrector must have a one-step method, for a correction makes a memory of earlier steps stale. "
            f"Got {got}: take diffrax.Euler(), diffrax.Heun() or jflow.DPMppSinglestep(2)."
        )

    def rows(self, field, times):
        return Corrected(self.solver.rows(field, times), times[1:], jax.vmap(field.path.sigma)(times[1:]))

    def init(self, field, row, x, args):
        state = self.solver.init(field, row.inner, x, args)
        if jtu.tree_leaves(state):
            raise ValueError(self._stale("one that keeps a state"))
        return state

    def noise_like(self, field, row, x, args):
        """The noise of the step inside, and normals for the corrections."""
        own = jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct((self.steps, *leaf.shape), leaf.dtype), shape_of(x))
        if not self.solver.noisy:
            return None, own
        like = self.solver.noise_like(field, row.inner, x, args)
        return jax.eval_shape(lambda key: row_of(self.solver.draw(key, 1, like), 0), jr.key(0)), own

    def step(self, field, row, x, state, noise, args):
        inner, normals = noise
        x, state = self.solver.step(field, row.inner, x, state, inner, args)
        mapped, r = noise_map(field.path.source), jnp.asarray(self.snr).astype(row.sigma.dtype)

        def correct(x, z):
            z = mapped.apply(z, args)
            drift = field.noise(row.t, x, args)  # -sigma score, or A A^T of it
            return combine((1, x), (-2 * r**2 * row.sigma, drift), (2 * r * row.sigma, z)), None

        return jax.lax.scan(correct, x, normals)[0], state

    def nfe(self, field, args):
        inner, cost = self.solver.nfe(field, args), field.evaluations(args)
        return inner + self.steps * cost if isinstance(inner, int) and isinstance(cost, int) else None

    def check(self, field, sampler):
        check_affine(field.path, "LangevinCorrector")
        check_score(field.path.source, "LangevinCorrector")
        if sampler.end != "denoise" and sampler.facts.ends_at_one and field.path.ends_at_data:
            raise ValueError(
                "LangevinCorrector must stop where sigma > 0, for it moves along the score. Got a grid to t = 1: let "
                "the last step be the data prediction, end='denoise'."
            )
