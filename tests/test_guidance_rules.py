"""Guidance beside the classifier-free one: rules, intervals, other sources of the second prediction, classifiers."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import Counter, refuses

import jflow as jf

T, SCALES = 0.4, (0.0, 1.0, 3.5)
SHAPES = {"image": jnp.zeros((4, 3)), "pair": (jnp.zeros(3), {"b": jnp.zeros((2, 2))})}


def net(t, x, y):
    return jax.tree.map(lambda leaf: jnp.sin((1.0 + y) * leaf) - t + y, x)


def velocity(x, y):
    """The same at the time `T`, in numpy, of an event laid out as a vector."""
    return np.sin((1.0 + y) * x) - T + y


def data(x, y):
    return x + (1 - T) * velocity(x, y)


FIELD = jf.Field(net, jf.CondOT(), "velocity")
OTHER = jf.Field(lambda t, x, y: net(t, x, y / 2), jf.CondOT(), "velocity")


def plain(c, u, w):
    return u + w * (c - u)


def projected(c, u, w, parallel=0.3, threshold=1.5):
    change = c - u
    change = change * min(1, threshold / max(np.linalg.norm(change), 1e-300))
    along = change @ c / (c @ c) * c
    return c + (w - 1) * (change - along + parallel * along)


def rescaled(c, u, w, guided=plain, phi=0.6):
    d = guided(c, u, w)
    return phi * d * c.std() / d.std() + (1 - phi) * d


def fitted(c, u, w):
    s = c @ u / (u @ u)
    return (1 - w) * s * u + w * c


RULES = {  # the rule, made in the precision of the test; the same in numpy; the prediction it is written for
    "APG": (lambda: jf.APG(0.3, 1.5), projected, data),
    "APG as CFG": (lambda: jf.APG(1.0), plain, data),
    "Rescaled": (lambda: jf.Rescaled(0.6), rescaled, data),
    "Rescaled APG": (
        lambda: jf.Rescaled(0.6, jf.APG(0.3, 1.5)),
        lambda c, u, w: rescaled(c, u, w, projected),
        data,
    ),
    "CFGZero": (lambda: jf.CFGZero(zero_before=0.1), fitted, velocity),
}


def flat(x):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(x)])


def event(shape, seed=0):
    leaves, treedef = jax.tree.flatten(SHAPES[shape])
    keys = jr.split(jr.key(seed), len(leaves))
    return jax.tree.unflatten(treedef, [jr.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


@eqx.filter_jit
def predictions(field, x, args):
    """Every prediction of a field, what it gives itself, and two right-hand sides, all from one program."""
    rows = jf.SigmaClock().rhs(field.path, T, 0.0), jf.RatioClock().rhs(field.path, T, 0.0)
    named = {name: getattr(field, name)(T, x, args) for name in ("velocity", "data", "noise", "score")}
    return named, field.predict((field.predicts,), T, x, args)[0], field.predict(rows, T, x, args)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_its_formula_in_every_prediction(name, x64):
    make, formula, space = RULES[name]
    x, guided = event("pair" if name == "Rescaled APG" else "image"), jf.Guided(FIELD, 0.7, rule=make())
    flat_x = flat(x)
    for w in SCALES:
        want = formula(space(flat_x, 2.0), space(flat_x, 0.7), w)
        want_data = want if space is data else flat_x + (1 - T) * want
        want_noise = (flat_x - T * want_data) / (1 - T)
        named, own, (sigma, ratio) = predictions(guided, x, jf.Args(2.0, scale=jnp.asarray(w)))
        for got, right in (
            (named["data"], want_data),
            (named["noise"], want_noise),
            (named["velocity"], want_data - want_noise),
            (named["score"], -want_noise / (1 - T)),
            (own, want_data - want_noise),
            (sigma, -want_noise),
            (ratio, want_data - want_noise),
        ):
            np.testing.assert_allclose(flat(got), right, rtol=1e-12, atol=1e-12)
        if w == 1:
            np.testing.assert_allclose(flat(named["data"]), data(flat_x, 2.0), rtol=1e-12)
        same, *_ = predictions(guided, x, jf.Args(0.7, scale=jnp.asarray(w)))  # I2: the null condition, at any scale
        np.testing.assert_allclose(flat(same["data"]), data(flat_x, 0.7), rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_finite_where_predictions_vanish(name):
    rule, zero = RULES[name][0](), jnp.zeros(3)

    def total(c, u, w):
        return jnp.sum(rule(0.5, c, u, w) ** 2)

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    for pair in ((zero, zero), (zero, jnp.ones(3)), (jnp.ones(3), zero), (jnp.ones(3), jnp.ones(3))):
        value, slopes = run(*pair, 2.5)
        assert jnp.isfinite(value) and all(jnp.isfinite(s).all() for s in slopes)


@pytest.mark.parametrize("event", [jnp.ones(4), jnp.float32(1.0), 0.1 * jnp.ones(3)])
def test_what_has_no_spread_is_not_rescaled(event):
    np.testing.assert_allclose(jf.Rescaled(0.7)(T, event, 0.5 * event, 2.0), 1.5 * event, rtol=1e-6)


def test_the_first_velocities_are_zero():
    guided = jf.Guided(FIELD, 0.7, rule=jf.CFGZero(zero_before=0.25))
    x, args = event("image"), jf.Args(2.0, scale=3.0)
    assert jnp.array_equal(guided.velocity(0.2, x, args), jnp.zeros_like(x))
    assert not jnp.any(guided.velocity(0.25, x, args) == 0)


def test_autoguidance_moves_away_from_a_weak_field(x64):
    x, w = event("image"), 2.5
    guided, args = jf.Guided(FIELD, weak=OTHER), jf.Args(2.0, scale=w)
    want = plain(velocity(flat(x), 2.0), velocity(flat(x), 1.0), w)
    np.testing.assert_allclose(flat(guided.velocity(T, x, args)), want, rtol=1e-12)
    np.testing.assert_array_equal(guided.velocity(T, x, 2.0), FIELD.velocity(T, x, 2.0))
    moved = jf.Field(net, jf.Cosine(), "data")
    refuses(lambda: jf.Guided(FIELD, weak=moved), r"Got another path, Cosine: pass weak=jflow.change_path")
    refuses(lambda: jf.Guided(FIELD, 3.0, weak=OTHER), "a null condition or a weak field")
    assert jf.Guided(FIELD, weak=jf.change_path(moved, FIELD.path)).evaluations(args) == 2
    inner = jf.Guided(FIELD, weak=jf.Guided(OTHER, 0.0, scale="inner"))
    assert inner.evaluations(args) == 2 and inner.evaluations(jf.Args(2.0, scale=w, inner=3.0)) == 3


def test_negative_conditions_are_given_sample_by_sample(x64):
    x, w = event("image"), 2.5
    guided, fixed = jf.Guided(FIELD), jf.Guided(FIELD, 0.7)
    args = jf.Args(2.0, negative=0.7, scale=w)
    np.testing.assert_array_equal(guided.velocity(T, x, args), fixed.velocity(T, x, jf.Args(2.0, scale=w)))
    np.testing.assert_array_equal(jf.Guided(FIELD, 0.1).velocity(T, x, args), guided.velocity(T, x, args))
    np.testing.assert_array_equal(guided.velocity(T, x, jf.Args(2.0, negative=0.7)), FIELD.velocity(T, x, 2.0))
    assert guided.evaluations(args) == 2 and guided.evaluations(jf.Args(2.0, negative=0.7)) == 1
    assert jf.Guided(FIELD, rule=jf.APG()).data(T, x, args).shape == x.shape
    refuses(lambda: guided.velocity(T, x, jf.Args(2.0, scale=w)), r"negative=other, scale=w\)")
    out = jf.generate(
        guided, jr.key(0), 3, (2,), jf.UniformGrid(2), args=jf.Args(jnp.arange(3.0), negative=jnp.ones(3), scale=2.0),
        args_in_axes=jf.Args(0, negative=0, scale=None), batch_size=2,
    )  # fmt: skip
    assert out.x.shape == (3, 2) and (out.nfe == 4).all()


INSIDE = (0.3, 0.7)
GRID = jnp.array([0.0, 0.1, 0.3, 0.55, 0.7, 0.9, 1.0])


def counted(**options):
    first, second = Counter(net), Counter(net)
    field, weak = (jf.Field(c, jf.CondOT(), "velocity") for c in (first, second))
    if options.pop("weak", False):
        return jf.Guided(field, weak=weak, **options), first, second
    return jf.Guided(field, 0.7, **options), first, second


@pytest.mark.parametrize(
    ("options", "guided", "calls"),
    [
        ({"solver": dfx.Euler()}, {}, 6 + 2),
        ({"solver": dfx.Heun()}, {}, 6 + 6 + 2 + 2),
        ({"solver": jf.DPMpp(2)}, {}, 6 + 2),  # its last step is the data prediction
        pytest.param({"eta": 0.5**0.5}, {"rule": jf.APG()}, 6 + 2, marks=pytest.mark.slow),
        ({"solver": dfx.Heun()}, {"weak": True}, 6 + 6 + 2 + 2),
    ],
    ids=["Euler", "Heun", "DPMpp", "SDE with a rule", "weak"],
)
def test_outside_an_interval_the_other_prediction_is_not_computed(options, guided, calls):
    field, first, second = counted(interval=INSIDE, **guided)

    @eqx.filter_jit
    def run(field, x0, scales):
        def one(x0, w):
            return jf.decode(field, x0, jf.FixedSteps(GRID, **options), args=jf.Args(2.0, scale=w), key=jr.key(0))

        return jax.vmap(one)(x0, scales)

    def taken():
        return first.take() + second.take()

    out = run(field, jnp.ones((3, 2)), jnp.arange(3.0))
    assert taken() == 3 * calls and (out.nfe == calls).all() and (out.status == 0).all()
    traces = first.traces
    moved = eqx.tree_at(lambda g: g.interval, field, (jnp.float32(-1.0), jnp.float32(2.0)))
    assert (run(moved, jnp.ones((3, 2)), jnp.arange(3.0)).nfe == taken() // 3).all()  # everywhere
    assert first.traces == traces


def test_an_interval_is_guided_inside_and_conditional_outside():
    x, inside, always = event("image"), jf.Guided(FIELD, 0.7, interval=INSIDE), jf.Guided(FIELD, 0.7)
    args = jf.Args(2.0, scale=3.0)
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        guides = 0.3 <= t < 0.7
        want = always.velocity(t, x, args) if guides else FIELD.velocity(t, x, 2.0)
        np.testing.assert_allclose(inside.velocity(t, x, args), want, rtol=1e-6)
        assert inside.evaluations(args, t) == (2 if guides else 1)
    assert inside.evaluations(2.0) == 1
    nested = jf.Guided(inside, 0.7, scale="outer", negative="other")
    assert nested.evaluations(jf.Args(2.0, scale=3.0, outer=2.0), 0.5) == 4
    assert nested.evaluations(jf.Args(2.0, scale=3.0, outer=2.0), 0.9) == 2
    moved = jf.change_path(inside, jf.Cosine())
    assert moved.evaluations(args, 0.5) == 2 and moved.evaluations(args, 0.9) == 1
    refuses(lambda: inside.evaluations(args), "must be counted at a time")
    refuses(lambda: jf.Guided(FIELD, 0.7, interval=(0.7, 0.3)), r"increasing times. Got \(0.7, 0.3\)")


@pytest.mark.slow
def test_evaluations_that_cannot_be_counted_are_not_reported():
    times, args, x0 = jf.UniformGrid(3), jf.Args(2.0, scale=3.0), jnp.ones(2)
    halves = jf.FixedSteps(times, dfx.HalfSolver(dfx.Heun()))
    assert jf.decode(FIELD, x0, halves, args=2.0).nfe is None  # stages in a loop of its own
    field, plain_field = jf.Guided(FIELD, 0.7, interval=INSIDE), jf.Guided(FIELD, 0.7)
    noisy = {"sampler": jf.FixedSteps(times, dfx.SRA1(), eta=1.0), "args": args, "key": jr.key(0)}
    assert jf.decode(field, x0, **noisy).nfe is None
    assert jf.decode(plain_field, x0, **noisy).nfe == 2 * (2 * 2 + 1)
    adaptive = {"sampler": jf.AdaptiveSteps(dfx.Heun()), "args": args}
    assert jf.decode(field, x0, **adaptive).nfe is None
    assert jf.decode(plain_field, x0, **adaptive).nfe % 4 == 0


def two_points(t, x, label):
    """Exact velocity of the points -1 and 1 along the linear path: label 0 and 1 are the points, 2 is both."""
    alpha, sigma = t, 1 - t
    mean = jnp.where(label == 2, jnp.tanh(alpha * x / sigma**2), 2.0 * label - 1.0)
    return (mean - x) / sigma


PATHS = {"CondOT": jf.CondOT(), "Cosine": jf.Cosine(), "VP": jf.VP()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CondOT", "Cosine", pytest.param("VP", marks=pytest.mark.slow)])
def test_I6_a_classifier_turns_the_marginal_into_the_conditional(name, x64):
    """`log p_t(y | x) = log sigmoid(+-2 alpha x/sigma^2)`; at scale 1 it is Bayes' rule, in every prediction."""
    path = PATHS[name]
    both = jf.change_path(jf.Field(two_points, jf.CondOT(), "velocity"), path)

    def log_prob(t, x, y):
        return jax.nn.log_sigmoid((2 * y - 1) * 2 * path.alpha(t) * x[0] / path.sigma(t) ** 2)

    class Marginal(eqx.Module):
        def __call__(self, t, x, y):
            return both.data(t, x, 2)

    field = jf.Field(Marginal(), path, "data")
    guided = jf.ClassifierGuided(field, log_prob)
    x, rows = jnp.array([0.2]), (jf.SigmaClock().rhs(path, T, 0.0), jf.RatioClock().rhs(path, T, 0.7))

    @jax.jit
    def pairs(w):
        names = ("velocity", "data", "noise", "score")
        args = jf.Args(1, scale=w)
        got = [getattr(guided, name)(T, x, args) for name in names]
        want = [getattr(both, name)(T, x, 1) for name in names]
        return got, want, guided.predict(rows, T, x, args), both.predict(rows, T, x, 1)

    got, want, mixed, want_mixed = pairs(1.0)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    np.testing.assert_allclose(mixed, want_mixed, rtol=1e-9)
    slope = jax.grad(lambda v: log_prob(T, v, 1))(x)
    args = jf.Args(1, scale=3.0)
    np.testing.assert_allclose(guided.score(T, x, args), field.score(T, x, 1) + 3 * slope, rtol=1e-12)
    np.testing.assert_array_equal(guided.data(T, x, 1), field.data(T, x, 1))
    assert guided.evaluations(args) == 1


@pytest.mark.parametrize("noise", ["white", "coloured", "centred"])
def test_a_classifier_changes_all_predictions_alike(noise, x64):
    """Each one is the conversion of each other one, and the score is moved by the gradient, within its space."""
    mapped = {
        "white": lambda: None,
        "coloured": lambda: jf.Coloured(np.array([[2.0, 0.5, 0], [0.5, 1.0, 0], [0, 0, 0.3]])),
        "centred": jf.ZeroCentre,
    }[noise]()
    path = jf.Cosine(source=jf.Normal(mapped))
    field = jf.Field(lambda t, x, y: jnp.sin(2 * x) - jnp.mean(jnp.sin(2 * x)), path, "velocity")
    guided, args = jf.ClassifierGuided(field, lambda t, x, y: jnp.sum(jnp.cos(x) * y)), jf.Args(1.5, scale=2.0)
    x = jnp.array([0.4, -0.7, 0.3])
    names = ("velocity", "data", "noise", "score", "v")

    @jax.jit
    def every():
        values = dict(zip(names, guided.predict(names, T, x, args), strict=True))
        again = {(a, b): jf.convert(path, T, x, values[a], a, b) for a in names for b in names}
        return values, again, guided.score(T, x, args) - field.score(T, x, 1.5)

    values, again, moved = every()
    for (a, b), value in again.items():
        np.testing.assert_allclose(value, values[b], rtol=1e-9, atol=1e-9, err_msg=f"{a} {b}")
    slope = -2 * 1.5 * np.sin(x)
    np.testing.assert_allclose(moved, slope - slope.mean() if noise == "centred" else slope, rtol=1e-9)


def test_a_classifier_at_the_ends():
    guided = jf.ClassifierGuided(FIELD, lambda t, x, y: -jnp.sum((x - y) ** 2))
    x, args = jnp.ones(2), jf.Args(2.0, scale=3.0)
    for name in ("noise", "score"):
        assert jnp.isfinite(getattr(guided, name)(0.0, x, args)).all()
    assert jnp.isfinite(guided.velocity(1.0, x, args)).all()
    refuses(lambda: jf.decode(guided, x, GRID, args=args), "t = 0, where a field that predicts 'noise'")
    assert jf.decode(guided, x, GRID[1:], args=args).nfe == 5
    vector = jf.ClassifierGuided(FIELD, lambda t, x, y: x)
    refuses(lambda: vector.score(T, x, args), "pick the condition's entry")
    of_score = jf.ClassifierGuided(jf.Field(net, jf.CondOT(), "score"), lambda t, x, y: -jnp.sum((x - y) ** 2))
    np.testing.assert_allclose(of_score.score(1.0, x, args), of_score.field.score(1.0, x, 2.0) + 6.0, rtol=1e-6)


def test_a_classifier_goes_outside_a_guide_that_replaces_the_condition():
    seen = []

    def log_prob(t, x, y):
        seen.append(y)
        return -jnp.sum((x - y) ** 2)

    inside = jf.ClassifierGuided(FIELD, log_prob, scale="classifier_scale")
    for field in (inside, jf.change_path(inside, jf.Cosine()), jf.Thresholded(inside)):
        refuses(lambda field=field: jf.Guided(field, 0.7), r"ClassifierGuided\(Guided\(field, null\), ...\)")
    refuses(lambda: jf.ClassifierGuided(jf.Guided(FIELD, 0.7), log_prob), "Got 'scale' twice")
    outside = jf.ClassifierGuided(jf.Guided(FIELD, 0.7), log_prob, scale="classifier_scale")
    x, args = jnp.ones(2), jf.Args(2.0, scale=3.0, classifier_scale=0.5)
    got = outside.score(T, x, args)
    np.testing.assert_allclose(got, outside.field.score(T, x, jf.Args(2.0, scale=3.0)) + 0.5 * 2 * (2 - x), rtol=1e-5)
    assert seen == [2.0] and outside.evaluations(args) == 2
    paired = jf.Field(net, jf.CondOT(source=jf.Normal(coupled=True)), "velocity")
    refuses(lambda: jf.ClassifierGuided(paired, log_prob), "which is coupled to the data")


def test_thresholds_keep_the_data_prediction_in_range(x64):
    values = np.linspace(-10.0, 10.0, 201)  # |D| has the percentiles 10 p/100: 9 at 90 percent
    field = jf.Field(lambda t, x, args: x, jf.CondOT(), "data")
    x = jnp.asarray(values).reshape(3, 67)

    @eqx.filter_jit
    def cut(guided, x):
        return guided.data(T, x), guided.noise(T, x)

    static, noise = cut(jf.Thresholded(field, limit=2.0), x)
    np.testing.assert_array_equal(static.ravel(), np.clip(values, -2, 2))
    np.testing.assert_allclose(noise.ravel(), (values - T * np.clip(values, -2, 2)) / (1 - T), rtol=1e-12)
    for percent in (90.0, 50.0, 100.0):
        s = np.percentile(np.abs(values), percent)
        assert s == pytest.approx(percent / 10, rel=2e-2)
        for limit in (1.0, 3.0):
            got, _ = cut(jf.Thresholded(field, percentile=percent, limit=limit), x)
            np.testing.assert_allclose(got.ravel(), np.clip(values, -s, s) * limit / s, rtol=1e-12)
    small, _ = cut(jf.Thresholded(field, percentile=90.0), x / 20)
    np.testing.assert_array_equal(small, x / 20)  # in range already: s = 1
    for bad, fragment in ((0.995, "looks like a fraction"), (0.0, "Got 0.0"), (101.0, "at most 100"), (-5, "Got -5")):
        refuses(lambda bad=bad: jf.Thresholded(field, bad), fragment)


KIN = {
    "null": jf.Guided(FIELD, 0.7),
    "negative": jf.Guided(FIELD),
    "weak": jf.Guided(FIELD, weak=OTHER, rule=jf.Rescaled(0.5)),
    "rule": jf.Guided(FIELD, 0.7, rule=jf.APG(), interval=INSIDE),
    "classifier": jf.ClassifierGuided(FIELD, lambda t, x, y: -jnp.sum(x * y)),
    "threshold": jf.Thresholded(jf.Guided(FIELD, 0.7, rule=jf.Rescaled(0.5, jf.APG()), interval=INSIDE), 99.0),
}


def test_training_is_that_of_the_field():
    want = jf.matching_loss(FIELD, jr.key(0), jnp.ones(2), 3.0)
    for field in KIN.values():
        assert jf.matching_loss(field, jr.key(0), jnp.ones(2), 3.0) == want


def test_only_the_network_is_trained():
    class Net(eqx.Module):
        weight: jax.Array

        def __call__(self, t, x, y):
            return self.weight * x

    field = jf.Field(Net(jnp.ones(())), jf.CondOT(), "velocity")
    kin = (
        jf.Guided(field, 0.7, rule=jf.Rescaled(0.5, jf.APG(0.2, 3.0)), interval=INSIDE),
        jf.Guided(field, weak=field, rule=jf.CFGZero(0.1)),
        jf.ClassifierGuided(field, Net(jnp.ones(()))),
        jf.Thresholded(jf.Guided(field, 0.7), 99.0),
    )
    for guide in kin:
        assert sum(jax.tree.leaves(jf.trainable(guide))) == 1


@pytest.mark.slow
def test_every_kind_is_sampled_and_swept_by_one_compilation():
    traces = []

    @eqx.filter_jit
    def run(field, args, times):
        traces.append(1)
        return jf.sample(field, jr.key(0), (2,), jf.FixedSteps(times, end="stop"), args=args)

    for kind, field in KIN.items():
        before, negative = len(traces), {"negative": 0.7} if kind == "negative" else {}
        for scale in (0.5, 3.0):
            # other parameters of the guidance, another scale, another grid
            arrays, rest = eqx.partition(field, eqx.is_inexact_array)
            other = eqx.combine(jax.tree.map(lambda leaf, s=scale: leaf * (1 + s / 100), arrays), rest)
            out = run(other, jf.Args(2.0, scale=jnp.asarray(scale), **negative), jnp.linspace(0.1, 0.95, 4))
            assert out.status == 0 and jnp.isfinite(out.x).all()
        assert len(traces) == before + 1


def test_a_right_hand_side_that_a_rule_does_not_determine_raises():
    x, args = jnp.ones(2), jf.Args(2.0, scale=3.0)
    guided, late = jf.Guided(FIELD, 0.7, rule=jf.APG()), jf.FixedSteps(GRID, dfx.Heun(), end="stop")
    assert jf.decode(guided, x, GRID, args=args).status == 0  # the last step is the data prediction
    refuses(lambda: jf.decode(guided, x, late, args=args), "t = 1, where a field that predicts 'data'")
    refuses(lambda: jf.decode(jf.Thresholded(FIELD), x, late, args=2.0), "t = 1, where a field that predicts 'data'")
    of_noise = jf.Guided(jf.Field(net, jf.CondOT(), "noise"), 0.7, rule=jf.APG())
    refuses(lambda: jf.decode(of_noise, x, GRID, args=args), "t = 0, where a field that predicts 'noise'")
    refuses(lambda: jf.Rescaled(0.5, jf.CFGZero()), "Got CFGZero, on 'velocity'")


def test_a_guide_goes_on_with_a_default_sampler():
    """That of the field inside at its share of the evaluations, unless a step rule made for that field."""
    args = jf.Args(2.0, scale=3.0)
    assert jf.sample(jf.Guided(FIELD, 0.7), jr.key(0), (2,), args=args).nfe == 32
    jumps = jf.FlowMap(lambda s, t, x, y: net(t, x, y), jf.CondOT())
    assert isinstance(jf.recommended(jumps).solver, jf.Jump)
    assert jf.sample(jf.Guided(jumps, 0.7), jr.key(0), (2,), args=args).nfe == 32
