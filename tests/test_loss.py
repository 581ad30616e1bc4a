"""The matching loss: targets, minima, masks, heads (closed forms G1 to G8, G10 and G12)."""

import functools as ft
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.special import ndtr
from jax.scipy.stats import norm
from references import PATHS, PREDICTIONS, gaussian, mixture, over_paths, refuses, schedule, within

import jflow as jf

CIRCLE = 10 * np.stack([np.cos(a := 2 * np.pi * np.arange(5) / 5), np.sin(a)], 1)  # MIX5
KEY = jr.key(0)
PAIRS = jf.CondOT(source=jf.Normal(coupled=True))  # the source of tests that hand x0 in
matching_loss = eqx.filter_jit(jf.matching_loss)  # one compilation is cheaper than that of every primitive


class Pinned(jf.AbstractGaussianSource):
    """A source whose draw is known, so that a target with the score can be written down."""

    x0: jax.Array
    map: None = None
    coupled: ClassVar[bool] = False

    def sample(self, key, like, args=None):
        return self.x0


def constant(path, predicts, value=0.0):
    return jf.Field(lambda t, x, args: jnp.full_like(x, value), path, predicts)


@ft.partial(jax.jit, static_argnums=1)
def circle(key, n):
    key_k, key_z = jr.split(key)
    return jnp.asarray(CIRCLE, jnp.float32)[jr.choice(key_k, 5, (n,))] + jr.normal(key_z, (n, 2))


@ft.partial(jax.jit, static_argnums=1)
def board(key, n):
    """Uniform on the eight squares of a checkerboard over [-5, 5]^2."""
    key_k, key_z = jr.split(key)
    return jnp.asarray(CORNERS, jnp.float32)[jr.choice(key_k, 8, (n,))] + 2.5 * jr.uniform(key_z, (n, 2))


CORNERS = np.array([(2.5 * i - 5, 2.5 * j - 5) for i in range(4) for j in range(4) if (i + j) % 2 == 0])


@eqx.filter_jit
def run(field, keys, x1, options):
    return jax.vmap(lambda k, z: jf.matching_loss(field, k, z, **options))(keys, x1)


def losses(field, x1, **options):
    """The loss of every example, each with its own key."""
    return np.asarray(run(field, jr.split(jr.key(7), len(x1)), x1, options))


def expect(values, truth, extra=0.0):
    se = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - truth) <= 4 * se + extra, (values.mean(), truth, se)


def test_every_target_has_its_closed_form(x64):
    x0, x1, times = np.array([-1.0, 0.7, 0.2]), np.array([2.0, -0.3, 1.1]), np.linspace(0.02, 0.98, 9)

    def every(path, t):
        pinned = eqx.tree_at(lambda p: p.source, path, Pinned(jnp.asarray(x0)))
        field = [constant(pinned, predicts, 0.4) for predicts in PREDICTIONS]
        return [jf.matching_loss(f, KEY, jnp.asarray(x1), t=t) for f in field]

    for name, got in over_paths(every, jnp.asarray(times)).items():
        alpha, sigma, alpha_dot, sigma_dot = (v[:, None] for v in schedule(name, times))
        targets = alpha_dot * x1 + sigma_dot * x0, x1 + 0 * alpha, x0 + 0 * alpha, -x0 / sigma, alpha * x0 - sigma * x1
        for value, target in zip(got, targets, strict=True):
            np.testing.assert_allclose(value, ((0.4 - target) ** 2).mean(1), rtol=1e-6, err_msg=name)


def test_G1_loss_of_the_zero_field():
    n = 40_000
    zero = constant(jf.CondOT(), "velocity")
    expect(losses(zero, circle(jr.key(1), n)), 104 / 2)
    expect(losses(zero, board(jr.key(2), n)), 56 / 3 / 2)
    expect(losses(zero, jr.normal(jr.key(3), (n, 2))), 4 / 2)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_G2_minimum_of_the_flow_matching_loss(std):
    n = 40_000
    x1 = 3.0 + std * jr.normal(jr.key(4), (n, 2))
    expect(losses(gaussian(jf.CondOT(), 3.0, std), x1), std * np.pi / 2)
    if std == 1.0:
        expect(losses(gaussian(jf.Cosine(), 3.0, 1.0), x1), np.pi**2 / 4)


@pytest.mark.slow
def test_G3_minima_of_the_noise_and_the_data_loss():
    n, path = 40_000, jf.CondOT()
    x1 = jr.normal(jr.key(5), (n, 2))
    for predicts in ("noise", "data"):
        expect(losses(gaussian(path, 0.0, 1.0, predicts), x1), 0.5)
    expect(losses(gaussian(path, 0.0, 2.0, "noise"), 2 * x1), 0.64481598)
    for predicts, variance in {"velocity": 0.8, "noise": 0.2, "data": 0.2}.items():
        expect(losses(gaussian(path, 1.0, 0.5, predicts), 1 + 0.5 * x1, t=0.5), variance)


def test_G4_minima_on_toy_data():
    n = 100_000
    x1 = circle(jr.key(6), n)
    fields = {name: mixture(PATHS[name], np.full(5, 0.2), CIRCLE, np.ones(5)) for name in ("CondOT", "root")}
    expect(losses(fields["CondOT"], x1), 18.21 / 2, extra=0.07 / 2)
    expect(losses(fields["root"], x1, law=jf.laws.Uniform(0.0, 0.999)), 20.35 / 2, extra=0.07 / 2)


def board_field():
    """The exact data prediction of the checkerboard along the linear path, by truncated normals."""

    def net(t, x, args):
        x = x[None]
        low = (CORNERS - x / t) * (t / (1 - t))  # (8, 2), in units of the posterior's width
        high = (CORNERS + 2.5 - x / t) * (t / (1 - t))
        flip = low + high > 0  # tails by symmetry, where differences of ndtr would cancel
        low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
        mass = jnp.maximum(ndtr(high) - ndtr(low), 1e-37)
        shift = (norm.pdf(low) - norm.pdf(high)) / mass * jnp.where(flip, -1, 1)
        mean = jnp.clip(x / t + (1 - t) / t * shift, CORNERS, CORNERS + 2.5)
        weight = jax.nn.softmax(jnp.log(mass).sum(1))
        return (((weight[:, None] * mean).sum(0) - x[0]) / (1 - t)).astype(x.dtype)

    return jf.Field(net, jf.CondOT(), "velocity")


def test_G4_minimum_on_the_checkerboard():
    values = losses(board_field(), board(jr.key(8), 60_000), law=jf.laws.Uniform(1e-3, 0.999))
    # the ends left out weigh at most a thousandth each: E|z - E[z]|^2 + d at t = 0, the local minimum at t = 1
    expect(values, 8.45 / 2, extra=(0.03 + 0.01) / 2)


def affine(theta):
    return jf.Field(lambda t, x, args: theta[0] * x + theta[1] + theta[2] * t, PAIRS, "velocity")


def test_G5_conditional_and_marginal_loss_differ_by_a_constant():
    n, exact = 20_000, gaussian(jf.CondOT(), 1.0, 0.5)
    thetas = jr.normal(jr.key(9), (2, 3))
    key_t, key_0, key_1 = jr.split(jr.key(10), 3)
    t, x0, x1 = jr.uniform(key_t, (n,)), jr.normal(key_0, (n, 2)), 1 + 0.5 * jr.normal(key_1, (n, 2))

    def gap(theta, t, x0, x1):
        field = affine(theta)
        x = jf.CondOT().interpolate(t, x0, x1)
        marginal = jnp.mean((field.velocity(t, x) - exact.velocity(t, x)) ** 2)
        return jf.matching_loss(field, KEY, x1, x0=x0, t=t) - marginal

    both = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(gap), (None, 0, 0, 0)), (0, None, None, None)))
    values, grads = both(thetas, t, x0, x1)
    expect(np.asarray(values[0] - values[1]), 0.0)
    for grad in np.asarray(grads).reshape(2, n, 3).transpose(0, 2, 1).reshape(6, n):
        expect(grad, 0.0)


def test_G6_regression_recovers_the_marginal_field():
    n = 40_000
    x1 = 1 + 0.5 * jr.normal(jr.key(11), (n, 1))
    keys = jr.split(jr.key(12), n)

    def loss(theta):
        field = jf.Field(lambda t, x, args: theta[0] * x + theta[1], jf.CondOT(), "velocity")
        return jax.vmap(lambda k, z: jf.matching_loss(field, k, z, t=0.5))(keys, x1)

    start = jnp.zeros(2)
    slope = jax.jit(jax.jacfwd(loss))(start)  # a quadratic: one Newton step is its least squares
    hessian = jax.jit(jax.jacfwd(jax.jacfwd(lambda theta: loss(theta).mean())))(start)
    theta = -np.linalg.solve(hessian, np.asarray(slope).mean(0))
    # the residual of the regression has variance 0.8: the covariance of the estimate is 2 * 0.8 / n / hessian
    se = np.sqrt(np.diag(2 * 0.8 / n * np.linalg.inv(hessian)))
    assert within(theta, np.array([-1.2, 1.6]), se)


def test_G7_an_error_weighs_differently_in_each_prediction(x64):
    x, value, error = jnp.array([0.3, -1.2]), jnp.array([1.0, 2.0]), jnp.array([0.3, 0.4])
    times = np.linspace(0.05, 0.95, 10)

    def sizes(path, t):
        def moved(target):
            gap = jf.convert(path, t, x, value + error, "velocity", target)
            return jnp.linalg.norm(gap - jf.convert(path, t, x, value, "velocity", target))

        return {target: moved(target) for target in ("score", "noise", "data")}

    for name, got in over_paths(sizes, jnp.asarray(times)).items():
        alpha, sigma, alpha_dot, sigma_dot = schedule(name, times)
        w = sigma * alpha_dot - alpha * sigma_dot
        np.testing.assert_allclose(sigma * w / alpha * got["score"], 0.5, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(w / alpha * got["noise"], 0.5, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(w / sigma * got["data"], 0.5, rtol=1e-5, err_msg=name)


def test_G8_cost_of_a_score_near_the_data():
    values = losses(constant(PATHS["root"], "score"), jnp.zeros((100_000, 2)), law=jf.laws.Uniform(0.0, 0.999))
    expect(values, np.log(1000) / 0.999)  # d ln(1/delta) = 13.81551 for the sum over two components


@pytest.mark.slow
def test_G8_no_time_of_a_default_law_makes_a_loss_infinite():
    draw = jax.jit(jax.vmap(lambda k: jf.laws.Uniform().sample(k, jf.CondOT())))
    times = np.asarray(draw(jr.split(jr.key(13), 1_000_000)))
    assert times.min() > 0 and times.max() < 1
    extremes = jnp.array([jnp.finfo(jnp.float32).tiny, 2.0**-23, 1 - 2.0**-23, 1 - 2.0**-24])
    weights = {p: [jf.min_snr_weight(predicts=p), jf.sigmoid_weight(predicts=p)] for p in ("data", "noise", "v")}
    weights["data"].append(jf.edm_weight(0.5))
    weights["noise"].append(jf.likelihood_weight())

    def total(predicts):
        """One weight that is finite only where none of them is infinite: they have no sign to cancel by."""
        return lambda log_snr: 1 + sum(weight(log_snr) for weight in weights.get(predicts, []))

    def every(path, t):
        x1 = jnp.array([0.3, -1.0])
        return {p: jf.matching_loss(constant(path, p), KEY, x1, t=t, weight=total(p)) for p in PREDICTIONS}

    for name, got in over_paths(every, extremes).items():
        for predicts, values in got.items():
            assert np.isfinite(values).all(), (name, predicts)
    for predicts, some in weights.items():
        for weight in some:
            assert (np.asarray(weight(jnp.linspace(-80.0, 80.0, 17))) >= 0).all(), predicts


def test_G10_the_loss_is_a_mean_over_the_event():
    x0, x1 = jr.normal(jr.key(14), (4, 4, 3)), jr.normal(jr.key(15), (4, 4, 3))
    field = constant(PAIRS, "velocity")
    total = jnp.sum((x1 - x0) ** 2)
    value = matching_loss(field, KEY, x1, x0=x0, t=0.3)
    np.testing.assert_allclose(value * 48, total, rtol=1e-6)
    parts = {"a": x1[0], "b": x1[1:]}
    noise = {"a": x0[0], "b": x0[1:]}
    tree = jf.Field(lambda t, x, args: jax.tree.map(jnp.zeros_like, x), PAIRS, "velocity")
    np.testing.assert_allclose(matching_loss(tree, KEY, parts, x0=noise, t=0.3), value, rtol=1e-6)


def test_G12_the_exact_field_of_one_point_has_no_loss(x64):
    point = jnp.array([1.5, -0.5])
    exact = {
        "velocity": lambda t, x, args: (point - x) / (1 - t),
        "data": lambda t, x, args: point,
        "noise": lambda t, x, args: (x - t * point) / (1 - t),
    }

    @jax.jit
    @jax.vmap
    def every(key):
        fields = [jf.Field(net, jf.CondOT(), predicts) for predicts, net in exact.items()]
        return [jf.matching_loss(field, key, point, law=jf.laws.Uniform(0.0, 0.99)) for field in fields]

    assert np.max(every(jr.split(jr.key(16), 100))) < 1e-8


def test_an_infinite_expectation_raises():
    for name, path in PATHS.items():
        if name in ("VP", "LinearVP", "root"):
            with pytest.raises(ValueError, match=r"velocity loss must have a finite expectation"):
                matching_loss(constant(path, "velocity"), KEY, jnp.ones(2))
        if name != "VE":
            with pytest.raises(ValueError, match=r"score loss must have a finite expectation.*Uniform\(0\.0, 0\.999\)"):
                matching_loss(constant(path, "score"), KEY, jnp.ones(2))
    both = jf.Field(lambda t, x, args: (x, x), jf.VP(), ("noise", "velocity"))
    with pytest.raises(ValueError, match=r"velocity loss must have a finite expectation"):
        matching_loss(both, KEY, jnp.ones(2))
    velocity, score, x1 = constant(jf.VP(), "velocity"), constant(jf.CondOT(), "score"), jnp.ones(2)

    def finite():
        for field in (velocity, score):
            for options in ({"law": jf.laws.Uniform(0.0, 0.999)}, {"law": jf.laws.LogitNormal()}, {"t": 0.5}):
                yield jf.matching_loss(field, KEY, x1, **options)
        yield jf.matching_loss(velocity, KEY, x1, weight=lambda l: jnp.exp(-l))
        for field in (constant(jf.CondOT(), "velocity"), constant(jf.VE(), "score"), constant(jf.VP(), "noise")):
            yield jf.matching_loss(field, KEY, x1)

    values = jax.jit(lambda: list(finite()))()
    assert len(values) == 10 and np.isfinite(values).all()


def test_the_loss_is_the_weight_times_the_bare_loss():
    field, x1, weight = constant(jf.Cosine(), "data"), jnp.ones(3), jf.edm_weight(0.5)
    bare, weighted, told = (matching_loss(field, KEY, x1, weight=w) for w in (None, weight, lambda log_snr: log_snr))
    np.testing.assert_allclose(weighted, weight(told / bare) * bare, rtol=1e-5)  # at the time that the key draws
    for t in (0.2, 0.7):
        bare, weighted = (matching_loss(field, KEY, x1, weight=w, t=t) for w in (None, weight))
        np.testing.assert_allclose(weighted, weight(jf.Cosine().log_snr(t)) * bare, rtol=1e-5)


def test_padded_components_do_not_count():
    x0, x1 = jr.normal(jr.key(17), (2, 5, 3))
    mask = jnp.array([True, True, False, True, False])
    garbage = jnp.where(mask[:, None], x1, jnp.nan)
    field = jf.Field(lambda t, x, args: t * x, PAIRS, "velocity")
    kept = matching_loss(field, KEY, x1[mask], x0=x0[mask], t=0.3)
    np.testing.assert_allclose(matching_loss(field, KEY, garbage, x0=x0, t=0.3, mask=mask), kept, rtol=1e-6)
    full = jnp.broadcast_to(mask[:, None], (5, 3))
    np.testing.assert_allclose(matching_loss(field, KEY, garbage, x0=x0, t=0.3, mask=full), kept, rtol=1e-6)
    every = matching_loss(field, KEY, x1, x0=x0, t=0.3, mask=jnp.ones(5, bool))
    np.testing.assert_allclose(every, matching_loss(field, KEY, x1, x0=x0, t=0.3), rtol=1e-6)


def test_a_mask_of_each_leaf_of_an_event():
    x1 = {"a": jnp.ones((4, 2)), "b": jnp.full(3, 2.0)}
    field = jf.Field(lambda t, x, args: jax.tree.map(jnp.zeros_like, x), jf.CondOT(), "data")
    mask = {"a": jnp.array([True, False, False, False]), "b": jnp.array([True, True, False])}
    np.testing.assert_allclose(matching_loss(field, KEY, x1, mask=mask), (2 * 1.0 + 2 * 4.0) / 4, rtol=1e-6)


def test_the_source_reads_the_mask_and_the_network_the_bare_condition():
    seen = []

    def net(t, x, args):
        seen.append(args)
        return x

    mask, x1 = jnp.array([1.0, 1.0, 0.0, 1.0]), jnp.zeros((4, 2))
    field = jf.Field(net, jf.CondOT(source=jf.Normal(jf.ZeroCentre())), "noise")
    # x_t = (1 - t) x0, so that the loss is t^2 mean(x0^2) over the points there are, of rank 2 * 2 in 3 * 2 components
    keys = jr.split(jr.key(18), 4000)
    values = jax.jit(jax.vmap(lambda k: jf.matching_loss(field, k, x1, {"label": 3}, t=0.5, mask=mask)))(keys)
    expect(np.asarray(values), 0.25 * 4 / 6)
    assert all(args == {"label": 3} for args in seen)


def test_several_heads_add_up():
    parts = {"velocity": lambda t, x: t * x, "noise": lambda t, x: x - 1, "data": lambda t, x: 2 * x}

    def net(t, x, args):
        return tuple(part(t, x) for part in parts.values())

    x1, path = jnp.array([0.3, -1.2]), jf.CondOT()
    whole = matching_loss(jf.Field(net, path, tuple(parts)), KEY, x1, weight=jnp.exp)
    each = [
        matching_loss(jf.Field(lambda t, x, args, part=part: part(t, x), path, name), KEY, x1, weight=jnp.exp)
        for name, part in parts.items()
    ]
    np.testing.assert_allclose(whole, sum(each), rtol=1e-5)


def test_a_network_that_draws_gets_a_key_of_its_own():
    seen = []

    def net(t, x, args, key=None):
        seen.append(key is not None)
        return x if key is None else x * jr.bernoulli(key, 0.5, x.shape) / 0.5

    field = jf.Field(net, jf.CondOT(), "velocity", draws=True)
    x1 = jnp.ones(4)
    keys = jr.split(jr.key(19), 4000)
    plain = jf.Field(lambda t, x, args: x, jf.CondOT(), "velocity")
    # the noise of dropout is independent of time, source and data: it adds the variance E[x_t^2]
    dropped, bare = losses(field, jnp.tile(x1, (4000, 1))), losses(plain, jnp.tile(x1, (4000, 1)))
    expect(dropped - bare, 2 / 3)  # E[t^2 + (1 - t)^2]
    one = [matching_loss(field, key, x1) for key in (keys[0], keys[0], keys[1])]
    assert one[0] == one[1] != one[2] and all(seen)
    seen.clear()
    jf.sample(field, KEY, (4,), jf.UniformGrid(2))
    assert seen and not any(seen)  # a sampler does not draw for the network


class Masked(jf.AbstractPath):
    """A letter is the data where its latent is below t, else the mask, which is x0."""

    source: jf.AbstractSource = jf.GIVEN
    letters: ClassVar[bool] = True

    def latent(self, key, like, args=None):
        return jr.uniform(key, like.shape)

    def interpolate(self, t, x0, x1, z=None):
        return jnp.where(z < t, x1, x0)


def test_the_loss_of_logits_is_their_cross_entropy():
    """The exact posterior knows a letter that is shown, and has the prior of one that is not: entropy times 1 - t."""
    prior, n, k = jnp.array([0.5, 0.3, 0.2]), 20_000, 3

    def net(t, x, args):
        return jnp.where((x == k)[:, None], jnp.log(prior)[None], 1e3 * (jax.nn.one_hot(x, k) - 1))

    field = jf.Field(net, Masked(), "logits")
    x1 = jr.choice(jr.key(20), k, (n, 4), p=prior)
    values = losses(field, x1, x0=jnp.full(4, k))
    expect(values, -float(jnp.sum(prior * jnp.log(prior))) / 2)
    half = losses(field, x1, x0=jnp.full(4, k), t=0.75, mask=jnp.array([True, True, False, False]))
    expect(half, -float(jnp.sum(prior * jnp.log(prior))) / 4)


def test_types_are_kept():
    field = jf.Field(lambda t, x, args: x.astype(jnp.bfloat16), jf.CondOT(), "data")

    def kept(x1, **options):
        return jax.eval_shape(lambda key: jf.matching_loss(field, key, x1, **options), jr.key(0)).dtype

    assert kept(jnp.ones(2)) == kept(jnp.ones(2, jnp.bfloat16)) == jnp.float32
    with jax.enable_x64(True):
        assert kept(jnp.ones(2, jnp.float32), t=jnp.float32(0.5)) == jnp.float32
        assert kept(jnp.ones(2, jnp.float32)) == jnp.float32
        assert kept(jnp.ones(2)) == jnp.float64


def test_the_network_computes_in_the_type_of_the_data(x64):
    seen = []

    def net(t, x, args):
        seen.append((t.dtype, x.dtype))
        return x * t

    for predicts in ("velocity", "data"):
        field = jf.Field(net, jf.CondOT(), predicts)
        weight = jf.edm_weight(0.5) if predicts == "data" else jnp.exp
        loss = jf.matching_loss(field, KEY, jnp.ones(2, jnp.float32), weight=weight)
        assert loss.dtype == jnp.float32
    assert all(t == x == jnp.float32 for t, x in seen)


def test_a_weight_is_that_of_the_fields_own_loss():
    """Min-SNR of the data loss and of the noise loss are the same loss; the one for the other raises."""
    x, t, path = jnp.ones(2), jnp.array(0.6), jf.VP()
    noise = jf.Field(lambda t, x, args: x * t, path, "noise")
    data = jf.Field(lambda t, x, args: jf.convert(path, t, x, x * t, "noise", "data"), path, "data")
    values = [
        jf.matching_loss(field, KEY, x, t=t, weight=jf.min_snr_weight(5.0, predicts=kind))
        for field, kind in ((noise, "noise"), (data, "data"))
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)
    refuses(lambda: jf.matching_loss(noise, KEY, x, weight=jf.min_snr_weight(5.0)), "'data' loss .* predicts 'noise'")


def test_a_time_is_between_noise_and_data():
    field = constant(jf.VE(), "data")
    for t in (80.0, -0.1):
        refuses(lambda t=t: jf.matching_loss(field, KEY, jnp.ones(2), t=t), "between 0, the noise.*log_snr_inverse")


def test_pairs_need_a_source_that_says_so():
    x0, x1 = jnp.zeros(2), jnp.ones(2)
    for path in (PAIRS, jf.CondOT(source=jf.GIVEN)):
        value = matching_loss(constant(path, "velocity"), KEY, x1, x0=x0)
        np.testing.assert_allclose(value, 1.0, rtol=1e-6)
    alone, given = constant(jf.CondOT(), "velocity"), constant(jf.CondOT(source=jf.GIVEN), "velocity")
    refuses(lambda: jf.matching_loss(alone, KEY, x1, x0=x0), r"source=jf.Normal\(coupled=True\)")
    refuses(lambda: jf.matching_loss(given, KEY, x1), "pass x0= to matching_loss")
    refuses(lambda: jf.matching_loss(constant(PAIRS, "score"), KEY, x1, x0=x0, t=0.5), "coupled to the data")


def test_keys_that_cannot_be_batched_train():
    field = constant(jf.CondOT(), "velocity")
    assert jnp.isfinite(matching_loss(field, jr.key(0, impl="rbg"), jnp.ones(2)))


def test_bad_input_raises_with_a_reason():
    field, pairs, x1 = constant(jf.CondOT(), "velocity"), constant(PAIRS, "velocity"), jnp.ones(2)
    short = jf.Field(lambda t, x, args: x[:1], jf.CondOT(), "velocity")
    letters = jf.Field(lambda t, x, args: jnp.zeros((2, 3)), Masked(), "logits")
    tokens = jnp.zeros(2, int)
    cases = [
        (lambda: jf.matching_loss(lambda t, x, args: x, KEY, x1), TypeError, "field must be AbstractField"),
        (lambda: jf.matching_loss(field, None, x1), ValueError, "pass key="),
        (
            lambda: jf.matching_loss(field, KEY, x1, law=jf.laws.LogitNormal),
            TypeError,
            r"law must be AbstractLaw, as jflow.laws",
        ),
        (lambda: jf.matching_loss(field, KEY, x1, weight=2.0), TypeError, "weight must be a function of 1 argument"),
        (lambda: jf.matching_loss(letters, KEY, tokens, x0=tokens, weight=jnp.exp), ValueError, "must have an affine"),
        (lambda: jf.matching_loss(field, jr.PRNGKey(0), x1), ValueError, "typed key"),
        (lambda: jf.matching_loss(field, jr.split(KEY), x1), ValueError, "vmap"),
        (lambda: jf.matching_loss(field, KEY, x1, t=jnp.ones(3)), ValueError, "vmap"),
        (lambda: jf.matching_loss(pairs, KEY, x1, x0=jnp.ones(3)), ValueError, "x0 must have the shape"),
        (lambda: jf.matching_loss(short, KEY, x1), ValueError, "network's output must have the shape"),
        (lambda: jf.matching_loss(field, KEY, jnp.ones(2, int)), ValueError, "Data must be of a floating-point type"),
        (lambda: jf.matching_loss(field, KEY, x1, jf.Args(1, scale=2.0)), ValueError, "must be read by a guide"),
    ]
    for call, kind, fragment in cases:
        refuses(call, fragment, kind)
