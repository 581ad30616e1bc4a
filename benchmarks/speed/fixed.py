"""Fixed steps beside hand-written scans: ODEs with a network and with a trivial field, and SDEs with a key a sample."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from baselines import loops
from flax import nnx

import jflow as jf

from . import timed

SOLVERS = {"Euler": dfx.Euler(), "Midpoint": dfx.Midpoint(), "Heun": dfx.Heun(), "Dopri5": dfx.Dopri5()}


def rows():
    for name in ("Euler", "Heun"):
        yield network(name)
    for batch, steps in ((1, 10_000), (4096, 1000)):
        for name in ("Euler", "Heun", "Dopri5") if batch == 1 else SOLVERS:
            yield trivial(name, batch, steps)
    for d, batch, steps in ((2, 4096, 200), (3072, 64, 100)):
        yield noisy(d, batch, steps)


def network(name):
    """100 steps of an MLP 3 x 256 on 2-D data."""
    net = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3)
    field = jf.Field(net, jf.CondOT(), predicts="velocity")
    times, x0 = jf.UniformGrid(100).times(), jr.normal(jr.key(0), (4096, 2))

    @eqx.filter_jit
    def ours(field, x0, times):
        return jax.vmap(lambda x: jf.decode(field, x, jf.FixedSteps(times, SOLVERS[name])).x)(x0)

    @eqx.filter_jit
    def theirs(net, x0, times):
        return jax.vmap(lambda x: getattr(loops, name.lower())(lambda t, x: net(t, x, None), x, times))(x0)

    assert jnp.allclose(ours(field, x0, times), theirs(net, x0, times), atol=1e-5)
    program = f"{name}, 100 steps, MLP 3 x 256, batch 4096"
    return timed(program, "a scan", lambda: ours(field, x0, times), lambda: theirs(net, x0, times), 1.02)


def trivial(name, batch, steps):
    """`dx/dt = -x` in two dimensions, which costs nothing: what is left is the loop's own."""
    times, x0 = jf.UniformGrid(steps).times(), jr.normal(jr.key(0), (batch, 2))

    @jax.jit
    def ours(x0, times):
        sampler = jf.FixedSteps(times, SOLVERS[name])
        return jax.vmap(lambda x: jf.solve(lambda t, x, args: -x, x, sampler).x)(x0)

    @jax.jit
    def theirs(x0, times):
        return jax.vmap(lambda x: getattr(loops, name.lower())(lambda t, x: -x, x, times))(x0)

    assert jnp.allclose(ours(x0, times), theirs(x0, times), atol=1e-5)
    program = f"{name}, {steps} steps, trivial field, batch {batch}"
    bar = 1.15 if batch == 1 else 1.1
    return timed(program, "a scan", lambda: ours(x0, times), lambda: theirs(x0, times), bar)


@jax.jit
def ornstein_uhlenbeck(keys, x0, times):
    """Euler-Maruyama, every sample with its own key."""

    def one(key, x):
        return jf.solve(lambda t, x, args: -x, x, times, diffusion=lambda t, x, args: 1.0, key=key).x

    return jax.vmap(one)(keys, x0)


def noisy(d, batch, steps):
    """An Ornstein-Uhlenbeck process beside one draw of all increments."""
    times, x0, keys = jf.UniformGrid(steps).times(), jnp.zeros((batch, d)), jr.split(jr.key(0), batch)

    @jax.jit
    def theirs(key, x0, times):
        return loops.batched_sde(lambda t, x: -x, x0, times, key)

    assert jnp.allclose(jnp.std(ornstein_uhlenbeck(keys, x0, times)), jnp.std(theirs(keys[0], x0, times)), atol=0.03)
    program = f"Euler-Maruyama, {steps} steps, a key a sample, d = {d}, batch {batch}"
    return timed(
        program,
        "one batched draw",
        lambda: ornstein_uhlenbeck(keys, x0, times),
        lambda: theirs(keys[0], x0, times),
        1.1,
    )
