"""Weights of the loss: published values, one loss in every prediction, and arrays for numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import refuses

import jflow as jf

MADE = (jf.min_snr_weight, jf.soft_min_snr_weight, jf.sigmoid_weight, jf.likelihood_weight)
PREDICTS = ("data", "noise", "v")


def test_weights_have_the_published_values(x64):
    log_snr = jnp.linspace(-8, 8, 33)
    snr, s = np.exp(log_snr), np.exp(-log_snr / 2)
    published = [
        (jf.edm_weight(0.5), (s**2 + 0.25) / (0.5 * s) ** 2),
        (jf.min_snr_weight(5.0, predicts="noise"), np.minimum(1, 5 / snr)),
        (jf.min_snr_weight(5.0, predicts="data"), np.minimum(snr, 5)),
        (jf.min_snr_weight(5.0, predicts="v"), np.minimum(snr, 5) / (snr + 1)),
        (jf.soft_min_snr_weight(5.0), snr * 5 / (snr + 5)),
        (jf.soft_min_snr_weight(5.0, predicts="noise"), 5 / (snr + 5)),
        (jf.soft_min_snr_weight(5.0, predicts="v"), snr * 5 / (snr + 5) / (snr + 1)),
        (jf.sigmoid_weight(-2.0, predicts="data"), np.exp(-2) / (1 + np.exp(-2 - log_snr))),
        (jf.sigmoid_weight(-2.0, predicts="noise"), 1 / (1 + np.exp(log_snr + 2))),
        (jf.sigmoid_weight(1e30, predicts="data"), snr),
        (jf.likelihood_weight(), np.ones(33)),
        (jf.likelihood_weight(predicts="data"), snr),
    ]
    for weight, truth in published:
        np.testing.assert_allclose(weight(log_snr), truth, rtol=1e-12)
    # k-diffusion's, on the loss of its network F: data = c_skip x + c_out F, c_out = s d / sqrt(s^2 + d^2)
    d = 0.4
    on_data = (s * d) ** 2 / (s**2 + d**2) ** 2 / ((s * d) ** 2 / (s**2 + d**2))
    np.testing.assert_allclose(jf.soft_min_snr_weight(1 / d**2)(log_snr), on_data, rtol=1e-12)


@pytest.mark.parametrize("make", MADE)
def test_a_weight_is_the_same_loss_in_every_prediction(make, x64):
    """Along a variance-preserving path, for one and the same error."""
    path, x1, x0 = jf.LinearVP(), jnp.array([1.0, 0.5]), jnp.array([0.3, -0.8])

    def weighted(t, predicts):
        x = path.interpolate(t, x0, x1)
        target = jf.convert(path, t, x, x1, "data", predicts)
        value = jf.convert(path, t, x, x1 + jnp.array([0.1, -0.3]), "data", predicts)
        return make(predicts=predicts)(path.log_snr(t)) * jnp.mean((value - target) ** 2)

    every = jax.jit(jax.vmap(lambda t: [weighted(t, predicts) for predicts in PREDICTS]))
    data, noise, v = every(jnp.linspace(0.05, 0.95, 7))
    np.testing.assert_allclose(noise, data, rtol=1e-9)
    np.testing.assert_allclose(v, data, rtol=1e-9)


def test_weights_are_never_nan_nor_negative():
    log_snr = jnp.array([-jnp.inf, -1e3, -174.0, -89.0, -5.0, 0.0, 5.0, 89.0, 174.0, 1e3, jnp.inf])
    for predicts in PREDICTS:
        for make in MADE:
            value = np.asarray(make(predicts=predicts)(log_snr))
            assert not np.isnan(value).any() and (value >= 0).all(), (make, predicts)
        for make in (jf.min_snr_weight, jf.soft_min_snr_weight, jf.sigmoid_weight):
            assert np.isfinite(make(predicts=predicts)(log_snr)).all(), (make, predicts)
    assert not np.isnan(jf.edm_weight(0.5)(log_snr)).any()


def test_the_numbers_of_a_weight_are_arrays_that_do_not_retrace():
    traces = []

    @eqx.filter_jit
    def value(weight, log_snr):
        traces.append(type(weight))
        return weight(log_snr)

    pairs = [
        (jf.edm_weight(0.5), jf.edm_weight(1.0)),
        (jf.min_snr_weight(5.0), jf.min_snr_weight(1.0)),
        (jf.soft_min_snr_weight(5.0), jf.soft_min_snr_weight(1)),
        (jf.sigmoid_weight(0.0), jf.sigmoid_weight(jnp.array(-2.0))),
    ]
    for first, second in pairs:
        assert value(first, jnp.array(3.0)) != value(second, jnp.array(3.0))
    assert len(traces) == len(pairs)
    assert not any(jax.tree.leaves(jf.trainable([weight for pair in pairs for weight in pair])))


def test_weights_keep_the_type_and_the_shape_of_the_log_snr(x64):
    for dtype in (jnp.float32, jnp.float64):
        log_snr = jnp.zeros((2, 3), dtype)
        for predicts in PREDICTS:
            for weight in (jf.edm_weight(0.5), *(make(predicts=predicts) for make in MADE)):
                assert weight(log_snr).dtype == dtype and weight(log_snr).shape == (2, 3)


def test_a_weight_has_a_gradient_in_its_number():
    slope = jax.grad(lambda gamma: jf.soft_min_snr_weight(gamma)(jnp.log(3.0)))(5.0)  # (SNR / (SNR + gamma))^2
    np.testing.assert_allclose(slope, (3 / 8) ** 2, rtol=1e-5)


def test_bad_weights_say_what_a_weight_takes():
    for build, fragment in [
        (lambda: jf.min_snr_weight(predicts="velocity"), "predicts must be 'data', 'noise' or 'v'"),
        (lambda: jf.likelihood_weight(predicts="score"), "predicts must be 'data', 'noise' or 'v'"),
        (lambda: jf.sigmoid_weight(predicts="epsilon"), "one of"),
        (lambda: jf.edm_weight(0.0), "sigma_data must be a positive number"),
        (lambda: jf.min_snr_weight(-1.0), "gamma must be a positive number"),
        (lambda: jf.soft_min_snr_weight(float("inf")), "gamma must be a positive number"),
        (lambda: jf.sigmoid_weight(float("nan")), "bias must be a finite number"),
    ]:
        refuses(build, fragment)
