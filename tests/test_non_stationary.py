"""A multistep method with weights of its own for each step, against the recursion and the methods it contains."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import refuses

import jflow as jf
from jflow.search.weights import weights_like

FIELD = jf.distributions.GaussianMixture([[-1.0, 0.5], [1.2, 0.3]], stds=[0.3, 0.4]).field(jf.CondOT())
START = np.array([0.4, -1.1])


def test_it_is_its_recursion(x64):
    n = 5
    rng = np.random.default_rng(0)
    times, weights = np.linspace(0, 1, n + 1) ** 1.3, np.tril(rng.normal(size=(n, n)))
    velocity = jax.jit(lambda t, x: FIELD.velocity(t, x, None))
    u, slopes = START, []
    for i in range(n):
        slopes.append(np.asarray(velocity(times[i], u)))
        u = u + (times[i + 1] - times[i]) * sum(weights[i, j] * slopes[j] for j in range(i + 1))
    ours = jf.decode(FIELD, START, jf.FixedSteps(times, jf.NonStationary(weights)))
    np.testing.assert_allclose(ours.x, u, atol=1e-12)
    assert ours.nfe == n and ours.status == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [dfx.Euler(), jf.Adams(3), jf.Adams(4, corrector=True)], ids=["Euler", "Adams 3", "Adams PC 4"]
)
def test_it_holds_every_linear_multistep_method(solver, x64):
    times = jf.EasedGrid(7).times(FIELD.path)
    for clock in (jf.RatioClock(), jf.AngleClock()):
        taus = jax.vmap(lambda t, clock=clock: clock.time(FIELD.path, t))(times)
        same = jf.NonStationary(weights_like(solver, taus))
        x, y = (jf.decode(FIELD, START, jf.FixedSteps(times, s, clock=clock)).x for s in (solver, same))
        np.testing.assert_allclose(x, y, atol=1e-13)


def test_states_of_many_leaves_batches_and_weights_that_change():
    weights = jnp.tril(jr.normal(jr.key(0), (4, 4)))
    traces = []

    @eqx.filter_jit
    def ends(weights, x):
        traces.append(x)
        sampler = jf.FixedSteps(jf.UniformGrid(4), jf.NonStationary(weights))
        return jax.vmap(lambda x: jf.solve(lambda t, x, args: jax.tree.map(jnp.cos, x), x, sampler).x)(x)

    x = {"a": jr.normal(jr.key(1), (3, 2)), "b": jr.normal(jr.key(2), (3,))}
    both = ends(weights, x)
    alone = ends(weights, jax.tree.map(lambda leaf: leaf.reshape(-1)[:1], {"a": x["a"], "b": x["b"]}))
    assert np.allclose(both["a"][0, 0], alone["a"][0], atol=1e-6) and np.allclose(
        both["b"][0], alone["b"][0], atol=1e-6
    )
    assert not np.allclose(ends(2 * weights, x)["a"], both["a"]) and len(traces) == 2


def test_what_raises():
    refuses(lambda: jf.NonStationary(np.ones((2, 3))), r"one row a step.*\(2, 3\)")
    refuses(lambda: jf.NonStationary(np.ones((2, 2))), r"above the diagonal.*jnp.tril")
    refuses(lambda: jf.NonStationary(np.full((1, 1), np.nan)), "finite")
    solver = jf.NonStationary(np.eye(3))
    for sampler, fragment in (
        (jf.FixedSteps(jf.UniformGrid(4), solver), "here 3. Got a grid of 4 steps: pass"),
        (jf.FixedSteps(jf.UniformGrid(3), solver, end="denoise"), "Got a grid of 2 steps"),
        (jf.AdaptiveSteps(solver), "pass the grid"),
        (jf.FixedSteps(jf.UniformGrid(3), solver, eta=1.0), "must have the ODE"),
    ):
        refuses(lambda s=sampler: jf.decode(FIELD, jnp.zeros(2), s, key=jr.key(0)), fragment)
