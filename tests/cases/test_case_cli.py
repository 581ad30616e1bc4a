"""The command line at its limits: numbers of many bits, and an installation without the extras."""

import json
import subprocess
import sys

import numpy as np
import pytest
from references import unchecked

from jflow.cli import main
from jflow.recipes import Moons, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small run in it."""
    folder = tmp_path_factory.mktemp("case")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moons, "pictures", lambda *_: None)
        train(Moons(steps=1, batch_size=4, width=4, depth=1), folder / "run")
    return folder


RAW = pytest.mark.xfail(
    strict=True, raises=(OverflowError, TypeError), reason="The number reaches numpy or jax unchecked."
)
WIDE = (
    "train moons --seed 9223372036854775808 --out seed",
    "sample run --seed 18446744073709551616",
    "sample run --label 2147483648",
    "sample run --num 9223372036854775808",
    "sample run --steps 9223372036854775808",
)


@pytest.mark.parametrize("line", [pytest.param(line, marks=RAW if "--label" in line else ()) for line in WIDE])
def test_number_of_many_bits(folder, monkeypatch, capsys, line):
    """A number that no array can hold ends in one message and exit code 2."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as caught, unchecked():
        main(line.split())
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in said and len(said) < 2000


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="The batch is drawn before its size is compared with what memory there is.")
def test_batch_beyond_memory(tmp_path):
    """A batch that no memory holds ends in one message and exit code 2, and does not take the process down."""
    code = "import sys; from jflow.cli import main; main(sys.argv[1:])"
    line = "train moons --batch-size 1000000000000 --out big"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr) < 2000


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
    "data": "import jflow; jflow.data.digits()",
    "plot": "import jflow, numpy; jflow.plot.image_grid(numpy.zeros((1, 2, 2, 1)))",
}


@pytest.fixture(scope="module")
def said():
    """What each call says."""
    command = [sys.executable, "-c", ABSENT, json.dumps(list(EXTRAS.values()))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(EXTRAS, json.loads(done.stdout), strict=True))


@pytest.mark.xfail(strict=True, reason="The import of what is not installed is not caught, so the extra is not named.")
@pytest.mark.parametrize("call", EXTRAS)
def test_without_the_extra(said, call):
    """Where a module of an extra is not installed, what needs it names the extra to install."""
    assert "[train]" in said[call], said[call]


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
