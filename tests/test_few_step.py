"""Objectives of flow maps on the exact map of a Gaussian: residuals, values and gradients at the optimum."""

import json

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from flax import nnx

import jflow as jf
from jflow import few_step as fs

MEAN, STD = np.array([1.0, -2.0]), np.array([0.5, 1.5])
WORLD = jf.distributions.Gaussian(MEAN, std=STD)
N = 4000


class GaussianMap(eqx.Module):
    """The exact average velocity along a path to `N(MEAN, STD^2)`, plus parameters times features: zero is the optimum.

    `X_{s,t}(x) = alpha_t m + T_t/T_s (x - alpha_s m)`, `T_t^2 = alpha_t^2 STD^2 + sigma_t^2`.
    """

    path: jf.AbstractAffinePath
    predicts: str = eqx.field(static=True)
    off: jax.Array

    def __call__(self, s, t, x, args):
        path = self.path

        def width(t):
            return jnp.sqrt(path.alpha(t) ** 2 * STD**2 + path.sigma(t) ** 2)

        length = jnp.where(s == t, 1, t - s)

        def velocity(t, x):
            rate = path.alpha(t) * path.alpha_dot(t) * STD**2 + path.sigma_sigma_dot(t)
            return path.alpha_dot(t) * MEAN + rate / width(t) ** 2 * (x - path.alpha(t) * MEAN)

        end = path.alpha(t) * MEAN + width(t) / width(s) * (x - path.alpha(s) * MEAN)
        if self.predicts == "velocity":
            value = jnp.where(s == t, velocity(t, x), (end - x) / length)
        else:  # of X = cos x - sin V to the data, which is all that consistency asks for
            value = (path.alpha(t - s) * 0 + jnp.where(s == t, 0, path.alpha(s) * x - end)) / path.sigma(s)
        features = jnp.stack([jnp.ones_like(x), jnp.sin(x), (t - s) * x[::-1], s * x])
        return value + self.off @ features


def exact(path=None, predicts="velocity"):
    path = jf.CondOT() if path is None else path
    return jf.FlowMap(GaussianMap(path, predicts, jnp.zeros(4)), path, predicts)


OBJECTIVES = {
    "MeanFlow": (fs.MeanFlow(), exact),
    "MeanFlow, difference": (fs.MeanFlow(difference=1e-4), exact),
    "ImprovedMeanFlow": (fs.ImprovedMeanFlow(), exact),
    "Lagrangian": (fs.Lagrangian(), exact),
    "Lagrangian, teacher": (fs.Lagrangian(teacher=WORLD.field(jf.CondOT())), exact),
    "Lagrangian, Cosine": (fs.Lagrangian(), lambda: exact(jf.Cosine())),
    "Semigroup": (fs.Semigroup(), exact),
    "Semigroup, midpoint": (fs.Semigroup(0.5), exact),
    "Shortcut": (fs.Shortcut(), exact),
    "Consistency": (fs.Consistency(c=1e4), exact),
    "Consistency, v": (fs.Consistency(c=1e4), lambda: exact(jf.Cosine(), "v")),
    "Consistency, teacher": (fs.Consistency(teacher=WORLD.field(jf.CondOT())), exact),
}


def examples(n=N):
    return jr.split(jr.key(0), n), MEAN[None] + STD[None] * jr.normal(jr.key(1), (n, 2))


@pytest.fixture(params=OBJECTIVES, ids=OBJECTIVES)
def case(request):
    return OBJECTIVES[request.param]


@pytest.mark.slow
def test_the_expected_gradient_vanishes_at_the_exact_map_alone(case):
    objective, build = case
    with jax.enable_x64(True):
        flow_map = build()
        keys, x1 = examples()

        @jax.jit
        def gradients(off):
            def one(off, key, x):
                moved = eqx.tree_at(lambda m: m.net.off, flow_map, off)
                return fs.flow_map_loss(moved, key, x, objective=objective)

            return jax.vmap(jax.grad(one), (None, 0, 0))(off, keys, x1)

        def z(off):
            grads = gradients(jnp.asarray(off))
            size = grads.std(0) / np.sqrt(N)
            return np.abs(np.asarray(jnp.where(size > 1e-9, grads.mean(0) / size, grads.mean(0) * 1e9)))

        assert (z(np.zeros(4)) < 4).all()
        assert z(0.3 * np.ones(4)).max() > 8  # the same number of draws tells a wrong map


@pytest.mark.slow
def test_residuals_of_properties_are_zero(case):
    """Off the diagonal the semigroup's and the Lagrangian residual vanish at every draw, distillation's everywhere."""
    objective, build = case
    kind = type(objective)
    if kind in (fs.MeanFlow, fs.ImprovedMeanFlow) or (kind is fs.Consistency and objective.teacher is None):
        pytest.skip("linear in the conditional velocity: see the next test")
    with jax.enable_x64(True):
        flow_map, (keys, x1) = build(), examples(500)
        law = fs.ToData() if kind is fs.Consistency else fs.TimePairs(diagonal=0.001)
        if objective.teacher is None:
            law = fs.DyadicPairs(diagonal=1e-9)
        losses = jax.vmap(lambda k, x: fs.flow_map_loss(flow_map, k, x, objective=objective, law=law))(keys, x1)
        assert losses.max() < 1e-20


@pytest.mark.slow
def test_mean_flows_regress_the_conditional_velocity(x64):
    """At the exact map: improved MeanFlow's error is `u - v`, MeanFlow's is `(I + (t - s) d_x u)(u - v)`."""
    flow_map, field, (keys, x1) = exact(), WORLD.field(jf.CondOT()), examples(200)
    draw = jax.vmap(lambda k: fs.TimePairs(diagonal=0.2).sample(k))(keys)
    x0 = jr.normal(jr.key(2), (200, 2))

    def one(s, t, x0, x1, key):
        path = flow_map.path
        x, v = path.interpolate(s, x0, x1), path.velocity(s, x0, x1)
        example = fs.Example(s, t, x, v, x0, x1, None, key)
        off = field.velocity(s, x) - v
        through = jax.jacfwd(lambda x: flow_map.jump(s, t, x))(x)
        return (
            fs.ImprovedMeanFlow().errors(flow_map, example) - off,
            fs.MeanFlow().errors(flow_map, example) - through @ off,
        )

    improved, plain = jax.vmap(one)(draw.s, draw.t, x0, x1, keys)
    assert np.abs(improved).max() < 1e-10 and np.abs(plain).max() < 1e-10


@pytest.mark.slow
def test_improved_mean_flow_ends_at_the_conditional_variance(x64):
    """`Var(v | x)` for a Gaussian along CondOT: `STD^2 / (t^2 STD^2 + (1-t)^2)`, whatever the pair of times."""
    flow_map, (keys, x1) = exact(), examples()
    law = fs.TimePairs(jf.laws.Uniform(), diagonal=0.3)
    objective = fs.ImprovedMeanFlow()
    losses = jax.jit(jax.vmap(lambda k, x: fs.flow_map_loss(flow_map, k, x, objective=objective, law=law)))(keys, x1)
    pairs = jax.vmap(lambda k: law.sample(k))(jr.split(jr.key(3), 100_000))
    s = np.asarray(pairs.s)[:, None]
    exact_value = (STD**2 / (s**2 * STD**2 + (1 - s) ** 2)).mean(1)
    error = np.hypot(losses.std() / np.sqrt(N), exact_value.std() / np.sqrt(len(s)))
    assert abs(losses.mean() - exact_value.mean()) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [None, WORLD.field(jf.CondOT())], ids=["data", "teacher"])
def test_discrete_consistency_is_consistent(x64, teacher):
    """With a teacher the error of the exact map falls as `n^(-3/2)`: an Euler step is wrong by `1/n^2`."""
    flow_map, (keys, x1) = exact(), examples(500)

    def rms(n):
        objective = fs.Consistency(steps=n, teacher=teacher)
        losses = jax.vmap(lambda k, x: fs.flow_map_loss(flow_map, k, x, objective=objective))(keys, x1)
        return float(jnp.sqrt(losses.mean()))

    few, many = rms(20), rms(80)
    if teacher is None:  # the conditional velocity's spread stays: sqrt(n) times the noise of a step of 1/n
        assert 0.4 < many / few < 0.6
    else:
        assert 0.8 < few / many / 8 < 1.3


@pytest.mark.slow
def test_the_tangent_of_consistency_warms_up(x64):
    """Its part by the network grows with `warmup`, the gradient in the parameters is that of the jump."""
    flow_map, s, one = exact(jf.Cosine(), "v"), jnp.array(0.4), jnp.array(1.0)
    x0, x1 = jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0])
    x, v = flow_map.path.interpolate(s, x0, x1), flow_map.path.velocity(s, x0, x1)
    example = fs.Example(s, one, x, v, x0, x1, None, jr.key(0))

    def rate(flow_map):
        return jax.jvp(lambda s, x: flow_map.jump(s, one, x), (s, x), (one, v))[1]

    value = flow_map.net(s, one, x, None)
    whole, held = rate(flow_map), rate(jf.FlowMap(lambda s, t, x, args: value + 0 * (s + t), flow_map.path, "v"))
    for share in (0.0, 0.3, 1.0):
        g = held + share * (whole - held)
        objective = fs.Consistency(warmup=share, c=0.1)
        expected = -g / (jnp.sqrt(jnp.mean(g**2)) + 0.1)
        np.testing.assert_allclose(objective.errors(flow_map, example), expected, rtol=1e-12)

        def moved(off):
            return eqx.tree_at(lambda m: m.net.off, flow_map, off)

        found = jax.jacfwd(lambda off: objective.errors(moved(off), example))(jnp.zeros(4))  # noqa: B023
        np.testing.assert_allclose(found, jax.jacfwd(lambda off: moved(off).jump(s, one, x))(jnp.zeros(4)), atol=1e-12)


@pytest.mark.slow
def test_a_fresh_map_does_not_feed_on_its_own_error():
    flow_map = jf.FlowMap(jf.nn.MLP(2, width=128, depth=4, times=2, rngs=nnx.Rngs(0)), jf.CondOT())
    state = jf.train.init(flow_map, optax.adam(1e-3), ema=None)

    def loss(flow_map, key, x1):
        return fs.flow_map_loss(flow_map, key, x1, objective=fs.Lagrangian())

    draw = jax.jit(jf.data.checkerboard, static_argnums=1)
    for i in range(150):
        state, info = jf.train.step(state, loss, jr.fold_in(jr.key(0), i), draw(jr.fold_in(jr.key(1), i), 256))
        assert info.loss < 20  # twice that of no velocity at all


def test_a_network_of_the_data_is_the_identity_on_the_diagonal():
    for predicts in ("data", "noise", "v"):
        flow_map = jf.FlowMap(lambda s, t, x, args: jnp.sin(x) + s * t, jf.Cosine(), predicts)
        x = jnp.array([0.3, -2.0])
        np.testing.assert_allclose(flow_map.jump(0.4, 0.4, x), x, atol=1e-6)
    trig = jf.FlowMap(lambda s, t, x, args: jnp.sin(x) + s * t, jf.Cosine(), "v")
    s = 0.3
    angle = np.pi / 2 * (1 - s)  # to the data: cos x - sin V
    np.testing.assert_allclose(trig.jump(s, 1.0, x), np.cos(angle) * x - np.sin(angle) * (jnp.sin(x) + s), atol=1e-6)


LAWS = [fs.TimePairs(diagonal=0.4), fs.DyadicPairs(4, 0.4), fs.ToData()]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_joint_laws(law):
    pairs = jax.vmap(lambda k: law.sample(k))(jr.split(jr.key(0), 4000))
    s, t = np.asarray(pairs.s), np.asarray(pairs.t)
    assert (s >= 0).all() and (s <= t).all() and (t <= 1).all()
    assert abs((s == t).mean() - law.diagonal) < 4 * np.sqrt(0.25 / len(s))
    if isinstance(law, fs.DyadicPairs):
        length = (t - s)[s < t]
        assert set(np.unique(length)) == {1, 0.5, 0.25, 0.125} and (s[s < t] % length == 0).all()
        assert all(abs((length == value).mean() - 0.25) < 0.05 for value in (1, 0.5, 0.25, 0.125))


def test_the_condition_is_dropped_by_the_law_and_apart_from_the_times():
    law = fs.TimePairs(diagonal=0.5, dropped=0.3)
    pairs = jax.vmap(lambda k: law.sample(k))(jr.split(jr.key(0), 4000))
    dropped, equal = np.asarray(pairs.dropped), np.asarray(pairs.s == pairs.t)
    assert abs(dropped.mean() - 0.3) < 0.03 and abs(np.corrcoef(dropped, equal)[0, 1]) < 0.06
    net = lambda s, t, x, args: x * s * t + args.astype(x.dtype)  # noqa: E731
    flow_map, always = jf.FlowMap(net, jf.CondOT()), fs.TimePairs(dropped=1.0)
    one = fs.flow_map_loss(flow_map, jr.key(1), jnp.ones(2), jnp.asarray(3), law=always, null=7)
    assert one == fs.flow_map_loss(flow_map, jr.key(1), jnp.ones(2), jnp.asarray(7), law=fs.TimePairs())


def test_guidance_trained_in_moves_the_velocity(x64):
    """At scale `w` the target is that of a flow with the velocity `w v + (1 - w) u(null)`."""

    def net(s, t, x, args):
        label, scale = args
        return jnp.where(label == 9, 2.0, 5.0) + 0 * s * t * x * scale

    flow_map, law = jf.FlowMap(net, jf.CondOT()), fs.TimePairs(diagonal=1.0)
    args = (jnp.asarray(3), jnp.asarray(2.5))
    loss = fs.flow_map_loss(
        flow_map, jr.key(0), jnp.ones(1), args, objective=fs.MeanFlow(), law=law,
        guidance=lambda a: (a[1], (jnp.asarray(9), a[1])),
    )  # fmt: skip
    plain = fs.flow_map_loss(flow_map, jr.key(0), jnp.ones(1), args, objective=fs.MeanFlow(), law=law)
    v = 5 - np.sqrt(plain)  # or its mirror image
    values = [(5 - (2.5 * v - 1.5 * 2.0)) ** 2 for v in (v, 5 + np.sqrt(plain))]
    assert min(abs(value - loss) for value in values) < 1e-9


def test_weights():
    adaptive, huber = fs.AdaptiveWeight(c=0.5), fs.PseudoHuber(c=2.0)
    assert jnp.allclose(adaptive(jnp.asarray(1.5)), 0.75)
    assert jnp.allclose(jax.grad(adaptive)(1.5), 0.5)
    assert jnp.allclose(huber(jnp.asarray(5.0)), 1.0)
    with pytest.raises(ValueError, match="c must be a positive"):
        fs.AdaptiveWeight(c=0.0)


GOOD = jf.FlowMap(lambda s, t, x, args: s * t * x, jf.CondOT())


def losses(x1, path=None, args=None):
    """The losses of the objectives on one example, of a network that sees everything."""
    path = jf.CondOT() if path is None else path
    kinds = [(fs.MeanFlow(), "velocity"), (fs.ImprovedMeanFlow(), "velocity"), (fs.Lagrangian(), "velocity")]
    kinds += [(fs.Consistency(), "data")]

    def net(s, t, x, args):
        return jnp.sin(x + s * t) + jnp.sum(x**2)

    return jnp.stack(
        [
            fs.flow_map_loss(jf.FlowMap(net, path, kind), jr.key(4), x1, args, objective=objective)
            for objective, kind in kinds
        ]
    )


@pytest.mark.slow
def test_a_loss_lies_in_the_space_of_the_source():
    """A cloud that is moved has the loss of the one in the centre; padding counts for nothing, whatever stands there
    and however long it is."""
    cloud, centred = jr.normal(jr.key(1), (4, 2)), jf.CondOT(source=jf.Normal(jf.ZeroCentre()))
    np.testing.assert_allclose(losses(cloud + 5, centred), losses(cloud, centred), rtol=1e-4)

    def padded(length, junk):
        return losses(jnp.full((length, 3), junk).at[:2].set(1.0), args=jf.Args(mask=jnp.arange(length) < 2))

    for length in (4, 8):
        np.testing.assert_allclose(padded(length, jnp.nan), padded(length, 0.0), rtol=1e-6)
    flow_map, field = jf.FlowMap(lambda s, t, x, a: 0 * x + 0 * s * t, jf.CondOT()), constant_zero()
    for length in (2, 5):
        x1, mask = jnp.full((length, 3), 7.0).at[:2].set(1.0), jnp.arange(length) < 2
        keys = jr.split(jr.key(2), 4000)
        ours = jax.vmap(lambda key, x=x1, m=mask: fs.flow_map_loss(flow_map, key, x, jf.Args(mask=m)))(keys)
        theirs = jax.vmap(lambda key, x=x1, m=mask: jf.matching_loss(field, key, x, mask=m))(keys)
        np.testing.assert_allclose([ours.mean(), theirs.mean()], 2.0, atol=0.1)  # E (1 - e)^2 a component


def constant_zero():
    return jf.Field(lambda t, x, args: 0 * x, jf.CondOT(), "velocity")


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("s = t with a positive probability", {"objective": fs.Lagrangian(), "law": fs.ToData()}),
        ("along the map's own path", {"objective": fs.Lagrangian(teacher=WORLD.field(jf.Cosine()))}),
        ("average velocity", {"flow_map": jf.FlowMap(lambda s, t, x, a: s * t * x, jf.Cosine(), "v")}),
        ("without s", {"flow_map": jf.FlowMap(lambda s, t, x, a: t * x, jf.CondOT())}),
        ("null=", {"law": fs.TimePairs(dropped=0.1)}),
        ("Pairs must have a source", {"x0": jnp.ones(2)}),
        ("a function of the mean square", {"weight": jf.edm_weight(0.5)}),
    ],
)
def test_what_does_not_go_together(message, options):
    options = {"flow_map": GOOD, **options}
    with pytest.raises((ValueError, TypeError), match=message):
        fs.flow_map_loss(options.pop("flow_map"), jr.key(0), jnp.ones(2), **options)


def test_laws_and_objectives_check_their_numbers():
    for build in (
        lambda: fs.TimePairs(diagonal=1.5),
        lambda: fs.DyadicPairs(0),
        lambda: fs.ToData(dropped=-0.1),
        lambda: fs.Semigroup(1.0),
        lambda: fs.Consistency(warmup=2.0),
        lambda: fs.Consistency(steps=0),
    ):
        with pytest.raises(ValueError, match="must"):
            build()


@pytest.mark.slow
def test_residuals_of_the_exact_map_and_of_a_wrong_one(x64):
    """All residuals of the exact map vanish; of the map `X + e n` the Lagrangian one is `|d_t e|^2`, by interval."""
    shape = jax.ShapeDtypeStruct((2,), jnp.float64)
    residuals = jf.testing.diagnose(exact(), jr.key(0), shape, n=64)
    assert max(residuals.lagrangian.max(), residuals.eulerian.max(), residuals.semigroup.max()) < 1e-20
    teacher = WORLD.field(jf.CondOT())
    wrong = eqx.tree_at(lambda m: m.net.off, exact(), jnp.asarray([0.1, 0.0, 0.0, 0.0]))  # u + 0.1: X + 0.1 (t - s)
    residuals = jf.testing.diagnose(wrong, jr.key(0), shape, (0.0, 0.5), teacher=teacher, n=256)

    def rate(t, x):  # v(t, y + e) - v(t, y) of a linear velocity
        slope = (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2)
        return 0.1 - slope * 0.1 * t

    np.testing.assert_allclose(residuals.lagrangian, np.mean(rate(0.5, None) ** 2), rtol=1e-6)
    assert residuals.semigroup[0] > 1e-6 and residuals.lagrangian_se[0] < 1e-9


@pytest.mark.slow
def test_a_map_is_checked_against_the_exact_flow(x64):
    assert jf.testing.check_map(exact(), WORLD, n=16, tolerance=1e-8).ok
    wrong = eqx.tree_at(lambda m: m.net.off, exact(), jnp.asarray([0.1, 0.0, 0.0, 0.0]))
    report = jf.testing.check_map(wrong, WORLD, (0.0, 0.5), n=16)
    assert not report.ok and abs(report.checks[0].figure - 0.05) < 1e-6


# ----------------------------------------------------------------------------------------------------- reflow

COUPLED = jf.CondOT(source=jf.Normal(coupled=True))


def reflowed(t, x, args=None):
    """The velocity of the pairs `x1 = m + S x0`: `m + (S - I)((1 - t) I + t S)^-1 (x - t m)`."""
    return MEAN + (STD - 1) / (1 - t + t * STD) * (x - t * MEAN)


def straightness(field, n=200, steps=32):
    """`E |X_1 - X_0 - v(t, X_t)|^2` over the trajectories of the field and uniform times."""
    at = dfx.SaveAt(steps=True, t0=True)
    out = jf.generate(
        field, jr.key(5), n, (2,), jf.FixedSteps(jf.UniformGrid(steps), dfx.Heun(), end="stop"), saveat=at
    )
    v = jax.vmap(jax.vmap(field.velocity))(out.ts, out.xs)
    return float(jnp.mean(jnp.sum((out.xs[:, -1:] - out.xs[:, :1] - v) ** 2, -1)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.npz"
    sampler = jf.FixedSteps(jf.UniformGrid(32), dfx.Heun(), end="stop")
    fs.reflow(file, WORLD.field(jf.CondOT()), jr.key(0), 2000, (2,), sampler, batch_size=500)
    return file


def test_pairs_are_those_of_the_flow_and_their_card_says_which(pairs):
    """`x1 = m + S x0` for a Gaussian; x0 is the noise, and x1 sample i of `generate`."""
    x = jf.data.from_npz(pairs).x
    assert x.shape == (2000, 2, 2)
    np.testing.assert_allclose(x[:, 1], MEAN + STD * x[:, 0], atol=0.01)
    assert abs(x[:, 0].mean()) < 0.08 and abs(x[:, 0].std() - 1) < 0.05
    with np.load(pairs) as arrays:
        card = json.loads(str(arrays["card"]))
    sampler = jf.from_json(card["sampler"])
    assert (card["n"], card["nfe"], jf.from_json(card["path"])) == (2000, 64, jf.CondOT())
    again = jf.generate(
        WORLD.field(jf.CondOT()), jr.wrap_key_data(jnp.asarray(card["key"], jnp.uint32)), 3, (2,), sampler
    )
    np.testing.assert_allclose(again.x, x[:3, 1], atol=1e-5)


@pytest.mark.slow
def test_the_flow_of_gaussian_pairs_is_straight(pairs):
    """The loss on pairs vanishes at the velocity in closed form, whose Euler step is exact; the first flow is bent."""
    x = jnp.asarray(jf.data.from_npz(pairs).x[:500])
    straight = jf.Field(reflowed, COUPLED, "velocity")
    bent = jf.Field(lambda t, x, args: WORLD.field(jf.CondOT()).velocity(t, x), COUPLED, "velocity")

    def loss(field):
        one = jax.jit(jax.vmap(lambda key, x: jf.matching_loss(field, key, x[1], x0=x[0])))
        return float(one(jr.split(jr.key(1), len(x)), x).mean())

    assert loss(straight) < 1e-4 and loss(bent) > 0.1
    assert straightness(straight) < 1e-4 and straightness(bent) > 0.1
    step = jf.generate(straight, jr.key(2), 50, (2,), jf.FixedSteps(jf.UniformGrid(1), dfx.Euler(), end="stop"))
    many = jf.generate(straight, jr.key(2), 50, (2,), jf.FixedSteps(jf.UniformGrid(32), dfx.Heun(), end="stop"))
    np.testing.assert_allclose(step.x, many.x, atol=1e-4)


@pytest.mark.slow
def test_pairs_of_a_guided_field(tmp_path):
    """Entries beside the labels steer the flow, and the labels alone are written."""

    def net(t, x, label):
        return jnp.full_like(x, label)

    base = jf.Field(net, jf.CondOT(), "velocity")
    field, label = jf.Guided(base, null=jnp.int32(0)), jnp.arange(6) % 3
    for scale in (1.0, 3.0):
        file = tmp_path / f"{scale}.npz"
        fs.reflow(file, field, jr.key(0), 6, (2,), jf.UniformGrid(2), label=jf.Args(label, scale=jnp.full(6, scale)))
        found = jf.data.from_npz(file)
        np.testing.assert_allclose(found.x[:, 1] - found.x[:, 0], scale * np.stack([label, label], 1), atol=1e-5)
        np.testing.assert_array_equal(found.label, label)
    with pytest.raises(ValueError, match="a row for each of the 6 samples"):
        fs.reflow(tmp_path / "other.npz", field, jr.key(0), 6, (2,), label=jnp.arange(5))
    assert not (tmp_path / "other.npz").exists()


def test_training_on_pairs_straightens(pairs):
    data = jf.data.from_npz(pairs)
    net = jf.nn.MLP(2, width=32, depth=2, rngs=nnx.Rngs(0))
    state = jf.train.init(jf.Field(net, COUPLED, "velocity"), optax.adam(5e-3), ema=None)

    def loss(field, key, example):
        return jf.matching_loss(field, key, example["x"][1], x0=example["x"][0])

    for i in range(400):
        state, _ = jf.train.step(state, loss, jr.fold_in(jr.key(0), i), jf.data.batch(data, 0, i, 256))
    assert straightness(state.field) < 0.1 * straightness(WORLD.field(jf.CondOT()))


def test_what_gives_no_pairs(tmp_path, pairs):
    field = WORLD.field(jf.CondOT())

    def write(field=field, file=tmp_path / "no.npz", **options):
        fs.reflow(file, field, jr.key(0), 2, (2,), **options)

    for message, options in {
        "which exists": {"file": pairs},
        "its source at t = 0": {"field": WORLD.field(jf.VP())},
        "must follow the ODE": {"sampler": jf.AdaptiveSteps(eta=1.0)},
        "start at t = 0": {"sampler": jf.FixedSteps(jf.UniformGrid(2, t0=0.5), end="stop")},
    }.items():
        with pytest.raises(ValueError, match=message):
            write(**options)
    assert not list(tmp_path.iterdir())
