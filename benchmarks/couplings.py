"""What an assignment of each minibatch gains: `python benchmarks/couplings.py [STEPS]`, on one core a few minutes.

One network (an MLP) is trained for 5,000 steps of 256 rows by the same keys and data, once with independent pairs and
once with the assignment of least cost, from N(0, I) to eight Gaussians and from two moons to eight Gaussians. A table
has, for each, the energy distance of 4,096 draws by 4 steps of Euler and by 100 to fresh data, in units of what fresh
data have among themselves; the straightness of the trajectories over the squared length of their ways; the cost of
the ways. Last come the processor's milliseconds of one jitted coupling.
"""

import sys
import time

import diffrax as dfx
import jax
import jax.random as jr
import numpy as np
import optax
from flax import nnx

import jflow as jf

BATCH, DRAWS, RATE, DECAY = 256, 4096, 2e-3, 0.995
SOURCES = {"N(0, I)": lambda key, n: jr.normal(key, (n, 2)), "moons": jf.data.moons}
PLANS = {"independent": jf.train.Independent(), "assignment": jf.train.Assignment()}
data, draw_moons = (jax.jit(f, static_argnums=1) for f in (jf.data.eight_gaussians, jf.data.moons))


def loss(field, key, example):
    return jf.matching_loss(field, key, example["x"], x0=example["x0"])


def untrained(source):
    path = jf.CondOT(source=jf.Normal(coupled=True) if source == "N(0, I)" else jf.GIVEN)
    return jf.Field(jf.nn.MLP(2, width=64, depth=3, rngs=nnx.Rngs(0)), path, "velocity")


def batch(source, i):
    """The data of step `i`, and x0 where it is not noise."""
    key_0, key_1 = jr.split(jr.fold_in(jr.key(1), i))
    given = {} if source == "N(0, I)" else {"x0": draw_moons(key_0, BATCH)}
    return {"x": data(key_1, BATCH), **given}


def trained(source, plan, steps):
    """The average field after the last step."""
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    state = jf.train.init(untrained(source), optimizer, ema=DECAY)
    options = {"steps": steps, "key": jr.key(0), "couple": jf.train.Coupling(plan), "progress": False}
    state, _ = jf.train.fit(state, loss, lambda i: batch(source, i), **options)
    return state.ema


@jax.jit
def ways(field, x0):
    """Trajectories by 4 steps of Euler, and by 100."""

    def one(x, n):
        return jf.decode(field, x, jf.FixedSteps(jf.UniformGrid(n)), saveat=dfx.SaveAt(t0=True, steps=True)).xs

    return [jax.vmap(lambda x, n=n: one(x, n))(x0) for n in (4, 100)]


def couplings(steps, trained=trained, plans=PLANS):
    """A table with a row for each source and plan, of the field that `trained(source, plan, steps)` returns."""
    print("| from | pairs | 4 steps | over independent | 100 steps | straightness | cost | training, CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for source, draw in SOURCES.items():
        x0 = draw(jr.key(2), DRAWS)
        fresh = [data(key, DRAWS) for key in jr.split(jr.key(3), 4)]
        floor = np.mean([jf.metrics.energy_distance(fresh[0], other) for other in fresh[1:]])
        first = None
        for name, plan in plans.items():
            begun = time.process_time()
            field = trained(source, plan, steps)
            seconds = time.process_time() - begun
            few, many = ways(field, x0)
            energies = [jf.metrics.energy_distance(xs[:, -1], fresh[0]) for xs in (few, many)]
            first = energies[0] if first is None else first
            cost = jf.metrics.transport_cost(many[:, 0], many[:, -1])
            bent = jf.metrics.straightness(many) / cost
            figures = f"{energies[0] / floor:.1f} | {energies[0] / first:.3f} | {energies[1] / floor:.1f}"
            print(f"| {source} | {name} | {figures} | {bent:.4f} | {cost:.2f} | {seconds:.0f} |", flush=True)


def times():
    print("\n| rows | d | plan | found | partners | CPU ms |\n|---|---|---|---|---|---|")
    for d in (2, 784):
        x0, x1 = jr.normal(jr.key(4), (BATCH, d)), jr.normal(jr.key(5), (BATCH, d)) + 1
        entropic = {f"Sinkhorn({e})": jf.train.Sinkhorn(e) for e in (0.5, 0.1, 0.05, 0.02)}
        for name, plan in {**PLANS, **entropic}.items():
            run = jax.jit(lambda key, x0, x1, plan=plan: jf.train.couple(key, x0, x1, plan))
            spent, pairs = [], run(jr.key(0), x0, x1)
            for i in range(10):
                begun = time.process_time()
                pairs = jax.block_until_ready(run(jr.key(i), x0, x1))
                spent.append(time.process_time() - begun)
            how = f"{bool(pairs.converged)} | {pairs.partners:.1f} | {1e3 * np.median(spent):.1f}"
            print(f"| {BATCH} | {d} | {name} | {how} |", flush=True)


if __name__ == "__main__":
    couplings(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
    times()
