"""A diffrax solver of one's own, without traits: its calls are found, and it goes in every verb and clock."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class Ralston(dfx.AbstractAdaptiveSolver):
    """`k1 = f(t, y)`, `k2 = f(t + 2h/3, y + 2h/3 k1)`, `y' = y + h (k1 + 3 k2)/4`."""

    term_structure = dfx.AbstractTerm
    interpolation_cls = dfx.LocalLinearInterpolation

    def order(self, terms):
        return 2

    def error_order(self, terms):
        return 2

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        control = terms.contr(t0, t1)
        k1 = terms.vf_prod(t0, y0, args, control)
        inside = jax.tree.map(lambda y, k: y + 2 * k / 3, y0, k1)
        k2 = terms.vf_prod(t0 + 2 * (t1 - t0) / 3, inside, args, control)
        y1 = jax.tree.map(lambda y, a, b: y + (a + 3 * b) / 4, y0, k1, k2)
        error = jax.tree.map(lambda a, b: 3 * (b - a) / 4, k1, k2)
        return y1, error, {"y0": y0, "y1": y1}, None, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


# The law -------------------------------------------------------------------------------------------------------------

WORLD = jf.distributions.Gaussian(jnp.array([1.0, 0.0]), std=0.5)
FIELD = WORLD.field(jf.CondOT())
X0 = np.array([0.7, -0.4])
X1 = np.array([1.35, -0.2])  # mean + std x0


def test_calls_are_found():
    assert np.allclose(jf.evaluation_nodes(Ralston()), (0, 2 / 3))
    sol = jf.sample(FIELD, jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(5), Ralston()))
    assert sol.nfe == 10
    guided = jf.Guided(jf.Field(lambda t, x, c: x * c, jf.CondOT(), "velocity"), null=0.0)
    sampler, args = jf.FixedSteps(jf.UniformGrid(5), Ralston()), jf.Args(1.0, scale=2.0)
    assert jf.sample(guided, jr.key(0), (2,), sampler, args=args).nfe == 20


@pytest.mark.slow
def test_its_order_holds_in_every_clock(x64):
    for clock in (None, jf.AngleClock()):
        off = []
        for n in (16, 32):
            x = jf.decode(FIELD, X0, jf.FixedSteps(jf.UniformGrid(n), Ralston(), clock=clock)).x
            off.append(np.abs(x - X1).max())
        assert 3.3 < off[0] / off[1] < 4.7, (clock, off)


def test_it_is_diffrax_s_own(x64):
    x = [jf.decode(FIELD, X0, jf.FixedSteps(jf.UniformGrid(8), s)).x for s in (Ralston(), dfx.Ralston())]
    np.testing.assert_allclose(*x, rtol=1e-12)


@pytest.mark.slow
def test_it_adapts_encodes_and_gives_densities(x64):
    sampler = jf.AdaptiveSteps(Ralston(), rtol=1e-6, atol=1e-6)
    sol = jf.decode(FIELD, X0, sampler)
    np.testing.assert_allclose(sol.x, X1, atol=1e-4)
    np.testing.assert_allclose(jf.encode(FIELD, sol.x, sampler).x, X0, atol=1e-4)
    fixed = jf.FixedSteps(jf.UniformGrid(64), Ralston())
    np.testing.assert_allclose(jf.log_prob(FIELD, X1, fixed).log_prob, WORLD.log_prob(X1), atol=1e-3)
