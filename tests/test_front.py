"""The eager front of the verbs: a second call compiles nothing, a plain function gives no old numbers."""

import contextlib
import gc
import weakref
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flax import nnx

import jflow as jf

KEYS = [jr.key(0), jr.key(1)]
GRID = jf.UniformGrid(4)
EVENTS: list[str] = []
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: EVENTS.append(event))


@contextlib.contextmanager
def compiled():
    """How many programs are compiled inside, those read from disk among them: a list, of one number at the end."""
    start, count = len(EVENTS), []
    yield count
    count.append(sum(event == "/jax/core/compile/backend_compile_duration" for event in EVENTS[start:]))


class Net(eqx.Module):
    """A network with a parameter, whose activation is a plain function."""

    weight: jax.Array
    activation: object = jnp.tanh
    traces: ClassVar[list[int]] = []

    def __call__(self, t, x, args):
        self.traces.append(1)
        return self.activation(self.weight * x) * (1.0 if args is None else args) - x


def field(i, path=None):
    return jf.Field(Net(jnp.asarray([0.5, 0.8][i])), path or jf.CondOT(), "velocity")


class Rate(eqx.Module):
    """A drift or a diffusion coefficient that is no plain function."""

    k: jax.Array

    def __call__(self, t, x, args):
        return -self.k * args * x


STATES = [jnp.array([0.3, -1.0]), jnp.array([1.5, 0.2])]
TREES = [jf.brownian_tree(field(0), jf.FixedSteps(GRID, eta=1.0), key, (2,)) for key in KEYS]
SCALES = [2.0, 3.5]
RATES = [Rate(jnp.asarray(scale)) for scale in SCALES]
VERBS = {  # a call with the key, data, parameters, scales, numbers and grids of one of two users
    "sample": lambda i: jf.sample(field(i), KEYS[i], (2,), GRID),
    "sample, recommended": lambda i: jf.sample(field(i), KEYS[i], (2,)),
    "sample, eta": lambda i: jf.sample(field(i), KEYS[i], (2,), jf.FixedSteps(GRID, eta=[1.0, 0.5][i])),
    "sample, an array": lambda i: jf.sample(field(i), KEYS[i], (2,), np.linspace(0, 1, 5) ** [1, 2][i]),
    "sample, a rule of numbers": lambda i: jf.sample(
        field(i), KEYS[i], (2,), jf.FixedSteps(jf.ShiftedGrid(jf.LogSNRGrid(4, [-6.0, -7.0][i], 5.0), SCALES[i]))
    ),
    "sample, parameters of a path": lambda i: jf.sample(field(i, jf.VE(0.01, [20.0, 30.0][i])), KEYS[i], (2,), GRID),
    "sample, adaptive": lambda i: jf.sample(field(i), KEYS[i], (2,), jf.AdaptiveSteps(rtol=[1e-3, 1e-4][i])),
    "sample, guided": lambda i: jf.sample(
        jf.Guided(field(i), null=0.0), KEYS[i], (2,), GRID, args=jf.Args([1.0, 2.0][i], scale=SCALES[i])
    ),
    "sample, log_prob": lambda i: jf.sample(field(i), KEYS[i], (2,), GRID, log_prob=True),
    "decode": lambda i: jf.decode(field(i), STATES[i], jf.FixedSteps(GRID, jf.DPMpp(2)), args=[1, 3][i]),
    "decode, key": lambda i: jf.decode(field(i), STATES[i], jf.FixedSteps(GRID, eta=0.5), key=KEYS[i]),
    "decode, brownian": lambda i: jf.decode(field(i), STATES[i], jf.FixedSteps(GRID, eta=1.0), brownian=TREES[i]),
    "encode": lambda i: jf.encode(field(i), STATES[i]),
    "log_prob": lambda i: jf.log_prob(field(i), STATES[i], GRID),
    "log_prob, key": lambda i: jf.log_prob(field(i), STATES[i], GRID, key=KEYS[i], divergence=jf.Hutchinson(2)),
    "solve": lambda i: jf.solve(RATES[i], STATES[i], GRID, args=SCALES[i]),
    "solve, diffusion": lambda i: jf.solve(
        RATES[i], STATES[i], GRID, args=SCALES[i], diffusion=RATES[1 - i], key=KEYS[i]
    ),
    "ODEFlow": lambda i: jf.ODEFlow(RATES[i], 0.0, SCALES[i], args=1.0)(STATES[i]),
    "generate": lambda i: jf.generate(field(i), KEYS[i], [5, 9][i], (2,), GRID, batch_size=4),
    "generate, adaptive": lambda i: jf.generate(field(i), KEYS[i], [5, 7][i], (2,), jf.AdaptiveSteps(), batch_size=4),
    "batched": lambda i: jf.batched(RATES[i], *many(i), batch_size=2),
}


def many(i):
    rows = np.linspace(1, 2, [3, 5][i], dtype=np.float32)
    return rows, np.stack([rows, rows], 1), rows


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_a_second_eager_call_compiles_nothing(name):
    call = VERBS[name]
    first = call(0)
    traces = len(Net.traces)
    with compiled() as count:
        second = call(1)
    assert count == [0] and len(Net.traces) == traces
    a, b = (np.ravel(jax.tree.leaves(value)[0])[:2] for value in (first, second))
    assert np.isfinite(a).all() and (a != b).any()


def test_the_count_is_one_of_compilations():
    x = jnp.arange(3.0)
    with compiled() as count:
        jax.jit(lambda x: x * 1.2345)(x)
    assert count == [1]


def test_a_second_call_of_a_flax_network_compiles_nothing():
    class Flax(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, t, x, args):
            return nnx.silu(self.linear(x)) * t

    fields = [jf.Field(Flax(nnx.Rngs(seed)), jf.CondOT(), "velocity") for seed in (0, 1)]
    first = jf.sample(fields[0], KEYS[0], (2,), GRID).x
    with compiled() as count:
        second = jf.sample(fields[1], KEYS[1], (2,), GRID).x
    assert count == [0] and (first != second).all()


def test_numbers_and_arrays_of_numpy_and_jax_are_one_program():
    """A float, numpy's numbers and jax's; arrays of numpy and of jax, and lists."""

    def draw(times, eta, scale):
        guided = jf.Guided(field(0), null=0.0)
        return jf.sample(guided, KEYS[0], (2,), jf.FixedSteps(times, eta=eta), args=jf.Args(1.0, scale=scale)).x

    times = np.linspace(0, 1, 5)
    first = draw(times, 0.5, 2.0)
    every = [
        (jnp.asarray(times), np.float64(0.5), np.float32(2.0)),
        (times.tolist(), np.float32(0.5), jnp.float32(2.0)),
        (tuple(times), jnp.float32(0.5), jnp.asarray(2.0)),
        (times.astype(np.float32), np.asarray(0.5), np.asarray(2.0)),
        (times, 0.5, np.float64(2.0)),
    ]
    draw(*every[2])
    with compiled() as count:
        for given in every:
            np.testing.assert_array_equal(draw(*given), first)
    assert count == [0]


def test_an_array_of_amplitudes_may_be_of_numpy_or_jax():
    levels = [1.0, 0.5, 0.0, 2.0]
    runs = [
        jf.sample(field(0), KEYS[0], (2,), jf.FixedSteps(GRID, eta=eta)).x
        for eta in (np.array(levels), jnp.array(levels), levels, np.array(levels, np.float32))
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


@pytest.mark.slow
def test_other_types_and_structures_are_other_programs():
    base = jf.sample(field(0), KEYS[0], (2,), GRID).x
    for sampler in (jf.FixedSteps(GRID, dfx.Heun()), jf.UniformGrid(5), jf.UniformGrid(4, t1=0.9), jf.CosineGrid(4)):
        assert (jf.sample(field(0), KEYS[0], (2,), sampler).x != base).any()
    with compiled() as count:
        np.testing.assert_array_equal(jf.sample(field(0), KEYS[0], (2,), GRID).x, base)
    assert count == [0]


# ------------------------------------------------------------------------------------------- plain functions


LEVEL = 1.0


def net(t, x, args):
    return LEVEL - x


def of_one(x):
    return LEVEL * x


def at_level(t):
    return LEVEL * (1 - t)


def drift(t, x, args):
    return LEVEL * jnp.ones_like(x)


def watch(t, x, args):
    return LEVEL * x


def far(t, x, args, **kwargs):
    return x[0] > LEVEL


class Plain:
    """A class of one's own, no pytree."""

    def __call__(self, t, x, args):
        return LEVEL - x

    def method(self, t, x, args):
        return LEVEL - x


PLAIN = jf.Field(net, jf.CondOT(), "velocity")
NET, EARLY = Net(jnp.asarray(1.0)), jf.UniformGrid(4, t1=0.9)
READERS = {  # each reads the global when it is called
    "a network": lambda: jf.sample(PLAIN, KEYS[0], (2,), GRID).x,
    "a network that is jitted": lambda: jf.sample(
        jf.Field(jax.jit(lambda t, x, args: net(t, x, args)), jf.CondOT(), "velocity"), KEYS[0], (2,), GRID
    ).x,
    "an object": lambda: jf.sample(jf.Field(Plain(), jf.CondOT(), "velocity"), KEYS[0], (2,), GRID).x,
    "a method": lambda: jf.sample(jf.Field(Plain().method, jf.CondOT(), "velocity"), KEYS[0], (2,), GRID).x,
    "under a guide": lambda: jf.sample(jf.Thresholded(PLAIN, limit=5.0), KEYS[0], (2,), GRID).x,
    "on another path": lambda: jf.sample(jf.change_path(PLAIN, jf.Cosine()), KEYS[0], (2,), EARLY).x,
    "encode": lambda: jf.encode(PLAIN, STATES[0], GRID).x,
    "log_prob": lambda: jf.log_prob(PLAIN, STATES[0], GRID).x,
    "generate": lambda: jf.generate(PLAIN, KEYS[0], 3, (2,), GRID).x,
    "batched": lambda: jf.batched(lambda x: LEVEL * x, np.ones(3, np.float32)),
    "batched, one function": lambda: jf.batched(of_one, np.ones(3, np.float32)),
    "a drift": lambda: jf.solve(drift, STATES[0], GRID).x,
    "a diffusion coefficient": lambda: jf.solve(drift, STATES[0], GRID, diffusion=drift, key=KEYS[0]).x,
    "ODEFlow": lambda: jf.ODEFlow(drift, 0.0, 1.0)(STATES[0]),
    "diffusion= of a sampler": lambda: jf.sample(field(0), KEYS[0], (2,), jf.FixedSteps(GRID, diffusion=at_level)).x,
    "a path": lambda: jf.sample(
        jf.Field(NET, jf.CustomPath(lambda t: LEVEL * t, lambda t: 1 - t), "data"), KEYS[0], (2,), GRID
    ).x,
    "what is saved": lambda: jf.sample(field(0), KEYS[0], (2,), GRID, saveat=dfx.SaveAt(steps=True, fn=watch)).xs,
    "an event": lambda: jf.decode(
        jf.Field(Rate(jnp.asarray(-1.0)), jf.CondOT(), "velocity"), 0.9 * jnp.ones(2), jf.AdaptiveSteps(), args=1.0,
        event=dfx.Event(far),
    ).t,
    "c_noise": lambda: jf.sample(
        jf.Preconditioned(Clocked(), jf.VE(), 0.5, c_noise=at_level), KEYS[0], (2,), jf.UniformGrid(3)
    ).x,
}  # fmt: skip


class Clocked(eqx.Module):
    """A network that shows its time."""

    def __call__(self, t, x, args):
        return t * jnp.ones_like(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_plain_function_that_reads_a_global_gives_the_new_answer(name, monkeypatch):
    call = READERS[name]
    first = call()
    monkeypatch.setitem(globals(), "LEVEL", 2.0)
    changed = call()
    monkeypatch.setitem(globals(), "LEVEL", 1.0)
    assert (np.asarray(first) != changed).any()
    np.testing.assert_array_equal(call(), first)


@pytest.mark.slow
def test_what_a_network_or_a_controller_holds_is_compiled_once():
    """An activation inside a network, a norm inside a controller; a plain function of the noun itself is not."""

    def norm(error):
        return jnp.max(jnp.abs(error))

    controller = dfx.PIDController(1e-3, 1e-3, norm=norm)
    mlp = [jf.Field(Wrapped(eqx.nn.MLP(2, 2, 8, 1, key=key)), jf.CondOT(), "velocity") for key in KEYS]
    jf.sample(mlp[0], KEYS[0], (2,), jf.AdaptiveSteps(controller=controller))
    with compiled() as count:
        jf.sample(mlp[1], KEYS[1], (2,), jf.AdaptiveSteps(controller=controller))
    assert count == [0]
    jf.sample(PLAIN, KEYS[0], (2,), GRID)
    with compiled() as count:
        jf.sample(PLAIN, KEYS[0], (2,), GRID)
    assert count == [1]
    run = jax.jit(lambda key: jf.sample(PLAIN, key, (2,), GRID).x)  # once under the user's own jit
    run(KEYS[0])
    with compiled() as count:
        run(KEYS[1])
    assert count == [0]


class Wrapped(eqx.Module):
    """A network of equinox as one of jflow."""

    mlp: eqx.nn.MLP

    def __call__(self, t, x, args):
        return self.mlp(x)


def test_a_plain_function_is_not_kept_alive():
    class Held:
        """What the function closes over."""

    held = Held()
    alive = weakref.ref(held)

    def call(held):
        made = jf.Field(lambda t, x, args: -x if held else x, jf.CondOT(), "velocity")
        return jf.sample(made, KEYS[0], (2,), GRID).x

    call(held).block_until_ready()
    del held
    gc.collect()
    assert alive() is None


# -------------------------------------------------------------------------------------------- under transformations


NOISY = jf.FixedSteps(GRID, eta=1.0)


def loss(weight, key):
    made = jf.Field(Net(jnp.asarray(weight)), jf.CondOT(), "velocity")
    return jnp.sum(jf.sample(made, key, jax.ShapeDtypeStruct((2,), jnp.float64), NOISY).x ** 2)


@pytest.mark.slow
def test_under_jit_and_vmap_it_is_the_eager_call():
    keys = jr.split(KEYS[0], 3)
    eager = jnp.stack([jf.sample(field(0), key, (2,), NOISY).x for key in keys])
    mapped = {
        "vmap": jax.vmap(lambda key: jf.sample(field(0), key, (2,), NOISY).x)(keys),
        "jit of vmap": jax.jit(jax.vmap(lambda key: jf.sample(field(0), key, (2,), NOISY).x))(keys),
        "vmap of jit": jax.vmap(jax.jit(lambda key: jf.sample(field(0), key, (2,), NOISY).x))(keys),
        "lax.map": jax.lax.map(lambda key: jf.sample(field(0), key, (2,), NOISY).x, keys),
        "scan": jax.lax.scan(lambda c, key: (c, jf.sample(field(0), key, (2,), NOISY).x), None, keys)[1],
        "filter_jit": eqx.filter_jit(jax.vmap(lambda key: jf.sample(field(0), key, (2,), NOISY).x))(keys),
    }
    for name, x in mapped.items():
        np.testing.assert_allclose(x, eager, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_gradients_of_an_eager_call(x64):
    value, slope = jax.value_and_grad(loss)(0.5, KEYS[0])
    step = 1e-6
    finite = (loss(0.5 + step, KEYS[0]) - loss(0.5 - step, KEYS[0])) / (2 * step)
    np.testing.assert_allclose(slope, finite, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.5, KEYS[0]), slope, rtol=1e-6)
    _, pushed = jax.jvp(lambda w: loss(w, KEYS[0]), (0.5,), (1.0,))
    np.testing.assert_allclose(pushed, slope, rtol=1e-5)
    slopes = jax.vmap(jax.grad(loss), (None, 0))(0.5, jnp.stack(KEYS))
    np.testing.assert_allclose(slopes[0], slope, rtol=1e-6)
    assert value == pytest.approx(float(loss(0.5, KEYS[0])), rel=1e-6)


def test_a_gradient_through_a_plain_function_that_closes_over_what_is_differentiated():
    def by(make):
        return jax.grad(lambda w: jnp.sum(jf.decode(make(w), STATES[0], GRID).x))(0.5)

    closed = by(lambda w: jf.Field(lambda t, x, args: jnp.tanh(w * x) - x, jf.CondOT(), "velocity"))
    np.testing.assert_allclose(closed, by(lambda w: jf.Field(Net(jnp.asarray(w)), jf.CondOT(), "velocity")), rtol=1e-5)


def test_a_verb_inside_a_network_of_another(x64):
    """A network that solves an ODE of its own: nested calls, eager and jitted."""

    class Inner(eqx.Module):
        rate: jax.Array

        def __call__(self, t, x, args):
            return jf.solve(Rate(self.rate), x, jf.FixedSteps(jf.UniformGrid(20), dfx.Tsit5()), args=1.0).x

    outer = jf.Field(Inner(jnp.asarray(0.7)), jf.CondOT(), "data")
    x = jnp.asarray(STATES[0], jnp.float64)
    got = jf.decode(outer, x, jf.UniformGrid(3)).x
    shrink, truth = np.exp(-0.7), np.asarray(x)
    for t in (0.0, 1 / 3):
        truth = truth + (1 / 3) * (shrink * truth - truth) / (1 - t)
    np.testing.assert_allclose(got, shrink * truth, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda x: jf.decode(outer, x, jf.UniformGrid(3)).x)(x), got, rtol=1e-12)


def test_the_front_vanishes_under_an_outer_jit():
    """The inner program is a part of the caller's, without a call of its own."""
    program = jax.jit(lambda key: jf.sample(field(0), key, (2,), GRID).x).lower(KEYS[0]).as_text()
    assert "_kept" not in program and "while" in program


def test_what_is_no_array_goes_around_the_program():
    """Dense output is an object with functions in it."""
    out = jf.sample(field(0), KEYS[0], (2,), jf.AdaptiveSteps(rtol=1e-4), saveat=dfx.SaveAt(dense=True))
    np.testing.assert_allclose(out.interpolation.evaluate(1.0), out.x, rtol=1e-5)
    assert out.log_prob is None and out.nfe.dtype == "int32"


def test_numpy_arrays_of_any_type_in_a_field_inside_and_outside_jit():
    """In double precision and in single one after the other: JAX might keep a numpy array in its own type."""
    made = jf.Field(Rate(np.array([0.5, 2.0])), jf.CondOT(), "velocity")

    @jax.jit
    def run(x):
        return jf.decode(made, x, GRID, args=1.0).x

    for x64 in (True, False, True):
        with jax.enable_x64(x64):
            x = jnp.ones(2)
            for got in (run(x), jf.decode(made, x, GRID, args=1.0).x):
                np.testing.assert_allclose(got, (1 - np.array([0.5, 2.0]) / 4) ** 4, rtol=1e-5)
                assert got.dtype == x.dtype
