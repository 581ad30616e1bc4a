"""Bad arguments of verbs and nouns: each raises in the library's own words, before anything below it is reached."""

import traceback

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx
from references import tiers, unchecked

import jflow as jf

KEY, GRID = jr.key(0), jf.UniformGrid(4)


def draw(sampler=GRID, shape=(2,), **options):
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    return jf.sample(field, KEY, shape, sampler, **options)


def drift(t, x, args):
    return -x


def loss(field, key, x):
    return jf.matching_loss(field, key, x)


def fit(**options):
    net = jax.tree_util.Partial(lambda w, t, x, args: w * x, jnp.ones(2))
    state = jf.train.init(jf.Field(net, jf.CondOT(), "velocity"), optax.sgd(0.1))
    return jf.train.fit(state, loss, lambda i: jnp.ones((4, 2)), progress=False, **options)


def noisy(**options):
    return draw(jf.FixedSteps(GRID, eta=1.0), **options)


def log_prob(field=None, x=None, **options):
    field = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT()) if field is None else field
    return jf.log_prob(field, jnp.zeros(2) if x is None else x, GRID, **options)


def few(**options):
    net = lambda s, t, x, args: x * s * t  # noqa: E731
    return jf.few_step.flow_map_loss(jf.FlowMap(net, jf.CondOT()), KEY, jnp.ones(2), **options)


def spent():
    net = jax.tree_util.Partial(lambda w, t, x, args: w * x, jnp.ones(2))
    state = jf.train.init(jf.Field(net, jf.CondOT(), "velocity"), optax.sgd(0.1))
    field = state.field
    jf.train.step(state, loss, KEY, jnp.ones((4, 2)))
    return field


WORLD = jf.distributions.Gaussian(jnp.zeros(2), std=0.5)
GUIDED = jf.Guided(WORLD.field(jf.CondOT()), null=0.0)
CALLS = {
    "empty grid": lambda: draw([]),
    "shape (-1,)": lambda: draw(shape=(-1,)),
    "shape {}": lambda: draw(shape={}),
    "shape None": lambda: draw(shape=None),
    "x0 = []": lambda: jf.solve(drift, [], GRID),
    "dtype int": lambda: draw(dtype=int),
    "dtype int of solve": lambda: jf.solve(drift, 0.9, GRID, dtype=int),
    "drop rate 0": lambda: jf.drop_condition(KEY, 1, 10, 0),
    "rho 0": lambda: jf.KarrasGrid(4, rho=0),
    "bins 0": lambda: jf.dequantize(KEY, jnp.arange(4), bins=0),
    "dt0 < 0": lambda: draw(jf.AdaptiveSteps(dt0=-0.1)),
    "max_steps 0": lambda: draw(jf.AdaptiveSteps(max_steps=0)),
    "SRA1 without noise": lambda: draw(jf.AdaptiveSteps(dfx.SRA1())),
    "tree of [0, 1] for eta": lambda: noisy(brownian=dfx.VirtualBrownianTree(0.0, 1.0, 1e-2, (2,), KEY)),
    "divergence='exact'": lambda: log_prob(divergence="exact"),
    "saveat='steps'": lambda: draw(saveat="steps"),
    "brownian='noise'": lambda: noisy(brownian="noise"),
    "key=0 of fit": lambda: fit(steps=1, key=0),
    "steps=1.5 of fit": lambda: fit(steps=1.5, key=KEY),
    "seed -1 of digits": lambda: jf.data.digits(seed=-1),
    "draws no boolean": lambda: jf.Field(drift, jf.CondOT(), "velocity", draws=np.full(2, np.nan)),
    "times of text": lambda: jf.testing.check_field(WORLD.field(jf.CondOT()), WORLD, times=["a"]),
    "no times": lambda: jf.testing.check_field(WORLD.field(jf.CondOT()), WORLD, times=()),
    "no draws of a map": lambda: jf.testing.check_map(jf.FlowMap(lambda s, t, x, a: x, jf.CondOT()), WORLD, n=0),
    "steps of certify": lambda: jf.testing.certify(lambda field, x, z: x, steps=(8, 4)),
    "t0 of certify": lambda: jf.testing.certify(lambda field, x, z: x, t0=-2.0),
    "a Solution certified": lambda: jf.testing.certify(lambda f, x, z: jf.Solution(x=x), steps=(1,)).check(),
    "built-in drift": lambda: jf.solve(len, jnp.ones(2), GRID),
    "velocity of two": lambda: jf.ODEFlow(lambda t, x: x, 0.0, 1.0),
    "map of three": lambda: jf.FlowMap(lambda t, x, args: x, jf.CondOT()),
    "classifier of two": lambda: jf.ClassifierGuided(WORLD.field(jf.CondOT()), lambda t, x: 0.0),
    "fn of two": lambda: jf.batched(lambda a, b: a, np.ones((2, 2))),
    "set for a scale": lambda: jf.sample(GUIDED, KEY, (2,), GRID, args=jf.Args(1.0, scale={1.0})),
    "solver for a scale": lambda: jf.sample(GUIDED, KEY, (2,), GRID, args=jf.Args(1.0, scale=dfx.Heun())),
    "field of an earlier state": lambda: jf.sample(spent(), KEY, (2,), GRID),
    "masked array": lambda: log_prob(x=np.ma.masked_array([1.0, 2.0], [True, False])),
    "masked sample": lambda: jf.metrics.mmd(np.ma.masked_array(np.ones((3, 2)), np.eye(3, 2)), np.ones((3, 2))),
    "numpy's True for a number": lambda: jf.plot.loss_curve([0, 1], [1.0, 0.5], smooth=np.True_),
    "negative seed of a loader": lambda: jf.data.loader(jf.data.from_array(np.ones((3, 2))), 2, seed=np.int64(-2)),
    "sigma of None": lambda: jf.CustomPath(lambda t: t, lambda t: None),
    "floats for an output": lambda: jf.Preconditioned(lambda t, x, a: (1.0, 2.0), jf.VE(), 0.5).data(0.4, jnp.ones(2)),
    "names for a shape": lambda: jf.distributions.HierarchicalGaussian(0.5, ("a",)),
    "wide integers for a scale": lambda: jf.data.circles(KEY, 4, factor=2**31, noise=2**31, scale=2**31),
    "text in a row": lambda: jf.convert(jf.CondOT(), 0.4, jnp.ones(2), jnp.ones(2), "data", jf.Row("a", 1.0, 1.0)),
    "table of text": lambda: jf.TablePath(["a"]),
    "list for a file": lambda: jf.save(["m"], jf.Field(drift, jf.CondOT(), "velocity")),
    "pairs in no folder": lambda: jf.few_step.reflow("/no/where.npz", WORLD.field(jf.CondOT()), KEY, 2, (2,)),
    "animation in no folder": lambda: jf.plot.animation(np.zeros((3, 4, 2)), "/no/where.gif"),
    "tokens of text": lambda: jf.nn.depatchify("a", 2, (4, 4, 1)),
    "null of another structure": lambda: few(null={"a": 1}, args=1),
    "weight of vectors": lambda: few(weight=lambda square: jnp.ones(2)),
    "guidance of one": lambda: few(guidance=lambda args: 1.0),
    "difference 0": lambda: jf.few_step.MeanFlow(difference=0.0),
    "empty event": lambda: log_prob(jf.Field(lambda t, x, args: x, jf.CondOT(), "velocity"), jnp.zeros(0)),
}


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")  # equinox says it before jflow raises
@pytest.mark.parametrize("name", CALLS)
def test_bad_argument(name):
    """A bad argument gives a result that holds, or an error of jflow's own with its rule."""
    try:
        with unchecked():
            CALLS[name]()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        assert isinstance(error, (ValueError, TypeError, OSError)) and last.startswith(jf.__path__[0]), repr(error)
        assert "must" in str(error) and "scan body" not in str(error)


@pytest.mark.slow
def test_closure_over_a_field_of_another_mesh(trained):
    """Where the field hides in a function, a mesh raises in words."""
    with pytest.raises(ValueError, match=r"must close over arrays of one device.*Partial"):
        jf.batched(lambda x: jf.matching_loss(trained.ema, KEY, x), np.ones((8, 2)), mesh=MESHES["two axes"]())


MESHES = {
    "one axis": lambda: jax.make_mesh((8,), ("data",)),
    "two axes": lambda: jax.make_mesh((4, 2), ("data", "model")),
    "other order": lambda: jax.make_mesh((2, 4), ("model", "data")),
    "fewer devices": lambda: jax.make_mesh((2,), ("data",), devices=jax.devices()[4:6]),
    "explicit": lambda: jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,)),
    "none": lambda: None,
}


@pytest.fixture(scope="module")
def trained():
    """A state that lies on a mesh of eight devices."""
    field = jf.Field(jf.nn.MLP(2, width=8, depth=1, rngs=nnx.Rngs(0)), jf.CondOT(), predicts="velocity")
    state = jf.train.init(field, optax.adam(1e-3), ema=0.9)
    return jf.train.step(state, loss, KEY, np.ones((64, 2), np.float32), mesh=MESHES["one axis"]())[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_field_of_another_mesh(trained, name):
    """A field trained on one mesh is drawn from, mapped and trained on any other, with the same numbers."""
    mesh, options = MESHES[name](), {"batch_size": 32, "progress": False}
    own = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), eqx.filter(trained.ema, eqx.is_array))
    here = eqx.combine(own, trained.ema)
    want = jf.generate(here, KEY, 64, (2,), GRID, **options).x
    sol = jf.generate(trained.ema, KEY, 64, (2,), GRID, mesh=mesh, **options)
    assert (sol.status == 0).all()
    np.testing.assert_allclose(sol.x, want, atol=1e-5)
    keys = jax.device_put(jr.split(KEY, 64), jax.sharding.NamedSharding(MESHES["one axis"](), jax.P("data")))
    fn = jax.tree_util.Partial(jf.matching_loss, trained.ema)
    values = jf.batched(fn, keys, jnp.asarray(want), mesh=mesh, **options)
    assert values.shape == (64,) and np.isfinite(values).all()
    if name != "other order":  # training takes the axis by its name, drawing the first
        state = jax.tree.map(jnp.copy, trained)
        assert jf.train.step(state, loss, KEY, np.ones((64, 2), np.float32), mesh=mesh)[1].finite


def test_labels_of_many_bits():
    """Labels of more than 31 bits raise, or give a status: they are not drawn as other classes."""
    net = jf.nn.MLP(2, num_classes=3, width=4, depth=1, rngs=nnx.Rngs(0))
    field, labels = jf.Field(net, jf.CondOT(), "velocity"), np.arange(2) + 2**32
    try:
        sol = jf.generate(field, KEY, 2, (2,), jf.UniformGrid(2), args=labels, args_in_axes=0, progress=False)
    except (ValueError, OverflowError):
        return
    assert (sol.status != 0).all()


@pytest.mark.slow
def test_conditions_of_many_bits():
    """Numbers that the device's type does not hold raise, of Python or numpy; those that it holds go through."""
    field = jf.Field(lambda t, x, args: x * jnp.asarray(args, jnp.float32), jf.CondOT(), "velocity")
    for label in (2**31, -(2**40), np.int64(2**40), np.asarray([2**32]), np.uint64(2**63), np.float64(1e300)):
        with pytest.raises(ValueError, match="must fit the type"):
            jf.sample(field, KEY, (1,), GRID, args=label)
    for label in (2**31 - 1, np.int64(-(2**31)), np.uint32(2**32 - 1), np.uint8(255), np.float64(0.1)):
        assert jf.sample(field, KEY, (1,), GRID, args=label).x.shape == (1,)


def euler(field, x, times):
    def step(x, pair):
        return x + (pair[1] - pair[0]) * field.velocity(pair[0], x), None

    return jax.lax.scan(step, x, jnp.stack([times[:-1], times[1:]], 1))[0]


def grid(z):
    return jnp.linspace(0.0, 1.0, len(z) + 1)


WRONG = {
    "stops one step short": (lambda f, x, z: euler(f, x, grid(z)[:-1]), {"order": 1}),
    "one step too few": (lambda f, x, z: euler(f, x, jnp.linspace(0.0, 1.0, len(z))), {}),
    "output clipped": (lambda f, x, z: jnp.clip(euler(f, x, grid(z)), -2.5, 2.5), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", tiers(WRONG, ["one step too few"]))
def test_certificate_of_a_wrong_sampler(name):
    """A sampler that stops short, takes a step too few or clips its output gets no certificate."""
    sampler, options = WRONG[name]
    assert not jf.testing.certify(sampler, steps=(64, 128), **options).ok


@pytest.mark.slow
def test_certificate_of_a_right_sampler():
    """The same sampler without a fault gets one."""
    assert jf.testing.certify(lambda f, x, z: euler(f, x, grid(z)), steps=(64, 128), order=1, calls=128).ok
