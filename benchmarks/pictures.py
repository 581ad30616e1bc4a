"""A folder of 2,000 drawings, JPEG and PNG of mixed sizes in two classes, to a judged model by the command line alone.

The training is interrupted after a third of its time, and goes on. Options after `--` go to `jflow train images`.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from drawings import draw_folder

JFLOW = [sys.executable, "-c", "import sys; from jflow.cli import main; main(sys.argv[1:])"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "jflow-pictures"))
    parser.add_argument("--interrupt", type=float, default=180.0, help="seconds until the training is interrupted")
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    pictures, run, start = given.out / "drawings", given.out / "run", time.monotonic()
    if not pictures.exists():
        draw_folder(pictures, 2000)
    train = [*JFLOW, "train", "images", "--data", str(pictures), "--out", str(run), *given.options]
    with subprocess.Popen(train) as process:
        try:
            process.wait(given.interrupt)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
    subprocess.run(train, check=True)
    print(f"trained in {time.monotonic() - start:.0f} s, starts and pictures of the run included", flush=True)
    subprocess.run([*JFLOW, "evaluate", str(run)], check=True)
    print(run / "samples.png")


if __name__ == "__main__":
    main()
