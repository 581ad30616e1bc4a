"""What the tests of multistep solvers share: a mixture in numpy, its flow, measured orders and exact spreads."""

import functools as ft

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from references import MIX1, gaussian
from scipy.integrate import solve_ivp

import jflow as jf
from jflow._solver._multistep import History


def mixture(path):
    """The exact field of the mixture along a path."""
    weights, means, stds = (jnp.asarray(v) for v in MIX1)
    return jf.distributions.GaussianMixture(means, stds=stds, weights=weights).field(path)


def data_prediction(alpha, sigma, x):
    """`E[x1 | x]` of the same mixture, in numpy."""
    weights, means, stds = MIX1[0], MIX1[1][:, 0], MIX1[2]
    variance = (alpha * stds) ** 2 + sigma**2
    gap = np.asarray(x)[..., None] - alpha * means
    logits = np.log(weights) - gap**2 / (2 * variance) - np.log(variance) / 2
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return (share * (means + alpha * stds**2 / variance * gap)).sum(-1)


def carry(field, solver, **fixed):
    """One compiled sampler for every grid of a length, amplitude and noise."""

    @eqx.filter_jit
    def run(x0, times, eta, z):
        noise = None if z is None else jf.Recorded(z)
        return jf.decode(field, x0, jf.FixedSteps(times, solver, eta=eta, **fixed), brownian=noise).x

    return run


@ft.cache
def mixture_flow():
    """The flow of the mixture with `alpha = 1` at 1281 levels of noise, equal in log-SNR, and log-SNR's half."""
    levels = np.linspace(-np.log(6.0), -np.log(0.08), 1281)
    starts = np.linspace(-8.0, 8.0, 9)
    rate = lambda half, x: data_prediction(1.0, np.exp(-half), x) - x  # noqa: E731
    ends = levels[0], levels[-1]
    return levels, solve_ivp(rate, ends, starts, "DOP853", levels, rtol=1e-13, atol=1e-13).y.T


def measured_order(solver, clock=None, counts=(160, 320)):
    """The slope of the error of the solver's own steps, with `alpha = 1` and starting values from the flow.

    In `ThetaClock` `tau = 1/sigma`, `u = tau x`, `du/dtau` the data; in `SigmaClock` `tau = -sigma`, `u = x`, `du/dtau`
    minus the noise.
    """
    by_data, path = not isinstance(clock, jf.SigmaClock), jf.VE(0.08, 6.0)
    field, (levels, exact) = mixture(path), mixture_flow()

    def rhs(tau, u, args):
        sigma = 1 / tau if by_data else -tau
        t = path.log_snr_inverse(-2 * jnp.log(sigma))
        x = u / tau if by_data else u
        return jax.vmap(lambda x: (field.data if by_data else field.noise)(t, x[None])[0] * (1 if by_data else -1))(x)

    def known(tau, x):
        sigma = 1 / tau if by_data else -tau
        data = data_prediction(1.0, sigma, x)
        return jnp.asarray(data if by_data else (data - x) / sigma)

    terms, ahead = dfx.ODETerm(rhs), solver.memory
    step = jax.jit(lambda *point: solver.step(terms, *point[:3], None, point[3], False))
    errors = []
    for n in counts:
        every = (len(levels) - 1) // n
        taus, xs = (np.exp if by_data else lambda v: -np.exp(-v))(levels[::every]), exact[::every]
        us = taus[:, None] * xs if by_data else xs
        nodes = tuple(jnp.asarray(taus[j]) for j in reversed(range(ahead)))
        slopes = tuple(known(taus[j], xs[j]) for j in reversed(range(ahead)))
        base = jnp.asarray(us[ahead - 1]) if solver.corrected else None
        u, state = jnp.asarray(us[ahead]), History(jnp.asarray(ahead, jnp.int32), nodes, slopes, base)
        for tau0, tau1 in zip(taus[ahead:-1], taus[ahead + 1 :], strict=True):
            u, _, _, state, _ = step(jnp.asarray(tau0), jnp.asarray(tau1), u, state)
        errors.append(np.sqrt(np.mean((u - us[-1]) ** 2)) / (taus[-1] if by_data else 1))
    assert min(errors) > 1e-11, errors
    return np.log2(errors[-2] / errors[-1])


def spread_error(solver, n, eta=1.0, *, corrected=False):
    """Relative error of the standard deviation on `N(0, 0.25)` with `alpha = 1`, sigma from 20 to 0.05, equal steps
    in log-SNR: a linear map of start and normals. `corrected` takes one step more, of no length, after which a
    corrector has corrected the last state.
    """
    run = carry(gaussian(jf.VE(0.05, 20.0), mean=0.0, predicts="data"), solver, end="stop")
    starts = jnp.eye(n + 1, 1) * jnp.sqrt(0.25 + 20.0**2)
    normals = jnp.eye(n + 1, n + corrected, -1)[..., None]
    times = jf.UniformGrid(n).times()
    if corrected:
        times, normals = jnp.append(times * (1 - 1e-12), 1.0), normals.at[:, -1].set(0.0)
    columns = jax.vmap(run, (0, None, None, 0))(starts, times, jnp.asarray(eta), normals)
    return float(jnp.sqrt((columns**2).sum() / (0.25 + 0.05**2)) - 1)
