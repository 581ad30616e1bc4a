"""The public surface: documented, light to import, one version."""

import subprocess
import sys
import time

import pytest

import jflow as jf

HEAVY = ("orbax", "grain", "tyro", "matplotlib", "PIL", "sklearn")
PUBLIC = sorted(getattr(jf, "__all__", ()))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    obj = getattr(jf, name)
    if name == "__version__" or not (callable(obj) or hasattr(obj, "__path__") or hasattr(obj, "__file__")):
        return
    doc = obj.__doc__ or ""
    # a dataclass without a docstring gets its signature for one
    assert doc.strip() and not doc.startswith(f"{name}("), f"jflow.{name} has no docstring"


def test_all_names_are_listed_by_dir():
    assert set(PUBLIC) <= set(dir(jf))


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_extra():
    loaded = run(f"import jflow, sys; print(*(name for name in {HEAVY} if name in sys.modules))").split()
    assert not loaded, f"`import jflow` imports {loaded}"


@pytest.mark.slow
def test_import_time():
    def seconds(code: str) -> float:
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    rounds = [(seconds("import jflow"), seconds("import diffrax, flax.nnx")) for _ in range(5)]
    ours, base = (min(column) for column in zip(*rounds, strict=True))
    assert ours < 1.5 * base, f"import jflow took {ours:.2f} s, import diffrax, flax.nnx {base:.2f} s"
