"""Certificates of samplers."""

from collections.abc import Callable, Sequence
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._field import AbstractField, AbstractWrappedField
from .._kinds import check_kinds
from .._path import AbstractAffinePath, CondOT
from .._sampler import AdaptiveSteps
from .._solve import solve
from .._types import Number, PRNGKey
from ..distributions import Gaussian, GaussianMixture
from ._report import Check, Report, bounded

Sampler = Callable[[AbstractField, Any, Any], Any]
"""`sampler(field, x0, z)`: the state to which `x0` is carried, with the standard normals `z`."""


def certify(
    sampler: Sampler,
    *,
    path: AbstractAffinePath | None = None,
    t0: Number = 0.0,
    t1: Number = 1.0,
    steps: Sequence[int] = (16, 32, 64, 128),
    order: Number | None = None,
    calls: int | None = None,
    tolerance: Number = 0.05,
    key: PRNGKey | None = None,
) -> Report:
    """Certifies a sampler: exact moments on Gaussian data, order of convergence, network calls, batch invariance.

    On Gaussian data a sampler with fixed coefficients is affine in `(x0, z)`: its mean and covariance are read off its
    value and Jacobian, with no sampling error. A sampler that is not affine is measured by Monte Carlo, and marked so.
    The order is that of the error to the exact flow of a mixture, in float64, or for a sampler that looks at `z` that
    of the standard deviation.

    Args:
        sampler: A function `sampler(field, x0, z)` that carries one state `x0`, of shape `(2,)`, from `t0` to `t1` in
            `len(z)` steps. It takes its standard normals from `z`, of shape `(n, 2)`, one row a step; a deterministic
            sampler looks only at its length.
        path: The path of the exact fields it is given, an affine one from white noise; `CondOT()` by default.
        t0: The time from which it carries a state.
        t1: The time to which it carries the state.
        steps: The step counts, increasing.
        order: The order that the sampler advertises.
        calls: The network calls that it advertises, at `steps[-1]`.
        tolerance: The bound of the relative errors of mean and standard deviation at `steps[-1]`.
        key: The key of what is drawn; `jax.random.key(0)` by default.

    Returns:
        A `Report`.

    ```python
    def ancestral(field, x0, z):
        sampler = jf.FixedSteps(jf.UniformGrid(len(z)), eta=1.0)
        return jf.decode(field, x0, sampler, brownian=jf.Recorded(z)).x

    report = jf.testing.certify(ancestral, steps=(8, 16), calls=16, tolerance=0.2)
    report.check()
    ```
    """
    check_kinds(certify, locals())
    path = CondOT() if path is None else path
    key = jr.key(0) if key is None else key

    def rows():
        with jax.enable_x64(True):
            stochastic = _looks_at_noise(sampler, path, t0, steps[0], key)
            errors = yield from _moment_rows(sampler, path, t0, t1, steps, tolerance, key)
            if not stochastic:
                errors = _flow_errors(sampler, path, t0, t1, steps, key)
                yield Check(f"error to the flow of a mixture, n = {steps[-1]}", errors[-1], None, True, "rms")
            yield from _order_rows(errors, steps, order, "of the standard deviation" if stochastic else "on a mixture")
            count = _count_calls(sampler, path, t0, steps[-1])
            yield Check(f"network calls, n = {steps[-1]}", count, None, True)
            if calls is not None:
                yield bounded("network calls, off the advertised", abs(count - calls), 0.0)
            yield bounded("a sample alone against in a batch of 7", _batch_difference(sampler, path, t0, key), 1e-9)

    return Report(f"sampler along {type(path).__name__}, t = {t0:g} to {t1:g}", rows())


_MEAN, _STD = (1.0, -0.5), 0.5


def _start(path, t0):
    """Mean and variance of the marginal of the Gaussian data at `t0`."""
    t = jnp.asarray(t0, jnp.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    return alpha * jnp.asarray(_MEAN), alpha**2 * _STD**2 + sigma**2


def _moment_rows(sampler, path, t0, t1, steps, tolerance, key):
    field = Gaussian(jnp.asarray(_MEAN), std=_STD).field(path)
    (mean0, variance0), (mean1, variance1) = _start(path, t0), _start(path, t1)
    errors = []
    for n in steps:
        run = jax.jit(lambda x0, z: sampler(field, x0, z))
        mean, cov, exact = _pushed_moments(run, mean0, variance0, n, key)
        spread = jnp.sqrt(jnp.trace(cov) / 2)
        mean_error = float(jnp.max(jnp.abs(mean - mean1)) / jnp.sqrt(variance1))
        errors.append(abs(float(spread / jnp.sqrt(variance1) - 1)))
    note = "exact" if exact else "Monte Carlo, 20,000 draws"
    yield bounded(f"mean on Gaussian data, n = {steps[-1]}", mean_error, tolerance, note)
    yield bounded(f"standard deviation on Gaussian data, n = {steps[-1]}", errors[-1], tolerance, note)
    return errors


def _pushed_moments(run, mean0, variance0, n, key):
    """Mean and covariance of the sampler's output, and whether they are exact."""
    zeros = jnp.zeros((n, 2))
    jacobian = jax.jit(jax.jacfwd(run, argnums=(0, 1)))
    here = jacobian(mean0, zeros)
    there = jacobian(mean0 + jr.normal(key, (2,)), jr.normal(jr.fold_in(key, 1), (n, 2)))
    if all(bool(jnp.allclose(a, b, rtol=1e-6, atol=1e-6)) for a, b in zip(here, there, strict=True)):
        by_start, by_noise = here[0], here[1].reshape(2, -1)
        return run(mean0, zeros), variance0 * by_start @ by_start.T + by_noise @ by_noise.T, True
    key_start, key_noise = jr.split(key)
    starts = mean0[None] + jnp.sqrt(variance0) * jr.normal(key_start, (20_000, 2))
    x = jax.jit(jax.vmap(run))(starts, jr.normal(key_noise, (20_000, n, 2)))
    return jnp.mean(x, 0), jnp.cov(x.T), False


def _mixture(path):
    centres = jnp.asarray([[-2.0, 0.5], [1.0, 1.0], [0.5, -1.5]])
    return GaussianMixture(centres, stds=jnp.asarray([0.5, 0.8, 0.6]), weights=jnp.asarray([0.3, 0.4, 0.3])).field(path)


def _flow_errors(sampler, path, t0, t1, steps, key):
    """Root mean square distance to the converged flow of a mixture, for each step count."""
    field = _mixture(path)
    start = field.distribution.at(path, jnp.asarray(t0))
    starts = jax.jit(jax.vmap(start.sample))(jr.split(key, 32)).astype(jnp.float64)
    control = dfx.PIDController(1e-11, 1e-11)

    @jax.jit
    @jax.vmap
    def flow(x):
        return solve(field.velocity, x, AdaptiveSteps(dfx.Tsit5(), control, t0=t0, t1=t1)).x

    reference, errors = flow(starts), []
    for n in steps:
        x = jax.jit(jax.vmap(lambda x0, n=n: sampler(field, x0, jnp.zeros((n, 2)))))(starts)
        errors.append(float(jnp.sqrt(jnp.mean((x - reference) ** 2))))
    return errors


def _order_rows(errors, steps, order, what):
    fine = [(n, e) for n, e in zip(steps, errors, strict=True) if e > 1e-11]
    if len(fine) < 2:
        yield Check(f"order {what}", float("nan"), None, True, "errors are below 1e-11")
        return
    (n, e), (m, f) = fine[-2:]
    slope = float(np.log(e / f) / np.log(m / n))
    yield Check(f"order {what}", slope, None, True, f"n = {n} to {m}")
    if order is not None:
        yield bounded("order, off the advertised", abs(slope - order), 0.15)


def _looks_at_noise(sampler, path, t0, n, key):
    field, (x0, _) = Gaussian(jnp.asarray(_MEAN), std=_STD).field(path), _start(path, t0)
    run = jax.jit(lambda z: sampler(field, x0, z))
    return not bool(jnp.array_equal(run(jnp.zeros((n, 2))), run(jr.normal(key, (n, 2)))))


class _Counted(AbstractWrappedField):
    """A field that counts its evaluations as they happen, and is else that field."""

    count: Callable[[], None]

    def __init__(self, field: AbstractField, count: Callable[[], None]):
        self.field, self.count = field, count

    def predict(self, targets, t, x, args=None):
        jax.debug.callback(self.count)
        return self.field.predict(targets, t, x, args)


def _count_calls(sampler, path, t0, n):
    total = [0]

    def count():
        total[0] += 1

    field, (x0, _) = _Counted(Gaussian(jnp.asarray(_MEAN), std=_STD).field(path), count), _start(path, t0)
    jax.block_until_ready(jax.jit(lambda: sampler(field, x0, jnp.zeros((n, 2))))())
    jax.effects_barrier()
    return total[0]


def _batch_difference(sampler, path, t0, key):
    field = _mixture(path)
    (mean0, variance0), n = _start(path, t0), 8
    key_start, key_noise = jr.split(key)
    starts = mean0[None] + jnp.sqrt(variance0) * jr.normal(key_start, (7, 2))
    noises = jr.normal(key_noise, (7, n, 2))
    run = jax.jit(lambda x0, z: sampler(field, x0, z))
    alone = jnp.stack([run(x0, z) for x0, z in zip(starts, noises, strict=True)])
    return jnp.max(jnp.abs(alone - jax.jit(jax.vmap(run))(starts, noises)))
