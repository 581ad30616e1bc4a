"""Settings of every test: they must be made before jax and jflow are first imported."""

import gc
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# eight CPU devices; and a test compiles far longer than it computes, so LLVM is not to optimise
FLAGS = {"--xla_force_host_platform_device_count": "8", "--xla_backend_optimization_level": "0"}
if tuple(map(int, version("jax").split(".")[:2])) < (0, 11):  # later versions have no other emitters of kernels
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"  # which take half of the time to compile
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"{k}={v}" for k, v in FLAGS.items() if k not in given)]).strip()

CACHE = Path(__file__).parents[1] / ".cache" / "jax"

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

if "jflow" in sys.modules:
    raise RuntimeError("jflow was imported before its annotations could be checked; import it in tests only")
install_import_hook("jflow", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")
# programs that were compiled before are read again: `make clean` forgets them
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_sessionstart(session):
    """Programs of code that is no more do not pile up; the workers share the folder, so one process cleans it."""
    if "PYTEST_XDIST_WORKER" in os.environ or not CACHE.is_dir():
        return
    if sum(file.stat().st_size for file in CACHE.iterdir()) > 2**29:
        shutil.rmtree(CACHE, ignore_errors=True)


def pytest_configure(config):
    """Without `-m` only the default tier runs; a test named on the command line runs whatever its tier."""
    if not config.option.markexpr and not any("::" in str(arg) for arg in config.args):
        config.option.markexpr = "not slow"


def pytest_collection_finish(session):
    """What was imported stays: each full collection of garbage would look at all of it again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """The time of each tier: the sum over its tests, whatever the number of workers."""
    seconds, number = {"default": 0.0, "slow": 0.0}, {"default": 0, "slow": 0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "keywords"):
                tier = "slow" if "slow" in report.keywords else "default"
                seconds[tier] += report.duration
                number[tier] += getattr(report, "when", None) == "call"
    for tier, total in seconds.items():
        if number[tier]:
            terminalreporter.write_line(f"{tier} tier: {number[tier]} tests, {total:.0f} s of test time")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A compiled program holds tens of memory maps, of which Linux allows a process 65,530: no file leaves any."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
