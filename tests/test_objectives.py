"""The gradient of every objective against its exact expectation, for Gaussian data and a linear network."""

import functools as ft
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import PATHS, refuses, schedule

import jflow as jf

laws = jf.laws
MEAN, STD, THETA = 0.5, 0.7, np.array([-0.8, 0.9])  # of the data, each component alike; of the network
N, D = 40_000, 2


class Objective(NamedTuple):
    """What is trained; `plain(snr)` is the weight written a second time."""

    path: str
    predicts: Any
    law: Any
    weight: Any = None
    plain: Any = np.ones_like


OBJECTIVES = {
    "flow matching": Objective("CondOT", "velocity", laws.Uniform()),
    "flow matching, pi0": Objective("CondOT", "velocity", laws.Beta(1.0, 1.5, hi=0.999)),
    "flow matching, logit-normal": Objective("Cosine", "velocity", laws.LogitNormal(0.3, 0.8)),
    "edm": Objective(
        "CondOT", "data", laws.LogNormalSigma(-0.5, 0.8), jf.edm_weight(STD),
        lambda snr: (1 / snr + STD**2) * snr / STD**2,
    ),
    "denoising, min-SNR": Objective(
        "VP", "data", laws.Uniform(), jf.min_snr_weight(5.0), lambda snr: np.minimum(snr, 5)
    ),
    "noise": Objective("VP", "noise", laws.Uniform()),
    "noise, min-SNR": Objective(
        "VP", "noise", laws.Uniform(), jf.min_snr_weight(5.0, predicts="noise"), lambda snr: np.minimum(1, 5 / snr)
    ),
    "v, min-SNR": Objective(
        "LinearVP", "v", laws.Uniform(), jf.min_snr_weight(5.0, predicts="v"),
        lambda snr: np.minimum(snr, 5) / (1 + snr),
    ),
    "v, soft min-SNR": Objective(
        "Cosine", "v", laws.Uniform(), jf.soft_min_snr_weight(4.0, predicts="v"),
        lambda snr: 4 * snr / (snr + 4) / (1 + snr),
    ),
    "denoising, soft min-SNR": Objective(
        "CondOT", "data", laws.LogNormalSigma(-0.5, 1.0), jf.soft_min_snr_weight(4.0), lambda snr: 4 * snr / (snr + 4)
    ),
    "noise, sigmoid": Objective(
        "Cosine", "noise", laws.UniformLogSNR(-9.0, 9.0), jf.sigmoid_weight(-1.0, predicts="noise"),
        lambda snr: 1 / (1 + np.e * snr),
    ),
    "v, sigmoid": Objective(
        "LinearVP", "v", laws.LogitNormal(), jf.sigmoid_weight(1.0, predicts="v"),
        lambda snr: np.e * snr / (np.e + snr) / (1 + snr),
    ),
    "likelihood": Objective("VP", "noise", laws.UniformLogSNR(-6.0, 8.0), jf.likelihood_weight()),
    "likelihood of data": Objective(
        "CondOT", "data", laws.UniformLogSNR(-6.0, 4.0), jf.likelihood_weight(predicts="data"), lambda snr: snr
    ),
    "likelihood of v": Objective(
        "Cosine", "v", laws.UniformLogSNR(-6.0, 6.0), jf.likelihood_weight(predicts="v"), lambda snr: snr / (1 + snr)
    ),
    "score": Objective("CondOT", "score", laws.Uniform(0.0, 0.9)),
    "two heads": Objective("CondOT", ("velocity", "score"), laws.Uniform(0.0, 0.9)),
}  # fmt: skip
FAST = ("flow matching", "edm")


def linear(t, x, args, theta):
    return theta[0] * x + theta[1]


def field(objective, theta, path=None):
    def net(t, x, args):
        value = linear(t, x, args, theta)
        return (value, 2 * value) if isinstance(objective.predicts, tuple) else value

    return jf.Field(net, PATHS[objective.path] if path is None else path, objective.predicts)


def moments(name, t, predicts, joint):
    """`E x, E x^2, E y, E x y` of the state and the target at the times `t`; `joint` is the covariance of x0 and x1."""
    alpha, sigma, alpha_dot, sigma_dot = schedule(name, t)
    on_data, on_noise = {
        "velocity": (alpha_dot, sigma_dot),
        "data": (1 + 0 * t, 0 * t),
        "noise": (0 * t, 1 + 0 * t),
        "score": (0 * t, -1 / sigma),
        "v": (-sigma, alpha),
    }[predicts]
    square = (alpha * STD) ** 2 + sigma**2 + 2 * alpha * sigma * joint
    cross = alpha * on_data * STD**2 + sigma * on_noise + (alpha * on_noise + sigma * on_data) * joint
    mean, target = alpha * MEAN, on_data * MEAN
    return mean, square + mean**2, target, cross + mean * target


def times(law, path):
    """Evenly many times of the law."""
    shares = (jnp.arange(20_000) + 0.5) / 20_000
    return np.asarray(jax.jit(jax.vmap(lambda u: law.quantile(u, path)))(shares), float)


def expected(objective, joint=0.0, factor=np.ones_like, law=None):
    """`E_t w E 2 (theta_0 x + theta_1 - y) (x, 1)`, summed over the heads, whose outputs are multiples of one."""
    t = times(objective.law if law is None else law, PATHS[objective.path])
    alpha, sigma, *_ = schedule(objective.path, t)
    weight, total = objective.plain((alpha / sigma) ** 2) * factor(t), 0
    heads = objective.predicts if isinstance(objective.predicts, tuple) else (objective.predicts,)
    for k, head in enumerate(heads, start=1):
        x, xx, y, xy = moments(objective.path, t, head, joint)
        slope = k * THETA[0] * xx + k * THETA[1] * x - xy
        shift = k * THETA[0] * x + k * THETA[1] - y
        total = total + np.array([np.mean(2 * k * weight * part) for part in (slope, shift)])
    return total


@eqx.filter_jit
def gradients(loss, keys, x1):
    """The gradient of every example's loss."""
    theta = jnp.asarray(THETA, jnp.float32)
    return jax.vmap(lambda key, x: jax.grad(lambda theta: loss(theta, key, x))(theta))(keys, x1)


def check(loss, truth, keys=None):
    x1 = MEAN + STD * jr.normal(jr.key(1), (N, D))
    got = np.asarray(gradients(loss, jr.split(jr.key(2), N) if keys is None else keys, x1), float)
    se = got.std(0) / np.sqrt(N)
    assert (np.abs(got.mean(0) - truth) <= 4 * se).all(), (got.mean(0), truth, se)
    assert se.max() <= 0.05 * np.abs(truth).max()  # it would see an error of a fifth


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in OBJECTIVES])
def test_the_gradient_is_unbiased(name):
    objective = OBJECTIVES[name]

    def loss(theta, key, x1):
        return jf.matching_loss(field(objective, theta), key, x1, law=objective.law, weight=objective.weight)

    check(loss, expected(objective))


@pytest.mark.slow
def test_the_gradient_behind_preconditioning():
    path, objective = PATHS["VE"], OBJECTIVES["edm"]

    def loss(theta, key, x1):
        net = jf.Preconditioned(ft.partial(linear, theta=theta), path, STD)
        return jf.matching_loss(net, key, x1, law=objective.law, weight=objective.weight)

    t = times(objective.law, path)
    _, s, *_ = schedule("VE", t)
    x, xx, y, xy = moments("VE", t, "data", 0.0)
    variance = s**2 + STD**2
    c_in, c_skip, c_out = variance**-0.5, STD**2 / variance, s * STD * variance**-0.5
    a, b = c_skip + c_out * THETA[0] * c_in, c_out * THETA[1]
    scale = 2 * objective.plain(s**-2) * c_out
    truth = np.array([np.mean(scale * c_in * (a * xx + b * x - xy)), np.mean(scale * (a * x + b - y))])
    check(loss, truth)


@pytest.mark.slow
def test_the_gradient_of_pairs():
    objective, path = OBJECTIVES["flow matching"], jf.CondOT(source=jf.Normal(coupled=True))

    def loss(theta, key, x1):  # the optimal map from N(0, 1) is x1 = m + s x0
        return jf.matching_loss(field(objective, theta, path), key, x1, x0=(x1 - MEAN) / STD)

    check(loss, expected(objective, joint=STD))


@pytest.mark.slow
def test_the_density_of_a_law_corrects_for_it():
    """A loss times `1/p(t)` is that of uniform times, whatever the law."""
    objective, law = OBJECTIVES["flow matching"], laws.Beta(1.0, 1.5)

    def loss(theta, key, x1):
        key_time, key_loss = jr.split(key)
        t = law.sample(key_time)
        return jnp.exp(-law.log_density(t)) * jf.matching_loss(field(objective, theta), key_loss, x1, t=t)

    check(loss, expected(objective))
    assert not np.allclose(expected(objective), expected(objective, law=law), rtol=0.1)


@pytest.mark.slow
def test_stratified_times_change_no_expectation():
    objective = OBJECTIVES["flow matching"]
    t = laws.stratified_times(jr.key(3), N)

    def loss(theta, key_and_time, x1):
        key, t = key_and_time
        return jf.matching_loss(field(objective, theta), key, x1, t=t)

    check(loss, expected(objective), (jr.split(jr.key(4), N), t))


@pytest.mark.slow
@pytest.mark.parametrize("predicts", ["velocity", "data", "noise", "v", ("velocity", "noise")])
def test_a_network_in_reversed_time_is_the_same_objective(predicts):
    objective = Objective("Cosine", predicts, laws.Uniform())

    def mirrored(s, x, args, theta):  # of a paper with t = 1 at the noise: dx/ds = -dx/dt
        value = linear(1 - s, x, args, theta) * (1 + (1 - s))
        if isinstance(predicts, tuple):
            return -value, 2 * value
        return -value if predicts == "velocity" else value

    def ours(t, x, args, theta):
        value = linear(t, x, args, theta) * (1 + t)
        return (value, 2 * value) if isinstance(predicts, tuple) else value

    def loss(net, key, x1):
        wrapped = jf.Field(net, PATHS["Cosine"], predicts)
        return jf.matching_loss(wrapped, key, x1, law=objective.law)

    theta, x1 = jnp.asarray(THETA, jnp.float32), jnp.array([0.3, -1.2])
    theirs = jf.nn.Reversed(jax.tree_util.Partial(mirrored, theta=theta), predicts)
    own = jax.tree_util.Partial(ours, theta=theta)
    a, b = (jax.jit(jax.grad(loss))(net, jr.key(5), x1) for net in (theirs, own))
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-4)


def test_a_network_in_reversed_time_must_be_one():
    def net(s, x, args):
        return x

    refuses(lambda: jf.nn.Reversed(net, "speed"), "one of")
    refuses(lambda: jf.nn.Reversed(lambda x: x, "data"), r"callable as net\(t, x, args\)", TypeError)
    wrong = jf.Field(jf.nn.Reversed(net, ("velocity", "noise")), jf.CondOT(), ("velocity", "noise"))
    refuses(lambda: wrong.velocity(0.5, jnp.ones(2)), "must return a tuple of 2 outputs")
