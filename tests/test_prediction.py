"""Velocity, data, noise, score and v: every conversion, along every path (closed forms H1 to H8 and H10)."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import PATHS, PREDICTIONS, over_paths, schedule, unchecked

import jflow as jf
from jflow._prediction import coefficients, prediction_row

TIMES = np.linspace(0.02, 0.98, 25)
X, MEAN, STD = np.array([0.7, -1.3]), 1.0, 0.5


def truth(name, t=TIMES, x=X):
    """The five predictions at `x` for data `N(1, 0.25 I)`: the times along rows."""
    alpha, sigma, alpha_dot, sigma_dot = (v[:, None] for v in schedule(name, t))
    gap, variance = x - alpha * MEAN, (alpha * STD) ** 2 + sigma**2
    data, noise = MEAN + alpha * STD**2 / variance * gap, sigma * gap / variance
    return {
        "velocity": alpha_dot * data + sigma_dot * noise,
        "data": data,
        "noise": noise,
        "score": -gap / variance,
        "v": alpha * noise - sigma * data,
    }


@ft.cache
def converted(dtype):
    """Every prediction turned into every other one: `[path][source, target]`, the times along rows."""
    names = PATHS if dtype == "float64" else ("CondOT", "VP", "VE")
    with jax.enable_x64(dtype == "float64"):
        known = {name: jax.tree.map(lambda v: jnp.asarray(v, dtype), truth(name)) for name in names}

        def all_pairs(path, t, values):
            x = jnp.asarray(X, dtype)
            return {(a, b): jf.convert(path, t, x, values[a], a, b) for a in PREDICTIONS for b in PREDICTIONS}

        mapped = {name: jax.vmap(ft.partial(all_pairs, path)) for name, path in PATHS.items() if name in names}
        run = jax.jit(lambda t, known: {name: each(t, known[name]) for name, each in mapped.items()})
        return jax.tree.map(np.asarray, run(jnp.asarray(TIMES, dtype), known))


def check(source, targets, rtol=1e-10):
    for name, pairs in converted("float64").items():
        for target in targets:
            scale = np.abs(truth(name)[target]).max()
            np.testing.assert_allclose(
                pairs[source, target], truth(name)[target], rtol=1e-6 if name == "VE" else rtol, atol=1e-10 * scale
            )


@pytest.mark.slow
def test_H1_velocity_from_score():
    check("score", ["velocity"])
    for name, pairs in converted("float64").items():  # the formula itself, with coefficients of its own
        alpha, sigma, alpha_dot, sigma_dot = (v[:, None] for v in schedule(name, TIMES))
        w = sigma * alpha_dot - alpha * sigma_dot
        formula = alpha_dot / alpha * X + sigma * w / alpha * truth(name)["score"]
        np.testing.assert_allclose(pairs["score", "velocity"], formula, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_H2_score_from_velocity():
    check("velocity", ["score"])


def test_H3_denominators(x64):
    expected = {"CondOT": 1 - TIMES, "root": 1 - TIMES / 2, "Cosine": np.pi / 2 * np.cos(np.pi * TIMES / 2)}
    got = over_paths(lambda path, t: path.sigma_w(t), jnp.asarray(TIMES), names=tuple(expected))
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12, err_msg=name)
    assert PATHS["root"].sigma_w(1.0) == pytest.approx(0.5)  # a half, not zero


def test_H4_the_score_at_pure_noise_is_minus_x_and_says_nothing_of_the_data():
    def at_start(path, t):
        x = jnp.asarray(X, jnp.float32)
        scores = [jf.convert(path, t, x, value * jnp.ones(2), "velocity", "score") for value in (-3.0, 0.0, 5.0)]
        return scores, jf.convert(path, t, x, -x, "score", "velocity")

    names = ("CondOT", "Cosine", "LinearVP", "root", "quadratic")
    for name, (scores, velocity) in over_paths(at_start, jnp.zeros(1), names=names).items():
        for score in scores:
            np.testing.assert_allclose(score[0], -X, rtol=1e-6, err_msg=name)
        assert not np.isfinite(velocity).any(), name


@pytest.mark.slow
def test_H5_noise_from_the_others():
    for source in ("velocity", "score", "data", "v"):
        check(source, ["noise"], rtol=1e-9)


def test_H6_data_from_the_others():
    for source in ("velocity", "score", "noise", "v"):
        check(source, ["data"], rtol=1e-9)


def test_H7_decomposition():
    for name, pairs in converted("float64").items():
        alpha, sigma, alpha_dot, sigma_dot = (v[:, None] for v in schedule(name, TIMES))
        data, noise = pairs["velocity", "data"], pairs["velocity", "noise"]
        np.testing.assert_allclose(alpha * data + sigma * noise, np.broadcast_to(X, data.shape), atol=1e-6)
        velocity = truth(name)["velocity"]
        np.testing.assert_allclose(
            alpha_dot * data + sigma_dot * noise, velocity, atol=1e-10 * np.abs(velocity).max(), rtol=1e-6
        )
    t, u = TIMES[:, None], truth("CondOT")["velocity"]
    pairs = converted("float64")["CondOT"]
    np.testing.assert_allclose(pairs["velocity", "data"], X + (1 - t) * u, rtol=1e-10)
    np.testing.assert_allclose(pairs["velocity", "noise"], X - t * u, rtol=1e-10)
    np.testing.assert_allclose(pairs["velocity", "score"], (t * u - X) / (1 - t), rtol=1e-10, atol=1e-12)


def weights(name, source, target):
    """`target = k_x x + k_p source`, by a 2x2 solve in numpy."""
    alpha, sigma, alpha_dot, sigma_dot = (v[:, None] for v in schedule(name, TIMES))
    rows = {"velocity": (alpha_dot, sigma_dot), "data": (1, 0), "noise": (0, 1), "score": (0, -1 / sigma)}
    rows["v"] = -sigma, alpha
    (a, b), (c, d) = rows[source], rows[target]
    return (c * b - d * a) / (alpha * b - sigma * a), (d * alpha - c * sigma) / (alpha * b - sigma * a)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_H8_every_conversion(dtype):
    for name, pairs in converted(dtype).items():
        for (source, target), value in pairs.items():
            assert value.dtype == dtype
            # where two large terms cancel, the error is a few roundings of these
            k_x, k_p = weights(name, source, target)
            terms = np.abs(k_x) * np.abs(X) + np.abs(k_p) * np.abs(truth(name)[source])
            bound = terms * (2e-6 if dtype == "float32" else 1e-7 if name in ("VE", "VP") else 1e-12)
            assert (np.abs(value - truth(name)[target]) <= bound).all(), (name, source, target)


def test_H8_round_trip(x64):
    def around(path, t):
        x, value = jnp.asarray(X), jnp.array([0.3, 2.0])
        for source, target in zip(PREDICTIONS, (*PREDICTIONS[1:], PREDICTIONS[0]), strict=True):
            value = jf.convert(path, t, x, value, source, target)
        return value

    for name, value in over_paths(around, jnp.asarray(TIMES)).items():
        np.testing.assert_allclose(value, np.broadcast_to([0.3, 2.0], value.shape), rtol=1e-9, err_msg=name)


def test_H10_v_prediction():
    np.testing.assert_allclose(
        converted("float64")["Cosine"]["v", "velocity"], -np.pi / 2 * truth("Cosine")["v"], rtol=1e-9, atol=1e-12
    )


def coefficient_table(path, t):
    """`(k_x, k_p)` of every conversion."""
    rows = {name: prediction_row(path, name, t) for name in PREDICTIONS}
    return {(a, b): jnp.stack(coefficients(path, t, rows[a], rows[b])) for a in PREDICTIONS for b in PREDICTIONS}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_the_ends_exactly_the_undetermined_conversions_are_not_finite(dtype):
    ends = over_paths(coefficient_table, jnp.array([0.0, 1.0], dtype))

    def bad(name, end):
        found = {pair: k[end].astype(float) for pair, k in ends[name].items() if pair[0] != pair[1]}
        return {pair for pair, k in found.items() if not np.isfinite(k).all()}

    from_noise = {(a, b) for a in ("noise", "score") for b in ("velocity", "data", "v")}
    to_score = {(a, "score") for a in ("velocity", "data", "noise", "v")}
    from_data = {("data", b) for b in ("velocity", "noise", "v")}
    for name in ("CondOT", "Cosine", "LinearVP", "root"):
        assert bad(name, 0) == from_noise, name
    for name in ("CondOT", "Cosine", "quadratic"):
        assert bad(name, 1) == to_score | from_data, name
    assert bad("VP", 0) == bad("VE", 0) == bad("VE", 1) == set()  # they neither start at noise nor end at data
    for name in ("VP", "LinearVP"):  # here the velocity is infinite itself
        assert {("velocity", "data"), ("noise", "data"), ("v", "data"), ("v", "noise")}.isdisjoint(bad(name, 1))
        assert {("data", "noise"), ("data", "velocity"), ("noise", "velocity")} <= bad(name, 1), name


def test_conversions_that_stay_finite_at_the_ends_have_their_limits():
    x, u = jnp.array([0.3, -2.0]), jnp.array([1.0, 4.0])

    def both(path, t):
        return {
            pair: jf.convert(path, t, x, u, *pair)
            for pair in [("noise", "score"), ("velocity", "noise"), ("velocity", "data"), ("v", "data"), ("v", "noise")]
        }

    for name, at in over_paths(both, jnp.array([0.0, 1.0])).items():
        if PATHS[name].starts_at_noise:
            np.testing.assert_allclose(at["noise", "score"][0], -u, rtol=1e-6)
            np.testing.assert_allclose(at["velocity", "noise"][0], x, rtol=1e-6)
            np.testing.assert_allclose(at["v", "data"][0], -u, rtol=1e-6)
        if PATHS[name].ends_at_data:
            np.testing.assert_allclose(at["velocity", "data"][1], x, rtol=1e-5, err_msg=name)
            np.testing.assert_allclose(at["v", "noise"][1], u, rtol=1e-6)


def test_half_precision_states_keep_their_type():
    x = jnp.asarray(X, jnp.bfloat16)
    for source in PREDICTIONS:
        out = jf.convert(jf.CondOT(), 0.5, x, x, source, "data")
        assert out.dtype == jnp.bfloat16


def test_a_state_may_be_a_pytree():
    x = {"a": jnp.ones(2), "b": jnp.ones((2, 3))}
    out = jf.convert(jf.CondOT(), 0.25, x, jax.tree.map(jnp.zeros_like, x), "velocity", "noise")
    assert jax.tree.map(jnp.shape, out) == {"a": (2,), "b": (2, 3)}
    np.testing.assert_array_equal(out["b"], 1)


def test_an_unknown_prediction_is_named():
    for name, fragment in [("x0", "one of 'velocity'"), ("epsilon", "'noise'")]:
        with unchecked(), pytest.raises(ValueError, match=fragment):
            jf.convert(jf.CondOT(), 0.5, jnp.ones(2), jnp.ones(2), name, "data")
        with unchecked(), pytest.raises(ValueError, match="literature"):
            jf.Field(lambda t, x, args: x, jf.CondOT(), name)


def test_a_batched_time_is_refused():
    t, x = jnp.linspace(0.1, 0.9, 3), jnp.ones((3, 2))
    for target in ("velocity", "data"):
        with unchecked(), pytest.raises(ValueError, match=r"jax\.vmap"):
            jf.convert(jf.CondOT(), t, x, x, "noise", target)
    with pytest.raises((ValueError, TypeError)):
        jf.convert(jf.CondOT(), t, x, x, "noise", "data")
