"""A clock of one's own: the laws of ODE, SDE and density do not depend on it."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class HalfLogSNRClock(jf.AbstractClock):
    """`tau = log(alpha/sigma)`, infinite at both ends, and `u = x/alpha`. With `s = sigma/alpha`

    du = -(1 + eta^2) s noise dtau + eta s sqrt(2) dB(tau)

    """

    finite_end = False

    def time(self, path, t, eta=0.0):
        return path.log_snr(t) / 2

    def path_time(self, path, tau, eta=0.0):
        return path.log_snr_inverse(2 * tau)

    def scale(self, path, t, eta=0.0):
        return 1 / path.alpha(t)

    def rhs(self, path, t, eta=0.0):
        s = path.sigma(t) / path.alpha(t)
        return jf.Row(jnp.ones_like(s), None, -(1 + eta**2) * s)

    def diffusion(self, path, t, eta=0.0):
        return eta * jnp.sqrt(2) * path.sigma(t) / path.alpha(t)


# The law -------------------------------------------------------------------------------------------------------------

PATH, MEAN, STD = jf.CondOT(), 1.0, 0.5
FIELD = jf.distributions.Gaussian(jnp.array([MEAN]), std=STD).field(PATH)
T0, T1 = 0.01, 0.99


def grid(n):
    return jf.LogSNRGrid(n, lo=float(PATH.log_snr(T0)), hi=float(PATH.log_snr(T1)))


def marginal(t):
    return t * MEAN, np.sqrt(t**2 * STD**2 + (1 - t) ** 2)


@pytest.mark.slow
def test_the_ode_is_the_same(x64):
    """In this clock the flow carries one marginal to the other, as in every clock."""
    x = jnp.array([0.4])
    (m0, s0), (m1, s1) = marginal(T0), marginal(T1)
    exact = m1 + s1 / s0 * (x - m0)
    sampler = jf.AdaptiveSteps(t0=T0, t1=T1, clock=HalfLogSNRClock(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(jf.decode(FIELD, x, sampler).x, exact, atol=1e-6)
    np.testing.assert_allclose(jf.encode(FIELD, exact, sampler).x, x, atol=1e-6)
    off = [jf.decode(FIELD, x, jf.FixedSteps(grid(n), dfx.Heun(), clock=HalfLogSNRClock())).x - exact for n in (32, 64)]
    assert 3.3 < (off[0] / off[1])[0] < 4.7  # of order two


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sde_has_the_same_marginals(x64, eta):
    """The end is linear in the start and in the noise of each step, so the derivatives give its law."""

    def moments(n):
        sampler = jf.FixedSteps(grid(n), clock=HalfLogSNRClock(), eta=eta)

        def end(x0, normals):
            return jf.decode(FIELD, x0, sampler, brownian=jf.Recorded(normals)).x[0]

        m0, s0 = marginal(T0)
        value, slopes = jax.value_and_grad(end, (0, 1))(jnp.array([m0]), jnp.zeros((n, 1)))
        return value, jnp.sqrt(jnp.sum(slopes[0] ** 2) * s0**2 + jnp.sum(slopes[1] ** 2))

    off = [np.abs(np.array(moments(n)) - marginal(T1)).max() for n in (200, 800)]
    assert off[1] < 0.3 * off[0] and off[1] < 0.01


@pytest.mark.slow
def test_densities_and_ends(x64):
    sampler = jf.AdaptiveSteps(t0=T0, t1=T1, clock=HalfLogSNRClock(), rtol=1e-8, atol=1e-8)
    x, (mean, std) = jnp.array([0.7]), marginal(T1)
    start = jf.distributions.Gaussian(jnp.array([marginal(T0)[0]]), std=marginal(T0)[1])
    found = jf.log_prob(FIELD, x, sampler, start=start).log_prob
    np.testing.assert_allclose(found, jax.scipy.stats.norm.logpdf(x[0], mean, std), atol=1e-6)
    with pytest.raises(ValueError, match="t = 0"):
        jf.decode(FIELD, x, jf.FixedSteps(jf.UniformGrid(4), clock=HalfLogSNRClock()))
    sol = jf.decode(FIELD, x, jf.FixedSteps(jf.UniformGrid(4, t0=T0), clock=HalfLogSNRClock()))
    assert sol.nfe == 4 and sol.t == 1  # the last step is the data prediction, for the clock is infinite there
