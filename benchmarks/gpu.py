"""All that an accelerator is needed for, in one command: `python benchmarks/gpu.py` (`--tiny` tries it on a CPU).

First the default tier's numerics, then the rows of `speed/gpu.py`, printed and written into `results/`. The tests take
float32 products in full (`jax_default_matmul_precision=highest`): by TF32, a GPU's own choice, a product has 10 bits,
and a law that holds to 1e-5 holds to 1e-3. The rows are measured with the flag of docs/howto/training.md.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import bench

ROOT = Path(__file__).parents[1]
NUMERICS = """
    attention brownian clock clock_solvers divergence field grid guidance invariance lanes law log_prob loss nn path
    prediction sample sde_family solve solver_churn solver_dpmpp solver_multistep solver_singlestep source train
"""


def numerics(tiny: bool) -> int:
    """The tests of what is computed, on the accelerator; the exit status."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
    settings = {
        "JAX_PLATFORMS": "cpu" if tiny else "cuda,cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
    }
    files = [f"tests/test_{name}.py" for name in (("attention",) if tiny else NUMERICS.split())]
    workers = [] if tiny else ["-n", str(os.cpu_count()), "--dist", "load"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *files]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings)
    print(
        f"numerics: {'passed' if done.returncode == 0 else 'failed'} in {time.perf_counter() - start:.0f} s", flush=True
    )
    return done.returncode


def speed(tiny: bool) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false".strip()
    bench.measure(["gpu"], write=not tiny, tiny=tiny)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small networks and one file of tests; nothing is written")
    parser.add_argument("--only", choices=("tests", "speed"), help="one of the two")
    options = parser.parse_args()
    status = numerics(options.tiny) if options.only != "speed" else 0
    if options.only != "tests":
        speed(options.tiny)
    return status


if __name__ == "__main__":
    sys.exit(main())
