"""Likelihoods against closed forms."""

import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import refuses

import jflow as jf

PATHS = [
    jf.CondOT(),
    jf.Cosine(),
    jf.LinearVP(),
    jf.VP(),
    jf.VE(),
    jf.CustomPath(lambda t: t, lambda t: jnp.sqrt(1 - t)),
]
CLOCKS = [jf.PathClock(), jf.RatioClock(), jf.AngleClock()]
NAMES = [type(path).__name__ for path in PATHS]


def mixture(d, dtype=jnp.float32):
    means = 1.5 * np.asarray(jr.normal(jr.key(d), (3, d), dtype))
    return jf.distributions.GaussianMixture(means, stds=np.asarray([0.5, 0.8, 0.6], dtype))


def linear_field(theta):
    """A field along CondOT whose velocity is `-theta x`."""
    return jf.Field(lambda t, x, args: -theta * x, jf.CondOT(), predicts="velocity")


def test_A14_density_transport_of_the_linear_field():
    """log p_1(psi_1(x0)) = log p_0(x0) + theta d: x0 = (1, -2), theta = 1/2 gives -3.33787707."""
    x0 = jnp.asarray([1.0, -2.0])
    x1 = jnp.exp(-0.5) * x0
    out = jax.jit(lambda x: jf.log_prob(linear_field(0.5), x))(x1)
    np.testing.assert_allclose(out.log_prob, -3.33787707, atol=1e-5)
    np.testing.assert_allclose(out.x, x0, atol=1e-5)
    assert out.log_prob_se is None


def marginals(world, path, t0, t1):
    """Exact marginals at both ends, built outside the trace."""
    return world.at(path, t0), world.at(path, t1)


@eqx.filter_jit
def drawn(world, key, n):
    """Draws of a world and their log-densities."""
    xs = jax.vmap(world.sample)(jr.split(key, n))
    return xs, jax.vmap(world.log_prob)(xs)


SOME = [pytest.param(path, marks=[] if type(path) in (jf.CondOT, jf.VP) else pytest.mark.slow) for path in PATHS]


@pytest.mark.slow
@pytest.mark.parametrize("path", SOME, ids=NAMES)
def test_mixture_log_density_in_float32(path):
    """Start the exact marginal at t = 0, truth the exact marginal at t = 1: within 1e-4 nats at 1e-6."""
    world = mixture(2)
    start, end = marginals(world, path, 0.0, 1.0)
    xs, truth = drawn(end, jr.key(0), 16)

    @jax.jit
    @jax.vmap
    def ours(x):
        out = jf.log_prob(world.field(path), x, jf.AdaptiveSteps(dfx.Tsit5(), rtol=1e-6, atol=1e-6), start=start)
        return out.log_prob, out.status

    values, status = ours(xs)
    assert (status == 0).all()
    np.testing.assert_allclose(values, truth, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_mixture_log_density_in_sixteen_dimensions(path):
    world = mixture(16)
    start, end = marginals(world, path, 0.0, 1.0)
    xs, truth = drawn(end, jr.key(1), 16)
    tight = jf.AdaptiveSteps(rtol=1e-6, atol=1e-6)
    run = jax.jit(jax.vmap(lambda x: jf.log_prob(world.field(path), x, tight, start=start).log_prob))
    np.testing.assert_allclose(run(xs), truth, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_mixture_log_density_in_float64(path):
    with jax.enable_x64(True):
        world = mixture(4, jnp.float64)
        start, end = marginals(world, path, jnp.asarray(0.0), jnp.asarray(1.0))
        xs, truth = drawn(end, jr.key(2), 8)
        assert xs.dtype == jnp.float64

        @jax.jit
        @jax.vmap
        def ours(x):
            return jf.log_prob(world.field(path), x, jf.AdaptiveSteps(rtol=1e-9, atol=1e-9), start=start).log_prob

        np.testing.assert_allclose(ours(xs), truth, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("clock", CLOCKS, ids=lambda clock: type(clock).__name__)
def test_every_clock_gives_the_same_density_of_sample_and_of_log_prob(clock):
    world = mixture(2)
    field = world.field(jf.CondOT())
    sampler = jf.FixedSteps(jf.UniformGrid(64), dfx.Midpoint(), clock=clock)

    @jax.jit
    @jax.vmap
    def both(key):
        drawn = jf.sample(field, key, (2,), sampler, log_prob=True)
        again = jf.log_prob(field, drawn.x, sampler)
        return world.log_prob(drawn.x), drawn.log_prob, again.log_prob, drawn.nfe

    truth, value, again, nfe = both(jr.split(jr.key(3), 32))
    np.testing.assert_allclose(value, truth, atol=2e-2)
    np.testing.assert_allclose(again, value, atol=5e-3)
    assert (nfe == 128).all()


@pytest.mark.slow
def test_what_is_saved_is_a_function_of_the_event():
    """On a grid and adaptively, with the sample and alone, in another clock: its last value is that of the end."""
    field = mixture(2).field(jf.CondOT())
    saveat = dfx.SaveAt(steps=4, fn=lambda t, x, args: (t, args * jnp.sum(x**2)))
    ends = dfx.SaveAt(t1=True, fn=saveat.subs.fn)
    every = (
        (jf.FixedSteps(jf.UniformGrid(8, 0.1, 0.9), clock=jf.RatioClock()), saveat),
        (jf.AdaptiveSteps(t0=0.1, t1=0.9, clock=jf.RatioClock()), ends),
    )

    @jax.jit
    def runs(key, x):
        drawn = [jf.sample(field, key, (2,), s, args=3.0, log_prob=True, saveat=saves) for s, saves in every]
        return drawn, [jf.log_prob(field, x, s, args=3.0, saveat=saves) for s, saves in every]

    for end, outs in zip((0.9, 0.1), runs(jr.key(0), jnp.array([0.3, -0.8])), strict=True):
        for out in outs:
            t, value = (leaf[-1] for leaf in out.xs)
            np.testing.assert_allclose([t, out.ts[-1], value], [end, end, 3 * np.sum(out.x**2)], rtol=1e-5)


@pytest.fixture(scope="module")
def image_runs():
    """One field on images, its exact log-density and its estimates."""
    weights = 0.3 * jr.normal(jr.key(7), (24, 24))

    def net(t, x, args):
        return jnp.tanh(weights @ x.reshape(-1)).reshape(x.shape) - x * t

    field = jf.Field(net, jf.CondOT(), predicts="velocity")
    x = jr.normal(jr.key(8), (4, 3, 2))
    sampler = jf.FixedSteps(jf.UniformGrid(16), dfx.Heun())

    @eqx.filter_jit
    def run(key, divergence):
        return jf.log_prob(field, x, sampler, divergence=divergence, key=key)

    return field, x, sampler, run


def test_event_of_any_shape_and_chunk(image_runs):
    _, _, _, run = image_runs
    values = [run(jr.key(0), jf.ExactDivergence(chunk)).log_prob for chunk in (5, 24)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [jf.Hutchinson(4), jf.HutchPlusPlus(4, 4)], ids=["hutchinson", "hutch++"])
def test_estimates_repeat_and_their_standard_error_is_honest(image_runs, divergence):
    _, _, _, run = image_runs
    exact = run(jr.key(0), jf.ExactDivergence()).log_prob
    first, again = run(jr.key(1), divergence), run(jr.key(1), divergence)
    assert first.log_prob == again.log_prob
    keys = jr.split(jr.key(2), 400)
    out = eqx.filter_jit(eqx.filter_vmap(lambda k: run(k, divergence)))(keys)
    inside = jnp.abs(out.log_prob - exact) <= 3.18 * out.log_prob_se
    assert 0.91 < inside.mean() < 0.99


def test_one_probe_has_no_standard_error(image_runs):
    assert image_runs[3](jr.key(0), jf.Hutchinson(1)).log_prob_se is None


def test_gradient_in_x_matches_finite_differences(image_runs):
    field, x, sampler, _ = image_runs
    value = jax.jit(lambda x: jf.log_prob(field, x, sampler).log_prob)
    direction, h = jr.normal(jr.key(9), x.shape), 1e-2
    slope = jnp.sum(jax.jit(jax.grad(value))(x) * direction)
    finite = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(slope, finite, rtol=1e-2)


@pytest.mark.slow
def test_estimating_costs_no_more_network_calls_than_sampling():
    """Hutchinson, 4 probes, d = 64: at most 1.3 times plain sampling's calls at the same tolerance."""
    world = mixture(64)
    field = world.field(jf.CondOT())
    sampler = jf.AdaptiveSteps()  # at 1e-5

    @jax.jit
    @jax.vmap
    def calls(key):
        plain = jf.sample(field, key, (64,), sampler)
        dense = jf.sample(field, key, (64,), sampler, log_prob=True, divergence=jf.Hutchinson(4))
        return plain.nfe, dense.nfe

    plain, dense = calls(jr.split(jr.key(4), 64))
    assert dense.mean() <= 1.3 * plain.mean()


def test_bits_per_dim_of_uniform_pixels_is_eight():
    """A uniform density on [low, high]^d codes its levels in `log2(bins)` bits a pixel, 256 of them in 8."""
    np.testing.assert_allclose(jf.bits_per_dim(-10 * math.log(2), 10), 8.0, rtol=1e-6)
    odd = {"bins": 32, "low": 0.0, "high": 4.0}
    np.testing.assert_allclose(jf.bits_per_dim(-10 * math.log(4), 10, **odd), 5.0, rtol=1e-6)
    levels = jnp.asarray([0, 255])
    x = jf.dequantize(jr.key(0), levels)
    np.testing.assert_array_equal(jnp.floor((x + 1) * 128), levels)
    many = np.repeat([0, 7, 31], 2000)
    x = np.asarray(jf.dequantize(jr.key(0), many, **odd))
    np.testing.assert_array_equal(np.floor(x * 8), many)
    inside = x * 8 % 1
    assert abs(inside.mean() - 0.5) < 4 / np.sqrt(12 * 6000) and inside.min() < 0.01 and inside.max() > 0.99


@pytest.mark.slow
def test_the_default_sampler_is_adaptive_at_1e_5():
    world = mixture(2)
    field, x = world.field(jf.CondOT()), jnp.array([0.3, -0.8])
    plain, given = jf.log_prob(field, x), jf.log_prob(field, x, jf.AdaptiveSteps(rtol=1e-5, atol=1e-5))
    assert plain.nfe == given.nfe
    np.testing.assert_allclose(
        plain.log_prob, given.log_prob, rtol=3e-7
    )  # tolerances are constants here, numbers there


@pytest.mark.slow
def test_a_density_in_a_clock_has_the_weight_of_its_scale():
    """On a grid of a clock that scales the state the determinant of the scaling counts: `d log(u/x)` at both ends."""
    world = jf.distributions.Gaussian(jnp.array([0.5, -1.0]), std=0.4)
    field, x = world.field(jf.VP()), jnp.array([0.7, -0.6])
    start = world.at(jf.VP(), 0.05)
    clocks = (jf.PathClock(), jf.SigmaClock(), jf.ThetaClock(), jf.RatioClock(), jf.AngleClock())
    every = {type(c).__name__: jf.AdaptiveSteps(t0=0.05, t1=0.95, clock=c, rtol=1e-6, atol=1e-6) for c in clocks}
    values = jax.jit(lambda x: {name: jf.log_prob(field, x, s, start=start).log_prob for name, s in every.items()})(x)
    truth = world.at(jf.VP(), 0.95).log_prob(x)
    for name, value in values.items():
        np.testing.assert_allclose(value, truth, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_decode_gives_the_density_of_its_start():
    world = mixture(2)
    field, x0 = world.field(jf.CondOT()), jnp.array([0.4, -1.1])
    sampler = jf.AdaptiveSteps(rtol=1e-6, atol=1e-6)
    out = jf.decode(field, x0, sampler, log_prob=True)
    np.testing.assert_allclose(out.log_prob, world.log_prob(out.x), atol=1e-4)


def test_bad_arguments_say_the_rule():
    field, grid, x = mixture(2).field(jf.CondOT()), jf.UniformGrid(4), jnp.zeros(2)
    data = jf.Field(lambda t, x, args: x, jf.CondOT(), predicts="data")
    denoise, noisy = jf.FixedSteps(grid, end="denoise"), jf.FixedSteps(grid, eta=1.0)
    for call, fragment in [
        (lambda: jf.sample(field, jr.key(0), (2,), noisy, log_prob=True), "must follow the ODE. Got eta="),
        (lambda: jf.log_prob(field, x, noisy), "log_prob must follow the ODE. Got eta="),
        (lambda: jf.log_prob(field, x, jf.AdaptiveSteps(diffusion=lambda t: t)), "log_prob must follow the ODE"),
        (lambda: jf.log_prob(field, x, jf.FixedSteps(grid, jf.EDMChurn(1.0))), "EDMChurn.*, which adds noise"),
        (lambda: jf.sample(field, jr.key(0), (2,), denoise, log_prob=True), "Got end='denoise': leave it out"),
        (lambda: jf.log_prob(field, x, denoise), "Got end='denoise': leave it out"),
        (lambda: jf.decode(data, x, grid, log_prob=True), "Got end='denoise': leave it out"),
        (lambda: jf.log_prob(data, x), "stop a little earlier"),
        (lambda: jf.log_prob(data, x, grid), "stop a little earlier"),
        (lambda: jf.log_prob(field, x, divergence=jf.Hutchinson(2)), "pass key="),
        (lambda: jf.log_prob(field, x.astype(int)), "floating-point type"),
    ]:
        refuses(call, fragment)


@pytest.mark.slow
def test_the_t_interval_of_four_probes_covers_the_exact_value():
    """d = 64, 1,000 trials: mean of 4 plus or minus 3.18 standard errors holds 95 percent, within 4 binomial errors."""
    d = 64
    factors = jr.normal(jr.key(0), (2, d, d)) / 8
    covs = 0.2 * jnp.eye(d)[None] + factors @ jnp.swapaxes(factors, 1, 2)
    world = jf.distributions.GaussianMixture(0.5 * jr.normal(jr.key(1), (2, d)), covs=covs)
    field = world.field(jf.CondOT())
    sampler = jf.FixedSteps(jf.UniformGrid(16), dfx.Midpoint())

    @jax.jit
    def trials(keys):
        def one(key):
            key_x, key_probes = jr.split(key)
            x = world.sample(key_x)
            exact = jf.log_prob(field, x, sampler).log_prob
            estimate = jf.log_prob(field, x, sampler, divergence=jf.Hutchinson(4), key=key_probes)
            return jnp.abs(estimate.log_prob - exact) <= 3.18 * estimate.log_prob_se

        return jax.lax.map(one, keys, batch_size=100)

    assert 0.922 <= trials(jr.split(jr.key(2), 1000)).mean() <= 0.978
