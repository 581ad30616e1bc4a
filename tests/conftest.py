"""Settings of every test: they must be made before jax and jflow are first imported."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

if "jflow" in sys.modules:
    raise RuntimeError("jflow was imported before its annotations could be checked; import it in tests only")
install_import_hook("jflow", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """Without `-m` only the default tier runs; a test named on the command line runs whatever its tier."""
    if not config.option.markexpr and not any("::" in str(arg) for arg in config.args):
        config.option.markexpr = "not slow"


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


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield
