"""The command line at its limits: numbers of many bits, and an installation without the extras."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from references import spoken, unchecked
from test_cli import Labelled

import jflow
from jflow.cli import main
from jflow.recipes import RECIPES, Moons, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small run in it."""
    folder = tmp_path_factory.mktemp("case")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moons, "pictures", lambda *_: None)
        train(Moons(steps=1, batch_size=4, width=4, depth=1), folder / "run")
        train(Labelled(), folder / "labelled")
    return folder


WIDE = (
    "train moons --seed 9223372036854775808 --out seed",
    "train moons --seed 4294967296 --out seed",
    "train moons --steps 2147483648 --out steps",
    "train moons --width 1000000000 --out width",
    "train moons --depth 9223372036854775808 --out depth",
    "train moons --depth 2000000000 --out depth",
    "train moons --batch-size 1000000000000 --out batch",
    "train moons --batch-size 2000000000000000000000 --out batch",
    "train moons --learning-rate 1e400 --out rate",
    "train digits --channels 9223372036854775808 --out channels",
    "train digits --channels 1000000000 2 --out channels",
    "train digits --embedding 2000000000 --out embedding",
    "sample run --seed 18446744073709551616",
    "sample run --seed 4294967296",
    "sample run --label 2147483648",
    "sample run --label -9223372036854775809",
    "sample run --num 9223372036854775808",
    "sample run --num 1000000000000",
    "sample run --steps 9223372036854775808",
    "sample run --steps 100000000",
    "sample run --sampler ddim --eta 1e400",
    "sample run --shift 1e400",
    "sample run --scale 1e400",
    f"sample run --seed {'9' * 4000}",
    "evaluate run --num 9223372036854775808",
    "evaluate run --seed 18446744073709551616",
    "evaluate run --steps 18446744073709551616",
)


@pytest.mark.slow
@pytest.mark.parametrize("line", [pytest.param(line, id=line[:60]) for line in WIDE])
def test_number_of_many_bits(folder, monkeypatch, capsys, line):
    """A number that no array can hold ends in one message and exit code 2, and nothing is written."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as caught, unchecked():
        main(line.split())
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in said and 0 < len(said) < 2000
    assert sorted(path.name for path in folder.iterdir()) == ["labelled", "run"]


@pytest.mark.parametrize("label", ["2147483648", "9223372036854775808", "-18446744073709551617", "10"])
def test_label_of_many_bits(folder, monkeypatch, capsys, label):
    """A label beyond every integer type is out of range like any other."""
    monkeypatch.chdir(folder)
    monkeypatch.setitem(RECIPES, "labelled", Labelled)
    with pytest.raises(SystemExit) as caught, unchecked():
        main(["sample", "labelled", "--label", label])
    assert caught.value.code == 2 and f"must be one of 0 to 9. Got {label}" in capsys.readouterr().err


@pytest.mark.slow
def test_batch_beyond_memory(tmp_path):
    """A batch that no memory holds ends in one message and exit code 2, and does not take the process down."""
    code = "import sys; from jflow.cli import main; main(sys.argv[1:])"
    line = "train moons --batch-size 1000000000000 --out big"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr) < 2000


DAMAGED = {
    "cut": lambda text: text[: len(text) // 2],
    "a bad byte": lambda text: text.replace("moons", "mo\udcffns"),
    "zeros": lambda text: "\0" * len(text),
    "brackets": lambda text: "[" * 200_000,
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "a word for a number": lambda text: text.replace('"width": 4', '"width": "four"'),
    "a fraction": lambda text: text.replace('"width": 4', '"width": 4.5'),
    "a negative number": lambda text: text.replace('"width": 4', '"width": -4'),
    "a wide number": lambda text: text.replace('"width": 4', '"width": 9223372036854775808'),
    "another option": lambda text: text.replace("width", "widht"),
    "nothing for a number": lambda text: text.replace('"width": 4', '"width": null'),
    "not a number": lambda text: text.replace("0.002", "NaN"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_config(folder, tmp_path, capsys, name):
    """A config.json that is not what was written is one line, which names the folder, and exit code 2."""
    run = shutil.copytree(folder / "run", tmp_path / "run")
    path = run / "config.json"
    harmed = DAMAGED[name](path.read_text())
    assert harmed != path.read_text()
    path.write_bytes(harmed.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit) as caught, unchecked():
        main(["sample", str(run), "--out", str(tmp_path / "draws.npz")])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("jflow: ") and said.count("\n") == 1 and str(run) in said, said
    assert not (tmp_path / "draws.npz").exists()


FULL = """
import json, resource, signal, sys
from jflow.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit, line in json.loads(sys.argv[1]):  # no file grows beyond the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        main(line.split())
        print("no error", file=sys.stderr)
    except SystemExit as stop:
        assert stop.code == 2
"""
SMALL = "train moons --steps 1 --batch-size 4 --width 4 --depth 1 --out"
WRITES = {
    "sample run --num 1000": (2000, "draws.npz"),
    "sample run --num 10 --out sheet.png": (2000, "sheet.png"),
    "export run": (300, "model.safetensors"),
    "evaluate run --num 10": (100, "report.json"),
    f"{SMALL} config": (50, "config.json"),
    f"{SMALL} checkpoint": (600, "checkpoints"),
    f"{SMALL} pictures": (20000, "samples.png"),
}


@pytest.mark.slow
def test_full_disk(folder, tmp_path):
    """Whatever a command writes: where the disk does not take it, one line names it, and no half of it is left."""
    pytest.importorskip("resource")
    shutil.copytree(folder / "run", tmp_path / "run")
    jobs = json.dumps([(limit, line) for line, (limit, _) in WRITES.items()])
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # programs are kept where the disk takes them
    done = subprocess.run([sys.executable, "-c", FULL, jobs], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    said = spoken(done.stderr).splitlines()
    assert len(said) == len(WRITES), done.stderr
    for words, (_, name) in zip(said, WRITES.values(), strict=True):
        assert words.startswith("jflow: ") and "must" in words and name in words, words
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".partial")]
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_scratch_of_a_killed_run_is_swept(folder, tmp_path, monkeypatch):
    """What a kill leaves of files half written goes when the run goes on; what is the user's stays."""
    run = shutil.copytree(folder / "run", tmp_path / "run")
    for name in (".partial-abc", ".animation-xyz", "checkpoints/9.orbax-checkpoint-tmp-7"):
        (run / name).mkdir()
        (run / name / "samples.png").write_text("half")
    (run / ".mine").mkdir()
    monkeypatch.setattr(Moons, "pictures", lambda *_: None)
    train(Moons(steps=1, batch_size=4, width=4, depth=1), run)
    left = {path.name for path in run.rglob("*") if path.name.startswith(".") or "tmp" in path.name}
    assert left == {".mine"}


# what is said where the modules of the extra are not installed
ABSENT = """
import contextlib, io, json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tyro", "matplotlib", "sklearn", "grain", "orbax", "PIL"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
said = []
for what in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(what)
        except BaseException as error:
            err.write(str(error))
    said.append(err.getvalue() + out.getvalue())
print(json.dumps(said))
"""
EXTRAS = {
    "help": "from jflow.cli import main; main(['--help'])",
    "train": "from jflow.cli import main; main(['train', 'moons'])",
    "sample": "from jflow.cli import main; main(['sample', '--help'])",
    "nothing": "from jflow.cli import main; main([])",
    "data": "import jflow; jflow.data.digits()",
    "loader": "import jflow; jflow.data.loader([1], 1)",
    "plot": "import jflow, numpy; jflow.plot.image_grid(numpy.zeros((1, 2, 2, 1)))",
    "curve": "import jflow; jflow.plot.loss_curve([1, 2], [1.0, 2.0])",
    "animation": "import jflow, numpy; jflow.plot.animation(numpy.zeros((2, 1, 2, 2, 1)), 'a.gif')",
    "c2st": "import jflow, jax, numpy; jflow.metrics.c2st(jax.random.key(0), numpy.ones((9, 1)), numpy.ones((9, 1)))",
    "restore": "import numpy as np, optax; from jflow import train; "
    "train.restore('.', train.init({'w': np.ones(1, 'f4')}, optax.sgd(0.1)))",
}


@pytest.fixture(scope="module")
def said():
    """What each call says."""
    command = [sys.executable, "-c", ABSENT, json.dumps(list(EXTRAS.values()))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(EXTRAS, json.loads(done.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("call", EXTRAS)
def test_without_the_extra(said, call):
    """Where a module of an extra is not installed, what needs it names the extra to install, once and in a line."""
    assert said[call].count("pip install 'jflow[train]'") == 1 and "Traceback" not in said[call], said[call]


def test_help_without_the_extra(said):
    """Help lists the commands all the same."""
    for command in ("train", "sample", "evaluate", "export", "recipes", "demo"):
        assert command in said["help"] and command in said["sample"]
    assert "usage" not in said["train"]


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"jflow {jflow.__version__}\n"


def test_seed_of_many_bits():
    """Seeds that differ by 2^32 are two runs, or raise."""
    try:
        with unchecked():
            runs = [Moons(seed=seed, batch_size=4, width=4, depth=1) for seed in (0, 2**32)]
            batches = [np.asarray(run.batch(0)["x"]) for run in runs]
            params = [run.init().params for run in runs]
    except (ValueError, OverflowError):
        return
    assert not np.array_equal(*batches)
    assert not all(np.array_equal(a, b) for a, b in zip(*params, strict=True))
