"""Classifier-free guidance (closed forms I1 to I10)."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import Counter, refuses, unchecked, weights_of, within

import jflow as jf

PAIR = jf.CondOT()
X = jnp.array([0.2])


class LabelNet(eqx.Module):
    """Exact velocity of `N(mean, variance)` for the condition `(mean, variance)`, along the linear path."""

    def __call__(self, t, x, condition):
        mean, variance = condition
        spread = t**2 * variance + (1 - t) ** 2
        return mean + (t * variance - (1 - t)) / spread * (x - t * mean)


def two_points(t, x, label):
    """Exact velocity of the points -1 and 1: label 0 and 1 are the points, 2 is both."""
    alpha, sigma = t, 1 - t
    data = jnp.where(label == 2, jnp.tanh(alpha * x / sigma**2), 2.0 * label - 1.0)
    return (data - x) / sigma


POINTS = jf.Guided(jf.Field(two_points, PAIR, "velocity"), null=2)


def test_I1_formula():
    y, null = (POINTS.field.velocity(0.5, X, label) for label in (1, 2))
    np.testing.assert_allclose(POINTS.velocity(0.5, X, jf.Args(1, scale=1.0)), y, rtol=1e-6)
    np.testing.assert_allclose(POINTS.velocity(0.5, X, jf.Args(1, scale=0.0)), null, rtol=1e-6)
    for w in (-1.0, 0.3, 2.0, 7.5):
        np.testing.assert_allclose(POINTS.velocity(0.5, X, jf.Args(1, scale=w)), (1 - w) * null + w * y, rtol=1e-5)
    np.testing.assert_array_equal(POINTS.velocity(0.5, X, jf.Args(1, scale=None)), y)
    np.testing.assert_array_equal(POINTS.velocity(0.5, X, 1), y)


def test_I2_the_null_condition_does_not_depend_on_the_scale():
    null = POINTS.field.velocity(0.5, X, 2)
    for w in (0.0, 1.0, 3.0, 5.0):
        np.testing.assert_allclose(POINTS.velocity(0.5, X, jf.Args(2, scale=w)), null, rtol=1e-5)


def test_I3_the_other_convention():
    y, null = (POINTS.field.velocity(0.5, X, label) for label in (0, 2))
    omega = 2.0  # of Ho and Salimans: (1 + omega) conditional - omega unconditional
    expected = null + (1 + omega) * (y - null)
    np.testing.assert_allclose(POINTS.velocity(0.5, X, jf.Args(0, scale=1 + omega)), expected, rtol=1e-6)


def test_I4_number(x64):
    x = jnp.array([0.2])
    assert POINTS.velocity(0.5, x, jf.Args(1, scale=0.0)) == pytest.approx(0.35989792, abs=1e-8)
    assert POINTS.velocity(0.5, x, jf.Args(1, scale=1.0)) == pytest.approx(1.6)
    assert POINTS.velocity(0.5, x, jf.Args(1, scale=3.0)) == pytest.approx(4.08020415, abs=1e-8)


def test_I5_the_null_condition_is_any_pytree():
    seen = []

    def net(t, x, condition):
        seen.append(jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.asarray(leaf).dtype), condition))
        return x * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(condition))

    for condition, null in [
        (3, 10),
        (jnp.ones(4), jnp.zeros(4)),
        ({"label": 1, "text": jnp.ones((2, 3))}, {"label": 7, "text": np.zeros((2, 3))}),
        (jnp.ones(2, jnp.bfloat16), jnp.zeros(2)),
    ]:
        guided = jf.Guided(jf.Field(net, PAIR, "velocity"), null)
        total = [sum(np.sum(np.asarray(v, float)) for v in jax.tree.leaves(c)) for c in (condition, null)]
        out = guided.velocity(0.5, jnp.ones(2), jf.Args(condition, scale=3.0))
        np.testing.assert_allclose(out, total[1] + 3 * (total[0] - total[1]), rtol=1e-6)
        # the null condition takes the type of the condition
        assert seen[-1] == jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.asarray(leaf).dtype), condition)


def test_I6_guidance_is_the_gradient_of_a_classifier():
    t, x = 0.5, 0.2
    gradient = jax.grad(lambda v: jax.nn.log_sigmoid(2 * t * v / (1 - t) ** 2))(x)
    difference = POINTS.field.velocity(t, X, 1) - POINTS.field.velocity(t, X, 2)
    b = PAIR.sigma_w(t) / PAIR.alpha(t)
    assert b == pytest.approx(1.0)
    np.testing.assert_allclose(difference[0], b * gradient, rtol=1e-5)
    assert gradient == pytest.approx(1.24010208, abs=1e-6)


@pytest.mark.parametrize("predicts", ["velocity", "data", "noise", "score", "v"])
def test_I7_guidance_commutes_with_conversions(predicts):
    path, t, x, args = jf.Cosine(), 0.4, jnp.array([0.3, -1.0]), jf.Args(1, scale=3.5)
    field = jf.Field(lambda t, x, label: jnp.sin((1.0 + label) * x) - t, path, predicts)
    guided = jf.Guided(field, 4)

    @jax.jit
    def pairs():
        (own,) = guided.predict((predicts,), t, x, args)
        names = ("velocity", "data", "noise", "score")
        got = [getattr(guided, name)(t, x, args) for name in names]
        rows = jf.SigmaClock().rhs(path, t, 0.0), jf.RatioClock().rhs(path, t, 0.0)
        from_data = [a * got[1] + b * got[2] for _, a, b in map(weights_of, rows)]
        expected = [jf.convert(path, t, x, own, predicts, name) for name in names]
        return got, expected, guided.predict(rows, t, x, args), from_data

    got, expected, mixed, from_data = pairs()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mixed, from_data, rtol=1e-4, atol=1e-4)


def test_I8_conditions_drop_one_by_one():
    n, rate = 100_000, 0.1
    labels = jnp.arange(n) % 10
    kept = np.asarray(labels).copy()
    out = jax.jit(jax.vmap(lambda k, y: jf.drop_condition(k, y, 10, rate)))(jr.split(jr.key(0), n), labels)
    dropped = np.asarray(out == 10)
    assert within(dropped.mean(), rate, np.sqrt(rate * (1 - rate) / n))
    np.testing.assert_array_equal(out[~dropped], kept[~dropped])
    np.testing.assert_array_equal(labels, kept)  # the input is left alone
    assert out.dtype == labels.dtype
    assert within(np.corrcoef(dropped[:-1], dropped[1:])[0, 1], 0, 1 / np.sqrt(n))
    pair = {"a": jnp.ones(3), "b": jnp.asarray(2)}
    null = {"a": jnp.zeros(3), "b": 9}
    for rate, expected in ((0.0, pair), (1.0, null)):
        got = jf.drop_condition(jr.key(1), pair, null, rate)
        assert eqx.tree_equal(got, jax.tree.map(jnp.asarray, expected))
    with pytest.raises(ValueError, match=r"probability, in \[0, 1\]"):
        jf.drop_condition(jr.key(1), 3, 10, 1.5)


def test_I9_cost():
    net = Counter(lambda t, x, label: x * label)
    guided = jf.Guided(jf.Field(net, PAIR, "velocity"), 10)
    x, sampler = jnp.ones(3), jf.FixedSteps(jf.UniformGrid(4), dfx.Heun())

    run = eqx.filter_jit(lambda args: jf.decode(guided, x, sampler, args=args))
    scales = (2.0, 2), (None, 1), (jnp.asarray(0.0), 2)
    for args, cost in ((jf.Args(1.0, scale=scale), cost) for scale, cost in scales):
        net.traces = 0
        solution = run(args)
        assert net.traces == 2  # one for each stage: guidance is one batched call of the network
        assert net.take() == solution.nfe == 4 * 2 * cost
    assert guided.evaluations(jf.Args(1, scale=2.0)) == 2 and guided.evaluations(1) == 1
    nested = jf.Guided(guided, 10, scale="outer", negative="other")
    assert nested.evaluations(jf.Args(1, outer=2.0)) == 2 and nested.evaluations(jf.Args(1, outer=2.0, scale=3.0)) == 4


def test_I9_the_guided_sde_drifts_along_guided_velocity_and_score(x64):
    field = jf.Field(LabelNet(), PAIR, "velocity")
    guided, x, g, t, h = jf.Guided(field, (0.0, 1.25)), jnp.array([0.7]), 0.8, 0.3, 0.1
    args = jf.Args((1.0, 0.25), scale=3.0)
    quiet, sampler = jf.Recorded(jnp.zeros((1, 1))), jf.FixedSteps([t, t + h], diffusion=lambda t: g)

    @jax.jit
    def both():
        out = jf.decode(guided, x, sampler, args=args, brownian=quiet).x
        return out, x + h * (guided.velocity(t, x, args) + g**2 / 2 * guided.score(t, x, args))

    np.testing.assert_allclose(*both(), rtol=1e-12)


def test_I10_guidance_sharpens_as_the_closed_form_says(x64):
    guided = jf.Guided(jf.Field(LabelNet(), PAIR, "velocity"), (0.0, 1.25))

    sampler = jf.FixedSteps(jf.UniformGrid(200), dfx.Dopri5())

    @jax.jit
    @jax.vmap
    def ends(w):
        args = jf.Args((1.0, 0.25), scale=w)
        return jax.vmap(lambda x0: jf.decode(guided, x0, sampler, args=args).x)(jnp.array([[0.0], [1.0]]))[:, 0]

    w = jnp.array([0.0, 1.0, 2.0])
    low, high = ends(w).T
    np.testing.assert_allclose(low, [0, 1, 1.32280671], atol=1e-6)
    np.testing.assert_allclose(high - low, [1.11803399, 0.5, 0.22360680], atol=1e-6)
    np.testing.assert_allclose(high - low, 0.5**w * np.sqrt(1.25) ** (1 - w), rtol=1e-7)


def test_labels_and_scales_are_swept_by_one_compilation():
    net = Counter(lambda t, x, label: x * label)
    guided = jf.Guided(jf.Field(net, PAIR, "velocity"), 10.0)

    @eqx.filter_jit
    def sweep(labels, scales):
        def one(label, scale):
            return jf.decode(guided, jnp.ones(2), jf.UniformGrid(3), args=jf.Args(label, scale=scale)).x

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(labels, scales)

    first = sweep(jnp.arange(4.0), jnp.array([0.0, 1.0, 3.0]))
    traces = net.traces
    again = sweep(jnp.arange(4.0) + 1, jnp.array([2.0, 5.0, 9.0]))
    assert net.traces == traces and first.shape == again.shape == (4, 3, 2)
    alone = jf.decode(guided, jnp.ones(2), jf.UniformGrid(3), args=jf.Args(3.0, scale=5.0)).x
    np.testing.assert_allclose(again[2, 1], alone, rtol=1e-6)


def test_training_takes_the_bare_condition():
    guided = jf.Guided(jf.Field(lambda t, x, label: x * label, PAIR, "velocity"), 10.0)
    x1, key = jnp.ones(2), jr.key(0)
    loss = jf.matching_loss(guided, key, x1, 3.0)
    assert loss == jf.matching_loss(guided.field, key, x1, 3.0)
    nested = jf.Guided(guided, 10.0, scale="outer", negative="other")
    np.testing.assert_array_equal(nested.conditional(0.5, x1, 3.0), 3 * x1)


def test_a_condition_is_a_whole_pytree_and_other_entries_are_shared():
    """Text with a mask, a negative text for each sample, and the mask of the event beside them."""
    seen = []

    def net(t, x, condition):
        seen.append(jax.tree.map(jnp.shape, condition))
        return x * jnp.sum(condition["mask"] * condition["tokens"])

    source = jf.Normal(jf.ZeroCentre())
    guided = jf.Guided(
        jf.Field(net, jf.CondOT(source=source), "velocity"), {"tokens": jnp.zeros(4), "mask": jnp.ones(4)}
    )
    text = {"tokens": jnp.arange(4.0), "mask": jnp.array([1.0, 1.0, 1.0, 0.0])}
    other = {"tokens": jnp.ones(4), "mask": jnp.ones(4)}
    args = jf.Args(text, negative=other, scale=3.0, mask=jnp.array([1, 1, 0]))
    x = jnp.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]])  # centred, with padding
    np.testing.assert_allclose(guided.velocity(0.5, x, args), (4 + 3 * (3 - 4)) * x, rtol=1e-6)
    assert seen == [{"tokens": (4,), "mask": (4,)}]
    sol = jf.sample(guided, jr.key(0), (3, 2), jf.UniformGrid(2), args=args)
    assert sol.nfe == 4 and (sol.x[2] == 0).all() and jnp.isfinite(sol.x).all()


def test_bad_input_raises_with_a_reason():
    field = jf.Field(lambda t, x, label: x, PAIR, "velocity")
    x = jnp.ones(2)
    for null, args, fragment in [
        (10, jf.Args(3, scale=jnp.ones(4)), "one number for one example"),
        (10, jf.Args({"a": 1}, scale=2.0), "negative condition must be a pytree like"),
        (10, jf.Args(jnp.ones(3), scale=2.0), "shape of the condition"),
        (10, jf.Args(3, negative=jnp.ones(3), scale=2.0), "shape of the condition"),
        (10, jf.Args(3, sclae=2.0), "Got sclae, which no guide"),
        (None, jf.Args(3, scale=2.0), r"args=jflow.Args\(condition, negative=other, scale=w\)"),
    ]:
        guided = jf.Guided(field, null)
        refuses(lambda guided=guided, args=args: guided.velocity(0.5, x, args), fragment)
    with unchecked(), pytest.raises(ValueError, match="Got scale, which no guide"):
        jf.sample(field, jr.key(0), (2,), jf.UniformGrid(2), args=jf.Args(3, scale=2.0))
    refuses(lambda: jf.Guided(field.path, 10), "field must be AbstractField", TypeError)


def test_two_guides_of_one_field_have_names_of_their_own():
    guided = jf.Guided(POINTS.field, null=2)
    refuses(lambda: jf.Guided(guided, 2), "Got 'negative', 'scale' twice")
    refuses(lambda: jf.Guided(jf.change_path(guided, jf.Cosine()), 2, negative="n"), "Got 'scale' twice")
    refuses(lambda: jf.Guided(POINTS.field, weak=guided), "Got 'scale' twice")
    both = jf.Guided(guided, 2, scale="outer", negative="other")
    alone = jf.Args(1, scale=3.0)
    np.testing.assert_array_equal(both.velocity(0.5, X, alone), guided.velocity(0.5, X, alone))
    null = guided.velocity(0.5, X, jf.Args(2, scale=3.0))
    want = null + 2 * (guided.velocity(0.5, X, alone) - null)
    np.testing.assert_allclose(both.velocity(0.5, X, jf.Args(1, scale=3.0, outer=2.0)), want, rtol=1e-6)
    weak = jf.Guided(guided, weak=POINTS.field, scale="auto")  # the weak network gets no scale of the other guide
    want = POINTS.field.velocity(0.5, X, 1)
    want = want + 2 * (guided.velocity(0.5, X, alone) - want)
    np.testing.assert_allclose(weak.velocity(0.5, X, jf.Args(1, scale=3.0, auto=2.0)), want, rtol=1e-6)
