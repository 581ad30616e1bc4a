"""EDM's stochastic sampler: the paper's recursion, calls, exact spread, and what raises."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import MIX1, Counter, gaussian, mixture, refuses

import jflow as jf

START = np.array([0.4, -1.1, 2.0])
PAPER = (40.0, 0.05, 50.0, 1.003)  # s_churn, s_min, s_max, s_noise for ImageNet, table 5


def denoiser(sigma, x):
    """`E[x1 | x]` of MIX1 in numpy, for each component of `x` alone."""
    weights, means, stds = MIX1
    variance = stds**2 + sigma**2
    gap = np.asarray(x)[..., None] - means[:, 0]
    log_r = np.log(weights / np.sqrt(variance)) - gap**2 / (2 * variance)
    r = np.exp(log_r - log_r.max(-1, keepdims=True))
    r /= r.sum(-1, keepdims=True)
    return (r * (means[:, 0] + stds**2 / variance * gap)).sum(-1)


def algorithm_2(levels, x, normals, s_churn, s_min, s_max, s_noise):
    """Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364); `levels` end with 0."""
    n, calls = len(levels) - 1, 0
    for i in range(n):
        t0, t1 = levels[i], levels[i + 1]
        gamma = min(s_churn / n, np.sqrt(2) - 1) if s_min <= t0 <= s_max else 0.0
        raised = t0 + gamma * t0
        x = x + np.sqrt(raised**2 - t0**2) * s_noise * normals[i]
        d = (x - denoiser(raised, x)) / raised
        calls, y = calls + 1, x + (t1 - raised) * d
        if t1 != 0:
            ahead = (y - denoiser(t1, y)) / t1
            calls, y = calls + 1, x + (t1 - raised) * (d / 2 + ahead / 2)
        x = y
    return x, calls


def components(net, t, x, args):
    return jax.vmap(lambda v: net(t, v[None], args)[0])(x)


@pytest.mark.slow
def test_the_steps_are_those_of_the_paper():
    """With its last step: `2 n - 1` calls; new levels and normals are no new program."""
    n, rng = 18, np.random.default_rng(0)
    normals = rng.normal(size=(n, 3))
    levels = (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        with jax.enable_x64(dtype == "float64"):
            path = jf.VE(sigma_min=0.002, sigma_max=80.0)
            net = Counter(jax.tree_util.Partial(components, mixture(path, *MIX1, predicts="data").net))

            @eqx.filter_jit
            def run(x0, z, solver, field):
                return jf.decode(field, x0, jf.FixedSteps(jf.KarrasGrid(n), solver), brownian=jf.Recorded(z))

            for settings in (PAPER, (5.0, 0.01, np.inf, 1.0)):
                truth, calls = algorithm_2(np.append(levels, 0.0), 80 * START, normals, *settings)
                inputs = jnp.asarray(80 * START, dtype), jnp.asarray(normals, dtype)
                out = run(*inputs, jf.EDMChurn(*settings), jf.Field(net, path, "data"))
                assert net.take() == out.nfe == calls == 35 and out.status == 0 and out.x.dtype == dtype
                np.testing.assert_allclose(out.x, truth, rtol=tolerance, atol=tolerance)
            assert net.traces == 3  # two in a step, one at the end


@pytest.mark.slow
def test_without_churn_it_is_heun():
    path = jf.VE(0.05, 20.0)
    field, grid, x0 = gaussian(path, predicts="noise"), jf.UniformGrid(6), jnp.asarray(START, jnp.float32)
    heun = jf.decode(field, x0, jf.FixedSteps(grid, dfx.Heun(), clock=jf.SigmaClock()))
    for solver in (jf.EDMChurn(0.0), jf.EDMChurn(9.0, s_min=30.0)):
        out = jf.decode(field, x0, jf.FixedSteps(grid, solver), key=jax.random.key(0))
        np.testing.assert_allclose(out.x, heun.x, rtol=1e-5)
        assert out.nfe == heun.nfe == 12


PRINTED = {16: "+4.4e-02", 64: "+2.6e-03"}


@pytest.mark.parametrize("n", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_the_spread_on_gaussian_data_is_the_printed_one(n, x64):
    """`N(0, 0.25)`, `alpha = 1`, sigma from 20 to 0.05, equal steps in log-SNR: a linear map of start and normals."""
    field = gaussian(jf.VE(0.05, 20.0), mean=0.0, predicts="data")
    solver = jf.EDMChurn(5.0) if n == 16 else jf.EDMChurn(10.0, steps=2 * n)  # the same churn a step
    sampler = jf.FixedSteps(jf.UniformGrid(n), solver, end="stop")

    @jax.jit
    @jax.vmap
    def run(x0, z):
        return jf.decode(field, x0, sampler, brownian=jf.Recorded(z)).x

    starts = jnp.eye(n + 1, 1) * jnp.sqrt(0.25 + 20.0**2)
    columns = run(starts, jnp.eye(n + 1, n, -1)[..., None])
    error = jnp.sqrt((columns**2).sum() / (0.25 + 0.05**2)) - 1
    assert f"{float(error):+.1e}" == PRINTED[n]


@pytest.mark.slow
def test_samples_depend_on_their_key_and_are_finite():
    field = gaussian(jf.CondOT(), predicts="velocity")
    sampler = jf.FixedSteps(jf.UniformGrid(8, t0=0.01), jf.EDMChurn(5.0))
    out = jf.generate(field, jax.random.key(0), 3, (2,), sampler)
    alone = jf.sample(field, jax.random.fold_in(jax.random.key(0), np.uint32(2)), (2,), sampler)
    assert (out.status == 0).all() and (out.nfe == 16).all()
    np.testing.assert_allclose(out.x[2], alone.x, rtol=1e-5)
    assert np.unique(out.x).size == 6


def test_what_does_not_fit_raises():
    field, x, key, grid = gaussian(jf.VE()), jnp.ones(2), jax.random.key(0), jf.UniformGrid(4)
    churn = jf.EDMChurn(5.0)
    steps = jf.FixedSteps(grid, churn)
    paired = gaussian(jf.VE(source=jf.Normal(coupled=True)))
    cases = [
        (lambda: jf.EDMChurn(-1.0), "s_churn must be a number of at least 0. Got -1"),
        (lambda: jf.EDMChurn(jnp.ones(2)), "s_churn must be a number"),
        (lambda: jf.EDMChurn(1.0, s_noise=np.nan), "s_noise must be a number"),
        (lambda: jf.EDMChurn(1.0, 2.0, 1.0), "s_min of at most s_max. Got 2 and 1"),
        (lambda: jf.EDMChurn(1.0, steps=0), "steps must be an integer of at least 1"),
        (lambda: jf.decode(field, x, steps), "pass key="),
        (lambda: jf.decode(field, x, jf.FixedSteps(grid, churn, eta=1.0), key=key), "without eta="),
        (lambda: jf.decode(field, x, jf.FixedSteps(grid, churn, diffusion=lambda t: 1.0), key=key), "diffusion="),
        (lambda: jf.decode(field, x, jf.AdaptiveSteps(churn), key=key), "must have a fixed grid"),
        (lambda: jf.decode(field, x, jf.FixedSteps(grid, churn, clock=jf.RatioClock()), key=key), "brings along"),
        (lambda: jf.sample(field, key, (2,), steps, log_prob=True), "must follow the ODE. Got EDMChurn"),
        (lambda: jf.encode(field, x, steps), "must follow the ODE. Got EDMChurn"),
        (lambda: jf.log_prob(field, x, steps), "must follow the ODE. Got EDMChurn"),
        (lambda: jf.solve(lambda t, x, args: x, x, steps), "in its own time. Got EDMChurn"),
        (lambda: jf.decode(paired, x, steps, key=key), "EDMChurn, which adds noise, must have a Gaussian source"),
    ]
    for call, fragment in cases:
        refuses(call, fragment)
