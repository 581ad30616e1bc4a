"""The limit of a fixed grid: its compiled loop has the kernels of a scan that is written by hand."""

import re
import sys
from pathlib import Path

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from flax import nnx

import jflow as jf

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from baselines import loops

TIMES, X0 = jf.UniformGrid(200).times(), jnp.ones((512, 2))
SOLVERS = {"euler": dfx.Euler(), "midpoint": dfx.Midpoint(), "heun": dfx.Heun(), "dopri5": dfx.Dopri5()}


def kernels(f, *args):
    """The kernels of one step: what the body of the last loop calls."""
    text = jax.jit(f).lower(*args).compile().as_text()
    body = re.escape(re.findall(r"body=%?([\w.-]+)", text)[-1])
    lines = re.search(rf"^%?{body} .*?^}}", text, re.MULTILINE | re.DOTALL)[0].splitlines()
    return [line.strip() for line in lines if re.search(r" (fusion|call|custom-call|reduce|dot|while)\(", line)]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_of_a_trivial_field_is_one_kernel(name):
    def ours(x0, times):
        sampler = jf.FixedSteps(times, SOLVERS[name])
        return jax.vmap(lambda x: jf.solve(lambda t, x, args: -x, x, sampler).x)(x0)

    def theirs(x0, times):
        return jax.vmap(lambda x: getattr(loops, name)(lambda t, x: -x, x, times))(x0)

    assert len(kernels(ours, X0, TIMES)) <= len(kernels(theirs, X0, TIMES)) <= 2  # one may count the steps


@pytest.mark.slow
def test_a_step_of_a_likelihood_has_the_kernels_of_linearize_and_of_vjp():
    net = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3)
    field, keys = jf.Field(net, jf.CondOT(), "velocity"), jr.split(jr.key(0), len(X0))

    def ours(divergence):
        def one(field, x, key):
            return jf.log_prob(field, x, jf.UniformGrid(200), divergence=divergence, key=key).log_prob

        return kernels(lambda field, x0, keys: jax.vmap(one, (None, 0, 0))(field, x0, keys), field, X0, keys)

    def exact(net, x0):
        return jax.vmap(lambda x: loops.exact_log_prob(lambda t, x: net(t, x, None), x, TIMES))(x0)

    def estimated(net, x0):
        return jax.vmap(lambda x: loops.hutchinson_log_prob(lambda t, x: net(t, x, None), x, TIMES, x))(x0)

    assert len(ours(jf.ExactDivergence())) <= len(kernels(exact, net, X0))
    assert len(ours(jf.Hutchinson())) <= len(kernels(estimated, net, X0))
