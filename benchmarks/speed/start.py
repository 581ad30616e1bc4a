"""What comes before the first sample, and what stays: the first call, the time to compile, the memory.

A process of its own times each first call, `first_call.py`.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _paired
import diffrax as dfx
import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from baselines import loops
from flax import nnx

import jflow as jf

from . import Row

CALLS = 5
FIRST_CALL = Path(__file__).parent / "first_call.py"


def rows():
    yield memory()
    yield from compilation()
    yield from first_calls()


def memory():
    """What the compiler sets aside for 1,000 steps and for 10; no trajectory is saved."""
    field = jf.Field(jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3), jf.CondOT(), predicts="velocity")

    def bytes_for(steps):
        @jax.jit
        def program(keys):
            return jax.vmap(lambda key: jf.sample(field, key, (2,), jf.UniformGrid(steps)).x)(keys)

        found = program.lower(jr.split(jr.key(0), 4096)).compile().memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes

    many, few = bytes_for(1000), bytes_for(10)
    figure = (many / few,) * 3
    return Row(
        "memory of 1,000 steps, MLP 3 x 256, batch 4096", "10 steps", figure, (many / 1e6, few / 1e6), "MB", 1.02
    )


class New(eqx.Module):
    """The network as one that no program has seen: jflow traces a sampler once for a field's structure."""

    net: jf.nn.MLP
    run: int = eqx.field(static=True, default_factory=itertools.count().__next__)

    def __call__(self, t, x, args):
        return self.net(t, x, args)


def compilation():
    """Seconds to trace and compile a sampler and a hand-written scan, both of a network that is new."""
    net, times, key = jf.nn.MLP(2, rngs=nnx.Rngs(0), width=256, depth=3), jf.UniformGrid(50).times(), jr.key(0)
    for name, solver, loop in (("Euler", dfx.Euler(), loops.euler), ("Heun", dfx.Heun(), loops.heun)):

        def ours(net, key, times, solver=solver):
            return jf.sample(jf.Field(net, jf.CondOT(), "velocity"), key, (2,), jf.FixedSteps(times, solver)).x

        def theirs(net, key, times, loop=loop):
            return loop(lambda t, x: net(t, x, None), jr.normal(jr.split(key)[0], (2,)), times)

        table = np.empty((_paired.RUNS + 1, 2))
        for run, which in itertools.product(range(_paired.RUNS + 1), (0, 1)):
            program, new = (ours, theirs)[which], New(net)
            start = time.perf_counter()
            jax.jit(lambda *a, program=program: program(*a)).lower(new, key, times).compile()
            table[run, which] = time.perf_counter() - start
        yield of(table[1:], f"trace and compile {name}, 50 steps, MLP 3 x 256", "a scan", "s", 2.0)


def of(table, program, beside, unit, bar, kind="ratio"):
    """The row of pairs of costs."""
    table = np.asarray(table)
    figures = table[:, 0] / table[:, 1] if kind == "ratio" else table[:, 0] - table[:, 1]
    costs = tuple(map(float, np.median(table, axis=0)))
    return Row(program, beside, tuple(map(float, np.quantile(figures, (0.25, 0.5, 0.75)))), costs, unit, bar, kind)


def first_calls():
    """The first `sample` of a process, without and with a cache on disk, beside the first call of the network alone."""

    def call(what, cache=None):
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        if cache is not None:
            environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, str(FIRST_CALL), what]
        return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    with tempfile.TemporaryDirectory() as cache:
        call("sample", cache)
        runs = [(call("sample"), call("network"), call("sample", cache)) for _ in range(CALLS)]
    fresh, network, kept = np.asarray(runs).T
    label = "first `sample` of an MLP in a new process"
    yield of(np.stack([fresh, network], 1), label, "first call of its network", "s", 1.0, "difference")
    yield of(np.stack([kept, fresh], 1), f"{label}, cache on disk", "without cache", "s", 0.4)
