"""Random samplers: whatever parts go together give the law of Gaussian data, or a status that says otherwise."""

import math
import random

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import gaussian

import jflow as jf

MEAN, STD = 1.0, 0.5
PATHS = {
    "CondOT": jf.CondOT(),
    "Cosine": jf.Cosine(),
    "LinearVP": jf.LinearVP(),
    "VP": jf.VP(),
    "VE": jf.VE(),
    "root": jf.CustomPath(lambda t: t, lambda t: jnp.sqrt(1 - t)),
}
CLOCKS = (None, jf.PathClock(), jf.SigmaClock(), jf.ThetaClock(), jf.RatioClock(), jf.AngleClock())
SOLVERS = (
    *(None, dfx.Euler(), dfx.Heun(), dfx.Midpoint(), dfx.Ralston(), dfx.Bosh3(), dfx.Tsit5(), dfx.SEA(), dfx.ShARK()),
    *(jf.DPMpp(1), jf.DPMpp(2), jf.DPMpp(2, "midpoint"), jf.DPMpp(3), jf.DPMpp(3, "half_curvature")),
    *(jf.DPMppSinglestep(2), jf.DPMppSinglestep(3), jf.DEIS(2), jf.DEIS(3), jf.EDMChurn(20.0)),
    *(jf.UniPC(2), jf.UniPC(3), jf.UniPC(2, "bh1"), jf.SASolver(1, 1), jf.SASolver(2, 2), jf.SASolver()),
    *(jf.Adams(2), jf.Adams(4), jf.Adams(2, corrector=True), jf.Adams(4, corrector=True)),
)
PREDICTIONS = ("velocity", "data", "noise", "score", "v")
NOISES = (
    *({}, {}, {"eta": 0.0}, {"eta": 0.3}, {"eta": 0.7}, {"eta": 1.0}, {"eta": 1.5}),
    *({"eta": jf.Ancestral(0.5)}, {"eta": jf.Ancestral(1.0)}, {"diffusion": lambda t: 0.5}),
)
ENDS = (None, "stop", "denoise")
GRIDS = {
    "UniformGrid(n)": jf.UniformGrid,
    "UniformGrid(n, 0.01, 0.99)": lambda n: jf.UniformGrid(n, 0.01, 0.99),
    "KarrasGrid(n)": jf.KarrasGrid,
    "KarrasGrid(n, 0.02, 80)": lambda n: jf.KarrasGrid(n, 0.02, 80.0),
    "LogSNRGrid(n, -8, 8)": lambda n: jf.LogSNRGrid(n, -8.0, 8.0),
    "RatioGrid(n)": jf.RatioGrid,
    "CosineGrid(n)": jf.CosineGrid,
    "EasedGrid(n)": jf.EasedGrid,
    "ShiftedGrid(UniformGrid(n), 3)": lambda n: jf.ShiftedGrid(jf.UniformGrid(n), 3.0),
}


def drawn(rng):
    """One draw of all parts: the field, and the sampler of `n` steps."""
    path, grid = rng.choice(list(PATHS)), rng.choice(list(GRIDS))
    clock, solver, noise, end = (rng.choice(parts) for parts in (CLOCKS, SOLVERS, NOISES, ENDS))
    predicts = rng.choice(PREDICTIONS)

    def sampler(n):
        return jf.FixedSteps(GRIDS[grid](n), solver, clock=clock, end=end, **noise)

    name = f"{path} {predicts} {grid} {solver} {clock} {noise} {end}"
    return name, gaussian(PATHS[path], MEAN, STD, predicts), sampler


def moments(field, sampler, seed=0, draws=2**14):
    """Mean and standard deviation of what starts from the noise of the first time, and whether every status is 0.

    On Gaussian data a step is affine in its state and its normals, so the moments are those of the columns of that map.
    A solver that takes more than one normal a step, for which none are recorded, is measured on draws.
    """

    def start(x0):
        t0 = jf.stepper(field, sampler).times[0]
        return field.path.start(t0.astype(jnp.float64), x0)

    def run(noisy):
        def one(w):
            noise = jf.Recorded(w[1:, None]) if noisy else None
            return jf.decode(field, start(w[:1]), sampler, brownian=noise)

        columns = jnp.concatenate([jnp.zeros((1, 1 + sampler.n)), jnp.eye(1 + sampler.n)])
        sol = jax.jit(jax.vmap(one))(columns)
        x = np.asarray(sol.x[:, 0], float)
        return x[0], np.sqrt(((x[1:] - x[0]) ** 2).sum()), bool((sol.status == 0).all())

    noisy = sampler.diffusion is not None or sampler.eta is not None or isinstance(sampler.solver, jf.EDMChurn)
    try:
        return run(noisy)
    except ValueError as error:
        if "Recorded noise must be all" not in str(error):
            raise
    keys = jr.split(jr.key(seed), draws)
    sol = jax.jit(jax.vmap(lambda k: jf.sample(field, k, jax.ShapeDtypeStruct((1,), jnp.float64), sampler)))(keys)
    x = np.asarray(sol.x, float)
    return x.mean(), x.std(), bool((sol.status == 0).all())


def fault(field, sampler, n=64):
    """The errors at `n` and at `2 n` steps over the deviation of the data where these are wrong with status 0."""
    errors = []
    for count in (n, 2 * n):
        mean, std, well = moments(field, sampler(count))
        if not well:
            return None
        errors.append(max(abs(mean - MEAN), abs(std - STD)) / STD)
        if errors[0] <= 0.05:
            return None
    return None if errors[1] <= 0.7 * errors[0] else errors


def faults(seed, count):
    """Wrong ones among `count` random samplers, those that jflow refuses in its own words not counted."""
    rng, found, taken = random.Random(seed), [], 0
    with jax.enable_x64(True):
        while taken < count:
            name, field, sampler = drawn(rng)
            try:
                wrong = fault(field, sampler)
            except (ValueError, TypeError) as error:
                assert "must" in str(error), f"{name}: {error}"
                continue
            taken += 1
            found += [f"{name}: {wrong}"] if wrong is not None and not math.isnan(wrong[0]) else []
            found += [f"{name}: not a number with status 0"] if wrong is not None and math.isnan(wrong[0]) else []
            if taken % 16 == 0:
                jax.clear_caches()
    return found


@pytest.mark.slow
def test_forty_random_samplers_have_the_law_of_the_data():
    """Off by over 5 percent of the data's deviation at 64 steps is wrong, unless 128 steps are off by 0.7 of that."""
    assert not (found := faults(seed=0, count=40)), "\n".join(found)
