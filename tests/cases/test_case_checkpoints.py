"""Checkpoints at their limits: of another prediction or path, and damaged beside intact ones."""

import shutil
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from references import spoken

import jflow as jf


def state(predicts, path):
    field = jf.Field(jf.nn.MLP(2, width=4, depth=1, rngs=nnx.Rngs(0)), path, predicts=predicts)
    return jf.train.init(field, optax.sgd(1e-3), ema=None)


def custom(power):
    return jf.CustomPath(lambda t: t**power, lambda t: 1 - t**power)


FIELDS = {
    "prediction": (("velocity", jf.CondOT()), ("noise", jf.CondOT())),
    "path": (("velocity", jf.CondOT()), ("velocity", jf.Cosine())),
    "source": (("velocity", jf.CondOT()), ("velocity", jf.CondOT(source=jf.Normal(coupled=True)))),
    "given": (("velocity", jf.CondOT()), ("velocity", jf.CondOT(source=jf.GIVEN))),
    "map": (("velocity", jf.CondOT()), ("velocity", jf.CondOT(source=jf.Normal(jf.ZeroCentre())))),
    "constant": (("velocity", jf.VP()), ("velocity", jf.VP(beta_max=10.0))),
    "function": (("velocity", custom(1)), ("velocity", custom(2))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_restore_into_another_field(tmp_path, name):
    """The weights of a field are not restored into one of another prediction, along another path, of another source."""
    own, other = FIELDS[name]
    jf.train.save(tmp_path / "run", state(*own))
    jf.train.restore(tmp_path / "run", state(*own))
    with pytest.raises(ValueError, match=r"must be restored into a field of the same prediction.*saved.*wanted"):
        jf.train.restore(tmp_path / "run", state(*other))


def test_restore_of_a_path_that_is_trained(tmp_path):
    """What is trained of a path differs from its start, and is no reason to raise."""
    trained = state("velocity", jf.VP())
    mask = jax.tree.map(lambda leaf: leaf.ndim == 0, trained.field)
    start = jf.train.init(trained.field, optax.sgd(1e-3), trained=mask, ema=None)
    moved = eqx.tree_at(lambda s: s.params, start, tuple(p + 0.25 for p in start.params))
    jf.train.save(tmp_path / "run", moved)
    assert jf.train.restore(tmp_path / "run", start).field.path.beta_max == start.field.path.beta_max + 0.25


OPTIMIZER = optax.adam(1e-2)


def loss(field, key, x):
    return jf.matching_loss(field, key, x)


def start():
    net = jax.tree_util.Partial(lambda w, t, x, args: w * x, jnp.ones(2))
    return jf.train.init(jf.Field(net, jf.CondOT(), "velocity"), OPTIMIZER)


def fit(folder, steps):
    return jf.train.fit(
        start(), loss, lambda i: jnp.ones((4, 2)), steps=steps, key=jax.random.key(0), run_dir=folder, save_every=1,
        progress=False,
    )[0]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of three steps and three checkpoints, and the parameters after four."""
    folder = tmp_path_factory.mktemp("case") / "run"
    fit(folder, 3)
    return folder, fit(None, 4).params


def foreign_file(folder):
    (folder / "checkpoints" / ".DS_Store").write_text("x")


def foreign_files(folder):
    for name in ("._3", "Thumbs.db", "3/.DS_Store", "3/arrays/desktop.ini"):
        (folder / "checkpoints" / name).write_text("x")
    (folder / ".DS_Store").write_text("x")


def torn_metrics(folder):
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"\xff\n")


def zeros_in_metrics(folder):
    path = folder / "metrics.jsonl"
    path.write_bytes(b"\0" * 64 + path.read_bytes()[64:])


def no_metrics(folder):
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n[]\n")


def torn_newest(folder):
    files = [path for path in (folder / "checkpoints" / "3").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-20])


def flipped_manifest(folder):
    """One letter of a name: the arrays seem to be those of another network."""
    path = folder / "checkpoints" / "3" / "manifest" / "metadata"
    path.write_bytes(path.read_bytes().replace(b"opt_state", b"opt_stata", 1))


def lost_arrays(folder):
    shutil.rmtree(folder / "checkpoints" / "3" / "arrays")


def empty_newest(folder):
    (folder / "checkpoints" / "4").mkdir()


def two_damaged(folder):
    torn_newest(folder)
    shutil.rmtree(folder / "checkpoints" / "2" / "manifest")


def killed_while_writing(folder):
    (folder / "checkpoints" / "4.orbax-checkpoint-tmp-1").mkdir()
    (folder / "metrics.jsonl.tmp").write_text("{")


HARMS = [
    *(foreign_file, foreign_files, torn_metrics, zeros_in_metrics, no_metrics, torn_newest, flipped_manifest),
    *(lost_arrays, empty_newest, two_damaged, killed_while_writing),
]


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_run_goes_on(tmp_path, run, harm):
    """Small damage beside intact checkpoints does not end a run: it goes on, and ends where it would have."""
    folder, params = run
    harm(shutil.copytree(folder, tmp_path / "run"))
    out = fit(tmp_path / "run", 4)
    assert out.step == 4
    for got, want in zip(out.params, params, strict=True):
        np.testing.assert_array_equal(got, want)
    assert not list(tmp_path.rglob("*tmp*"))
    jf.train.restore(tmp_path / "run" / "checkpoints", start(), step=4)


@pytest.mark.slow
def test_what_is_damaged_is_told(tmp_path, run, caplog):
    """The one before is taken with a warning, the damaged one is kept aside, and a named step raises."""
    torn_newest(shutil.copytree(run[0], tmp_path / "run"))
    folder = tmp_path / "run" / "checkpoints"
    assert jf.train.restore(folder, start()).step == 2
    assert "is damaged" in caplog.text and "of step 2" in caplog.text
    with pytest.raises(ValueError, match="is damaged"):
        jf.train.restore(folder, start(), step=3)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]
    fit(tmp_path / "run", 3)
    assert (folder / "damaged-3").is_dir() and jf.train.restore(folder, start(), step=3).step == 3


FULL = """
import pathlib, resource, signal, sys, time
import jax, jax.numpy as jnp, optax, jflow as jf
from jflow.cli import _stop
net = jax.tree_util.Partial(lambda w, t, x, args: w[0] * x, jax.random.normal(jax.random.key(0), (2000, 2)))
state = jf.train.init(jf.Field(net, jf.CondOT(), "velocity"), optax.sgd(1e-2), ema=None)
def batches(i):
    if i == 2:  # from here on no file grows beyond 4 kB
        while not pathlib.Path(sys.argv[1], "checkpoints", "2").exists():
            time.sleep(0.01)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return jnp.ones((4, 2)) * i
try:
    jf.train.fit(state, lambda f, k, x: jf.matching_loss(f, k, x), batches, steps=3, key=jax.random.key(0),
                 run_dir=sys.argv[1], save_every=1, progress=False)
except OSError as error:
    _stop(error)
"""


@pytest.mark.slow
def test_full_disk(tmp_path):
    """A checkpoint that the disk does not hold ends the run in one line, and those before stay."""
    pytest.importorskip("resource")
    command = [sys.executable, "-c", FULL, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    said = [line for line in spoken(done.stderr).splitlines() if not line.startswith("WARNING")]
    assert len(said) == 1 and said[0].startswith("jflow: "), done.stderr
    assert "must be written whole" in said[0] and "step 2 is kept" in said[0], done.stderr
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"1", "2"}
