"""Checkpoints and resume: a run stopped anywhere is the uninterrupted run, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from flax import nnx

import jflow as jf

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
KEY = jr.key(7)


class Net(eqx.Module):
    """Trained arrays of two types, and a frozen one that is a key."""

    w: jnp.ndarray
    b: jnp.ndarray
    key: jnp.ndarray

    def __init__(self, width=3):
        self.w = jnp.linspace(-1.0, 1.0, 2 * width).reshape(width, 2)
        self.b = jnp.zeros(width, jnp.bfloat16)
        self.key = jr.key(3)


def loss(net, key, example):
    return jnp.mean((net.w @ example + net.b.astype(jnp.float32) - jr.normal(key)) ** 2)


def batches(i):
    return np.random.default_rng(i).normal(size=(4, 2)).astype(np.float32)


def start(width=3, optimizer=OPTIMIZER, ema=0.9):
    return jf.train.init(Net(width), optimizer, ema=ema)


def fit(run_dir=None, *, state=None, steps=20, key=KEY, batches=batches, **settings):
    settings = {"save_every": 5, "log_every": 4, "progress": False, **settings}
    return jf.train.fit(state or start(), loss, batches, steps=steps, key=key, run_dir=run_dir, **settings)


def same(state, other):
    pairs = zip(jtu.tree_leaves(state), jtu.tree_leaves(other), strict=True)
    return all(a.dtype == b.dtype and bool(jnp.all(a == b)) for a, b in pairs)


def lines(folder):
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in found]


def steps_in(folder):
    return sorted(int(entry.name) for entry in Path(folder).iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: its folder and its last state."""
    folder = tmp_path_factory.mktemp("whole")
    state, losses = fit(folder)
    assert losses.shape == (20,)
    return folder, state


def test_a_round_trip_is_bit_for_bit_and_the_newest_are_kept(tmp_path, whole):
    _, state = whole
    folder = tmp_path / "new" / "checkpoints"
    for i in range(4):
        jf.train.save(folder, eqx.tree_at(lambda s: s.step, state, jnp.int32(i)), key=KEY, keep=2)
    assert steps_in(folder) == [2, 3]
    restored = jf.train.restore(folder, start(), key=KEY)
    assert int(restored.step) == 3
    assert same(restored, eqx.tree_at(lambda s: s.step, state, jnp.int32(3)))
    assert restored.field.key == state.field.key and restored.field.b.dtype == jnp.bfloat16
    assert int(jf.train.restore(folder, start(), step=2).step) == 2


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, whole):
    folder, state = whole
    assert [line[0] for line in lines(folder)] == [4, 8, 12, 16, 20]
    assert steps_in(folder / "checkpoints") == [10, 15, 20]

    def failing(i):
        if i == 13:
            raise OSError("the data are gone")
        return batches(i)

    with pytest.raises(OSError, match="gone"):
        fit(tmp_path, batches=failing)
    assert steps_in(tmp_path / "checkpoints") == [5, 10]
    assert [line[0] for line in lines(tmp_path)] == [4, 8, 12]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "lo')  # what a kill leaves of a line
    resumed, losses = fit(tmp_path)
    assert losses.shape == (10,)
    assert same(resumed, state)
    assert lines(tmp_path) == lines(folder)
    again, losses = fit(tmp_path)
    assert losses.shape == (0,) and same(again, state)
    assert lines(tmp_path) == lines(folder)


def test_ctrl_c_leaves_a_checkpoint_of_the_running_step(tmp_path, whole):
    def interrupting(i):
        if i == 12:
            signal.raise_signal(signal.SIGINT)
        return batches(i)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, batches=interrupting)
    assert signal.getsignal(signal.SIGINT) is before
    assert steps_in(tmp_path / "checkpoints")[-1] == 13
    state, _ = fit(tmp_path)
    assert same(state, whole[1]) and lines(tmp_path) == lines(whole[0])


def test_a_run_that_is_not_finite_keeps_its_last_checkpoint(tmp_path):
    def bad(i):
        return batches(i) * (np.inf if i == 13 else 1.0)

    with pytest.raises(ValueError, match=r"Step 13 .*correct the data. The checkpoint of step 10 is kept"):
        fit(tmp_path, batches=bad)
    assert steps_in(tmp_path / "checkpoints") == [5, 10]
    rate = lambda count: jnp.where(count == 7, jnp.nan, 1e-2)  # noqa: E731
    with pytest.raises(ValueError, match=r"update of step 7 .*learning rate"):
        fit(tmp_path / "nan", state=start(optimizer=optax.sgd(rate)), steps=8, log_every=20, save_every=8)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (lambda: start(width=4), r"field\.w: saved float32\[3, 2\], wanted float32\[4, 2\]"),
        (lambda: start(optimizer=optax.sgd(0.1)), r"opt_state.*wanted nothing"),
        (lambda: start(ema=None), r"average\.w: saved float32\[3, 2\], wanted nothing"),
    ],
)
def test_a_checkpoint_of_another_shape(whole, state, match):
    folder, _ = whole
    with pytest.raises(ValueError, match=match):
        jf.train.restore(folder / "checkpoints", state())
    with pytest.raises(ValueError, match=match):
        fit(folder, state=state(), steps=30)
    assert steps_in(folder / "checkpoints") == [10, 15, 20] and len(lines(folder)) == 5


class Wider(eqx.Module):
    """`Net` with something more."""

    w: jnp.ndarray
    b: jnp.ndarray
    more: jnp.ndarray
    key: jnp.ndarray


def test_a_warm_start_takes_what_fits_and_tells_what_was_left(whole, tmp_path):
    folder, state = whole
    wider = Wider(jnp.zeros((3, 2), jnp.bfloat16), jnp.zeros(5), jnp.ones(4), jr.key(9))
    for average, source in ((True, state.ema), (False, state.field)):
        field, left = jf.train.warm_start(folder / "checkpoints", wider, average=average)
        assert np.array_equal(field.w, source.w.astype(jnp.bfloat16)) and field.w.dtype == jnp.bfloat16
        assert np.array_equal(field.more, wider.more) and field.b.shape == (5,) and field.key == wider.key
        assert left == {".b": "of shape [3] in the checkpoint", ".more": "only in the field"}
    # the weights alone into another optimiser, from the step before
    field, left = jf.train.warm_start(folder / "checkpoints", Net(), average=False, step=15)
    assert left == {} and not same(field.w, state.field.w)
    again = jf.train.init(field, optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))
    assert int(again.step) == 0 and same(again.params, [field.w, field.b])
    # several averages: the first; a tuple of networks is none

    def begin():
        return jf.train.init((Net(), Net()), OPTIMIZER, ema=(0.5, jf.train.PowerEMA(0.1)))

    pair = begin()
    pair, _ = jf.train.step(pair, lambda nets, key, x: loss(nets[0], key, x), jr.key(0), batches(0))
    pair, _ = jf.train.step(pair, lambda nets, key, x: loss(nets[0], key, x), jr.key(1), batches(1))
    jf.train.save(tmp_path / "pair", pair)
    assert same(jf.train.warm_start(tmp_path / "pair", (Net(), Net()))[0][0].w, pair.ema[0][0].w)
    assert same(jf.train.restore(tmp_path / "pair", begin()), pair)
    with pytest.raises(ValueError, match=r"fits the field.*only in the checkpoint"):
        jf.train.warm_start(folder / "checkpoints", {"other": jnp.ones(2)})
    with pytest.raises(ValueError, match="no such folder"):
        jf.train.warm_start(tmp_path / "nowhere", Net())


def test_a_flow_map_begins_as_the_flow_of_a_checkpoint(tmp_path):
    def net(times, seed):
        return jf.nn.MLP(2, width=8, depth=2, times=times, rngs=nnx.Rngs(seed))

    flow = jf.Field(net(1, 0), jf.CondOT(), "velocity")
    jf.train.save(tmp_path / "flow", jf.train.init(flow, OPTIMIZER))
    student, left = jf.train.warm_start(tmp_path / "flow", jf.FlowMap(net(2, 1), jf.CondOT()))
    assert {name.partition(".length")[1] for name in left} == {".length"} and set(left.values()) == {
        "only in the field"
    }
    s, t, x = jnp.array(0.25), jnp.array(0.75), jnp.array([0.3, -1.0])
    np.testing.assert_allclose(student.jump(s, t, x), x + 0.5 * flow.velocity(s, x), rtol=1e-6)
    for path, predicts in ((jf.Cosine(), "velocity"), (jf.CondOT(), "data")):
        with pytest.raises(ValueError, match="which differs in"):
            jf.train.warm_start(tmp_path / "flow", jf.FlowMap(net(2, 1), path, predicts))


def test_a_checkpoint_that_is_not_there(tmp_path, whole):
    with pytest.raises(ValueError, match="no such folder"):
        jf.train.restore(tmp_path / "nowhere", start())
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ValueError, match="has none"):
        jf.train.restore(tmp_path, start())
    with pytest.raises(ValueError, match=r"of step 7.* has those of steps \[10, 15, 20\]"):
        jf.train.restore(whole[0] / "checkpoints", start(), step=7)
    with pytest.raises(ValueError, match="another key"):
        jf.train.restore(whole[0] / "checkpoints", start(), key=jr.key(8))
    with pytest.raises(ValueError, match="another key"):
        fit(whole[0], key=jr.key(8), steps=30)
    with pytest.raises(ValueError, match="step 20; restore from it"):
        jf.train.save(whole[0] / "checkpoints", start())


def test_a_damaged_checkpoint(tmp_path, whole):
    jf.train.save(tmp_path, whole[1])
    files = [file for file in (tmp_path / "20" / "arrays").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        jf.train.restore(tmp_path, start())
    (tmp_path / "20" / "manifest" / "metadata").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        jf.train.restore(tmp_path, start())
    (tmp_path / "20" / "manifest" / "metadata").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 1"):
        jf.train.restore(tmp_path, start())


def test_a_foreign_folder_is_left_as_it_was(tmp_path, whole):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(ValueError, match=r"holds thesis\.tex"):
        jf.train.save(tmp_path, whole[1])
    with pytest.raises(ValueError, match="write into"):
        jf.train.save(tmp_path / "thesis.tex", whole[1])
    with pytest.raises(ValueError, match="write into"):
        fit(tmp_path / "thesis.tex" / "run")
    for text in ("a,b\n1,2\n", '{"loss": 1.0}\n', "[1]\n"):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(ValueError, match="another file"):
            fit(tmp_path)
        assert (tmp_path / "metrics.jsonl").read_text() == text
    assert (tmp_path / "thesis.tex").read_text() == "words"


CHILD = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    from pathlib import Path
    import equinox as eqx, jax, jax.numpy as jnp, jax.random as jr, numpy as np, optax
    import jflow as jf

    folder, mode, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    class Net(eqx.Module):
        mlp: eqx.nn.MLP
        def __call__(self, t, x, args):
            return self.mlp(jnp.append(x, t))

    def loss(field, key, example):
        return jf.matching_loss(field, key, example)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def watch():
        while not any(folder.glob(f"checkpoints/{at}*")):
            pass
        die()

    def batches(i):
        if mode == "train" and i == at:
            die()
        return np.random.default_rng(i).normal(size=(64, 2)).astype(np.float32)

    if mode == "save":
        threading.Thread(target=watch, daemon=True).start()
    field = jf.Field(Net(eqx.nn.MLP(3, 2, 64, 2, key=jr.key(0))), jf.CondOT(), "velocity")
    state = jf.train.init(field, optax.adamw(1e-3), ema=(0.999, jf.train.PowerEMA(0.1)))
    state, _ = jf.train.fit(state, loss, batches, steps=200, key=jr.key(1), run_dir=folder, save_every=20,
                            log_every=7, best="loss", progress=False)
    np.savez(folder / "end.npz", *[np.asarray(leaf) for leaf in jax.tree.leaves(state)])
    """
)


def run_child(folder, mode="none", at=0):
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": ""}
    arguments = [sys.executable, "-c", CHILD, str(folder), mode, str(at)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_kill_9_while_training_and_while_saving(tmp_path):
    done = run_child(tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    killed, rng, torn = tmp_path / "killed", np.random.default_rng(), []
    for mode, at in [
        ("train", int(rng.integers(0, 60))),
        ("save", 60),
        ("train", int(rng.integers(61, 200))),
        ("save", 200),
    ]:
        died = run_child(killed, mode, at)
        assert died.returncode == -signal.SIGKILL, died.stderr
        torn += [any(killed.glob("checkpoints/*tmp*"))] if mode == "save" else []
    assert any(torn)  # at least one kill hit a checkpoint half written
    done = run_child(killed)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "whole" / "end.npz") as one, np.load(killed / "end.npz") as other:
        assert one.files == other.files
        assert all(np.array_equal(one[name], other[name]) for name in one.files)
    assert lines(killed) == lines(tmp_path / "whole")
    assert [line[0] for line in lines(killed)] == [*range(7, 200, 7), 200]
    assert steps_in(killed / "checkpoints") == [160, 180, 200]
    losses = {step: value for step, value, _ in lines(killed)}
    assert steps_in(killed / "best") == steps_in(tmp_path / "whole" / "best") == [min(losses, key=losses.__getitem__)]
    for file in (tmp_path / "whole" / "averages").iterdir():
        assert file.read_bytes() == (killed / "averages" / file.name).read_bytes()
    assert len(list((killed / "averages").iterdir())) == 10
