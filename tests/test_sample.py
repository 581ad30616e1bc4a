"""Samplers of one example against textbook recursions written out in numpy (closed forms A11 and H9)."""

import zlib

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
import pytest
from references import MIX1, PATHS, Counter, ExactNet, gaussian, mixture, refuses, schedule

import jflow as jf
from jflow._validate import streams

KEY = jr.key(0)
STEPS = dfx.SaveAt(t0=True, steps=True)
INTERIOR = np.array([0.05, 0.1, 0.3, 0.45, 0.8, 0.95])
START = np.array([0.4, -1.1, 2.0])
NAMES = ("CondOT", "VP", "VE", "root")
grid = jf.FixedSteps


def denoiser(alpha, sigma, x):
    """`E[x1 | x]` of MIX1 in numpy, for each component of `x` alone."""
    weights, means, stds = MIX1
    variance = (alpha * stds) ** 2 + sigma**2
    gap = np.asarray(x)[..., None] - alpha * means[:, 0]
    log_r = np.log(weights / np.sqrt(variance)) - gap**2 / (2 * variance)
    r = np.exp(log_r - log_r.max(-1, keepdims=True))
    r /= r.sum(-1, keepdims=True)
    return (r * (means[:, 0] + alpha * stds**2 / variance * gap)).sum(-1)


def field_of(name, predicts):
    """The exact field of three independent components, each a MIX1."""
    one = mixture(PATHS[name], *MIX1, predicts=predicts)
    return jf.Field(jax.tree_util.Partial(components, one.net), PATHS[name], predicts)


def components(net, t, x, args):
    return jax.vmap(lambda v: net(t, v[None], args)[0])(x)


@eqx.filter_jit
def decode(field, x, sampler, key=None, **options):
    """One compiled program for every grid of a length and kind of end."""
    return jf.decode(field, x, sampler, key=key, **options)


def assert_equal(x, truth, dtype, message="", single=1e-5, double=1e-12):
    """Whether a sampler of either precision equals a recursion in double."""
    tolerance = single if dtype == "float32" else double
    assert x.dtype == dtype
    np.testing.assert_allclose(x, truth, rtol=tolerance, atol=tolerance * np.abs(truth).max(), err_msg=message)


# ------------------------------------------------------------------------------------------ one step, many names


def ddim(name, times, x):
    """`x' = alpha' data + sigma' noise` (Song et al. 2021, arXiv:2010.02502, equation 12 without noise)."""
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        (a0, s0, *_), (a1, s1, *_) = schedule(name, t0), schedule(name, t1)
        data = denoiser(a0, s0, x)
        x = a1 * data + s1 * (x - a0 * data) / s0
    return x


CLOCKS = {"sigma": jf.SigmaClock(), "theta": jf.ThetaClock(), "ratio": jf.RatioClock()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_H9_ddim_is_euler_in_three_clocks(name):
    truth = ddim(name, INTERIOR, START)
    clocks = {**CLOCKS, "path": jf.PathClock()} if name == "CondOT" else CLOCKS

    @jax.jit
    def every(x, times):
        def run(clock):
            predicts = "velocity" if isinstance(clock, jf.ThetaClock) else "data"
            return jf.decode(field_of(name, predicts), x, grid(times, clock=clock, end="stop")).x

        return {clock: run(value) for clock, value in clocks.items()}

    for dtype in ("float64", "float32") if name in ("CondOT", "VE") else ("float64",):
        with jax.enable_x64(dtype == "float64"):
            for clock, x in every(jnp.asarray(START, dtype), jnp.asarray(INTERIOR, dtype)).items():
                assert_equal(x, truth, dtype, f"{name} {clock}", single=2e-5, double=1e-11)


def test_H9_one_step_is_exact_for_one_point(x64):
    z, noise = jnp.array([2.0, -1.0, 0.5]), jnp.asarray(START)
    names = ("CondOT", "Cosine", "LinearVP", "quadratic")

    @jax.jit
    def every():
        def run(name, clock):
            path = PATHS[name]
            field = jf.Field(lambda t, x, args: z, path, "data")
            x0 = path.interpolate(0.2, noise, z)
            return jf.decode(field, x0, grid([0.2, 0.9], clock=clock, end="stop")).x

        return {(name, key): run(name, clock) for name in names for key, clock in CLOCKS.items()}

    for (name, clock), x in every().items():
        np.testing.assert_allclose(x, PATHS[name].interpolate(0.9, noise, z), rtol=1e-12, err_msg=f"{name} {clock}")


def test_H9_euler_in_path_time_is_not_ddim_on_a_curved_path(x64):
    field = field_of("VP", "data")
    x = decode(field, jnp.asarray(START), grid(INTERIOR, clock=jf.PathClock(), end="stop")).x
    assert np.abs(x - ddim("VP", INTERIOR, START)).max() > 1e-2


# ------------------------------------------------------------------------------------------------------- EDM


def edm_heun(levels, x):
    """Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364) with `s(t) = 1`, `sigma(t) = t`, without churn."""
    calls, levels = 0, np.append(levels, 0.0)
    for s0, s1 in zip(levels[:-1], levels[1:], strict=True):
        d = (x - denoiser(1.0, s0, x)) / s0
        calls, guess = calls + 1, x + (s1 - s0) * d
        if s1 != 0:
            slope = (guess - denoiser(1.0, s1, guess)) / s1
            calls, guess = calls + 1, x + (s1 - s0) * (d + slope) / 2
        x = guess
    return x, calls


def preconditioned(net, c_noise, x, args):
    """What a network behind EDM's scalings has to say for the exact denoiser, `sigma_data = 0.5`."""
    sigma = jnp.exp(4 * c_noise)
    total = sigma**2 + 0.25
    x = x * jnp.sqrt(total)
    data = components(net, c_noise, x, sigma)
    return (data - 0.25 / total * x) * jnp.sqrt(total) / (0.5 * sigma)


def exact_edm(t, x, sigma):
    """The exact denoiser of MIX1 at a noise level."""
    return ExactNet(LevelPath(sigma), "data", *(np.asarray(v, float) for v in MIX1))(t, x, None)


class LevelPath(eqx.Module):
    """A stand-in for a path at one noise level."""

    level: jax.Array

    def alpha(self, t):
        return jnp.ones_like(self.level)

    def sigma(self, t):
        return self.level


def test_edm_heun_is_the_textbook_with_35_calls():
    n = 18
    levels = (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    truth, calls = edm_heun(levels, 80 * START)
    assert calls == 35
    net = Counter(jax.tree_util.Partial(preconditioned, exact_edm))

    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        with jax.enable_x64(dtype == "float64"):
            path = jf.VE(sigma_min=0.002, sigma_max=80.0)
            edm = jf.Preconditioned(net, path, sigma_data=0.5)
            out = decode(
                edm, jnp.asarray(80 * START, dtype), grid(jf.KarrasGrid(n), solver=dfx.Heun(), clock=jf.SigmaClock())
            )
            assert net.take() == out.nfe == 35 and out.status == 0 and out.x.dtype == dtype
            np.testing.assert_allclose(out.x, truth, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------ every eta


def frozen(name, times, x, eta, normals):
    """The exact step for a frozen data prediction, where step i has noise of the amplitude `eta[i]`."""
    for t0, t1, e, z in zip(times[:-1], times[1:], np.broadcast_to(eta, len(times) - 1) ** 2, normals, strict=True):
        (a0, s0, *_), (a1, s1, *_) = schedule(name, t0), schedule(name, t1)
        h = np.log(a1 / s1) - np.log(a0 / s0)
        x = (
            s1 / s0 * np.exp(-e * h) * x
            + a1 * -np.expm1(-(1 + e) * h) * denoiser(a0, s0, x)
            + s1 * np.sqrt(-np.expm1(-2 * e * h)) * z
        )
    return x


ETAS = (0.0, 0.3, 1.0, 2.0)
RAMP = 2 * INTERIOR[:-1]  # a value a step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CondOT", "Cosine"])
def test_the_default_clock_takes_the_frozen_data_step_of_any_eta(name):
    normals = np.asarray(jr.normal(KEY, (5, 3)), float)

    @jax.jit
    def every(x, times, normals):
        def run(eta):
            noise = jf.Recorded(normals)
            return jf.decode(field_of(name, "data"), x, grid(times, eta=eta, end="stop"), brownian=noise).x

        return jax.vmap(run)(jnp.asarray(ETAS, x.dtype)), run(jnp.asarray(RAMP, x.dtype))

    truth = [frozen(name, INTERIOR, START, eta, normals) for eta in ETAS]
    for dtype in ("float64", "float32"):
        with jax.enable_x64(dtype == "float64"):
            levels, ramped = every(*(jnp.asarray(v, dtype) for v in (START, INTERIOR, normals)))
            for x, expected in zip(levels, truth, strict=True):
                assert_equal(x, expected, dtype)
            assert_equal(ramped, frozen(name, INTERIOR, START, RAMP, normals), dtype)


def test_the_frozen_data_step_at_one_is_the_ancestral_step_of_ddpm(x64):
    """Ho et al. 2020 (arXiv:2006.11239), equations 6 and 7, along a variance-preserving path."""
    normals = np.asarray(jr.normal(KEY, (5, 3)))
    x = START
    for t0, t1, z in zip(INTERIOR[:-1], INTERIOR[1:], normals, strict=True):
        (a0, s0, *_), (a1, s1, *_) = schedule("LinearVP", t0), schedule("LinearVP", t1)
        step = (a0 / a1) ** 2  # their alpha_t = 1 - beta_t; their t is the noisier time
        mean = a1 * (1 - step) / s0**2 * denoiser(a0, s0, x) + np.sqrt(step) * s1**2 / s0**2 * x
        x = mean + np.sqrt(s1**2 / s0**2 * (1 - step)) * z
    noise = jf.Recorded(jnp.asarray(normals))
    sampler = grid(INTERIOR, eta=1.0, end="stop")
    out = decode(field_of("LinearVP", "data"), jnp.asarray(START), sampler, brownian=noise)
    np.testing.assert_allclose(out.x, x, rtol=1e-11)


def test_a_step_of_the_sde_calls_the_network_once():
    net = Counter(pull)
    field = jf.Field(net, jf.CondOT(), "velocity")
    out = decode(field, jnp.asarray(START, jnp.float32), grid(jf.UniformGrid(7), eta=1.0), KEY)
    assert net.take() == out.nfe == 7


def test_eta_zero_is_the_ode():
    field, times = PLAIN["velocity"], jf.UniformGrid(6)
    ode = decode(field, jnp.asarray(START, jnp.float32), grid(times, clock=jf.ThetaClock()))
    for key in (jr.key(1), jr.key(2)):
        sde = decode(field, jnp.asarray(START, jnp.float32), grid(times, eta=0.0), key)
        np.testing.assert_allclose(sde.x, ode.x, rtol=1e-6)
        assert sde.nfe == ode.nfe == 6


def test_an_absolute_coefficient_adds_half_its_square_times_the_score(x64):
    times, x = np.array([0.3, 0.4, 0.6]), START
    normals = np.asarray(jr.normal(KEY, (2, 3)))

    def g(t):
        return 0.7 * (1 - t) * (2 + jnp.cos(t))

    for t0, t1, z in zip(times[:-1], times[1:], normals, strict=True):
        alpha, sigma, alpha_dot, sigma_dot = schedule("CondOT", t0)
        data = denoiser(alpha, sigma, x)
        noise, h = (x - alpha * data) / sigma, t1 - t0
        level = float(g(t0))
        x = x + h * (alpha_dot * data + sigma_dot * noise - level**2 / 2 * noise / sigma) + level * np.sqrt(h) * z
    for predicts in ("velocity", "noise", "data"):
        noise = jf.Recorded(jnp.asarray(normals))
        sampler = grid(times, diffusion=g, end="stop")
        out = decode(field_of("CondOT", predicts), jnp.asarray(START), sampler, brownian=noise)
        np.testing.assert_allclose(out.x, x, rtol=1e-10)


# ------------------------------------------------------------------------------------------- start, end, layout


def pull(t, x, args):
    return jnp.cos(x) - x


PLAIN = {  # one field, said in two ways
    "velocity": jf.Field(pull, jf.CondOT(), "velocity"),
    "data": jf.Field(lambda t, x, args: x + (1 - t) * pull(t, x, args), jf.CondOT(), "data"),
}


class Uniforms(eqx.Module):
    """A distribution of the state at the first time."""

    def sample(self, key):
        return jr.uniform(key, (3,))


@pytest.mark.slow
def test_a_sample_is_a_draw_at_the_first_time_decoded():
    """With the noise that a stepper draws from the same key; the key of `sample` has a stream of its own."""
    field, times = PLAIN["velocity"], jf.UniformGrid(5, t0=0.1)
    key_start, key_noise = streams(KEY, "sample", 2)
    x0 = 0.9 * jr.normal(key_start, (3,))
    steps = jf.stepper(field, grid(times, eta=1.0))
    (normals,) = jax.vmap(lambda i: steps.noise(key_noise, i, x0))(jnp.arange(5))
    for sampler, noise in ((grid(times), {}), (grid(times, eta=1.0), {"brownian": jf.Recorded(normals)})):
        got = eqx.filter_jit(jf.sample)(field, KEY, (3,), sampler)
        np.testing.assert_allclose(got.x, decode(field, x0, sampler, **noise).x, rtol=1e-5)
        assert got.status == 0 and got.t == 1 and got.nfe == 5
    assert not np.allclose(x0, 0.9 * jr.normal(jr.split(KEY)[0], (3,)))

    @jax.jit
    def starts():
        own = jf.sample(field, KEY, (3,), times, start=Uniforms(), saveat=STEPS)
        wide = gaussian(jf.VE(0.01, 50.0), predicts="noise")
        return own.xs[0], jf.sample(wide, KEY, (2000,), jf.UniformGrid(2), saveat=STEPS).xs[0]

    own, wide = starts()
    np.testing.assert_array_equal(own, jr.uniform(key_start, (3,)))
    assert abs(wide.std() / 50 - 1) < 4 / np.sqrt(4000)


def test_a_start_has_the_shape_and_the_type_of_the_state(x64):
    field, grid = gaussian(jf.CondOT()), jf.UniformGrid(4)
    out = jf.sample(field, KEY, (3,), grid, start=Uniforms(), saveat=dfx.SaveAt(t0=True), dtype=jnp.float64)
    assert out.x.dtype == out.xs.dtype == "float64" and (out.xs[0] >= 0).all()
    normal = jf.distributions.Gaussian(jnp.zeros(3, jnp.float64), std=1.0)  # wider than the shape: it is not rounded
    assert jf.sample(field, KEY, (3,), grid, start=normal).x.dtype == "float64"
    refuses(lambda: jf.sample(field, KEY, (2,), grid, start=Uniforms()), "A draw of start must have the shape")
    refuses(lambda: jf.sample(field, KEY, (3,), grid, start=3), "a method sample.* Got 3", TypeError)
    refuses(lambda: jf.sample(field, KEY, (3,), grid, start=Uniforms(), log_prob=True), "method log_prob", TypeError)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_streams_are_fold_ins_of_constants(impl):
    key = jr.key(7, impl=impl)
    want = [jr.fold_in(key, np.uint32(zlib.crc32(f"sample {i}".encode()))) for i in range(3)]
    assert all((jr.key_data(a) == jr.key_data(b)).all() for a, b in zip(streams(key, "sample", 3), want, strict=True))


class Raised(jf.AbstractAffinePath):
    """A path that begins at a signal of its own, which decides whether its ends are singular."""

    first: jax.Array
    source: jf.AbstractSource = jf.Normal()

    def alpha(self, t):
        return self.first + (1 - self.first) * t

    def sigma(self, t):
        return 1 - t


@pytest.mark.parametrize("order", [(0.05, 0.0, 0.05), (0.0, 0.05, 0.0)])
def test_an_end_is_judged_by_the_numbers_of_its_path(order):
    """And not by those of another path of the same class, seen before."""
    net = jax.tree_util.Partial(lambda w, t, x, args: w * x, jnp.ones(()))
    for first in order:
        field = jf.Field(net, Raised(jnp.asarray(first)), "noise")
        if first:
            assert jf.sample(field, KEY, (2,), jf.UniformGrid(3)).status == 0
        else:
            refuses(lambda field=field: jf.sample(field, KEY, (2,), jf.UniformGrid(3)), "finite at every time")


def test_one_key_used_everywhere_gives_independent_draws():
    """What draws folds in a constant of its own, so people may use one key for data, training and sampling."""
    field, n = PLAIN["velocity"], 512
    drawn = jf.sample(field, KEY, (n,), jf.UniformGrid(1), saveat=dfx.SaveAt(t0=True)).xs[0]
    carried = jf.decode(field, jnp.zeros(n), grid(jf.UniformGrid(1, 0.1, 0.9), eta=1.0), key=KEY).x
    for a, b in ((drawn, jr.normal(KEY, (n,))), (drawn, carried), (carried, jr.normal(KEY, (n,)))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(n)


def test_one_step_works():
    one_step = jf.UniformGrid(1)
    every = (grid(one_step), grid(one_step, eta=1.0), grid(one_step, clock=jf.RatioClock()))

    @jax.jit
    def run(x):
        data = [jf.decode(field_of("CondOT", "data"), x, sampler, key=KEY, saveat=STEPS) for sampler in every]
        return jf.decode(field_of("CondOT", "velocity"), x, one_step), data

    one, data = run(jnp.asarray(START, jnp.float32))
    np.testing.assert_allclose(one.x, 0.1, atol=1e-6)  # every noise goes to the mean of the data
    assert one.nfe == 1 and one.t == 1
    for denoised in data:
        np.testing.assert_allclose(denoised.x, 0.1, atol=1e-6)
        assert denoised.nfe == 1 and denoised.status == 0 and denoised.xs.shape == (2, 3)
        np.testing.assert_array_equal(denoised.ts, [0, 1])


def test_end_policies():
    x, times = jnp.asarray(START, jnp.float32), jf.UniformGrid(5)
    velocity, data = PLAIN["velocity"], PLAIN["data"]
    # on the linear path a step of Euler to t = 1 is the data prediction
    runs = {
        "stop": decode(velocity, x, grid(times, end="stop")),
        "denoise": decode(velocity, x, grid(times, end="denoise")),
        "default": decode(data, x, times),
    }
    for name, run in runs.items():
        np.testing.assert_allclose(run.x, runs["stop"].x, rtol=1e-5, err_msg=name)
        assert run.nfe == 5 and run.t == 1 and run.status == 0
    default = decode(data, x, grid(times, solver=dfx.Heun()))
    assert default.nfe == 9  # two calls a step, one for the last
    first = decode(velocity, x, grid(jf.UniformGrid(4, t1=0.8), solver=dfx.Heun()))
    np.testing.assert_allclose(default.x, velocity.data(0.8, first.x), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"solver": dfx.Heun()}, {"eta": 0.0}, {"solver": jf.DPMpp(2)}], ids=["data", "eta", "DPMpp"]
)
def test_A5_a_grid_that_ends_before_the_data_ends_there(options, x64):
    """Whether it is an array, a rule, or a traced array with the end given."""
    field, x = gaussian(jf.CondOT(), predicts="data"), jnp.array([0.4, -1.0])
    mean, std = 1.0, 0.5  # of the data
    traced = jax.jit(lambda times: jf.decode(field, x, grid(times, end="stop", **options), key=KEY))
    for stop in (0.5, 0.9):
        spread = np.hypot(stop * std, 1 - stop)
        known = decode(field, x, grid(np.linspace(0.0, stop, 2001), **options), KEY)
        np.testing.assert_allclose(known.x, stop * mean + spread * x, rtol=2e-3)
        for same in (
            decode(field, x, grid(jf.UniformGrid(2000, t1=jnp.asarray(stop)), **options), KEY),
            traced(jnp.linspace(0.0, stop, 2001)),
        ):
            np.testing.assert_allclose(same.x, known.x, rtol=1e-12)
            assert known.t == same.t == stop and known.nfe == same.nfe


@pytest.mark.slow
def test_a_traced_grid_whose_end_matters_raises_and_asks_for_it():
    """With the end given it is the same one that is known, and has a gradient."""
    field, x = PLAIN["data"], jnp.asarray(START, jnp.float32)
    grids = {
        "denoise": ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.3, 0.6, 0.8, 0.8]),
        "stop": ([0.0, 0.2, 0.4, 0.6, 0.8],),
    }

    def end(times, end):
        return jf.decode(field, x, grid(times, solver=jf.DPMpp(2), eta=1.0, end=end), key=KEY)

    with pytest.raises(ValueError, match=r"The end of this grid must be given: .* traced array .* end='denoise' or"):
        jax.jit(lambda times: end(times, None).x)(jnp.linspace(0.0, 1.0, 5))
    run = eqx.filter_jit(end)
    for kind, examples in grids.items():
        traced = jax.jit(lambda times, kind=kind: (end(times, kind).x, jax.jacfwd(lambda ts: end(ts, kind).x)(times)))
        for times in examples:
            known = decode(field, x, grid(times, solver=jf.DPMpp(2), eta=1.0), KEY)
            assert known.nfe == 4
            value, slopes = traced(jnp.asarray(times))
            np.testing.assert_allclose(value, known.x, rtol=1e-5)
            np.testing.assert_allclose(run(jnp.asarray(times), kind).x, known.x, rtol=1e-5)
            if times[-2] != times[-1]:
                assert jnp.isfinite(slopes[:, :4]).all()


def test_the_last_recorded_normal_is_not_used_where_the_last_step_is_the_data():
    field, x = PLAIN["data"], jnp.asarray(START, jnp.float32)
    noise = jr.normal(KEY, (5, 3))
    ended = [
        decode(field, x, grid(INTERIOR, eta=1.0, end="denoise"), brownian=jf.Recorded(z)).x
        for z in (noise, noise.at[-1].set(7.0))
    ]
    np.testing.assert_array_equal(*ended)
    before = decode(field, x, grid(INTERIOR[:-1], eta=1.0, end="stop"), brownian=jf.Recorded(noise[:-1])).x
    np.testing.assert_allclose(ended[0], field.data(INTERIOR[-2], before), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["velocity", "data"])
def test_trajectories_have_a_state_for_every_time(predicts):
    field, x, times = PLAIN[predicts], jnp.asarray(START, jnp.float32), jf.UniformGrid(5)
    for sampler in (grid(times), grid(times, eta=1.0)):
        out = decode(field, x, sampler, KEY, saveat=STEPS)
        assert out.xs.shape == (6, 3)
        np.testing.assert_array_equal(out.ts, times.times())
        np.testing.assert_array_equal(out.xs[0], x)
        np.testing.assert_array_equal(out.xs[-1], out.x)
        np.testing.assert_array_equal(decode(field, x, sampler, KEY).x, out.x)
    few = decode(field, x, times, saveat=dfx.SaveAt(steps=2))
    np.testing.assert_allclose(few.ts, [0.4, 0.8], rtol=1e-6)
    only = decode(field, x, times, saveat=dfx.SaveAt(t0=True))
    np.testing.assert_array_equal(only.xs, x[None])


def test_a_partly_noised_state_is_carried_on():
    field, x, times = jf.Field(pull, jf.Cosine(), "noise"), jnp.asarray(START, jnp.float32), INTERIOR
    whole = decode(field, x, grid(times), saveat=STEPS)
    tail = decode(field, whole.xs[2], grid(times[2:]))
    np.testing.assert_allclose(tail.x, whole.x, rtol=1e-6)
    noise = jr.normal(KEY, (5, 3))
    whole = decode(field, x, grid(times, eta=1.0), brownian=jf.Recorded(noise), saveat=STEPS)
    tail = decode(field, whole.xs[2], grid(times[2:], eta=1.0), brownian=jf.Recorded(noise[2:]))
    np.testing.assert_allclose(tail.x, whole.x, rtol=1e-5)
    head = decode(field, x, grid(times[:4], eta=1.0), brownian=jf.Recorded(noise[:3]))
    np.testing.assert_allclose(head.x, whole.xs[3], rtol=1e-5)


def test_encode_and_decode_round_trip(x64):
    field, clocks = PLAIN["velocity"], (jf.PathClock(), jf.RatioClock(), jf.AngleClock())

    @jax.jit
    def there_and_back(x):
        def run(clock):
            sampler = grid(jf.UniformGrid(60), solver=dfx.Dopri5(), clock=clock)
            noise = jf.encode(field, x, sampler)
            return noise, jf.decode(field, noise.x, sampler)

        return [run(clock) for clock in clocks]

    for noise, back in there_and_back(jnp.asarray(START)):
        np.testing.assert_allclose(back.x, START, atol=1e-7)
        assert noise.t == 0 and noise.nfe == 360 and back.t == 1


def test_encode_is_the_monotone_map_of_a_gaussian(x64):
    @jax.jit
    def every(x):
        def run(name):
            return jf.encode(gaussian(PATHS[name]), x, grid(jf.UniformGrid(80), solver=dfx.Dopri5())).x

        return {name: run(name) for name in ("CondOT", "Cosine", "quadratic")}

    for name, x in every(jnp.asarray(START)).items():
        np.testing.assert_allclose(x, (START - 1) / 0.5, rtol=1e-7, err_msg=name)


def test_A11_the_end_point_is_finite_or_raises():
    """One point: its velocity `(z - x)/(1 - t)` is not defined at t = 1, its data prediction is."""
    z = jnp.array([2.0, -1.0, 0.5])
    data = jf.Field(lambda t, x, args: z, jf.CondOT(), "data")
    solvers = [dfx.Euler(), dfx.Midpoint(), dfx.Ralston(), dfx.Heun(), dfx.Bosh3(), dfx.Dopri5(), dfx.Tsit5()]
    x0 = jnp.zeros(3)

    @jax.jit
    def ends():
        return [jf.decode(data, x0, grid(jf.UniformGrid(4), solver=solver)) for solver in solvers]

    for solution in ends():
        np.testing.assert_allclose(solution.x, z, rtol=1e-5)
        assert solution.status == 0
    for solver in solvers:
        reaches = isinstance(solver, (dfx.Heun, dfx.Dopri5, dfx.Tsit5))
        if reaches:
            with pytest.raises(ValueError, match=r"t = 1, .* stop a little earlier"):
                jf.decode(data, x0, grid(jf.UniformGrid(4), solver=solver, end="stop"))
        else:
            out = jf.decode(data, x0, grid(jf.UniformGrid(4), solver=solver, end="stop"))
            assert out.status == 0 and np.isfinite(out.x).all()


# --------------------------------------------------------------------------------------------------- adaptive


@eqx.filter_jit
def adaptively(field, x, saveat=None, **sampler):
    return jf.decode(field, x, jf.AdaptiveSteps(rtol=1e-6, atol=1e-6, **sampler), saveat=saveat)


def test_adaptive_samples_agree_over_clocks():
    field, x = gaussian(jf.Cosine()), jnp.asarray(START, jnp.float32)
    out = adaptively(field, x, saveat=dfx.SaveAt(steps=True), max_steps=60, clock=jf.RatioClock())
    np.testing.assert_allclose(out.x, 1 + 0.5 * START, atol=1e-4)
    assert out.status == 0 and out.t == pytest.approx(1)
    kept = np.isfinite(out.ts)
    assert 0 < kept.sum() < 60 and not np.isnan(out.ts).any()  # steps not taken stay at infinity
    np.testing.assert_allclose(out.xs[kept][-1], out.x, rtol=1e-5)
    truth = np.sin(np.pi / 2 * out.ts[kept])[:, None] + START * np.sqrt(
        0.25 * np.sin(np.pi / 2 * out.ts[kept]) ** 2 + np.cos(np.pi / 2 * out.ts[kept]) ** 2
    ).reshape(-1, 1)
    np.testing.assert_allclose(out.xs[kept], truth, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("clock", [jf.PathClock(), jf.AngleClock()], ids=["path", "angle"])
def test_adaptive_samples_in_the_other_clocks(clock):
    field, x = gaussian(jf.Cosine()), jnp.asarray(START, jnp.float32)
    out = adaptively(field, x, clock=clock)
    np.testing.assert_allclose(out.x, 1 + 0.5 * START, atol=1e-4)
    encoded = eqx.filter_jit(lambda x: jf.encode(field, x, jf.AdaptiveSteps(clock=clock)))(out.x)
    np.testing.assert_allclose(encoded.x, START, atol=1e-3)
    assert encoded.t == pytest.approx(0, abs=1e-6)


def squared(t, x, args):
    return t, jnp.sum(x**2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PathClock", "SigmaClock", "RatioClock"])
def test_a_caller_speaks_of_times_and_states_of_the_path_in_every_clock(name):
    """Data N(1, 0.25) along CondOT: `x = t + s z`, `s^2 = 0.25 t^2 + (1 - t)^2`, in saves, events and steps."""
    field, clock = gaussian(jf.CondOT()), getattr(jf, name)()
    z, ts = jnp.asarray(START, jnp.float32), np.array([0.1, 0.3, 0.7], np.float32)
    subs = {"all": dfx.SubSaveAt(ts=ts, fn=squared), "end": dfx.SubSaveAt(t1=True)}
    past = {"up": lambda t, x, args, **kwargs: t - 0.45, "far": lambda t, x, args, **kwargs: jnp.sum(x) - 1e3}
    event = dfx.Event(past, root_finder=optx.Newton(1e-6, 1e-6))

    def adaptive(*parts, **options):
        return jf.AdaptiveSteps(*parts, clock=clock, t0=0.1, t1=0.7, **options)

    @jax.jit
    def run(z):
        x, y = (t + z * np.sqrt(0.25 * t**2 + (1 - t) ** 2) for t in (0.1, 0.7))
        tight, stepped = adaptive(rtol=1e-6, atol=1e-6), adaptive(dfx.Midpoint(), dfx.StepTo(ts))
        first, steps = adaptive(dt0=0.05, max_steps=64), dfx.SaveAt(steps=True)
        return (
            jf.decode(field, x, tight, saveat=dfx.SaveAt(subs=subs)),
            jf.decode(field, x, adaptive(), event=event),
            jf.encode(field, y, tight, saveat=dfx.SaveAt(ts=ts[::-1])),
            [jf.decode(field, x, stepped).x, jf.decode(field, x, grid(ts, solver=dfx.Midpoint(), clock=clock)).x],
            jf.decode(field, x, first, saveat=steps).ts,
        )

    saved, stopped, back, (stepped, on_grid), steps = run(z)
    truth = [np.sum((t + np.sqrt(0.25 * t**2 + (1 - t) ** 2) * START) ** 2) for t in ts]
    np.testing.assert_allclose(saved.xs["all"][0], ts, rtol=1e-5)
    np.testing.assert_allclose(saved.xs["all"][1], truth, rtol=1e-4)
    np.testing.assert_array_equal(saved.ts["all"], saved.xs["all"][0])
    np.testing.assert_allclose(saved.xs["end"][0], saved.x, rtol=1e-5)
    assert stopped.status == 3 and stopped.t == pytest.approx(0.45, abs=1e-4)
    np.testing.assert_allclose(back.ts, ts[::-1], rtol=1e-5)
    np.testing.assert_allclose((back.xs**2).sum(1), truth[::-1], rtol=1e-4)
    np.testing.assert_allclose(stepped, on_grid, rtol=1e-5)
    assert steps[0] == pytest.approx(0.15, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clock", "t0", "t1", "tol"), [(jf.SigmaClock(), 1e-4, 1.0, 1e-5), (jf.ThetaClock(), 0.0, 0.99999, 1e-6)]
)
def test_a_clock_that_spans_decades_takes_the_steps_that_its_small_times_need(clock, t0, t1, tol):
    world = jf.distributions.GaussianMixture([[-0.5, 0.5], [1.0, 1.0]], stds=[0.01, 0.02])
    xs = jax.vmap(world.at(jf.CondOT(), t0).sample)(jr.split(KEY, 64)) if t0 else jr.normal(KEY, (64, 2))
    sampler = jf.AdaptiveSteps(t0=t0, t1=t1, clock=clock, rtol=tol, atol=tol)
    field = world.field(jf.CondOT())
    out = jax.jit(jax.vmap(lambda x: jf.decode(field, x, sampler)))(xs)
    assert (out.status == 0).all()
    np.testing.assert_allclose(out.t, t1, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------- odds and ends


@pytest.mark.slow
def test_types_and_pytrees():
    field, times = gaussian(jf.CondOT()), jf.UniformGrid(2)

    def out(key, sampler=times, shape=(3,), **options):
        return jax.eval_shape(lambda k: jf.sample(field, k, shape, sampler, **options), key)

    for dtype in (None, jnp.float32, jnp.bfloat16):
        assert out(KEY, dtype=dtype).x.dtype == (dtype or jnp.float32)
    with jax.enable_x64(True):
        key, noisy = jr.key(0), grid(times, eta=1.0)
        double = jax.ShapeDtypeStruct((3,), jnp.float64)
        for made, kept in (
            (out(key, noisy), "float32"),
            (out(key, noisy, dtype=jnp.float64), "float64"),
            (out(key, noisy, double), "float64"),
        ):
            assert made.x.dtype == made.t.dtype == kept
        start = jf.distributions.Gaussian(jnp.zeros(3), std=1.0)
        assert out(key, start=start, dtype=jnp.float32, log_prob=True).x.dtype == "float32"
        x = jnp.asarray(START, jnp.float32)
        for verb in (jf.decode, jf.encode):
            made = jax.eval_shape(lambda x, verb=verb: verb(field, x, times, dtype=jnp.float64), x)
            assert made.x.dtype == made.t.dtype == "float64"
    tree = jf.Field(lambda t, x, args: jax.tree.map(jnp.zeros_like, x), jf.CondOT(), "velocity")
    shape = {"image": jax.ShapeDtypeStruct((4, 4, 1), jnp.float32), "vector": jax.ShapeDtypeStruct((3,), jnp.float32)}
    for sampler in (times, grid(times, eta=1.0)):
        out = jax.jit(lambda key, sampler=sampler: jf.sample(tree, key, shape, sampler))(KEY)
        assert jax.tree.map(jnp.shape, out.x) == {"image": (4, 4, 1), "vector": (3,)} and out.status == 0


def test_a_network_is_given_the_state_in_the_type_that_is_asked_for():
    seen = []

    def net(t, x, args):
        seen.append((t.dtype, x.dtype))
        return -x

    run = jax.jit(
        lambda k: jf.sample(jf.Field(net, jf.CondOT(), "velocity"), k, (3,), jf.UniformGrid(3), dtype="bfloat16")
    )
    assert run(KEY).x.dtype == "bfloat16" and set(seen) == {(jnp.dtype("float32"), jnp.dtype("bfloat16"))}


def test_a_flow_map_is_given_the_state_in_the_type_that_is_asked_for():
    """The jump itself stays wide: a network in half precision moves a large state by small steps."""

    def net(s, t, x, args):
        assert x.dtype == "bfloat16" and s.dtype == t.dtype == "float32"
        return jnp.ones_like(x)

    sampler, start = jf.FixedSteps(jf.UniformGrid(64), jf.Jump()), jnp.full(2, 64.0)
    out = jf.decode(jf.FlowMap(net, jf.CondOT()), start, sampler, dtype="bfloat16", saveat=dfx.SaveAt(steps=True))
    assert out.x.dtype == "bfloat16" and (out.x == 65).all()


def test_a_broken_network_is_a_status():
    field = jf.Field(lambda t, x, args: jnp.where(t > 0.5, jnp.nan, x), jf.CondOT(), "velocity")
    out = jf.sample(field, KEY, (2,), jf.UniformGrid(10))
    assert out.status == 1 and out.t == pytest.approx(0.6)
    last = jf.sample(jf.Field(lambda t, x, args: x * jnp.nan, jf.CondOT(), "data"), KEY, (2,), jf.UniformGrid(1))
    assert last.status == 1 and last.t == 0


UNIFORM = jf.UniformGrid(4)
SINGULAR = [  # predicts, times, options, where, what is said
    ("noise", UNIFORM, {}, "t = 0", "start a little later"),
    ("score", UNIFORM, {}, "t = 0", "start a little later"),
    ("data", UNIFORM, {"end": "stop", "solver": dfx.Heun()}, "t = 1", "stop a little earlier"),
    ("velocity", UNIFORM, {"clock": jf.SigmaClock()}, "t = 0", "start a little later"),
    ("velocity", UNIFORM, {"clock": jf.PathClock(), "eta": 1.0}, "t = 0", "ThetaClock"),
    ("velocity", UNIFORM, {"clock": jf.RatioClock(), "eta": 1.0}, "t = 0", "ThetaClock"),
    ("velocity", UNIFORM, {"clock": jf.ThetaClock(), "end": "stop"}, "t = 1", "end='denoise'"),
    ("velocity", UNIFORM, {"eta": 1.0, "end": "stop"}, "t = 1", "end='denoise'"),
    ("noise", UNIFORM, {"diffusion": lambda t: t}, "t = 0", "start a little later"),
    ("velocity", UNIFORM, {"diffusion": lambda t: 0.5, "solver": dfx.Heun()}, "t = 1", "stop a little earlier"),
    (
        "score",
        jf.UniformGrid(4, t0=0.1),
        {"solver": dfx.Heun(), "clock": jf.ThetaClock(), "end": "stop"},
        "t = 1",
        "",
    ),
]


@pytest.mark.parametrize(("predicts", "times", "options", "where", "advice"), SINGULAR)
def test_a_singular_end_raises_before_tracing(predicts, times, options, where, advice):
    """For a rule and for its array of times."""
    net = Counter(lambda t, x, args: x)
    for given in (times, times.times()):
        with pytest.raises(ValueError, match=f"Got {where}, .*{advice}"):
            jf.decode(jf.Field(net, jf.CondOT(), predicts), jnp.ones(2), grid(given, **options), key=KEY)
    assert net.traces == 0


@pytest.mark.parametrize(("predicts", "times", "options", "where", "advice"), SINGULAR[:6:2])
def test_a_singular_end_raises_inside_jit_too(predicts, times, options, where, advice):
    field = jf.Field(lambda t, x, args: x, jf.CondOT(), predicts)
    with pytest.raises(ValueError, match=f"Got {where}, .*{advice}"):
        jax.jit(lambda x, key: jf.decode(field, x, grid(times, **options), key=key).x)(jnp.ones(2), KEY)


def test_a_singular_end_of_an_adaptive_or_backward_solve_raises():
    data, noise, velocity = (gaussian(jf.CondOT(), predicts=p) for p in ("data", "noise", "velocity"))
    early = {"t1": 0.9}
    with pytest.raises(ValueError, match=r"Got t = 1, .*stop a little earlier"):
        jf.decode(data, jnp.ones(2), jf.AdaptiveSteps())
    with pytest.raises(ValueError, match=r"Got t = 1, .*stop a little earlier"):
        jf.encode(data, jnp.ones(2), UNIFORM)
    with pytest.raises(ValueError, match=r"Got t = 0, .*start a little later"):
        jf.encode(noise, jnp.ones(2), grid(UNIFORM, solver=dfx.Heun()))
    with pytest.raises(ValueError, match=r"Got t = 0, .*start a little later"):
        jf.sample(noise, KEY, (2,), jf.AdaptiveSteps(**early))
    with pytest.raises(ValueError, match=r"Got t = 0, .*start a little later"):  # where x alone is traced
        jax.jit(lambda x: jf.decode(velocity, x, jf.AdaptiveSteps(clock=jf.SigmaClock(), **early)))(jnp.ones(2))
    with pytest.raises(ValueError, match=r"Got t = 0, .*ThetaClock"):
        tree = dfx.VirtualBrownianTree(0.0, 1.0, 1e-3, (2,), KEY)
        noisy = jf.AdaptiveSteps(clock=jf.RatioClock(), eta=1.0, **early)
        jax.jit(lambda x: jf.decode(velocity, x, noisy, brownian=tree))(jnp.ones(2))
    # a path whose parameters are traced is not known to be singular
    assert eqx.filter_jit(jf.decode)(gaussian(jf.VE()), jnp.ones(2), jf.AdaptiveSteps(**early)).status == 0


def test_paths_that_do_not_reach_the_ends_are_carried():
    def shape(field):
        return jax.eval_shape(lambda x: jf.decode(field, x, jf.UniformGrid(3)), jnp.ones(2)).x.shape

    for path in (jf.VE(), jf.VP()):
        for predicts in ("noise", "data", "score"):
            assert shape(gaussian(path, predicts=predicts)) == (2,)


@pytest.mark.slow
def test_bad_input_raises_with_a_reason():
    field, times, x = gaussian(jf.CondOT()), jf.UniformGrid(4), jnp.ones(2)
    rule, letters = jf.Jump(), jax.ShapeDtypeStruct((2,), jnp.int32)
    past, backward = jf.UniformGrid(4, 0.0, 1000.0), jf.AdaptiveSteps(t0=1.0, t1=0.0)
    eta, twice = grid(times, eta=1.0), jf.KarrasGrid(4)
    jumps = jf.FlowMap(lambda s, t, x, args: -x, jf.CondOT())
    cases = [
        (lambda: jf.sample(lambda t, x, a: x, KEY, (2,), times), TypeError, "field must be AbstractField"),
        (lambda: jf.sample(field, None, (2,), times), ValueError, "pass key="),
        (lambda: jf.sample(field, jr.PRNGKey(0), (2,), times), ValueError, "typed key"),
        (lambda: jf.sample(field, jr.split(KEY), (2,), times), ValueError, "vmap over them"),
        (lambda: jf.sample(field, jr.key(0, impl="rbg"), (2,), times), ValueError, "rbg"),
        (lambda: jf.sample(field, KEY, 2, times), ValueError, "that of one event"),
        (lambda: jf.sample(field, KEY, (2, 3.0), times), ValueError, "that of one event"),
        (lambda: jf.sample(field, KEY, (2,), dfx.Heun()), TypeError, r"A sampler must be jflow\.FixedSteps"),
        (lambda: jf.sample(field, KEY, (2,), times.times()[::-1]), ValueError, "increase .* turn them around"),
        (lambda: jf.sample(field, KEY, (2,), jf.UniformGrid(4, 1.0, 0.0)), ValueError, "increase"),
        (lambda: jf.decode(field, x, eta), ValueError, "pass key="),
        (lambda: jf.decode(field, x.astype(int), times), ValueError, "floating-point type"),
        (lambda: jf.decode(field, x, grid(times, diffusion=lambda t: 1.0)), ValueError, "pass key="),
        (lambda: jf.decode(field, x, grid(times, diffusion=lambda t: jnp.eye(2)), key=KEY), ValueError, "one number"),
        (lambda: jf.decode(field, x, grid(times, diffusion=lambda t: {"a": 1.0}), key=KEY), ValueError, "one number"),
        (lambda: jf.decode(field, x, grid(times, dfx.ShARK(), eta=1.0), key=KEY), ValueError, "SRA1"),
        (lambda: jf.decode(field, x, grid(times, dfx.SRA1())), ValueError, "SRA1 must have an SDE"),
        (lambda: jf.decode(field, x, grid(times, rule)), TypeError, r"Jump\(\) must have a flow map"),
        (lambda: jf.decode(field, x, grid(times, rule, eta=1.0), key=KEY), ValueError, "Jump must stand alone"),
        (lambda: jf.encode(field, x, times.times()[::-1]), ValueError, "increase"),
        (lambda: jf.encode(field, x, eta), ValueError, "encode must follow the ODE. Got eta="),
        (lambda: jf.encode(field, x, grid(times, end="denoise")), ValueError, "encode must follow the ODE to the end"),
        (lambda: jf.encode(field, x, grid(times, jf.EDMChurn(1.0))), ValueError, "EDMChurn.*, which adds noise"),
        (lambda: jf.encode(field, x, grid(times, rule)), TypeError, "must have a flow map"),
        (lambda: jf.sample(field, KEY, (2,), past), ValueError, r"lie in \[0, 1\].* t1=1000"),
        (lambda: jf.sample(field, KEY, (2,), jf.AdaptiveSteps(t1=1.2)), ValueError, r"lie in \[0, 1\].* t1 = 1.2"),
        (lambda: jf.sample(field, KEY, (2,), backward), ValueError, "t0 = 1.*t1 = 0"),
        (lambda: jf.encode(field, x, backward), ValueError, "t0 = 1.*t1 = 0"),
        (lambda: jf.log_prob(field, x, backward), ValueError, "t0 = 1.*t1 = 0"),
        (lambda: jf.decode(field, x, times, brownian=jf.Recorded(jnp.ones((4, 2)))), ValueError, "Got an ODE"),
        (lambda: jf.decode(field, x, eta, brownian=jf.Recorded(jnp.ones((3, 2)))), ValueError, "4 for this grid"),
        (lambda: jf.decode(field, x, times, saveat=dfx.SaveAt(t1=True)), ValueError, "The end is the solution's"),
        (lambda: jf.decode(field, x, times, event=dfx.Event(lambda *a, **k: True)), ValueError, "event= must go with"),
        (
            lambda: jf.sample(field, KEY, (2,), jf.KarrasGrid(4).times(jf.VE())),
            ValueError,
            "a last point twice: pass end='denoise'",
        ),
        (lambda: jf.sample(gaussian(jf.VE()), KEY, (2,), grid(twice, end="stop")), ValueError, "last point twice"),
        (lambda: jf.sample(field, KEY, letters, times), ValueError, "floating"),
        (lambda: jf.brownian_tree(field, times, KEY, (2,)), ValueError, "must go with an SDE"),
        (lambda: jf.brownian_tree(field, jf.samplers.ddpm(4), KEY, (2,)), ValueError, "must have one eta"),
        (lambda: jf.brownian_tree(field, grid(times, eta=[1.0, 1.0, 0.5, 0.5]), KEY, (2,)), ValueError, "one eta"),
        (lambda: jf.brownian_tree(jumps, grid(times, jf.Jump(0.5)), KEY, (2,)), ValueError, "must go with a diffrax"),
        (
            lambda: jf.brownian_tree(field, grid(times, eta=1.0), KEY, (2,), resolution=-0.5),
            ValueError,
            "resolution must be a positive number",
        ),
        (lambda: jf.decode(jf.Field(lambda t, x, a: x[0], jf.CondOT(), "data"), x, times), ValueError, "shape"),
        (lambda: jf.sample(field, KEY, (2,), times, eta=1.0), TypeError, "eta"),
        (lambda: jf.sample(field, KEY, (2,), times, divergnce=None), TypeError, "divergnce"),
    ]
    for call, kind, fragment in cases:
        refuses(call, fragment, kind)
