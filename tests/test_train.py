"""Training: the step, the optimiser, the running average, the loop."""

import json
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from references import refuses

import jflow as jf

OPTIMIZER = optax.adamw(1e-2, weight_decay=0.1)
TRACES = []


class Net(eqx.Module):
    mlp: eqx.nn.MLP

    def __init__(self, width=16):
        self.mlp = eqx.nn.MLP(3, 2, width, 1, key=jr.key(0))

    def __call__(self, t, x, args):
        return self.mlp(jnp.append(x, t.astype(x.dtype)))


def make_field(width=16):
    return jf.Field(Net(width), jf.CondOT(), predicts="velocity")


def loss(field, key, example):
    TRACES.append(1)
    return jf.matching_loss(field, key, example["x"])


def square(net, key, example):
    """A loss without randomness."""
    return jnp.mean((net(example) - 1.0) ** 2)


def batches(i, size=8):
    return {"x": np.random.default_rng(i).normal(size=(size, 2)).astype(np.float32)}


def arrays(tree):
    return [np.asarray(leaf) for leaf in jtu.tree_leaves(eqx.filter(tree, eqx.is_array))]


def same(tree, other):
    return all(np.array_equal(a, b) for a, b in zip(arrays(tree), arrays(other), strict=True))


def linear():
    return eqx.nn.Linear(2, 1, key=jr.key(1))


def test_G11_fit_returns_the_losses_is_deterministic_and_traced_once():
    TRACES.clear()
    runs = [
        jf.train.fit(jf.train.init(make_field(), OPTIMIZER), loss, batches, steps=30, key=jr.key(2), progress=False)
        for _ in range(2)
    ]
    (state, losses), (again, losses_again) = runs
    assert losses.shape == (30,) and losses.dtype == np.float32 and np.all(np.isfinite(losses))
    assert int(state.step) == 30
    assert len(TRACES) == 1
    assert np.array_equal(losses, losses_again)
    assert same(state, again)
    other = jf.train.fit(jf.train.init(make_field(), OPTIMIZER), loss, batches, steps=30, key=jr.key(3), progress=False)
    assert not np.array_equal(losses, other[1])
    # 30 more steps go on from 30; none are left at the end
    state, more = jf.train.fit(state, loss, batches, steps=40, key=jr.key(2), progress=False)
    assert more.shape == (10,) and len(TRACES) == 1
    assert jf.train.fit(state, loss, batches, steps=40, key=jr.key(2), progress=False)[1].shape == (0,)


def test_G12_a_batch_of_one_example():
    state = jf.train.init(make_field(), OPTIMIZER)
    before = arrays(state.params)
    state, info = jf.train.step(state, loss, jr.key(0), {"x": jnp.ones((1, 2))})
    assert bool(info.finite) and not np.array_equal(before[0], state.params[0])


def test_step_is_gradient_descent_on_the_mean_loss():
    net, x, rate = linear(), jnp.arange(6.0).reshape(3, 2), 0.1
    state, info = jf.train.step(jf.train.init(net, optax.sgd(rate)), square, jr.key(0), x)

    @eqx.filter_value_and_grad
    def mean_loss(net):
        return jnp.mean(jax.vmap(lambda example: square(net, None, example))(x))

    value, grads = mean_loss(net)
    np.testing.assert_allclose(info.loss, value, rtol=1e-6)
    np.testing.assert_allclose(info.grad_norm, optax.tree.norm(grads), rtol=1e-6)
    np.testing.assert_allclose(state.field.weight, net.weight - rate * grads.weight, rtol=1e-5)
    np.testing.assert_allclose(state.field.bias, net.bias - rate * grads.bias, rtol=1e-5)


def test_every_example_has_its_own_key():
    def noisy(net, key, example):
        return jnp.sum(net.bias) * jr.normal(key)

    state, _ = jf.train.step(jf.train.init(linear(), optax.sgd(1.0)), noisy, jr.key(3), jnp.zeros((4, 2)))
    mean = jnp.mean(jax.vmap(jr.normal)(jr.split(jr.key(3), 4)))
    np.testing.assert_allclose(linear().bias - state.field.bias, mean, rtol=1e-5)


def test_only_the_networks_leaves_move_under_weight_decay():
    net = jtu.Partial(lambda w, t, x, args: w @ x + args, jnp.ones((2, 2)))
    path = jf.VE(sigma_min=jnp.array(0.01), sigma_max=jnp.array(30.0))
    field = jf.Guided(jf.Preconditioned(net, path, sigma_data=jnp.array(0.5)), null=jnp.array([0.25, 0.75]))

    def guided_loss(field, key, example):
        return jf.matching_loss(field, key, example["x"], jnp.zeros(2), law=jf.laws.LogNormalSigma(-1.2, 1.2))

    state, _ = jf.train.fit(
        jf.train.init(field, OPTIMIZER), guided_loss, batches, steps=100, key=jr.key(0), progress=False
    )
    flags = jtu.tree_leaves(jf.trainable(field))
    assert len(state.params) == 1 and len(state.frozen) >= 3
    for result in (state.field, state.ema):
        for flag, old, new in zip(flags, jtu.tree_leaves(field), jtu.tree_leaves(result), strict=True):
            if eqx.is_array(old):
                assert np.array_equal(old, new) != flag


def test_a_mask_says_which_leaves_are_trained():
    """In place of `trainable`: a layer that stays, and a path that its own class declares frozen and that moves."""
    field = jf.Preconditioned(Net(), jf.VE(sigma_min=jnp.array(0.01), sigma_max=jnp.array(30.0)), sigma_data=0.5)
    default = jf.trainable(field)
    assert same(jf.train.init(field, OPTIMIZER, trained=default), jf.train.init(field, OPTIMIZER))
    mask = eqx.tree_at(lambda f: (f.net.mlp.layers[0].weight, f.path.sigma_max), default, (False, True))

    def noisy(field, key, example):
        return jf.matching_loss(field, key, example["x"], law=jf.laws.LogNormalSigma(-1.2, 1.2)) + field.path.sigma_max

    state = jf.train.init(field, OPTIMIZER, trained=mask)
    for i in range(3):
        state, _ = jf.train.step(state, noisy, jr.key(i), batches(i))
    for result in (state.field, state.ema):
        moved = [not np.array_equal(a, b) for a, b in zip(arrays(field), arrays(result), strict=True)]
        leaves = zip(jtu.tree_leaves(mask), jtu.tree_leaves(field), strict=True)
        assert moved == [flag for flag, leaf in leaves if eqx.is_array(leaf)]


def test_a_mask_that_does_not_fit_raises():
    field = make_field()
    mask = jf.trainable(field)
    refuses(lambda: jf.train.init(field, OPTIMIZER, trained=mask.net), "the structure of the field.* Got a Net")
    refuses(lambda: jf.train.init(field, OPTIMIZER, trained=True), "must have the structure of the field.* with 1")
    ones = jtu.tree_map(lambda _: 1, mask)
    refuses(lambda: jf.train.init(field, OPTIMIZER, trained=ones), r"True or False. Got 1 at \.net", TypeError)
    none = jtu.tree_map(lambda _: False, mask)
    refuses(lambda: jf.train.init(field, OPTIMIZER, trained=none), "arrays that are trained. Got none")
    counted = (jnp.arange(2), linear())
    flags = (True, jf.trainable(linear()))
    refuses(lambda: jf.train.init(counted, OPTIMIZER, trained=flags), r"Only floating-point arrays.* at \[0\]")


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_training_takes_keys_of_every_implementation(impl):
    """Only sampling raises for those whose draws depend on the batch."""
    settings = {"steps": 3, "key": jr.key(0, impl=impl), "progress": False}
    runs = [jf.train.fit(jf.train.init(make_field(), OPTIMIZER), loss, batches, **settings)[1] for _ in range(2)]
    assert np.array_equal(*runs) and np.all(np.isfinite(runs[0])) and len(set(runs[0].tolist())) == 3
    refuses(lambda: jf.sample(make_field(), jr.key(0, impl=impl), (2,)), "rbg")


def test_donation_takes_the_states_arrays_and_never_the_callers():
    net = linear()
    state = jf.train.init(net, OPTIMIZER)
    new, _ = jf.train.step(state, square, jr.key(0), jnp.ones((2, 2)))
    assert all(leaf.is_deleted() for leaf in state.params)
    assert not any(leaf.is_deleted() for leaf in jtu.tree_leaves((net, new)) if eqx.is_array(leaf))


def test_new_keys_data_and_parameters_do_not_retrace():
    TRACES.clear()
    state = jf.train.init(make_field(), optax.inject_hyperparams(optax.adam)(learning_rate=1e-3))
    for i in range(4):
        state, _ = jf.train.step(state, loss, jr.key(i), {"x": jnp.full((8, 2), i, jnp.float32)})
        state, _ = jf.train.step(state, loss, jr.fold_in(jr.key(0), i), batches(i))
    assert len(TRACES) == 1
    scaled = jtu.Partial(lambda scale, field, key, example: scale * loss(field, key, example))
    for i in range(3):
        state, _ = jf.train.step(state, jtu.Partial(scaled.func, jnp.array(float(i))), jr.key(i), batches(i))
    assert len(TRACES) == 2


def test_accumulation_is_one_step_on_the_whole_batch_and_the_average_waits_for_it():
    data = jr.normal(jr.key(5), (12, 2))
    whole, _ = jf.train.step(jf.train.init(linear(), optax.sgd(0.1)), square, jr.key(0), data)
    optimizers = [
        optax.MultiSteps(optax.sgd(0.1), 4),
        optax.chain(optax.clip(1e9), optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation()),
    ]
    for optimizer in optimizers:
        state = jf.train.init(linear(), optimizer, ema=0.9)
        for i in range(4):
            assert int(state.moves) == 0 and same(state.ema, linear())
            state, _ = jf.train.step(state, square, jr.key(0), data[3 * i : 3 * i + 3])
        assert int(state.moves) == 1 and int(state.step) == 4
        np.testing.assert_allclose(state.field.weight, whole.field.weight, rtol=1e-5)
        np.testing.assert_allclose(state.ema.weight, whole.field.weight, rtol=1e-5)


def test_clipping_bounds_the_move_and_the_reported_norm_is_before_it():
    state = jf.train.init(linear(), optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0)))
    state, info = jf.train.step(state, square, jr.key(0), 10 * jnp.ones((2, 2)))
    moved = optax.tree.norm(jtu.tree_map(jnp.subtract, eqx.filter(linear(), eqx.is_array), state.field))
    assert info.grad_norm > 1
    np.testing.assert_allclose(moved, 0.01, rtol=1e-4)


def test_the_optimiser_sees_the_structure_of_the_field():
    optimizer = optax.adamw(0.0, mask=lambda params: jtu.tree_map(lambda p: p.ndim > 1, params))
    state = jf.train.init(make_field(), optimizer)
    assert int(optax.tree.get(state.opt_state, "count")) == 0
    jf.train.step(state, loss, jr.key(0), batches(0))


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
def test_the_average_is_the_bias_corrected_sum(decay):
    state, points = jf.train.init(linear(), optax.sgd(0.1), ema=decay), []
    for n in range(1, 21):
        state, _ = jf.train.step(state, square, jr.key(0), jr.normal(jr.key(n), (4, 2)))
        points.append(np.asarray(state.field.weight, np.float64))
        weights = decay ** np.arange(n - 1, -1, -1.0)
        expected = sum(w * p for w, p in zip(weights, points, strict=True)) / weights.sum()
        np.testing.assert_allclose(state.ema.weight, expected, rtol=1e-5, atol=1e-6)


def test_the_average_of_a_constant_is_the_constant_at_every_step():
    state = jf.train.init(linear(), optax.set_to_zero(), ema=0.9999)
    assert same(state.ema, linear())
    for n in range(1, 200):
        state, _ = jf.train.step(state, square, jr.key(0), jnp.ones((1, 2)))
        assert int(state.moves) == n and same(state.ema, linear())


def test_the_average_is_kept_in_float32_and_given_in_the_parameters_type():
    net = jtu.tree_map(lambda p: p.astype(jnp.bfloat16), eqx.filter(linear(), eqx.is_array))
    start = eqx.combine(net, linear())
    state = jf.train.init(start, optax.sgd(0.1), ema=0.9)
    for i in range(3):
        state, info = jf.train.step(state, square, jr.key(i), jnp.ones((2, 2), jnp.bfloat16))
    assert {leaf.dtype for leaf in state.average} == {jnp.dtype(jnp.float32)}
    assert {p.dtype for p in state.params} == {jnp.dtype(jnp.bfloat16)} == {leaf.dtype for leaf in arrays(state.ema)}
    assert info.loss.dtype == info.grad_norm.dtype == jnp.float32


def test_a_state_without_average():
    state = jf.train.init(linear(), optax.sgd(0.1), ema=None)
    state, _ = jf.train.step(state, square, jr.key(0), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="ema=None"):
        _ = state.ema


def test_a_batch_that_is_not_finite_is_reported_and_costs_nothing_but_its_step():
    state = jf.train.init(linear(), optax.adam(0.1))
    state, _ = jf.train.step(state, square, jr.key(0), jnp.ones((2, 2)))
    before = arrays((state.params, state.slots, state.average, state.moves))
    state, info = jf.train.step(state, square, jr.key(1), jnp.array([[1.0, 2.0], [jnp.nan, 0.0]]))
    assert not bool(info.finite) and int(state.step) == 2
    assert all(
        np.array_equal(a, b)
        for a, b in zip(before, arrays((state.params, state.slots, state.average, state.moves)), strict=True)
    )
    state, info = jf.train.step(state, square, jr.key(2), jnp.ones((2, 2)))
    assert bool(info.finite)


def test_fit_calls_functions_on_schedule_and_keeps_the_best(tmp_path):
    """A run that was stopped and went on has called, written and kept what the uninterrupted one did."""
    held_out = {"x": np.random.default_rng(99).normal(size=(64, 2)).astype(np.float32)}
    expected = [3.0, 2.0, 2.5, 1.5, 4.0, 5.0, 6.0, 7.0]

    def fitted(folder, steps, seen, fail=None):
        def note(state, line):
            seen.append((int(state.step), line["step"], line["loss"], arrays(state.ema)[0]))

        def measure(state, line):
            if line["step"] == fail:
                raise RuntimeError("measured badly")
            value = jf.train.mean_loss(state.ema, loss, jr.key(5), held_out)
            return {"held_out": value, "made": expected[int(state.step) // 4], "odd": float("nan")}

        state = jf.train.init(make_field(), OPTIMIZER)
        options = {"run_dir": folder, "save_every": 6, "log_every": 10, "best": "made", "progress": False}
        options |= {"steps": steps, "key": jr.key(0)}
        return jf.train.fit(state, loss, batches, every=[(3, note), (4, measure)], **options)[0]

    def lines(folder):
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name != "seconds"} for line in found]

    seen, again = [], []
    state = fitted(tmp_path / "whole", 22, seen)
    assert [(a, b) for a, b, *_ in seen] == [(n, n) for n in (3, 6, 9, 12, 15, 18, 21, 22)]
    assert not np.array_equal(seen[0][3], seen[1][3]) and np.array_equal(seen[-1][3], arrays(state.ema)[0])
    found = lines(tmp_path / "whole")
    assert [line["step"] for line in found] == [4, 8, 10, 12, 16, 20, 22]
    assert found[0]["odd"] is None and "held_out" not in found[2]
    value = np.mean([loss(state.ema, k, {"x": x}) for k, x in zip(jr.split(jr.key(5), 64), held_out["x"], strict=True)])
    assert found[-1]["held_out"] == pytest.approx(value, rel=1e-5)
    best = jf.train.restore(tmp_path / "whole" / "best", jf.train.init(make_field(), OPTIMIZER))
    kept = jf.train.restore(tmp_path / "whole" / "checkpoints", best, step=12)
    assert int(best.step) == 12 and same(best, kept)
    with pytest.raises(RuntimeError, match="badly"):
        fitted(tmp_path / "stopped", 22, again, fail=16)
    resumed = fitted(tmp_path / "stopped", 22, again)
    assert same(resumed, state) and lines(tmp_path / "stopped") == found
    assert [entry.name for entry in (tmp_path / "stopped" / "best").iterdir()] == ["12"]
    assert [n for n, *_ in again] == [3, 6, 9, 12, 15, 15, 18, 21, 22]
    for every, match in (
        (5, "a pair of a number of steps"),
        ((5,), "a pair of a number of steps"),
        ([(5, None)], "a pair of a number of steps"),
        ((0, print), "every"),
        ((1, lambda state, line: {"loss": 1.0}), "that the line of the step has not yet. Got 'loss'"),
        ((1, lambda state, line: {"x": np.ones(2)}), "Got 'x' with a ndarray"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            jf.train.fit(
                jf.train.init(make_field(), OPTIMIZER), loss, batches, steps=1, key=jr.key(0), every=every,
                progress=False,
            )  # fmt: skip
    with pytest.raises(ValueError, match="pass run_dir"):
        jf.train.fit(jf.train.init(make_field(), OPTIMIZER), loss, batches, steps=1, key=jr.key(0), best="loss")


def test_microbatches_of_any_size_take_the_same_step():
    """The gradient, and so the move, to 1e-6, with keys by the place in the whole batch; clipped after the sum."""

    def noisy(net, key, example):
        value = square(net, key, example["x"] + jr.normal(key, (2,)))
        return value, {"value": value, "two": 2.0 * jr.uniform(key, (2,))}

    results, optimizer = {}, optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))
    for size in (None, 4, 1):
        state, info = jf.train.step(
            jf.train.init(linear(), optimizer), noisy, jr.key(3), batches(0, 12), microbatch=size
        )
        results[size] = [*arrays(state.params), *arrays(info)]
    for size, found in results.items():
        for one, other in zip(results[None], found, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6, err_msg=str(size))
    state = jf.train.init(linear(), optimizer)
    for size, match in ((5, "divide the batch. Got 5 for a batch of 12: take 4"), (0, "microbatch"), (24, "take 12")):
        refuses(lambda size=size: jf.train.step(state, noisy, jr.key(3), batches(0, 12), microbatch=size), match)


@pytest.mark.slow
def test_microbatches_over_devices_and_in_half_precision():
    mesh, results = jax.make_mesh((8,), ("data",)), []
    for options in ({}, {"mesh": mesh, "microbatch": 16}):
        state = jf.train.init(make_field(), OPTIMIZER)
        for i in range(3):
            state, info = jf.train.step(state, loss, jr.fold_in(jr.key(1), i), batches(i, 32), **options)
        results.append([*arrays(state.params), np.asarray(info.loss)])
    for one, many in zip(*results, strict=True):
        np.testing.assert_allclose(one, many, atol=1e-5)
    with pytest.raises(ValueError, match=r"split evenly over 8 devices. Got 4 for a batch of 32: take"):
        jf.train.step(state, loss, jr.key(0), batches(0, 32), mesh=mesh, microbatch=4)
    # parameters in bfloat16: parts of a batch sum up in float32
    half = jtu.tree_map(lambda p: p.astype(jnp.bfloat16), eqx.filter(linear(), eqx.is_array))
    state = jf.train.init(eqx.combine(half, linear()), optax.sgd(0.1))
    state, info = jf.train.step(state, square, jr.key(0), jnp.ones((512, 2), jnp.bfloat16), microbatch=1)
    exact = jf.train.step(jf.train.init(eqx.combine(half, linear()), optax.sgd(0.1)), square, jr.key(0),
                          jnp.ones((1, 2), jnp.bfloat16))[1]  # fmt: skip
    np.testing.assert_allclose(info.grad_norm, exact.grad_norm, rtol=1e-2)
    np.testing.assert_allclose(info.loss, exact.loss, rtol=1e-5)
    assert state.params[0].dtype == jnp.bfloat16


@pytest.mark.slow
def test_several_steps_in_one_call_are_those_steps(tmp_path):
    results = {}
    for n, mesh in ((1, None), (3, None), (3, jax.make_mesh((8,), ("data",)))):
        state, seen = jf.train.init(make_field(), OPTIMIZER), []
        options = {"steps_per_call": n, "log_every": 6, "save_every": 6, "progress": False, "mesh": mesh}
        options |= {"every": (3, lambda state, line, seen=seen: seen.append((int(state.step), line["loss"])))}
        folder = tmp_path / f"{n}{mesh is None}"
        state, losses = jf.train.fit(state, loss, batches, steps=12, key=jr.key(0), run_dir=folder, **options)
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == [6, 12] and [n for n, _ in seen] == [3, 6, 9, 12]
        results[folder] = [*arrays(state), losses, np.array(seen)]
    first, *others = results.values()
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"Got 3 with save_every=1000, log_every=50"):
        jf.train.fit(state, loss, batches, steps=15, key=jr.key(0), steps_per_call=3)
    with pytest.raises(ValueError, match="one size"):
        fresh = jf.train.init(make_field(), OPTIMIZER)
        sizes = {"steps_per_call": 2, "log_every": 2, "save_every": 2}
        jf.train.fit(fresh, loss, lambda i: batches(i, 8 - i), steps=2, key=jr.key(0), **sizes)

    def bad(i):
        return {"x": batches(i)["x"] * (np.nan if i == 4 else 1.0)}

    options = {"steps_per_call": 3, "log_every": 6, "save_every": 6, "steps": 12, "key": jr.key(0), "progress": False}
    with pytest.raises(ValueError, match=r"Step 4 .*correct the data"):
        jf.train.fit(jf.train.init(make_field(), OPTIMIZER), loss, bad, **options)


def test_a_state_that_went_into_a_step_says_so():
    state = jf.train.init(linear(), OPTIMIZER)
    jf.train.step(state, square, jr.key(0), jnp.ones((2, 2)))
    uses = (
        lambda: jf.train.step(state, square, jr.key(0), jnp.ones((2, 2))),
        lambda: jf.train.fit(state, square, batches, steps=1, key=jr.key(0)),
        lambda: state.field,
        lambda: state.ema,
        lambda: state.opt_state,
        lambda: jf.train.save("nowhere", state),
    )
    for use in uses:
        refuses(use, "must be the one that the last step, or fit, returned")


def test_fit_takes_a_grain_data_set_as_it_is():
    grain = pytest.importorskip("grain")
    data = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    batched = grain.MapDataset.source(data).seed(1).shuffle().map(lambda x: {"x": x}).repeat().batch(8)
    settings = {"steps": 12, "key": jr.key(0), "progress": False}
    results = [
        jf.train.fit(jf.train.init(make_field(), OPTIMIZER), loss, given, **settings)[1]
        for given in (batched, lambda i: batched[i])
    ]
    assert np.array_equal(*results) and len({batched[i]["x"].tobytes() for i in range(12)}) == 12
    with pytest.raises(TypeError, match="function of the step"):
        jf.train.fit(jf.train.init(make_field(), OPTIMIZER), loss, [data], **settings)


def test_fit_keeps_its_bar_off_pipes_and_tells_what_it_was(capsys, monkeypatch, tmp_path):
    def run(steps, **options):
        state = jf.train.init(linear(), OPTIMIZER)
        jf.train.fit(state, square, lambda i: jnp.ones((2, 2)), steps=steps, key=jr.key(0), run_dir=tmp_path, **options)
        return capsys.readouterr().err

    told = run(6)
    assert told.count("\n") == 1 and "fit: steps 0 to 6" in told and "a second; loss" in told
    assert "fit(..., steps=12) goes on from here" in told and "jf.save(file, state.ema)" in told
    assert "has 6 steps already; fit(..., steps=12) goes on" in run(6)
    assert run(8, progress=False) == ""
    assert "fit: steps 8 to 9" in run(9)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = run(30)
    assert "fit, compiling" in shown and "loss=" in shown and shown.splitlines()[-1].startswith("fit: steps 9 to 30")


def test_fit_stops_where_numbers_are_not_finite():
    def bad(i):
        return {"x": batches(i)["x"] * (np.nan if i == 5 else 1.0)}

    settings = {"steps": 20, "key": jr.key(0), "progress": False}
    with pytest.raises(ValueError, match=r"Step 5 .*batch\['x'\]: correct the data"):
        jf.train.fit(jf.train.init(make_field(), OPTIMIZER), loss, bad, **settings)
    with pytest.raises(ValueError, match="smaller learning rate"):
        jf.train.fit(jf.train.init(make_field(), optax.sgd(1e30)), loss, batches, **settings)


def test_fit_skips_steps_that_are_not_finite_up_to_a_limit(tmp_path, caplog, capsys):
    def bad(i):
        return {"x": batches(i)["x"] * (np.nan if i in (3, 4, 8, 12, 13, 14) else 1.0)}

    state = jf.train.init(make_field(), OPTIMIZER)
    settings = {"key": jr.key(0), "log_every": 1, "save_every": 2, "max_skips": 2, "run_dir": tmp_path}
    state, losses = jf.train.fit(state, loss, bad, steps=12, **settings)
    assert "steps 0 to 12 (3 skipped) in" in capsys.readouterr().err
    assert np.flatnonzero(~np.isfinite(losses)).tolist() == [3, 4, 8] and int(state.moves) == 9
    assert caplog.text.count("It is skipped") == 3 and "Step 4 (counted from 0), number 2 in a row, gave" in caplog.text
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 6, 7, 8, 10, 11, 12]
    twin = jf.train.init(make_field(), OPTIMIZER)  # the steps that count, and no others
    for i in (i for i in range(12) if i not in (3, 4, 8)):
        twin, _ = jf.train.step(twin, loss, jr.fold_in(jr.key(0), i), batches(i))
    assert same(twin.params, state.params) and same(twin.average, state.average)
    with pytest.raises(ValueError, match=r"Step 14 .*number 3 in a row.*The checkpoint of step 14 is kept"):
        jf.train.fit(state, loss, bad, steps=20, **settings)
    refuses(lambda: jf.train.fit(twin, loss, bad, steps=20, key=jr.key(0), max_skips=-1), "at least 0")


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_data_parallel_equals_one_device():
    mesh = jax.make_mesh((8,), ("data",))
    results = []
    TRACES.clear()
    for m in (None, mesh):
        state = jf.train.init(make_field(), OPTIMIZER)
        for i in range(10):
            state, info = jf.train.step(state, loss, jr.fold_in(jr.key(1), i), batches(i, 16), mesh=m)
        results.append((arrays(state), float(info.loss)))
    assert len(TRACES) == 2
    assert state.params[0].sharding.is_fully_replicated and len(state.params[0].devices()) == 8
    for one, many in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(one, many, atol=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)
    with pytest.raises(ValueError, match="multiple of 8"):
        jf.train.step(state, loss, jr.key(0), batches(0, 6), mesh=mesh)
    with pytest.raises(ValueError, match="axis 'data'"):
        jf.train.step(state, loss, jr.key(0), batches(0), mesh=jax.make_mesh((8,), ("model",)))


def test_a_flax_network_trains():
    from flax import nnx

    class Flax(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

        def __call__(self, t, x, args):
            return self.layer(jnp.append(x, t))

    net = Flax()
    kernel = np.asarray(net.layer.kernel[...])
    state = jf.train.init(jf.Field(net, jf.CondOT(), "velocity"), optax.adam(1e-2))
    state, _ = jf.train.fit(state, loss, batches, steps=3, key=jr.key(0), progress=False)
    assert np.array_equal(kernel, net.layer.kernel[...])
    assert not np.array_equal(kernel, state.field.net.layer.kernel[...])
    assert state.ema.velocity(0.5, jnp.ones(2)).shape == (2,)


def test_a_network_that_changes_when_it_is_called_raises():
    from flax import nnx

    def build(*layers):
        return nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), *layers)

    for name, layer in {
        "Dropout": nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        "BatchNorm": nnx.BatchNorm(2, rngs=nnx.Rngs(0)),
    }.items():
        net = build(layer)
        for field in (net, jf.Field(net, jf.CondOT(), "velocity")):
            with pytest.raises(ValueError, match=rf"Got a {name} .* call net.eval\(\)"):
                jf.train.init(field, OPTIMIZER)
        net.eval()
        jf.train.init(net, OPTIMIZER)
    jf.train.init(build(nnx.Dropout(0.0, rngs=nnx.Rngs(0))), OPTIMIZER)
    dropped = build(nnx.Dropout(0.5))  # draws from what it is handed

    def mean(net, key, x):
        return net.layers[1](net.layers[0](x), rngs=nnx.Rngs(key)).mean()

    state, batch = jf.train.init(dropped, optax.sgd(0.0)), jnp.ones((1, 2))
    losses = []
    for i in range(4):
        state, info = jf.train.step(state, mean, jr.key(i), batch)
        losses.append(float(info.loss))
    assert len(set(losses)) > 1


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ({"x": np.ones((4, 2)), "y": np.ones(3)}, r"\(4, 2\), \(3,\)"),
        ({"x": np.ones((4, 2)), "y": 1.0}, "leading axis"),
        ({"x": np.ones((0, 2))}, "at least one example"),
        ({}, "leading axis"),
    ],
)
def test_a_batch_without_a_common_leading_axis(batch, match):
    with pytest.raises(ValueError, match=match):
        jf.train.step(jf.train.init(linear(), OPTIMIZER), square, jr.key(0), batch)


def test_errors_name_the_fix():
    state = jf.train.init(linear(), OPTIMIZER)
    with pytest.raises(ValueError, match=r"shape \(2,\); take the mean"):
        jf.train.step(state, lambda net, key, x: x * net(x), jr.key(0), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="Partial"):
        jf.train.init(jf.Field(lambda t, x, args: x, jf.CondOT(), "velocity"), OPTIMIZER)
    refuses(lambda: jf.train.init(linear(), 1e-3), r"as optax.adam\(1e-3\). Got 0.001", TypeError)
    for ema in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=re.escape("[0, 1)")):
            jf.train.init(linear(), OPTIMIZER, ema=ema)
    for name in ("steps", "log_every", "save_every", "keep"):
        with pytest.raises(ValueError, match=name):
            jf.train.fit(state, square, batches, **{"steps": 1, "key": jr.key(0), name: 0})


def test_only_checkpoints_import_orbax():
    for file in Path(jf.train.__file__).parent.glob("*.py"):
        assert not re.search(r"^(import|from) (orbax|flax)", file.read_text(), re.MULTILINE), file


def power_weights(width, n):
    """The weights of n points in a power average, and its gamma, from the definition of the width."""
    low, high = 0.0, 1e6
    for _ in range(200):  # the width falls in gamma
        g = (low + high) / 2
        low, high = (g, high) if np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) > width else (low, g)
    k = np.arange(1, n + 1) / n
    return k ** (g + 1) - (k - 1 / n) ** (g + 1), g


def test_power_averages_are_their_sums_beside_a_decay():
    widths, decay = (0.05, 0.1, 12**-0.5), 0.9
    ema = (*map(jf.train.PowerEMA, widths[:2]), decay, jf.train.PowerEMA(widths[2]))
    state, points = jf.train.init(linear(), optax.sgd(0.1), ema=ema), []
    assert all(same(average, linear()) for average in state.ema)
    recursion = dict.fromkeys(widths, 0.0)
    for n in range(1, 31):
        state, _ = jf.train.step(state, square, jr.key(0), jr.normal(jr.key(n), (4, 2)))
        points.append(np.asarray(state.field.weight, np.float64))
        averages = [average.weight for average in state.ema]
        decayed = averages.pop(2)
        for width, average in zip(widths, averages, strict=True):
            weights, g = power_weights(width, n)
            keep = (1 - 1 / n) ** (g + 1)
            recursion[width] = keep * recursion[width] + (1 - keep) * points[-1]
            np.testing.assert_allclose(np.tensordot(weights, points, 1), recursion[width], rtol=1e-10)
            np.testing.assert_allclose(average, recursion[width], rtol=2e-5, atol=1e-6)
        weights = decay ** np.arange(n - 1, -1, -1.0)
        np.testing.assert_allclose(decayed, np.tensordot(weights / weights.sum(), points, 1), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(averages[-1], np.mean(points, 0), rtol=2e-5)
    assert [jf.train.PowerEMA(w).gamma for w in (0.05, 0.1)] == pytest.approx([16.97, 6.94], abs=5e-3)
    assert jf.train.PowerEMA(widths[2]).gamma == pytest.approx(0.0, abs=1e-9)


def power_law(degree):
    """A scalar that is n^degree after n moves."""
    rate = lambda count: (count + 1.0) ** degree - jnp.asarray(count, float) ** degree  # noqa: E731
    return optax.sgd(rate), lambda net, key, x: -net["w"]


def test_the_averages_of_powers_are_closed_and_those_of_a_constant_are_it():
    """Mean of k^p under weights k^(g+1) - (k-1)^(g+1), g = 1 of width sqrt(2)/6, summed by hand for p = 1 and 2."""
    ema, n = (jf.train.PowerEMA(2**0.5 / 6), jf.train.PowerEMA(12**-0.5)), 50
    closed = {
        1: ((n + 1) * (4 * n - 1) / (6 * n), (n + 1) / 2),
        2: ((n + 1) * (3 * n**2 + n - 1) / (6 * n), (n + 1) * (2 * n + 1) / 6),
    }
    for degree, expected in closed.items():
        optimizer, fall = power_law(degree)
        state = jf.train.init({"w": jnp.zeros(())}, optimizer, ema=ema)
        for i in range(n):
            state, _ = jf.train.step(state, fall, jr.key(i), jnp.ones(1))
        assert state.field["w"] == n**degree
        np.testing.assert_allclose([average["w"] for average in state.ema], expected, rtol=1e-5)
    state = jf.train.init(linear(), optax.set_to_zero(), ema=ema)
    for _ in range(20):
        state, _ = jf.train.step(state, square, jr.key(0), jnp.ones((1, 2)))
        assert all(same(average, linear()) for average in state.ema)


def fit_averages(folder, ema, n=400, degree=2, save_every=50, **options):
    optimizer, fall = power_law(degree)
    state = jf.train.init({"w": jnp.zeros((), jnp.float32)}, optimizer, ema=ema)
    settings = {"steps": n, "key": jr.key(0), "save_every": save_every, "progress": False, **options}
    return jf.train.fit(state, fall, lambda i: jnp.ones(1), run_dir=folder, **settings)[0]


def test_post_hoc_averages_of_a_polynomial(tmp_path):
    """The average of a parabola at any width between those stored, against its sum in float64, and its limit
    (g+1)/(g+3) n^2; what was stored comes back as it was."""
    like, n = {"w": jnp.zeros(())}, 400
    pair = (jf.train.PowerEMA(0.05), jf.train.PowerEMA(0.1))
    state = fit_averages(tmp_path, pair)
    for width in (0.05, 0.06, 0.075, 0.09, 0.1, 0.12):
        weights, g = power_weights(width, n)
        found = jf.train.posthoc(tmp_path, width, like)["w"]
        assert found == pytest.approx(weights @ np.arange(1.0, n + 1) ** 2, rel=1e-3), width
        assert found == pytest.approx((g + 1) / (g + 3) * n**2, rel=5e-3), width
    for average, width in zip(state.ema, (0.05, 0.1), strict=True):
        assert jf.train.posthoc(tmp_path, width, like)["w"] == pytest.approx(float(average["w"]), rel=1e-6)
    # a run that goes on forgets the snapshots of steps that it takes again, and adds its own
    stored = sorted(file.name for file in (tmp_path / "averages").iterdir())
    assert len(stored) == 16 and "400-0.05.safetensors" in stored
    (tmp_path / "averages" / "999-0.05.safetensors").write_bytes(b"")
    (tmp_path / "averages" / ".partial-x").mkdir()
    fit_averages(tmp_path, pair, n=450)
    assert sorted(file.name for file in (tmp_path / "averages").iterdir()) == sorted(
        [*stored, "450-0.05.safetensors", "450-0.1.safetensors"]
    )
    weights, _ = power_weights(0.075, 450)
    found = jf.train.posthoc(tmp_path, 0.075, like)["w"]
    assert found == pytest.approx(weights @ np.arange(1.0, 451) ** 2, rel=1e-3)
    with pytest.raises(ValueError, match=r"averages of the same widths.*ema1: saved PowerEMA.width=0.1"):
        fit_averages(tmp_path, (pair[0], jf.train.PowerEMA(0.2)), n=500)
    fit_averages(tmp_path / "mixed", (pair[0], 0.99), n=10)
    with pytest.raises(ValueError, match=r"averages of the same widths.*ema0: saved PowerEMA.width=0.05"):
        fit_averages(tmp_path / "mixed", (0.99, pair[0]), n=20)
    file = tmp_path / "averages" / "100-0.1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"100-0\.1.*damaged"):
        jf.train.posthoc(tmp_path, 0.075, like)


def test_post_hoc_averages_that_cannot_be(tmp_path):
    like = {"w": jnp.zeros(())}
    refuses(lambda: jf.train.posthoc(tmp_path, 0.075, like), "must have the snapshots.* has none")
    fit_averages(tmp_path, jf.train.PowerEMA(0.1), n=10)
    refuses(lambda: jf.train.posthoc(tmp_path, 0.05, like), "snapshots can make.* 1 snapshots.* save_every")
    refuses(lambda: jf.train.posthoc(tmp_path, 0.1), "a field like it")
    refuses(lambda: jf.train.posthoc(tmp_path, 0.3, like), r"at most 1/sqrt\(12\)")
    for width in (0.0, -1.0, 0.3):
        refuses(lambda width=width: jf.train.PowerEMA(width), "The width of a PowerEMA")
    for ema, error, match in (
        ((), ValueError, "empty tuple"),
        ("0.9", TypeError, "Got str"),
        ((0.9, None), TypeError, "Got NoneType"),
        ((0.9, 1.5), ValueError, "decay in"),
        (True, TypeError, "Got bool"),
    ):
        refuses(lambda ema=ema: jf.train.init(linear(), OPTIMIZER, ema=ema), match, error)


@pytest.mark.slow
def test_a_post_hoc_average_of_a_network_on_digits_is_the_live_one(tmp_path):
    from flax import nnx

    from jflow.recipes.digits import Digits

    net = jf.nn.MLP(64, width=64, depth=2, rngs=nnx.Rngs(0))
    field, widths = jf.Field(net, jf.CondOT(), "velocity"), (0.05, 0.1, 0.075)
    state = jf.train.init(field, optax.adam(3e-3), ema=tuple(map(jf.train.PowerEMA, widths)))

    def flat_loss(field, key, example):
        return jf.matching_loss(field, key, example["x"].ravel())

    settings = {"steps": 1000, "key": jr.key(0), "save_every": 250, "progress": False}  # four snapshots of each
    state, _ = jf.train.fit(state, flat_loss, Digits(batch_size=32).batch, run_dir=tmp_path, **settings)
    for file in (tmp_path / "averages").glob("*-0.075.safetensors"):
        file.unlink()

    def numbers(field):
        mask = jf.trainable(field)
        return np.concatenate([np.ravel(leaf) for leaf in jtu.tree_leaves(eqx.filter(field, mask))])

    narrow, wide, live = map(numbers, state.ema)

    def distance(field):
        return np.linalg.norm(numbers(field) - live) / np.linalg.norm(live)

    found = jf.train.posthoc(tmp_path, 0.075)
    nearest = min(np.linalg.norm(other - live) / np.linalg.norm(live) for other in (narrow, wide))
    assert distance(found) <= min(1e-2, nearest / 4)
    np.testing.assert_allclose(numbers(jf.train.posthoc(tmp_path, 0.05)), narrow, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compute_in_bfloat16_with_masters_in_float32():
    from flax import nnx

    losses = []
    for dtype in (None, jnp.bfloat16):
        net = jf.nn.MLP(2, width=32, depth=1, dtype=dtype, rngs=nnx.Rngs(0))
        state = jf.train.init(jf.Field(net, jf.CondOT(), "velocity"), optax.adam(3e-3))
        settings = {"steps": 1000, "key": jr.key(0), "progress": False}
        state, values = jf.train.fit(state, loss, lambda i: batches(i, 32), **settings)
        assert {p.dtype for p in (*state.params, *state.average)} == {jnp.dtype(jnp.float32)}
        losses.append(values)
    assert not np.array_equal(*losses)
    late = [values[-500:].mean() for values in losses]
    assert late[1] == pytest.approx(late[0], rel=1e-2) and losses[1].mean() == pytest.approx(losses[0].mean(), rel=1e-2)
    assert late[0] < losses[0][:20].mean()
