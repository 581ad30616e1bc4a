"""The Langevin corrector: the recursion of predictor-corrector sampling, what is stationary, calls, and what raises."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import MIX1, PATHS, gaussian, mixture, refuses, schedule
from solver_laws import data_prediction

import jflow as jf

N, SNR, STEPS = 5, 0.16, 2
START = np.array([0.4, -1.1, 2.0])
RNG = np.random.default_rng(0)
NORMALS, INNER = RNG.normal(size=(N, STEPS)), RNG.normal(size=N)


def predictor_corrector(name, times, x):
    """Song et al. 2021 (arXiv:2011.13456), algorithms 2 and 3, with the ancestral predictor and the step size of noise,
    `2 (r sigma)^2`; after the last level the data prediction.
    """
    for t0, t1, z, zs in zip(times[:-2], times[1:-1], INNER, NORMALS, strict=False):
        (a0, s0, *_), (a1, s1, *_) = schedule(name, t0), schedule(name, t1)
        data = data_prediction(a0, s0, x)
        keep = a0 * s1 / (s0 * a1)  # Ho et al. 2020, algorithm 2
        x = a1 * data + s1 * keep * (x - a0 * data) / s0 + s1 * np.sqrt(1 - keep**2) * z
        for z in zs:
            size = 2 * (SNR * s1) ** 2
            x = x - size * (x - a1 * data_prediction(a1, s1, x)) / s1**2 + np.sqrt(2 * size) * z
    return data_prediction(*schedule(name, times[-2])[:2], x)


def corrected(sampler, *args):
    """A sampler with a corrector after each of its steps."""
    solver = jf.LangevinCorrector(sampler.solver, *args)
    return jf.FixedSteps(sampler.times, solver, clock=sampler.clock, eta=sampler.eta, end=sampler.end)


@pytest.mark.slow
def test_the_steps_are_those_of_the_paper(x64):
    names, sampler = ("CondOT", "Cosine", "VP", "VE"), corrected(jf.samplers.ddpm(N), SNR, STEPS)
    fields = {name: mixture(PATHS[name], *MIX1, predicts="data") for name in names}
    noise = jf.Recorded(((jnp.asarray(INNER)[:, None],), jnp.asarray(NORMALS)[..., None]))

    @jax.jit
    def every(xs):
        return {
            name: jax.vmap(lambda x, field=field: jf.decode(field, x[None], sampler, brownian=noise))(xs[name])
            for name, field in fields.items()
        }

    times = np.linspace(0, 1, N + 1)
    xs = {name: jnp.asarray(START * float(schedule(name, 0.0)[1])) for name in names}
    for name, out in every(xs).items():
        truth = predictor_corrector(name, times, np.asarray(xs[name]))
        np.testing.assert_allclose(out.x[:, 0], truth, rtol=1e-10, atol=1e-10, err_msg=name)
        assert (out.nfe == (N - 1) * (1 + STEPS) + 1).all() and (out.status == 0).all()


@pytest.mark.parametrize("name", ["CondOT", "VP"])
def test_the_marginal_of_a_gaussian_is_stationary_for_small_steps(name, x64):
    """Many corrections at one time, from nothing: the variance is `V / (1 - (r sigma)^2 / V)`, which goes to `V`."""
    path, std, t, count = PATHS[name], 0.5, 0.6, 400
    alpha, sigma, *_ = schedule(name, t)
    marginal, errors = (alpha * std) ** 2 + sigma**2, []
    times = jnp.asarray([t, t * (1 + 1e-12), 1.0])

    @jax.jit
    def linear(snr):
        sampler = jf.FixedSteps(times, jf.LangevinCorrector(None, snr, count), end="denoise")
        st = jf.stepper(gaussian(path, mean=0.0, std=std, predicts="noise"), sampler, dtype=times.dtype)

        def last(x, z):
            return st.step(st.row(0), x, None, (None, z))[0]

        return jax.jacfwd(last, argnums=(0, 1))(jnp.zeros(1), jnp.zeros((count, 1)))

    for snr in (0.4, 0.2):
        by_start, by_noise = linear(jnp.asarray(snr))
        assert abs(by_start).max() < 1e-5  # the start is forgotten
        variance = jnp.sum(by_noise**2)
        np.testing.assert_allclose(variance, marginal / (1 - (snr * sigma) ** 2 / marginal), rtol=1e-9)
        errors.append(variance / marginal - 1)
    assert 3.5 < errors[0] / errors[1] < 5


def test_coloured_noise_has_the_same_marginal(x64):
    """With `x0 = A e` the corrections are along `A A^T score`, with the noise `A z`: data at zero, so `V = sigma^2`."""
    factor = jnp.asarray([[1.0, 0.0], [0.8, 0.6]])
    path, count, snr, t = jf.CondOT(source=jf.Normal(jf.Coloured(factor @ factor.T))), 300, 0.2, 0.4
    field = jf.Field(lambda t, x, args: x / (1 - t), path, "noise")
    sampler = jf.FixedSteps(
        jnp.asarray([t, t * (1 + 1e-12), 1.0]), jf.LangevinCorrector(None, snr, count), end="denoise"
    )
    st = jf.stepper(field, sampler, dtype=jnp.float64)
    by_noise = jax.jit(jax.jacfwd(lambda z: st.step(st.row(0), jnp.zeros(2), None, (None, z))[0]))(
        jnp.zeros((count, 2))
    )
    covariance = jnp.einsum("inj,knj->ik", by_noise, by_noise)
    np.testing.assert_allclose(covariance, 0.36 / (1 - snr**2) * factor @ factor.T, rtol=1e-9)


SAMPLERS = {
    "euler": (jf.FixedSteps(jf.UniformGrid(4), end="denoise"), 1),
    "heun_edm": (jf.samplers.heun_edm(4, sigma_min=0.01, sigma_max=50.0), 2),
    "churn": (jf.samplers.heun_edm(4, sigma_min=0.01, sigma_max=50.0, s_churn=2.0, s_max=20.0), 2),
    "dpmpp_sde": (jf.samplers.dpmpp_sde(4), 2),
    "dpmpp_2s_ancestral": (jf.samplers.dpmpp_2s_ancestral(4), 2),
    "SRA1": (jf.FixedSteps(jf.UniformGrid(4), dfx.SRA1(), eta=0.5, end="denoise"), 2),
}


@pytest.mark.slow
def test_it_goes_around_every_one_step_sampler():
    """Calls add up, and draws differ by their key."""
    field = gaussian(jf.CondOT(), mean=1.0)
    made = {name: corrected(sampler, 0.1, 3) for name, (sampler, _) in SAMPLERS.items()}
    draw = jax.vmap(lambda key: {name: jf.sample(field, key, (2,), sampler) for name, sampler in made.items()})
    for name, out in jax.jit(draw)(jr.split(jr.key(0), 2)).items():
        assert (out.status == 0).all() and (out.nfe == 3 * (SAMPLERS[name][1] + 3) + 1).all(), name
        assert not np.allclose(out.x[0], out.x[1]), name
        text = repr(made[name])
        assert eval(text, {"jf": jf, "dfx": dfx, "jnp": jnp}) == jf.from_json(jf.to_json(made[name])) == made[name]


def test_guided_corrections_cost_two_calls():
    guided = jf.Guided(jf.Field(lambda t, x, label: label - x, jf.CondOT(), "velocity"), null=0.0)
    sampler = jf.FixedSteps(jf.UniformGrid(4), jf.LangevinCorrector(), eta=1.0, end="denoise")
    out = jf.sample(guided, jr.key(0), (2,), sampler, args=jf.Args(1.0, scale=2.0))
    assert out.nfe == 2 * (3 * 2 + 1)


@pytest.mark.slow
def test_what_does_not_fit_raises():
    field, x, key, grid = gaussian(jf.CondOT()), jnp.ones(2), jr.key(0), jf.UniformGrid(4)

    def decode(solver, field=field, **parts):
        return lambda: jf.decode(field, x, jf.FixedSteps(grid, solver, **parts), key=key)

    rule = jf.LangevinCorrector
    coupled = gaussian(jf.CondOT(source=jf.Normal(coupled=True)))
    for call, fragment in [
        (lambda: rule(jf.DPMpp(2)), r"must have a one-step method.*Got DPMpp\(\): take diffrax.Euler\(\)"),
        (lambda: rule(jf.Adams(3)), "memory of earlier steps stale"),
        (decode(rule(dfx.ReversibleHeun()), end="denoise"), "Got one that keeps a state"),
        (lambda: rule(snr=0.0), r"snr must be a number above 0 and below 1. Got 0.0"),
        (lambda: rule(snr=1.0), "below 1"),
        (lambda: rule(snr=jnp.ones(2) / 2), "must be a number"),
        (lambda: rule(steps=0), "steps must be an integer of at least 1"),
        (decode(rule()), "must stop where sigma > 0.*end='denoise'"),
        (decode(rule(), end="stop"), "must stop where sigma > 0"),
        (decode(rule(), coupled, end="denoise"), "LangevinCorrector must have a Gaussian source"),
        (decode(rule(jf.DPM2(eta=1.0)), end="denoise"), "must start where its prediction is known"),
        (decode(rule(jf.Jump()), end="denoise"), "must stand|must have a flow map"),
        (decode(rule(jf.DPM2("data")), eta=1.0, end="denoise"), "must stand alone"),
        (lambda: jf.encode(field, x, jf.FixedSteps(jf.UniformGrid(4), rule())), "must have a diffrax solver"),
    ]:
        refuses(call, fragment, (ValueError, TypeError))
