"""Certificates of samplers: those that are right get one, those that are altered do not."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import tiers

import jflow as jf
from jflow.testing._pushed import World

STEPS = (64, 128)


def grid(n):
    return jnp.linspace(0.0, 1.0, n + 1)


def same(x):
    return x


def euler(times=grid, rate=lambda f, i, t, t1, x: f.velocity(t, x), state=same, end=same, start=same):
    """Euler with parts to alter: the grid, the velocity of a step, the state after a step, the start, the end."""

    def sampler(field, x, z):
        def step(x, row):
            i, t, t1 = row
            return state(x + (t1 - t) * rate(field, i, t, t1, x)), None

        ts = times(len(z))
        return end(jax.lax.scan(step, start(x), (jnp.arange(len(ts) - 1), ts[:-1], ts[1:]))[0])

    return sampler


def heun(node=1.0, weight=0.5):
    """Heun with the node of the second stage and its weight to alter."""

    def sampler(field, x, z):
        def step(x, row):
            t, h = row[0], row[1] - row[0]
            first = field.velocity(t, x)
            second = field.velocity(t + node * h, x + h * first)
            return x + h * ((1 - weight) * first + weight * second), None

        ts = grid(len(z))
        return jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]

    return sampler


def maruyama(normals=same, scale=lambda i, n: 1.0, drift=1.0, shift=0.0, level=1.0, end=same, times=grid):
    """Euler-Maruyama with `g = level (1 - t)` and parts to alter: the normals, their scale, drift, times, end."""

    def sampler(field, x, z):
        n, ts = len(z), times(len(z))

        def step(x, row):
            i, t, t1, w = row
            h, g, t = t1 - t, level * (1 - t), t + shift * (t1 - t)
            rate = field.velocity(t, x) + g**2 / 2 * field.score(t, x)
            return x + h * drift * rate + scale(i, n) * g * jnp.sqrt(h) * w, None

        return end(jax.lax.scan(step, x, (jnp.arange(n), ts[:-1], ts[1:], normals(z)))[0])

    return sampler


def ancestral(variance=1.0, eta=1.0, level=lambda i, n, s: s, taken=lambda i, n: True, shift=0.0, last=1.0):
    """DDIM's step with its noise, and parts to alter: the variance, the next level, which steps are taken, times."""

    def sampler(field, x, z):
        n, ts = len(z), last * grid(len(z))

        def step(x, row):
            i, t, t1, w = row
            data, s, s1 = field.data(t + shift * (t1 - t), x), 1 - t, level(i, n, 1 - t1)
            kept = s1 * t / (s * t1)
            up = eta * s1 * jnp.sqrt(1 - kept**2)
            y = t1 * data + jnp.sqrt(s1**2 - up**2) * (x - t * data) / s + jnp.sqrt(variance) * up * w
            return jnp.where(taken(i, n), y, x), None

        return jax.lax.scan(step, x, (jnp.arange(n), ts[:-1], ts[1:], z))[0]

    return sampler


def runge_kutta(field, x, z):
    """The classical method of order 4."""

    def step(x, row):
        t, h = row[0], row[1] - row[0]
        a = field.velocity(t, x)
        b = field.velocity(t + h / 2, x + h / 2 * a)
        c = field.velocity(t + h / 2, x + h / 2 * b)
        d = field.velocity(t + h, x + h * c)
        return x + h / 6 * (a + 2 * b + 2 * c + d), None

    ts = grid(len(z))
    return jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]


def adams_bashforth(field, x, z):
    """Order 2, from one step of Heun."""
    h = 1 / len(z)
    old = field.velocity(0.0, x)
    x = x + h / 2 * (old + field.velocity(h, x + h * old))

    def step(carry, i):
        x, old = carry
        new = field.velocity(i * h, x)
        return (x + h * (1.5 * new - 0.5 * old), new), None

    return jax.lax.scan(step, (x, old), jnp.arange(1, len(z)))[0][0]


def shared_in_a_batch(field, x, z):
    """Euler whose result has a share of the mean over the batch."""

    @jax.custom_batching.custom_vmap
    def mixed(x):
        return x

    @mixed.def_vmap
    def _(size, batched, x):
        return x + 0.01 * x.mean(0, keepdims=True), True

    return mixed(euler()(field, x, z))


def normals_of_a_batch(field, x, z):
    """Euler-Maruyama that takes the normals of the first sample for all of a batch."""

    @jax.custom_batching.custom_vmap
    def first(z):
        return z

    @first.def_vmap
    def _(size, batched, z):
        return jnp.broadcast_to(z[:1], z.shape), True

    return maruyama()(field, x, first(z))


def verb(make):
    """A sampler of jflow's, in `decode`."""

    def sampler(field, x0, z):
        made = make(len(z))
        noisy = made.eta is not None or made.diffusion is not None or isinstance(made.solver, jf.EDMChurn)
        return jf.decode(field, x0, made, brownian=jf.Recorded(z) if noisy else None).x

    return sampler


def own_key(field, x0, z):
    return jf.decode(field, x0, jf.FixedSteps(jf.UniformGrid(len(z)), eta=1.0), key=jr.key(0)).x


def key_of_the_normals(field, x0, z):
    key = jr.key((1e6 * jnp.abs(z[0, 0])).astype(jnp.int32))
    return jf.decode(field, x0, jf.FixedSteps(jf.UniformGrid(len(z)), eta=1.0), key=key).x


def half(x):
    return x.astype(jnp.float16).astype(x.dtype)


def once(step, other):
    """`other` at one step, `step(n)`, and 1 at the others."""
    return lambda i, n: jnp.where(i == step(n), other, 1.0)


WRONG = {
    "stops one step short": (euler(times=lambda n: grid(n)[:-1]), {}),
    "one step too few": (euler(times=lambda n: grid(n - 1)), {}),
    "one step too many": (euler(times=lambda n: grid(n + 1)), {}),
    "first step of length 0": (euler(times=lambda n: jnp.append(0.0, grid(n - 1))), {}),
    "last step of length 0": (euler(times=lambda n: jnp.append(grid(n - 1), 1.0)), {}),
    "first step of length 0, with noise": (maruyama(times=lambda n: jnp.append(0.0, grid(n - 1))), {}),
    "last step not taken": (ancestral(taken=lambda i, n: i < n - 1), {}),
    "last step without drift": (euler(rate=lambda f, i, t, t1, x: (t1 < 1) * f.velocity(t, x)), {}),
    "one step in the middle without drift": (euler(rate=lambda f, i, t, t1, x: (i != 9) * f.velocity(t, x)), {}),
    "end at 0.99": (ancestral(last=0.99), {}),
    "drift times 1.01": (euler(rate=lambda f, i, t, t1, x: 1.01 * f.velocity(t, x)), {}),
    "drift times 1.01, with noise": (maruyama(drift=1.01), {}),
    "output clipped": (euler(end=lambda x: jnp.clip(x, -2.5, 2.5)), {}),
    "output clipped far out": (maruyama(end=lambda x: jnp.clip(x, -6.0, 6.0)), {}),
    "output squashed": (euler(end=lambda x: 5 * jnp.tanh(x / 5)), {}),
    "normals shared between samples": (normals_of_a_batch, {}),
    "normals shared between samples and calls": (own_key, {}),
    "normals shared between steps": (maruyama(normals=lambda z: jnp.broadcast_to(z[:1], z.shape)), {}),
    "normals shared between pairs of steps": (maruyama(normals=lambda z: jnp.repeat(z[::2], 2, 0)), {}),
    "normals shared between two steps": (maruyama(normals=lambda z: z.at[len(z) // 2].set(z[len(z) // 4])), {}),
    "normals shared between coordinates": (maruyama(normals=lambda z: jnp.broadcast_to(z[:, :1], z.shape)), {}),
    "normals of correlated coordinates": (maruyama(normals=lambda z: z @ jnp.array([[1.0, 0.6], [0.0, 0.8]])), {}),
    "normals of the wrong sign in a correlation": (
        maruyama(normals=lambda z: (z - jnp.roll(z, 1, 0)) / jnp.sqrt(2)),
        {},
    ),
    "signs for normals": (maruyama(normals=jnp.sign), {}),
    "key of the normals": (key_of_the_normals, {}),
    "noise 3 percent too large": (maruyama(scale=lambda i, n: 1.03), {}),
    "little noise 3 percent too large": (maruyama(scale=lambda i, n: 1.03, level=0.3), {}),
    "noise half too large at one step": (maruyama(scale=once(lambda n: n // 2, 1.5)), {}),
    "no noise at one step": (maruyama(scale=once(lambda n: 3, 0.0)), {}),
    "noise without its drift": (maruyama(scale=lambda i, n: 2**0.5), {}),
    "ancestral variance 2 percent too large": (ancestral(variance=1.02), {}),
    "ancestral variance 2 percent too small, eta 0.5": (ancestral(variance=0.98, eta=0.5), {}),
    "wrong sigma at one step": (ancestral(level=lambda i, n, s: jnp.where(i == n // 2, 0.9, 1.0) * s), {}),
    "a stage at the wrong time": (heun(node=0.9), {}),
    "wrong weights of stages": (heun(weight=0.6), {}),
    "time shifted by half a step": (euler(rate=lambda f, i, t, t1, x: f.velocity((t + t1) / 2, x)), {}),
    "time shifted by half a step, with noise": (maruyama(shift=0.5), {}),
    "time shifted by half a step, ancestral": (ancestral(shift=0.5), {}),
    "wrong time at one step": (euler(rate=lambda f, i, t, t1, x: f.velocity(jnp.where(i == 7, t1, t), x)), {}),
    "bias of 0.01": (euler(end=lambda x: x + 0.01), {}),
    "scale of 1.005": (euler(end=lambda x: 1.005 * x), {}),
    "first order for second": (euler(), {"order": 2}),
    "a call too many told": (euler(), {"calls": 129}),
    "each call twice": (euler(rate=lambda f, i, t, t1, x: (f.velocity(t, x) + f.velocity(t, x)) / 2), {}),
    "state in half precision": (euler(state=half), {}),
    "result in half precision": (euler(end=lambda x: x.astype(jnp.bfloat16).astype(x.dtype)), {}),
    "coordinates swapped": (euler(end=lambda x: x[::-1]), {}),
    "coordinates of the start swapped": (euler(start=lambda x: x[::-1]), {}),
    "coordinates mixed": (euler(end=lambda x: x + jnp.stack([0.01 * x[1], 0 * x[0]])), {}),
    "a sample that depends on its batch": (shared_in_a_batch, {}),
}

UNIFORM, INNER = jf.UniformGrid, {"t0": 0.05, "t1": 0.95}
RIGHT = {
    "Euler": (euler(), {"order": 1, "calls": 128}),
    "Heun": (heun(), {"order": 2, "calls": 256}),
    "Runge-Kutta": (runge_kutta, {"order": 4, "calls": 512}),
    "Adams-Bashforth": (adams_bashforth, {"order": 2, "calls": 129}),
    "Euler-Maruyama": (maruyama(), {"order": 1}),
    "ancestral": (ancestral(), {"order": 1, "calls": 128}),
    "DDIM": (ancestral(eta=0.0), {"order": 1, "calls": 128}),
    "flow_euler": (verb(jf.samplers.flow_euler), {"order": 1, "calls": 128}),
    "flow_euler on VP": (verb(jf.samplers.flow_euler), {"path": jf.VP()}),
    "heun_flow": (verb(jf.samplers.heun_flow), {"order": 2, "calls": 256}),
    "ddim": (verb(jf.samplers.ddim), {"order": 1, "calls": 128}),
    "ddim with noise": (verb(lambda n: jf.samplers.ddim(n, eta=0.5)), {"order": 1, "calls": 128}),
    "ddpm": (verb(jf.samplers.ddpm), {"order": 1, "calls": 128}),
    "ddpm on VP": (verb(jf.samplers.ddpm), {"path": jf.VP()}),
    "ddpm on VE": (verb(jf.samplers.ddpm), {"path": jf.VE()}),
    "heun_edm on VE": (verb(jf.samplers.heun_edm), {"path": jf.VE(), "calls": 255}),
    "dpmpp_2m": (verb(jf.samplers.dpmpp_2m), {"calls": 128}),
    "dpmpp_2m_sde": (verb(jf.samplers.dpmpp_2m_sde), {"calls": 128}),
    "dpmpp_2s": (verb(lambda n: jf.FixedSteps(UNIFORM(n), jf.DPMppSinglestep(), end="denoise")), {"calls": 255}),
    "unipc": (verb(jf.samplers.unipc), {"order": 2, "calls": 128}),
    "Adams": (
        verb(lambda n: jf.FixedSteps(jf.EasedGrid(n), jf.Adams(3, corrector=True), clock=jf.RatioClock())),
        {"order": 3, "calls": 128},
    ),
    "SASolver": (verb(lambda n: jf.FixedSteps(UNIFORM(n), jf.SASolver(), eta=1.0, end="denoise")), {}),
    "Tsit5": (verb(lambda n: jf.FixedSteps(UNIFORM(n), dfx.Tsit5())), {"calls": 768}),
    "midpoint of the angle": (
        verb(lambda n: jf.FixedSteps(UNIFORM(n), dfx.Midpoint(), clock=jf.AngleClock())),
        {"order": 2, "calls": 256},
    ),
    "diffusion": (verb(lambda n: jf.FixedSteps(UNIFORM(n), diffusion=lambda t: t)), {"order": 1, "calls": 128}),
    "eta in the path's time": (
        verb(lambda n: jf.FixedSteps(UNIFORM(n, **INNER), eta=1.0, clock=jf.PathClock())),
        INNER | {"order": 1},
    ),
    "midpoint with noise": (
        verb(lambda n: jf.FixedSteps(UNIFORM(n, **INNER), dfx.Midpoint(), eta=0.7, clock=jf.PathClock())),
        INNER | {"order": 1},
    ),
    "churn": (
        verb(lambda n: jf.FixedSteps(jf.KarrasGrid(n, 0.002, 80.0), jf.EDMChurn(20.0), clock=jf.SigmaClock())),
        {"t0": 1 / 81},
    ),
    "adaptive": (lambda field, x0, z: jf.decode(field, x0, jf.AdaptiveSteps()).x, {}),
}


DEFAULT = "noise 3 percent too large"
EVERY = 5  # a certificate takes seconds, so a run tries every fifth sampler of the lists; 1 tries all


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(sorted({*list(WRONG)[::EVERY], DEFAULT}), [DEFAULT]))
def test_an_altered_sampler_gets_no_certificate(name):
    sampler, options = WRONG[name]
    report = jf.testing.certify(sampler, steps=STEPS, **options)
    assert not report.ok, report


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RIGHT)[::EVERY])
def test_a_right_sampler_gets_one(name):
    sampler, options = RIGHT[name]
    jf.testing.certify(sampler, steps=STEPS, **options).check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_right_sampler_gets_one_whatever_the_key(seed):
    sampler, options = RIGHT["ddim with noise"]
    jf.testing.certify(sampler, steps=STEPS, key=jr.key(seed), **options).check()


def test_the_law_of_the_ancestral_step_is_exact(x64):
    """On Gaussian data the data prediction is affine, and so is the recursion: its law is known in closed form."""
    n, data = 16, np.array([[0.45, 0.12], [0.12, 0.2]])
    world = World(RIGHT["ddpm"][0], jf.CondOT(), 0.0, 1.0, jr.key(0))
    pushed = world.push(n)
    cov, mean, unit = np.eye(2), np.zeros(2), np.eye(2)
    for i in range(n):
        np.testing.assert_allclose(pushed.offsets[i], mean, atol=1e-12)
        np.testing.assert_allclose(pushed.weights[i] @ pushed.weights[i].T, cov, atol=1e-12)
        (a, b), (a1, b1) = ((t, 1 - t) for t in (i / n, (i + 1) / n))
        gain = a * data @ np.linalg.inv(a * a * data + b * b * unit)  # d data / dx
        ratio = (a * b1 / (a1 * b)) ** 2  # e^(-2h)
        step = b1 / b * ratio**0.5 * unit + a1 * (1 - ratio) * gain
        mean = step @ mean + a1 * (1 - ratio) * (unit - a * gain) @ [1.0, -0.5]
        cov = step @ cov @ step.T + b1**2 * (1 - ratio) * unit
    root = np.linalg.inv(world.spread(1.0))
    np.testing.assert_allclose(root @ root @ data, unit, atol=1e-12)
    expected = root @ (mean - [1.0, -0.5]), (root @ cov @ root - unit) / 2
    np.testing.assert_allclose(pushed.end, np.concatenate([part.ravel() for part in expected]), atol=1e-12)
    assert pushed.noisy and pushed.counting == n and pushed.memory(world, 1) < 1e-12


@pytest.mark.slow
def test_a_certificate_prints_its_figures():
    report = jf.testing.certify(euler(), steps=(8, 16), order=2, calls=17, tolerance=0.01)
    failed = [check.name for check in report if not check.passed]
    assert failed == ["law at t1, n = 16", "order, off the advertised", "network calls, off the advertised"]
    assert report["network calls, n = 16"].figure == 16
    assert report["order on a mixture"].figure == pytest.approx(1, abs=0.2)
    assert str(report).count("FAIL") == 3
