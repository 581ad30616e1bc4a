"""DPM-Solver-2 and DPM-Solver++(2S) with ancestral noise."""

from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._event import combine, safe_sqrt
from .._field import check_affine
from .._noise_rule import Ancestral
from .._prediction import as_prediction
from .._rule import AbstractStepRule
from .._source import check_score, noise_map
from .._trainable import frozen
from .._types import Checked, Time

Frozen = Literal["noise", "data"]


class Stages(NamedTuple):
    """The row of a step: two times, the weights of state and prediction in both stages, and the size of the noise."""

    t0: Any
    middle: Any
    first: Any
    second: Any
    std: Any


class DPM2(AbstractStepRule):
    """DPM-Solver-2 and DPM-Solver++(2S), in their ancestral forms too: two stages to a lower level, then noise.

    With `s = sigma/alpha`, `y = x/alpha` and `m = sqrt(s s_down)`, a middle in log-SNR, a step to `s'` is

        s_up = eta s' sqrt(1 - (s'/s)^2) ,   s_down = sqrt(s'^2 - s_up^2)
        y_m = y + (m - s) noise(s, y)
        "noise":   y' = y + (s_down - s) noise(m, y_m) + s_up z
        "data":    y' = (s_down/s) y + (1 - s_down/s) data(m, y_m) + s_up z

    `"noise"` is k-diffusion's `dpm_2` and, with `eta`, its `dpm_2_ancestral`; `"data"` with `eta` is its
    `dpmpp_2s_ancestral`. `eta` is DDIM's and k-diffusion's own, from 0 to 1; `None` is the ODE, and nothing is drawn.
    The ODE of `"data"` as a solver, with an error estimate, is `jflow.DPMppSinglestep(2)`.

    A step makes two calls, and goes to no level of zero: let the last step be the data prediction, `end="denoise"`.
    From `alpha = 0`, where `s` is infinite, `"noise"` has no limit. `"data"` has one at `eta = 1`, with `m = s'`; below
    1 it takes the middle of `1/s`, as `DPMppSinglestep` does.

    Source: Lu et al. 2022, arXiv:2206.00927, algorithm 1 (noise), and arXiv:2211.01095, algorithm 1 (data), with
    `r = 1/2`; the ancestral noise is that of Song et al. 2021, arXiv:2010.02502, equation 16. Time runs backwards
    there.

    ```python
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sampler = jf.FixedSteps(jf.UniformGrid(10), jf.DPM2("data", eta=1.0), end="denoise")
    assert jf.sample(field, jr.key(0), (2,), sampler).nfe == 19
    ```
    """

    predicts: Frozen = eqx.field(static=True)
    eta: PyTree = frozen()

    def __init__(self, predicts: Checked[Frozen] = "noise", eta: Checked[Time | None] = None):
        """Makes the rule.

        Args:
            predicts: What the second stage holds fixed, `"noise"` or `"data"`.
            eta: From 0 to 1; `None` for the ODE.

        Raises `ValueError` for another prediction or level.
        """
        self.predicts, self.eta = predicts, eta

    def __check_init__(self):
        if self.predicts not in get_args(Frozen):
            raise ValueError(f"DPM2 must hold 'noise' or 'data' fixed. Got predicts={self.predicts!r}.")
        if self.eta is not None:
            Ancestral(self.eta)  # raises for a number that is not from 0 to 1

    @property
    def noisy(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a step takes noise."""
        return self.eta is not None

    def rows(self, field, times):
        path, t0, t1 = field.path, times[:-1], times[1:]
        kept = jnp.ones_like(t0) if self.eta is None else Ancestral(self.eta).kept(path, times)
        (a0, s0), (a1, s1) = ((jax.vmap(path.alpha)(t), jax.vmap(path.sigma)(t)) for t in (t0, t1))
        low, high = a0 / s0, a1 / s1  # 1/s at both ends; 1/s_down is high/kept
        inside, stays = low > 0, kept > 0
        middle = jnp.where(stays, high / (2 * jnp.where(stays, kept, 1)), high)  # from alpha = 0
        square = jnp.where(inside, low * high / jnp.where(inside, kept, 1), 1)
        between = jax.vmap(path.log_snr_inverse)(2 * jnp.log(jnp.where(inside, jnp.sqrt(square), middle)))
        am, sm = jax.vmap(path.alpha)(between), jax.vmap(path.sigma)(between)
        # The prediction held fixed has the weight w: x' = (v'/v) x + (w' - w v'/v) prediction, with v the other one's.
        end = a1, kept * s1
        w, v = (0, 1) if self.predicts == "data" else (1, 0)

        def weights(stop):
            ratio = stop[v] / (a0, s0)[v]
            return ratio, stop[w] - (a0, s0)[w] * ratio

        std = None if self.eta is None else s1 * safe_sqrt((1 - kept) * (1 + kept))
        return Stages(t0, between, weights((am, sm)), weights(end), std)

    def step(self, field, row, x, state, noise, args):
        (prediction,) = field.predict((self.predicts,), row.t0, x, args)
        inside = combine((row.first[0], x), (row.first[1], prediction))
        (prediction,) = field.predict((self.predicts,), row.middle, inside, args)
        terms = [(row.second[0], x), (row.second[1], prediction)]
        if self.eta is not None:
            terms.append((row.std, noise_map(field.path.source).apply(noise, args)))
        return combine(*terms), state

    def check(self, field, sampler):
        check_affine(field.path, "DPM2")
        if self.eta is not None:
            check_score(field.path.source, "DPM2(eta=)")
        facts, path = sampler.facts, field.path
        if sampler.end != "denoise" and facts.ends_at_one and path.ends_at_data:
            raise ValueError(
                "DPM2 must stop where sigma > 0, for the middle of a step is one in log-SNR. Got a grid to t = 1: let "
                "the last step be the data prediction, end='denoise'."
            )
        if not facts.starts_at_zero:
            return
        own = {as_prediction(p).name for p in field.sources}
        from_noise = own and own <= {"noise", "score"}
        why = field.undefined(0.0)
        if why is None and path.starts_at_noise and (self.predicts == "noise" or from_noise):
            why = "sigma/alpha is infinite" if self.predicts == "noise" else "a noise prediction does not give the data"
        if why is not None:
            raise ValueError(
                f"DPM2({self.predicts!r}) must start where its prediction is known. Got t = 0, where {why}: start a "
                "little later, as on jflow.KarrasGrid(n, sigma_min=0.002, sigma_max=80.0)."
            )
