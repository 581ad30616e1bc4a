"""Fields: networks of every framework, preconditioning, what is trained, other paths, event shapes."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from flax import linen, nnx
from references import PATHS, gaussian, over_paths, refuses, unchecked

import jflow as jf
from jflow import AbstractField, trainable

KEY = jr.key(0)


class EquinoxNet(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, t, x, args):
        return self.linear(jnp.append(x, t))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, t, x, args):
        return linen.Dense(2)(jnp.append(x, t))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, t, x, args):
        return self.linear(jnp.append(x, t))


def function(params, t, x, args):
    return params["w"] @ jnp.append(x, t) + params["b"]


def thousand(net, t, x, args):
    return net(1000 * t, x, args)


PARAMS = {"w": jnp.ones((2, 3)) / 3, "b": jnp.zeros(2)}
LINEN = LinenNet()
LINEN_PARAMS = LINEN.init(KEY, 0.0, jnp.zeros(2), None)
EQUINOX = EquinoxNet(eqx.nn.Linear(3, 2, key=KEY))
FIELDS = {  # each network becomes a field in one line
    "equinox": jf.Field(EQUINOX, jf.CondOT(), "velocity"),
    "linen": jf.Field(jtu.Partial(LINEN.apply, LINEN_PARAMS), jf.CondOT(), "velocity"),
    "nnx": jf.Field(NNXNet(nnx.Rngs(0)), jf.CondOT(), "velocity"),
    "function": jf.Field(jtu.Partial(function, PARAMS), jf.CondOT(), "velocity"),
    "t times 1000": jf.Field(jtu.Partial(thousand, EQUINOX), jf.CondOT(), "velocity"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_a_network_of_any_framework_is_a_field_in_one_line(name):
    field = FIELDS[name]
    weights, rest = eqx.partition(field, trainable(field))
    assert sorted(leaf.size for leaf in jax.tree.leaves(weights)) == [2, 6]

    @eqx.filter_jit
    def step(weights):
        def loss(weights):
            each = jax.vmap(lambda k: jf.matching_loss(eqx.combine(weights, rest), k, jnp.array([1.0, -1.0])))
            return each(jr.split(KEY, 16)).mean()

        value, grads = jax.value_and_grad(loss)(weights)
        scale = 1e-7 if name == "t times 1000" else 0.05
        return value, jax.tree.map(lambda p, g: p - scale * g, weights, grads)

    first, weights = step(weights)
    second, _ = step(weights)
    assert second < first
    solution = jf.sample(eqx.combine(weights, rest), KEY, (2,), jf.UniformGrid(4))
    assert solution.x.shape == (2,) and solution.nfe == 4 and np.isfinite(solution.x).all()


def test_a_network_that_wants_another_time_gets_it():
    seen = jf.Field(jtu.Partial(thousand, lambda t, x, args: t * jnp.ones_like(x)), jf.CondOT(), "velocity")
    np.testing.assert_allclose(seen.velocity(0.25, jnp.ones(2)), 250)


# --------------------------------------------------------------------------------------------- preconditioning


def test_preconditioning_on_ve_is_edm():
    path, spread, calls = jf.VE(0.002, 80.0), 0.5, []

    def net(t, x, args):
        calls.append((t, x))
        return jnp.sin(x) + t

    field = jf.Preconditioned(net, path, spread)
    x = jnp.array([0.3, -2.0])
    for t in (0.0, 0.4, 1.0):
        sigma = float(path.sigma(t))
        total = sigma**2 + spread**2
        out = field.data(t, x)
        c_noise, c_in = np.log(sigma) / 4, 1 / np.sqrt(total)
        np.testing.assert_allclose(calls[-1][0], c_noise, rtol=1e-5)
        np.testing.assert_allclose(calls[-1][1], c_in * x, rtol=1e-5)
        expected = spread**2 / total * x + sigma * spread / np.sqrt(total) * (np.sin(c_in * x) + c_noise)
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-6)
    assert field.predicts == "data" and field.evaluations() == 1


def test_preconditioning_gives_inputs_and_targets_of_unit_variance():
    """The loss of a network that says zero, weighted by `1/c_out^2`, is the variance of its target."""
    spread, n = 0.5, 20_000
    keys = jr.split(KEY, 3)
    x1, x0 = spread * jr.normal(keys[0], (n, 1)), jr.normal(keys[1], (n, 1))
    draws = jr.split(keys[2], n)

    def moments(path, t):
        def weight(log_snr):
            return jnp.exp(log_snr) + 1 / spread**2

        def silent(t, x, args):
            return 0 * x

        seen = jf.Preconditioned(lambda t, x, args: x, path, spread)
        field = jf.Preconditioned(silent, path, spread)
        target = jax.vmap(lambda k, z: jf.matching_loss(field, k, z, t=t, weight=weight))(draws, x1)
        x = jax.vmap(lambda e, z: path.interpolate(t, e, z))(x0, x1)
        both = jax.vmap(lambda y: seen.data(t, y))(x)
        skip = jax.vmap(lambda y: field.data(t, y))(x)
        alpha, sigma = path.alpha(t), path.sigma(t)
        entered = (both - skip) * jnp.sqrt((alpha * spread) ** 2 + sigma**2) / (sigma * spread)
        return target.mean(), entered.var()

    for name, (target, entered) in over_paths(moments, jnp.array([0.1, 0.5, 0.9])).items():
        np.testing.assert_allclose(target, 1, atol=0.04, err_msg=name)
        np.testing.assert_allclose(entered, 1, atol=0.04, err_msg=name)


def test_the_network_time_is_finite_at_both_ends_and_may_be_overridden():
    for name, path in PATHS.items():
        seen = []
        field = jf.Preconditioned(lambda t, x, args: seen.append(t) or x, path, 1.0)  # noqa: B023
        for t in (0.0, 1.0):
            field.data(t, jnp.ones(2))
        assert np.isfinite(seen).all() and seen[0] > seen[1], name
        if path.ends_at_data:
            np.testing.assert_allclose(seen[1], 0, atol=1e-7)
        else:
            np.testing.assert_allclose(seen, np.log([80, 0.002]) / 4, rtol=1e-5)
    seen = []
    own = jf.Preconditioned(lambda t, x, args: seen.append(t) or x, jf.CondOT(), 1.0, c_noise=lambda t: 1000 * t)
    own.data(0.5, jnp.ones(2))
    assert seen[0] == 500


# ------------------------------------------------------------------------------------------------ heads and keys


def test_a_network_of_several_heads_gives_each_and_the_others_from_the_first():
    path, x = jf.CondOT(), jnp.array([0.4, -1.0])
    field = jf.Field(lambda t, x, args: (2 * x, -x), path, ("velocity", "score"))
    velocity, score, data = field.predict(("velocity", "score", "data"), 0.25, x)
    np.testing.assert_allclose([velocity, score], [2 * x, -x])
    np.testing.assert_allclose(data, x + 0.75 * 2 * x, rtol=1e-6)
    assert isinstance(field.conditional(0.25, x), tuple) and field.sources == ("velocity", "score")
    one = jf.Field(lambda t, x, args: x, path, ("velocity", "score"))
    refuses(lambda: one.velocity(0.5, x), "must return a tuple of 2 outputs")


def test_a_network_that_draws_gets_the_key_of_training_alone():
    seen = []

    def net(t, x, args, key=None):
        seen.append(key)
        return x

    field = jf.Field(net, jf.CondOT(), "velocity", draws=True)
    jf.matching_loss(field, KEY, jnp.ones(2))
    assert seen[-1] is not None
    field.velocity(0.5, jnp.ones(2))
    assert seen[-1] is None


# --------------------------------------------------------------------------------------------------- training


def everything():
    """A field with an array in each place that must not be trained."""
    inner = jf.Preconditioned(EQUINOX, jf.VE(0.01, 50.0), 0.5)
    return jf.Guided(inner, null={"a": jnp.ones(3), "b": jnp.asarray(10)})


def test_only_networks_are_trained():
    field = everything()
    flags = trainable(field)
    assert jtu.tree_structure(flags) == jtu.tree_structure(field)
    assert flags.field.net.linear.weight is True and flags.field.net.linear.bias is True
    assert not any(jax.tree.leaves((flags.null, flags.field.path, flags.field.sigma_data)))
    assert sum(jax.tree.leaves(flags)) == 2
    nested = {"field": field, "other": jnp.ones(3), "count": jnp.asarray(1), "path": jf.VE()}
    flags = trainable(nested)
    assert flags["other"] is True and flags["count"] is False and not any(jax.tree.leaves(flags["path"]))
    assert sum(jax.tree.leaves(flags["field"])) == 2
    frozen = jf.Preconditioned(EQUINOX, jf.VE(), 0.5, c_noise=jtu.Partial(lambda k, t: k * t, jnp.asarray(2.0)))
    assert sum(jax.tree.leaves(trainable(frozen))) == 2
    again = jf.change_path(field, jf.VP())
    assert sum(jax.tree.leaves(trainable(again))) == 2


class Encoded(jf.AbstractField):
    """A field of two networks along a path that is learned, which shifts its log-SNR."""

    encoder: eqx.nn.Linear
    net: EquinoxNet
    path: jf.AbstractPath
    predicts = "velocity"

    def predict(self, targets, t, x, args=None):
        velocity = self.net(t, self.encoder(x), args)
        return jf.given(self.path, t, x, (velocity,), ("velocity",), targets, args)


class Learned(jf.AbstractAffinePath):
    power: jax.Array
    source: jf.AbstractSource = jf.frozen(default=jf.Normal())

    def alpha(self, t):
        return t**self.power

    def sigma(self, t):
        return 1 - t


def test_what_a_user_does_not_declare_frozen_is_trained():
    field = Encoded(eqx.nn.Linear(2, 2, key=KEY), EQUINOX, Learned(jnp.asarray(1.5)))
    assert all(jax.tree.leaves(trainable(field))) and len(jax.tree.leaves(trainable(field))) == 5
    assert jf.sample(field, KEY, (2,), jf.UniformGrid(4)).nfe == 4


def test_a_hundred_steps_of_adamw_change_networks_only():
    field = everything()
    weights, rest = eqx.partition(field, trainable(field))
    optimiser = optax.adamw(1e-2, weight_decay=0.1)

    @eqx.filter_jit
    def run(weights, rest):
        def loss(weights, key):
            condition = {"a": jnp.zeros(3), "b": jnp.asarray(1)}
            field = eqx.combine(weights, rest)
            return jf.matching_loss(field, key, jnp.array([1.0, -1.0]), condition, weight=jf.edm_weight(0.5))

        def step(carry, key):
            weights, state = carry
            value, grads = jax.value_and_grad(loss)(weights, key)
            updates, state = optimiser.update(grads, state, weights)
            return (optax.apply_updates(weights, updates), state), value

        (weights, _), values = jax.lax.scan(step, (weights, optimiser.init(weights)), jr.split(KEY, 100))
        return weights, values

    new_weights, values = run(weights, rest)
    after = eqx.combine(new_weights, rest)
    assert np.isfinite(values).all()
    for where in (lambda f: f.field.path, lambda f: f.field.sigma_data, lambda f: f.null):
        assert eqx.tree_equal(where(field), where(after))  # bit for bit
    assert (after.field.net.linear.weight != field.field.net.linear.weight).all()


# ------------------------------------------------------------------------------------------------ change of path


@pytest.mark.slow
@pytest.mark.parametrize("target", ["Cosine", "VP", "VE", "quadratic"])
def test_change_path_is_exact(target, x64):
    """A Gaussian's field along one path, taken to another, is its field there."""
    path = PATHS[target]
    moved, truth = jf.change_path(gaussian(jf.CondOT()), path), gaussian(path)
    x = jnp.array([0.4, -1.3])

    @jax.jit
    @jax.vmap
    def both(t):
        names = ("velocity", "data", "noise", "score")
        rows = (jf.RatioClock().rhs(path, t, 0.0),)
        return [([getattr(f, n)(t, x) for n in names], f.predict(rows, t, x), f.data(t, x)) for f in (moved, truth)]

    for value, expected in zip(*map(jax.tree.leaves, both(jnp.linspace(0.05, 0.95, 10))), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-8)
    assert moved.path is path and moved.evaluations() == 1 and isinstance(moved, AbstractField)


def test_a_guide_on_another_path_is_trained_with_bare_conditions():
    """The loss of a data prediction `x c`: `E(x_t c - x1)^2` at the scaled state of the other path."""
    paired = jf.Normal(coupled=True)
    field = jf.Field(lambda t, x, c: c * x, jf.CondOT(source=paired), "data")
    moved, x1, t = jf.change_path(jf.Guided(field, 0.0), jf.Cosine(source=paired)), jnp.array([1.0, 2.0]), 0.5
    loss = jf.matching_loss(moved, jr.key(0), x1, 0.5, x0=jnp.zeros(2), t=t)
    state = jf.Cosine().alpha(t) * x1 * np.hypot(0.5, 0.5)  # t = 1/2 has equal parts on both paths
    np.testing.assert_allclose(loss, np.mean((0.5 * state - x1) ** 2), rtol=1e-5)


def test_change_path_raises_where_the_ratios_do_not_overlap():
    """VE from sigma 80 to 0.002 is known on CondOT from t = 1/81 to 1/1.002: else an error, or NaN under a trace."""
    field, x, overlap = jf.change_path(gaussian(jf.VE(0.002, 80.0)), jf.CondOT()), jnp.ones(2), "0.0123457 to t = 0.998"
    nested = jf.Guided(jf.change_path(field, jf.Cosine()), null=0.0)
    inside = jnp.linspace(1 / 81, 1 / 1.002, 5)
    late = inside.at[-1].set(1.0)
    for call in (lambda: field.velocity(0.0, x), lambda: field.score(0.9999, x)):
        refuses(call, overlap)
    for call in (
        lambda: jf.decode(field, x, jf.UniformGrid(4)),
        lambda: jf.decode(field, x, jf.UniformGrid(1)),
        lambda: jf.decode(field, x, jf.FixedSteps(late, dfx.Heun(), end="stop")),
        lambda: jf.decode(field, x, jf.AdaptiveSteps(t1=0.9)),
        lambda: jf.encode(field, x, late),
        lambda: jf.log_prob(field, x, late),
        lambda: jf.decode(nested, x, jf.UniformGrid(4), args=jf.Args(0.0, scale=2.0)),
    ):
        refuses(call, "VE has no such signal-to-noise ratio as (CondOT|Cosine) has there")

    @jax.jit
    def run(times):
        return [jf.decode(field, x, jf.FixedSteps(times, end=end)) for end in ("denoise", "stop")]

    for out in (*run(inside), run(late)[0]):
        assert out.status == 0 and jnp.isfinite(out.x).all()
    early, later = run(inside.at[0].set(0.0))[0], run(inside.at[0].set(0.001))[1]
    assert early.status == later.status == 1 and jnp.isnan(early.x).all() and jnp.isnan(later.x).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_change_path_is_finite_at_both_ends(dtype):
    """At t = 0 the noise is the state and the data their mean, at t = 1 the data is the state."""
    x, names = jnp.array([0.4, -1.3], dtype), ("CondOT", "Cosine", "LinearVP", "quadratic")
    tolerance = 1e-5 if dtype == "float32" else 1e-2

    @jax.jit
    @jax.vmap
    def every(t):
        moved = [jf.change_path(gaussian(PATHS[a], predicts="data"), PATHS[b]) for a in names for b in names]
        return [(field.data(t, x), field.noise(t, x)) for field in moved]

    for data, noise in every(jnp.array([0.0, 1.0])):
        assert data.dtype == noise.dtype == dtype and np.isfinite(data).all() and np.isfinite(noise[0]).all()
        np.testing.assert_allclose(data.astype(float), [[1, 1], x.astype(float)], atol=tolerance)
        np.testing.assert_allclose(noise[0].astype(float), x.astype(float), atol=tolerance)


def test_change_path_samples_the_same_points(x64):
    """The flow of a field does not depend on the path: equal noise goes to equal data."""
    x0, moved = jnp.array([0.3, -0.8]), jf.change_path(gaussian(jf.CondOT()), jf.Cosine())
    run = eqx.filter_jit(lambda f: jf.decode(f, x0, jf.FixedSteps(jf.UniformGrid(40), dfx.Dopri5())).x)
    np.testing.assert_allclose(run(moved), run(gaussian(jf.Cosine(), predicts="data")), rtol=1e-10)
    np.testing.assert_allclose(run(moved), 1 + 0.5 * x0, rtol=5e-3)  # the last step is a data prediction


# ------------------------------------------------------------------------------------------------- events


@pytest.mark.parametrize("shape", [(5,), (4, 6, 3), (2, 4, 6, 3)])
def test_K1_one_example_and_a_vmapped_batch_agree(shape):
    field = jf.Field(lambda t, x, args: jnp.sin(x) * t + args, jf.Cosine(), "noise")
    t, x, args = jnp.linspace(0.1, 0.9, 3), jr.normal(KEY, (3, *shape)), jnp.arange(3.0)

    @jax.jit
    def both():
        batch = [jax.vmap(getattr(field, n))(t, x, args) for n in ("velocity", "score")]
        alone = [[getattr(field, n)(t[i], x[i], args[i]) for i in range(3)] for n in ("velocity", "score")]
        return batch, [jnp.stack(values) for values in alone]

    batch, alone = both()
    np.testing.assert_allclose(batch, alone, rtol=1e-6, atol=1e-6)
    assert batch[0].shape == (3, *shape)
    for method in (field.velocity, field.data, field.noise, field.score):
        with pytest.raises((ValueError, TypeError)):
            method(t, x, None)
        with unchecked(), pytest.raises(ValueError, match=r"jax\.vmap"):
            method(t, x, 0.0)


def test_K4_types_are_kept():
    low = jf.Field(lambda t, x, args: x.astype(jnp.bfloat16), jf.CondOT(), "data")
    edm = jf.Preconditioned(lambda t, x, args: x.astype(jnp.bfloat16), jf.VE(), 0.5)
    for field in (low, edm, jf.Guided(low, 0.0)):
        args = jf.Args(1.0, scale=2.0) if isinstance(field, jf.Guided) else None
        for x64 in (False, True):
            with jax.enable_x64(x64):
                t = jnp.asarray(0.5, jnp.float32)
                for state in ("float32", "bfloat16"):
                    out = jax.eval_shape(lambda x: field.velocity(t, x, args), jnp.ones(2, state))  # noqa: B023
                    assert out.dtype == state
                if x64:
                    assert jax.eval_shape(lambda x: field.velocity(0.5, x, args), jnp.ones(2)).dtype == "float64"  # noqa: B023


def test_K6_fields_can_be_mapped_scanned_and_jitted():
    field = gaussian(jf.CondOT())
    xs, ts = jr.normal(KEY, (4, 2)), jnp.linspace(0.1, 0.9, 4)
    mapped = jax.jit(jax.vmap(field.velocity))(ts, xs)
    _, scanned = jax.jit(lambda: jax.lax.scan(lambda c, tx: (c, field.velocity(*tx)), 0, (ts, xs)))()
    np.testing.assert_allclose(mapped, scanned, rtol=1e-6)
    np.testing.assert_allclose(mapped, jax.pmap(lambda t, x: field.velocity(t, x))(ts, xs), rtol=1e-6)


def test_an_integer_state_raises_where_it_would_be_truncated():
    field, x = jf.Field(lambda t, x, args: x / 4, jf.CondOT(), "velocity"), jnp.array([1, 2])
    exact = jf.distributions.Gaussian(jnp.zeros(2), std=0.5).field(jf.CondOT())
    refuses(lambda: jf.decode(field, x, jf.UniformGrid(2)), "Got int32: scale pixels to")
    refuses(lambda: jf.matching_loss(field, KEY, x), "must be of a floating-point type. Got int32")
    refuses(lambda: exact.velocity(0.25, x), "must be of a floating-point type. Got int32")
    for name in ("velocity", "data", "noise", "score"):  # a network's answer is of float32
        value = getattr(field, name)(0.25, x)
        np.testing.assert_allclose(value, getattr(field, name)(0.25, x.astype(jnp.float32)), rtol=1e-6)


def test_a_state_may_be_a_pytree():
    field = jf.Field(lambda t, x, args: jax.tree.map(lambda v: 2 * v, x), jf.CondOT(), "data")
    x = {"image": jnp.ones((4, 4, 1)), "label": jnp.ones(3)}
    out = field.velocity(0.5, x)
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, x)
    np.testing.assert_allclose(out["label"], 2.0)


def test_bad_input_raises_with_a_reason():
    def net(t, x, args):
        return x

    cases = [
        (lambda: jf.Field(net, "CondOT", "data"), TypeError, "path must be AbstractPath"),
        (lambda: jf.Preconditioned(net, None, 0.5), ValueError, "must have an affine path, .* Got None"),
        (lambda: jf.Field(net, jf.CondOT(), "eps"), ValueError, "one of 'velocity'"),
        (lambda: jf.Preconditioned(net, jf.VE(), 0.0), ValueError, "sigma_data must be a positive number"),
        (lambda: jf.Preconditioned(net, jf.VE(), jnp.ones(2)), ValueError, "single number"),
        (lambda: jf.change_path(FIELDS["equinox"], "VP"), TypeError, "path must be AbstractAffinePath"),
        (
            lambda: jf.Field(lambda t, x, a: x[None], jf.CondOT(), "data").data(0.5, jnp.ones(2)),
            ValueError,
            r"shape of the state. Got \(1, 2\) for a state of shape \(2,\)",
        ),
        (lambda: jf.Field(lambda t, x, a: (x, x), jf.CondOT(), "data").data(0.5, jnp.ones(2)), ValueError, "structure"),
    ]
    for call, kind, fragment in cases:
        refuses(call, fragment, kind)
