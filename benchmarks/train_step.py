"""What a training step costs beside a hand-written one: `python benchmarks/train_step.py`, on two cores.

The hand-written step is one jitted function of flat lists of arrays, which are donated: it draws times and noise for
the whole batch at once, and updates parameters, optimiser and running average. Network, optimiser and batch are equal.
Each row is the median of the ratios of 15 interleaved pairs, with their quartiles; the mean losses of both must agree.
"""

import argparse
import functools as ft

import _paired
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from flax import nnx

import jflow as jf
from jflow import few_step as fs

hold = jax.lax.stop_gradient
EVERY, LONG = fs.TimePairs(jf.laws.Uniform()), fs.ToData(jf.laws.Uniform())


def by_hand(net, optimizer, loss, decay=0.999):
    """A step of `loss(net, key, batch)`, the mean over the batch, and its first state."""
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    leaves, treedef = jax.tree.flatten(params)

    @ft.partial(jax.jit, donate_argnums=0)
    def step(state, key, batch):
        leaves, average, slots, count = state

        def mean(leaves):
            return loss(nnx.merge(graph, treedef.unflatten(leaves), rest), key, batch)

        value, grads = jax.value_and_grad(mean)(leaves)
        updates, slots = optimizer.update(grads, slots, leaves)
        leaves = optax.apply_updates(leaves, updates)
        average = [decay * a + (1 - decay) * p for a, p in zip(average, leaves, strict=True)]
        return (leaves, average, slots, count + 1), value

    leaves = [jnp.array(leaf, copy=True) for leaf in leaves]
    return step, (leaves, [jnp.zeros_like(leaf) for leaf in leaves], optimizer.init(leaves), jnp.array(0))


def interpolated(key, x1, s):
    """State and velocity of the linear path at the times of a batch."""
    x0, s = jr.normal(key, x1.shape), s.reshape(-1, *[1] * (x1.ndim - 1))
    return (1 - s) * x0 + s * x1, x1 - x0, x0


def matching(net, key, batch):
    key_time, key_noise, key_drop = jr.split(key, 3)
    x1, n = batch["x"], len(batch["x"])
    t = jr.uniform(key_time, (n,))
    x, v, _ = interpolated(key_noise, x1, t)
    if "label" not in batch:
        return jnp.mean((jax.vmap(lambda t, x: net(t, x, None))(t, x) - v) ** 2)
    label = jnp.where(jr.bernoulli(key_drop, 0.1, (n,)), 10, batch["label"])
    return jnp.mean((jax.vmap(net)(t, x, label) - v) ** 2)


def two_times(key, n, law):
    """The times of a batch: any two, a power of two apart, or up to the data."""
    key_a, key_b, key_equal, key_level = jr.split(key, 4)
    a, b = jr.uniform(key_a, (n,)), jr.uniform(key_b, (n,))
    if law == "long":
        return a, jnp.ones_like(a)
    if law == "dyadic":
        length = 2.0 ** -jr.randint(key_level, (n,), 0, 7)
        equal, s = jr.bernoulli(key_equal, 0.75, (n,)), jnp.floor(a / length) * length
        return jnp.where(equal, a, s), jnp.where(equal, a, s + length)
    s = jnp.minimum(a, b)
    return s, jnp.where(jr.bernoulli(key_equal, 0.5, (n,)), s, jnp.maximum(a, b))


def map_loss(net, key, batch, *, errors, law="any"):
    key_times, key_noise, key_own = jr.split(key, 3)
    s, t = two_times(key_times, len(batch["x"]), law)
    x, v, x0 = interpolated(key_noise, batch["x"], s)
    square = jnp.mean(errors(lambda s, t, x: jax.vmap(net)(s, t, x), s, t, x, v, x0, key_own) ** 2, axis=1)
    return jnp.mean(jnp.sqrt(square + 0.00054**2) - 0.00054 if errors is discrete else square)


def meanflow(u, s, t, x, v, x0, key):
    value, rate = jax.jvp(lambda s, x: u(s, t, x), (s, x), (jnp.ones_like(s), v))
    return value - hold(v + (t - s)[:, None] * rate)


def improved(u, s, t, x, v, x0, key):
    value, rate = jax.jvp(lambda s, x: u(s, t, x), (s, x), (jnp.ones_like(s), hold(u(s, s, x))))
    return value - (t - s)[:, None] * hold(rate) - v


def lagrangian(u, s, t, x, v, x0, key):
    end, rate = jax.jvp(lambda t: x + (t - s)[:, None] * u(s, t, x), (t,), (jnp.ones_like(t),))
    return rate - hold(jnp.where((s == t)[:, None], v, u(t, t, hold(end))))


def composed(u, s, t, x, v, share):
    r, q = s + share * (t - s), share[:, None]
    first = u(s, r, x)
    second = u(r, t, x + (r - s)[:, None] * first)
    return u(s, t, x) - hold(jnp.where((s == t)[:, None], v, q * first + (1 - q) * second))


def semigroup(u, s, t, x, v, x0, key):
    return composed(u, s, t, x, v, jr.uniform(key, s.shape))


def shortcut(u, s, t, x, v, x0, key):
    return composed(u, s, t, x, v, jnp.full_like(s, 0.5))


def continuous(u, s, t, x, v, x0, key):
    value, rate = jax.jvp(lambda s, x: x + (1 - s)[:, None] * u(s, t, x), (s, x), (jnp.ones_like(s), v))
    size = jnp.sqrt(jnp.mean(rate**2, axis=1, keepdims=True))
    return value - hold(value + rate / (size + 0.1))


def discrete(u, s, t, x, v, x0, key):
    r = jnp.minimum(s + 1 / 64, 1)[:, None]
    there = (1 - r) * x0 + r * (x0 + v)
    before = there + (1 - r) * u(jnp.where(r < 1, r, s[:, None])[:, 0], t, there)
    return 8 * (x + (1 - s)[:, None] * u(s, t, x) - hold(jnp.where(r < 1, before, there)))


OBJECTIVES = {
    "MeanFlow": (fs.MeanFlow(), EVERY, meanflow, "any"),
    "ImprovedMeanFlow": (fs.ImprovedMeanFlow(), EVERY, improved, "any"),
    "Lagrangian": (fs.Lagrangian(), EVERY, lagrangian, "any"),
    "Semigroup": (fs.Semigroup(), EVERY, semigroup, "any"),
    "Shortcut": (fs.Shortcut(), fs.DyadicPairs(), shortcut, "dyadic"),
    "Consistency": (fs.Consistency(), LONG, continuous, "long"),
    "Consistency, 64 steps": (fs.Consistency(steps=64), LONG, discrete, "long"),
}


def labelled(field, key, example):
    if "label" not in example:
        return jf.matching_loss(field, key, example["x"])
    key_label, key_noise = jr.split(key)
    return jf.matching_loss(field, key_noise, example["x"], jf.drop_condition(key_label, example["label"], 10, 0.1))


def row(name, field, ours, theirs, batch):
    """Both steps over as many calls as take a second and a half."""
    optimizer, keys = optax.adam(1e-4), list(jr.split(jr.key(0), 64))
    batch = jax.device_put(batch)
    step, by_hand_state = by_hand(field.net, optimizer, theirs)
    states, losses = [jf.train.init(field, optimizer, ema=0.999), by_hand_state], ([], [])

    def call(which, count):
        for _ in range(count):
            key = keys[len(losses[which]) % len(keys)]
            if which == 0:
                states[0], info = jf.train.step(states[0], ours, key, batch)
                losses[0].append(info.loss)
            else:
                states[1], value = step(states[1], key, batch)
                losses[1].append(value)
        return losses[which][-1]

    jax.block_until_ready((call(0, 1), call(1, 1)))
    count = max(1, round(1.5 / _paired.seconds(lambda: call(1, 1))))
    timed = _paired.paired(lambda: call(0, count), lambda: call(1, count))
    low, median, high = timed.quartiles
    one, other = (np.asarray(jax.device_get(values)) for values in losses)
    assert abs(one.mean() - other.mean()) < 6 * np.hypot(one.std(), other.std()) / len(one) ** 0.5, name
    ours, theirs = 1000 * timed.first / count, 1000 * timed.second / count
    print(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} | {ours:.2f} | {theirs:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=_paired.RUNS)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    given = parser.parse_args()
    _paired.RUNS = given.runs
    rng = np.random.default_rng(0)
    points = {"x": rng.normal(size=(1024, 2)).astype(np.float32)}
    images = {"x": rng.uniform(-1, 1, (128, 28, 28, 1)).astype(np.float32), "label": rng.integers(0, 10, 128)}
    options = {"num_classes": 10, "rngs": nnx.Rngs(0)}
    nets = {
        "MLP 4 x 256, 1024 points": (jf.nn.MLP(2, width=256, depth=4, rngs=nnx.Rngs(0)), points),
        "U-Net (32, 64), 128 of 28 x 28": (jf.nn.UNet((28, 28, 1), channels=(32, 64), layers=1, **options), images),
        "DiT 4 x 96, 128 of 28 x 28": (
            jf.nn.DiT((28, 28, 1), patch=4, dim=96, layers=4, heads=4, **options),
            images,
        ),
    }
    print("| step | ratio | quartiles | jflow, ms | by hand, ms |\n|---|---|---|---|---|", flush=True)
    for name, (net, batch) in nets.items():
        if given.only in name:
            row(name, jf.Field(net, jf.CondOT(), "velocity"), labelled, matching, batch)
    for name, (objective, law, errors, times) in OBJECTIVES.items():
        if given.only in f"{name}, MLP":
            net = jf.nn.MLP(2, width=256, depth=4, times=2, rngs=nnx.Rngs(0))
            weight = fs.PseudoHuber() if errors is discrete else None
            ours = ft.partial(_loss, objective=objective, law=law, weight=weight)
            theirs = ft.partial(map_loss, errors=errors, law=times)
            row(f"{name}, MLP", jf.FlowMap(net, jf.CondOT()), ours, theirs, points)


def _loss(flow_map, key, example, **options):
    return fs.flow_map_loss(flow_map, key, example["x"], **options)


if __name__ == "__main__":
    main()
