"""What `sample` costs to trace and compile, beside a hand-written scan: `python benchmarks/compile_time.py`.

The hand-written loops import nothing of jflow. Each row is the median of interleaved runs in one process, each of a
function and a network that were never seen before; the bound is twice the hand-written one and 0.6 s.
"""

import itertools
import statistics
import time

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from flax import nnx

import jflow as jf

RUNS = 15
NET = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3)
FIELD, TIMES = jf.Field(NET, jf.CondOT(), "velocity"), jf.UniformGrid(50).times()
GRID = jf.LogSNRGrid(50, -8.0, 8.0).times(FIELD.path)


class New(eqx.Module):
    """The network as one that no program has seen: jflow traces a sampler once for a field's structure."""

    net: jf.nn.MLP
    run: int = eqx.field(static=True, default_factory=itertools.count().__next__)

    def __call__(self, t, x, args):
        return self.net(t, x, args)


def euler(net, key, times):
    def step(x, pair):
        return x + (pair[1] - pair[0]) * net(pair[0], x, None), None

    x0 = (1 - times[0]) * jr.normal(jr.split(key)[0], (2,))
    return jax.lax.scan(step, x0, jnp.stack([times[:-1], times[1:]], 1))[0]


def heun(net, key, times):
    def step(x, pair):
        t, h = pair[0], pair[1] - pair[0]
        k = net(t, x, None)
        return x + h / 2 * (k + net(t + h, x + h * k, None)), None

    x0 = (1 - times[0]) * jr.normal(jr.split(key)[0], (2,))
    return jax.lax.scan(step, x0, jnp.stack([times[:-1], times[1:]], 1))[0]


def ancestral(net, key, times):
    """The reverse SDE with frozen data predictions."""
    start, noise = jr.split(key)
    log_snr = jnp.log(times / (1 - times))

    def step(x, slices):
        (t, t1), (l, l1), z = slices
        data = x + (1 - t) * net(t, x, None)
        h = l1 - l
        mean = (1 - t1) / (1 - t) * jnp.exp(-h) * x - t1 * jnp.expm1(-2 * h) * data
        return mean + (1 - t1) * jnp.sqrt(-jnp.expm1(-2 * h)) * z, None

    pairs = [jnp.stack([v[:-1], v[1:]], 1) for v in (times, log_snr)]
    x0 = (1 - times[0]) * jr.normal(start, (2,))
    return jax.lax.scan(step, x0, (*pairs, jr.normal(noise, (len(times) - 1, 2))))[0]


def two_m(net, key, times):
    """DPM-Solver++(2M)."""
    log_snr = jnp.log(times / (1 - times))

    def step(carry, slices):
        x, old, last, known = carry
        (t, t1), (l, l1) = slices
        data = x + (1 - t) * net(t, x, None)
        h = l1 - l
        slope = jnp.where(known, (data - old) / jnp.where(known, last, 1), 0)
        x = (1 - t1) / (1 - t) * x - t1 * (jnp.expm1(-h) * (data - slope) - slope * h)
        return (x, data, h, True), None

    x0 = (1 - times[0]) * jr.normal(jr.split(key)[0], (2,))
    pairs = [jnp.stack([v[:-1], v[1:]], 1) for v in (times, log_snr)]
    return jax.lax.scan(step, (x0, jnp.zeros(2), jnp.ones(()), False), tuple(pairs))[0][0]


ROWS = {
    "Euler": (euler, TIMES, {}),
    "Heun": (heun, TIMES, {"solver": dfx.Heun()}),
    "reverse SDE, frozen data": (ancestral, GRID, {"eta": 1.0, "end": "stop"}),
    "DPM-Solver++(2M)": (two_m, GRID, {"solver": jf.DPMpp(order=2), "end": "stop"}),
}


def seconds(fn, *args):
    """Seconds to trace and compile a function that is new to jax."""
    start = time.perf_counter()
    jax.jit(lambda *a: fn(*a)).lower(*args).compile()
    return time.perf_counter() - start


def row(by_hand, times, options):
    """Median seconds of ours and of the hand-written loop."""

    def ours(field, key, times):
        return jf.sample(field, key, (2,), jf.FixedSteps(times, **options)).x

    key, pairs = jr.key(0), []
    if "eta" not in options:
        x0 = (1 - times[0]) * jr.normal(jr.split(key)[0], (2,))
        from_there = jf.decode(FIELD, x0, jf.FixedSteps(times, **options)).x
        assert jnp.allclose(from_there, by_hand(NET, key, times), atol=1e-5)
    for run in range(RUNS + 1):
        pair = {}
        for name in ("ours", "theirs") if run % 2 else ("theirs", "ours"):
            new = New(NET)
            call = (by_hand, new) if name == "theirs" else (ours, jf.Field(new, FIELD.path, "velocity"))
            pair[name] = seconds(*call, key, times)
        pairs.append((pair["ours"], pair["theirs"]))
    return [statistics.median(column) for column in zip(*pairs[1:], strict=True)]


def main():
    print("| rule, MLP 3 x 256, 50 steps | `sample`, s | by hand, s | bound, s |\n|---|---|---|---|")
    for name, (by_hand, times, options) in ROWS.items():
        ours, theirs = row(by_hand, times, options)
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {2 * theirs + 0.6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
