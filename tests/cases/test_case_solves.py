"""Solves, densities and promotion of types at their limits."""

import gc

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import jflow as jf


def network():
    return jf.Field(jf.nn.MLP(2, width=8, depth=1, rngs=nnx.Rngs(0)), jf.CondOT(), predicts="velocity")


@pytest.mark.slow
def test_first_step_of_large_data():
    """An adaptive solve of data in large units sees the fast start: the flow of a Gaussian is `mean + std z`."""
    z = jr.normal(jr.key(0), (100, 1))

    @jax.jit
    def flow(mean, std):
        field = jf.distributions.Gaussian(mean, std=std).field(jf.CondOT())
        return jax.vmap(lambda x0: jf.decode(field, x0, jf.AdaptiveSteps()))(z)

    for mean, std in ((3e5, 5e4), (9e5, 1.5e5), (101325.0, 1000.0)):
        sol = flow(jnp.asarray([mean]), jnp.asarray(std))
        spread = float(jnp.std(sol.x) / std / jnp.std(z))
        assert abs(spread - 1) < 0.05 or (sol.status != 0).all()


UNITS = ((3e5, 5e4), (9e5, 1.5e5), (101325.0, 1000.0), (1e7, 1e6), (0.0, 1.0), (0.01, 1e-3), (0.0, 1e-4))


@pytest.mark.slow
def test_start_in_any_units():
    """Forward, from data to noise, in lanes and with steps to given times: a fast start is seen in any units."""
    z = jr.normal(jr.key(0), (50, 1))
    clipped = dfx.ClipStepSizeController(dfx.PIDController(1e-5, 1e-5), step_ts=[0.5])

    @jax.jit
    def both(mean, std):
        field = jf.distributions.Gaussian(mean, std=std).field(jf.CondOT())
        there = [
            jax.vmap(lambda x0, c=c: jf.decode(field, x0, jf.AdaptiveSteps(controller=c)))(z) for c in (None, clipped)
        ]
        return there, jax.vmap(lambda x1: jf.encode(field, x1))(mean[None] + std * z)

    for mean, std in UNITS:
        there, back = both(jnp.asarray([mean]), jnp.asarray(std))
        # steps near a corner of 1e-5 and less may be shorter than float32 tells times apart, and the status says so
        fine = back.status == 0
        assert all((sol.status == 0).all() for sol in there) and fine.mean() >= (0.97 if std > 1e4 else 1)
        for sol in there if std > 1e-2 else ():  # the tolerance, 1e-5, is not small beside a smaller spread
            np.testing.assert_allclose(sol.x, mean + std * z, atol=0.02 * std + 1e-5 * abs(mean))
        np.testing.assert_allclose(back.x[fine], z[fine], atol=0.03)
    field = jf.distributions.Gaussian([3e5], std=5e4).field(jf.CondOT())
    pool = jf.generate(field, jr.key(0), 40, (1,), jf.AdaptiveSteps(), batch_size=16, progress=False)
    alone = jax.jit(jax.vmap(lambda i: jf.sample(field, jr.fold_in(jr.key(0), i), (1,), jf.AdaptiveSteps())))
    np.testing.assert_allclose(pool.x, alone(jnp.arange(40, dtype=jnp.uint32)).x, rtol=1e-3)


CORNERS = [
    pytest.param(1.2, 0.01, jf.CondOT(), 1e-4, id="CondOT"),
    pytest.param(0.5, 0.1, jf.VP(), 1e-4, id="VP"),
    pytest.param(0.3, 0.001, jf.CondOT(), 1e-5, id="narrow"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "std", "path", "tolerance"), CORNERS)
def test_corner_before_narrow_data(mean, std, path, tolerance):
    """No step goes over the corner of a flow before its data, whose error estimate is zero for some lengths: the worst
    of thousands of starts is wrong by less than a hundred tolerances, where it was by 150 to 2,000.
    """
    field, z = jf.distributions.Gaussian(jnp.array([mean]), std=std).field(path), jnp.linspace(-4.5, 4.5, 4001)
    sol = jax.jit(jax.vmap(lambda x: jf.decode(field, x, jf.AdaptiveSteps(rtol=tolerance, atol=tolerance))))(z[:, None])
    alpha, sigma = float(path.alpha(0.0)), float(path.sigma(0.0))
    exact = mean + std * (np.asarray(z) - alpha * mean) / np.hypot(alpha * std, sigma)
    assert (sol.status == 0).all()
    assert (np.abs(sol.x[:, 0] - exact) / (1 + np.abs(exact))).max() <= 100 * tolerance


def test_tolerances_of_every_kind():
    """A component that is zero has the tolerance of its other end, and tolerances may be one for each component."""

    def turn(t, x, args):
        return jnp.array([x[1], -x[0]])

    for pid in (dfx.PIDController(1e-4, 0.0), dfx.PIDController(1e-5, jnp.array([1e-5, 1e-3]))):
        sol = jf.solve(turn, jnp.array([1.0, 0.0]), jf.AdaptiveSteps(controller=pid, t1=6.0))
        np.testing.assert_allclose(sol.x, [np.cos(6), -np.sin(6)], atol=1e-3)
        assert sol.status == 0


def test_state_beyond_the_range_of_its_type():
    """A result that the type asked for does not hold has another status than 0."""
    field = jf.Field(lambda t, x, args: jnp.full_like(x, 6e4), jf.CondOT(), "velocity")
    start = jf.distributions.Gaussian(jnp.full(2, 1e4), std=1.0)
    sol = jf.sample(field, jr.key(0), (2,), jf.UniformGrid(4), start=start, dtype=jnp.float16)
    assert jnp.isinf(sol.x).all() and sol.status == 1


@pytest.mark.slow
def test_first_step_turned_around():
    """`encode` takes the sampler of `sample`, with its first step `dt0`."""
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    sol = jf.encode(field, jnp.ones(2), jf.AdaptiveSteps(dt0=0.05))
    np.testing.assert_allclose(sol.x, 2.0, atol=1e-3)


@pytest.mark.slow
def test_time_that_is_nan():
    """A solve to or from a time that is NaN raises where the time is known, and has another status than 0 where not."""

    def drift(t, x, args):
        return -x

    @jax.jit
    def traced(t0, t1):
        return jf.solve(drift, 1.0, jf.AdaptiveSteps(t0=t0, t1=t1)).status

    for t0, t1 in ((0.0, jnp.nan), (jnp.nan, 1.0)):
        with pytest.raises(ValueError, match="must be a finite number"):
            jf.solve(drift, 1.0, jf.AdaptiveSteps(t0=t0, t1=t1))
        with pytest.raises(ValueError, match="must be a finite number"):
            jf.ODEFlow(drift, t0, t1)(1.0)
        assert traced(t0, t1) != 0
    assert traced(0.0, 1.0) == 0


def test_density_that_overflows():
    """A log-density that is not finite for a finite point has another status than 0."""
    field = jf.Field(lambda t, x, args: -x, jf.CondOT(), "velocity")
    sol = jf.log_prob(field, jnp.asarray([1e25, 0.0]), jf.UniformGrid(8))
    assert sol.status != 0 or jnp.isfinite(sol.log_prob)


@pytest.mark.slow
def test_one_probe_under_debug_nans():
    """A right program makes no NaN on purpose: `jax_debug_nans` does not stop a likelihood by one probe."""
    with jax.debug_nans(True):
        sol = jf.log_prob(network(), jnp.ones(2), jf.UniformGrid(2), key=jr.key(0), divergence=jf.Hutchinson(1))
    assert jnp.isfinite(sol.log_prob) and sol.status == 0 and sol.log_prob_se is None


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{}, {"eta": 1.0}, {"eta": 1.0, "solver": jf.DPMpp(2)}], ids=["ode", "eta", "DPMpp"])
def test_samples_under_debug_nans(parts):
    """From alpha = 0 to sigma = 0, with and without noise."""
    with jax.debug_nans(True):
        sol = jf.sample(network(), jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(3), **parts))
    assert sol.status == 0


@pytest.mark.slow
def test_memory_of_plain_calls(caplog):
    """A call of `log_prob` like the one before compiles nothing and keeps no memory."""
    field = network()

    def call():
        jf.log_prob(field, jnp.ones(2)).log_prob.block_until_ready()

    def megabytes():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    call()
    call()
    before = megabytes()
    with jax.log_compiles():
        for _ in range(6):
            call()
    assert not caplog.records
    assert (megabytes() - before) / 6 < 1


DATA_MEAN, DATA_STD, WIDE, STOP = 1.0, 0.5, 2.0, 0.99


def velocity(t, x, args):
    """That of data `N(1, 0.5^2)` from a source `N(0, 2^2)` along the linear path."""
    variance = t**2 * DATA_STD**2 + (1 - t) ** 2 * WIDE**2
    return DATA_MEAN + (t * DATA_STD**2 - (1 - t) * WIDE**2) / variance * (x - t * DATA_MEAN)


class Wide(jf.AbstractSource):
    """A source of which nothing is known but its draws."""

    coupled = False

    def sample(self, key, like, args=None):
        return WIDE * jr.normal(key, like.shape, like.dtype)


SOURCES = {"coloured": jf.Normal(jf.Coloured(np.array([[WIDE**2]]))), "unknown": Wide(), "given": jf.GIVEN}
NOISES = {"ode": {}, "eta": {"eta": 1.0}, "diffusion": {"diffusion": lambda t: 1.0}}


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("source", SOURCES)
def test_noise_of_another_source(source, noise):
    """From a source that is not `N(0, I)` noise gives the marginals of the ODE, or raises where no score is known."""
    field = jf.Field(velocity, jf.CondOT(source=SOURCES[source]), "velocity")
    sampler = jf.FixedSteps(jnp.linspace(0.01, STOP, 201), end="stop", **NOISES[noise])
    start = jf.distributions.Gaussian(jnp.zeros(1), std=WIDE) if source == "given" else None
    draw = jax.jit(jax.vmap(lambda key: jf.sample(field, key, (1,), sampler, start=start)))
    if source != "coloured" and noise != "ode":
        with pytest.raises(ValueError, match="must have a Gaussian source"):
            draw(jr.split(jr.key(0), 10_000))
        return
    sol = draw(jr.split(jr.key(0), 10_000))
    want = np.hypot(STOP * DATA_STD, (1 - STOP) * WIDE)
    assert (sol.status == 0).all() and abs(float(sol.x.std()) / want - 1) < 0.05


@pytest.mark.slow
def test_path_of_stable_diffusion():
    """The schedule of Stable Diffusion 1 and 2, whose noise end keeps alpha/sigma = 0.068, is a path."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # "scaled_linear"
    bars = np.cumprod(1 - betas)[::-1].copy()  # from noise to data
    log_snr = jnp.asarray(np.log(bars / (1 - bars)), jnp.float32)

    def at(t):
        return jnp.interp(t, jnp.linspace(0.0, 1.0, 1000), log_snr)

    path = jf.CustomPath(lambda t: jnp.sqrt(jax.nn.sigmoid(at(t))), lambda t: jnp.sqrt(jax.nn.sigmoid(-at(t))))
    assert abs(float(path.sigma(0.0) / path.alpha(0.0)) - 14.61) < 0.02  # k-diffusion's sigma_max of these networks


def _loss(field, key, x):
    return jf.matching_loss(field, key, x)


def trained(optimizer):
    state = jf.train.init(network(), optimizer, ema=0.9)
    return jf.train.step(state, _loss, jr.key(0), jnp.ones((4, 2)))[1].loss


STRICT = {
    "adaptive": lambda: jf.sample(network(), jr.key(0), (2,), jf.AdaptiveSteps()).x,
    "bfloat16": lambda: jf.sample(network(), jr.key(0), (2,), jf.UniformGrid(4), dtype=jnp.bfloat16).x.astype(float),
    "log_prob": lambda: jf.log_prob(network(), jnp.ones(2), jf.UniformGrid(4)).log_prob,
    "adam": lambda: trained(optax.adam(1e-3)),
    "mask": lambda: jf.matching_loss(network(), jr.key(0), jnp.ones(2), mask=jnp.array([1, 0])),
    "stratified": lambda: jf.laws.stratified_times(jr.key(0), 4),
    "solve": lambda: jf.solve(lambda t, x, args: -x, jnp.ones(2), jf.UniformGrid(4)).x,
    "sample": lambda: jf.sample(network(), jr.key(0), (2,), jf.UniformGrid(4)).x,
    "eta": lambda: jf.sample(network(), jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(4), eta=1.0)).x,
    "step": lambda: (
        jf.train.step(jf.train.init(network(), optax.sgd(1e-3)), _loss, jr.key(0), jnp.ones((4, 2)))[1].loss
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRICT)
def test_strict_promotion(name):
    """Fixed grids and training steps hold with `jax_numpy_dtype_promotion="strict"`, and give the same values."""
    usual = STRICT[name]()
    with jax.numpy_dtype_promotion("strict"):
        strict = STRICT[name]()
    np.testing.assert_allclose(strict, usual, rtol=1e-5)
