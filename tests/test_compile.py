"""What is compiled, how often, and whether it can be kept on disk (closed form K2)."""

import os
import re
import subprocess
import sys
import textwrap

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flax import nnx
from references import Counter

import jflow as jf

TIMES = jnp.linspace(0, 1, 51)
PROGRAMS = {
    "ODE, Euler": {},
    "ODE, Heun": {"solver": dfx.Heun()},
    "ODE, ratio clock": {"clock": jf.RatioClock(), "solver": dfx.Tsit5()},
    "SDE": {"eta": 1.0, "end": "denoise"},
    "SDE, SRA1": {"eta": 1.0, "solver": dfx.SRA1(), "end": "denoise"},
}


class Net(nnx.Module):
    def __init__(self, size, rngs):
        self.hidden = nnx.Linear(size + 1, 16, rngs=rngs)
        self.out = nnx.Linear(16, size, rngs=rngs)

    def __call__(self, t, x, args):
        return self.out(nnx.silu(self.hidden(jnp.append(x, t))))


def network(size=2):
    return jf.Field(Net(size, nnx.Rngs(0)), jf.CondOT(), "velocity")


def compiled(options, size=2, times=TIMES, batch=None):
    def draw(field, key, times):
        return jf.sample(field, key, (size,), jf.FixedSteps(times, **options))

    run = draw if batch is None else jax.vmap(draw, (None, 0, None))
    key = jr.key(0) if batch is None else jr.split(jr.key(0), batch)
    return jax.jit(run).lower(network(size), key, times).compile()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n != "SDE, SRA1" else pytest.param(n, marks=pytest.mark.slow) for n in PROGRAMS])
def test_a_fixed_grid_is_a_loop_of_known_length_without_callbacks(name):
    text = compiled(PROGRAMS[name], batch=4).as_text()
    loops = re.findall(r"^.* while\(.*$", text, re.MULTILINE)
    assert loops and all("known_trip_count" in loop for loop in loops)
    targets = re.findall(r'custom_call_target="([^"]*)"', text)
    assert not any("callback" in target or "python" in target for target in targets)
    assert not re.search(r" (infeed|outfeed|send|recv)\(", text)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    size = 2000
    for options in ({}, {"eta": 1.0, "end": "denoise"}):
        few, many = (
            compiled(options, size, jnp.linspace(0, 1, n + 1)).memory_analysis().temp_size_in_bytes for n in (20, 1000)
        )
        assert many - few < 1000 * 4 * 40  # tables of a few numbers a step, no states: these are 8 MB


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [jax.jit, eqx.filter_jit], ids=["jax.jit", "eqx.filter_jit"])
def test_K2_new_values_do_not_retrace(wrap):
    traces = []

    def draw(field, key, times, args, eta):
        traces.append(1)
        return jf.sample(field, key, (2,), jf.FixedSteps(times, eta=eta, end="denoise"), args=args).x

    run, guided = wrap(draw), jf.Guided(network(), jnp.zeros(3))
    first = run(guided, jr.key(0), TIMES, jf.Args(jnp.ones(3), scale=jnp.asarray(2.0)), jnp.asarray(1.0))
    weights, rest = eqx.partition(guided, eqx.is_inexact_array)
    other = eqx.combine(jax.tree.map(lambda w: 2 * w, weights), rest)
    second = run(other, jr.key(1), TIMES**2, jf.Args(jnp.zeros(3), scale=jnp.asarray(7.0)), jnp.asarray(0.3))
    assert len(traces) == 1
    assert first.shape == second.shape == (2,) and (first != second).all()


@pytest.mark.slow
def test_a_sampler_is_an_argument_of_a_jitted_function():
    """Its kind of end is static, its numbers are not."""
    traces = []

    @jax.jit
    def draw(field, sampler):
        traces.append(1)
        return jf.sample(field, jr.key(0), (2,), sampler).x

    field = network()
    for sampler in (jf.FixedSteps(TIMES, eta=1.0), jf.FixedSteps(TIMES**2, eta=0.5)):
        got = draw(field, sampler)
        np.testing.assert_allclose(got, jf.sample(field, jr.key(0), (2,), sampler).x, rtol=1e-4, atol=1e-5)
    assert len(traces) == 1
    draw(field, jf.FixedSteps(0.9 * TIMES, eta=1.0))
    assert len(traces) == 2


@pytest.mark.slow
def test_K2_jit_equals_eager():
    field = network()
    for sampler in (jf.FixedSteps(TIMES), jf.FixedSteps(TIMES, eta=0.5)):
        eager = jf.sample(field, jr.key(0), (2,), sampler).x
        jitted = jax.jit(lambda f, s=sampler: jf.sample(f, jr.key(0), (2,), s).x)(field)
        np.testing.assert_allclose(jitted, eager, rtol=1e-5, atol=1e-6)


def test_a_network_is_traced_once_a_stage_whatever_the_number_of_steps():
    def traces(n):
        net = Counter(lambda t, x, args: x)
        field = jf.Field(net, jf.CondOT(), "velocity")
        jax.eval_shape(lambda key: jf.sample(field, key, (2,), jf.UniformGrid(n)).x, jr.key(0))
        return net.traces

    assert [traces(n) for n in (1, 3, 64)] == [1, 1, 1]


SCRIPT = textwrap.dedent("""
    import jax, jax.numpy as jnp, jax.random as jr
    counts = {{"cache_hits": 0, "cache_misses": 0}}
    def listen(event, **kwargs):
        name = event.rsplit("/", 1)[-1]
        if name in counts:
            counts[name] += 1
    jax.monitoring.register_event_listener(listen)
    jax.config.update("jax_compilation_cache_dir", {folder!r})
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    import diffrax as dfx, jflow as jf
    from flax import nnx
    field = jf.Field(jf.nn.MLP(2, width=8, depth=1, rngs=nnx.Rngs(0)), jf.CondOT(), "velocity")
    times = jf.UniformGrid(30)
    for options in ({{}}, {{"solver": dfx.Heun()}}, {{"eta": 1.0}}):
        run = jax.jit(lambda f, k: jf.sample(f, k, (2,), jf.FixedSteps(times, **options)).x)
        run(field, jr.key(0)).block_until_ready()
    jf.sample(field, jr.key(0), (2,)).x.block_until_ready()
    jf.generate(field, jr.key(0), 5, (2,), times, batch_size=3)
    print(counts["cache_hits"], counts["cache_misses"])
""")


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def run():
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(folder=str(tmp_path))], capture_output=True, text=True, env=environment
        )
        assert out.returncode == 0, out.stderr
        hits, misses = map(int, out.stdout.split()[-2:])
        return hits, misses, sorted(p.name for p in tmp_path.iterdir() if "atime" not in p.name)

    _, compiled_first, files = run()
    hits, misses, again = run()
    assert compiled_first > 10 and files
    assert misses == 0 and hits > 0 and again == files
