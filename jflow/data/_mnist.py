"""MNIST from its IDX files: found, or downloaded; checked by sha256 either way."""

import gzip
import hashlib
import http.client
import os
import pathlib
import shutil
import tempfile
import urllib.request
import zlib

import numpy as np

from .._kinds import check_kinds
from ._dataset import Dataset, check_split, from_array, take_split

_ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# name: (bytes, sha256) of the uncompressed file, so that one row serves it compressed or not
_FILES = {
    "train-images-idx3-ubyte": (
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


def mnist(split: str = "train", dir: str | os.PathLike[str] | None = None, seed: int = 0) -> Dataset:
    """Handwritten digits of 28 x 28 pixels, shape `(n, 28, 28, 1)` in [-1, 1].

    The IDX files, compressed (`.gz`) or not, are looked for in `dir`, by default `$JFLOW_DATA_DIR/mnist`, or
    `~/.cache/jflow/mnist` where that variable is not set. Where all four are there, `split` is the official
    `"train"` (60,000), `"test"` (10,000), or `"all"`. Where only the two of the 10,000 test images are there,
    these are divided into `"train"` (9,000) and `"test"` (1,000), stratified by class and drawn, with the
    order, by `seed`, and the name is `mnist-t10k`. Otherwise what is missing is downloaded into that folder,
    each file moved into place only once it has passed its check.

    Every file is checked by size and sha256 each time it is read. Raises `ValueError` for one that is
    truncated or altered, `OSError` where a download fails or the folder cannot be written.

    Args:
        split: `"train"`, `"test"` or `"all"`.
        dir: The folder of the files.
        seed: The seed of the division and the order, where only the test images are there.

    Source: LeCun, Cortes and Burges 1998, The MNIST database of handwritten digits.

    ```python
    data = jf.data.mnist("test")
    assert data.x.shape[1:] == (28, 28, 1) and data.num_classes == 10
    ```
    """
    check_kinds(mnist, locals())
    check_split(split)
    folder = _folder(dir)
    present = {name for name in _FILES if _find(folder, name)}
    if present != {name for name in _FILES if name.startswith("t10k")}:
        for name in _FILES:
            if name not in present:
                _download(name, folder)
        parts = {"train": ("train",), "test": ("t10k",), "all": ("train", "t10k")}[split]
        return _read(folder, parts, "mnist")
    return take_split(_read(folder, ("t10k",), "mnist-t10k"), split, 1000, seed)


def _folder(dir: str | os.PathLike[str] | None) -> pathlib.Path:
    if dir is not None:
        return pathlib.Path(dir).expanduser()
    if root := os.environ.get("JFLOW_DATA_DIR"):
        return pathlib.Path(root).expanduser() / "mnist"
    return pathlib.Path.home() / ".cache" / "jflow" / "mnist"


def _find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(folder: pathlib.Path, parts: tuple[str, ...], name: str) -> Dataset:
    def load(kind: str, header: int) -> np.ndarray:
        files = (f"{part}-{kind}-ubyte" for part in parts)
        contents = (_checked(_find(folder, file) or folder / file, file) for file in files)
        return np.concatenate([np.frombuffer(content, np.uint8, offset=header) for content in contents])

    images = load("images-idx3", 16).reshape(-1, 28, 28, 1)
    return from_array(images, load("labels-idx1", 8), name=name, num_classes=10)


def _checked(path: pathlib.Path, name: str) -> bytes:
    """The uncompressed content of a file, or `ValueError` where it is not the published one."""
    size, sha256 = _FILES[name]
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(size + 1)  # an altered file may unpack to anything
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(_complaint(path, f"it does not unpack ({error})")) from error
    if len(content) != size:
        longer = " at least" if len(content) > size else ""
        raise ValueError(_complaint(path, f"it unpacks to{longer} {len(content)} bytes instead of {size}"))
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ValueError(_complaint(path, f"its content has sha256 {digest} instead of {sha256}"))
    return content


def _complaint(path: pathlib.Path, what: str) -> str:
    return (
        f"An MNIST file must be the published one to the last byte. {path} is truncated or altered: {what}; "
        "delete it and it is downloaded again, or put an intact copy in its place."
    )


def _download(name: str, folder: pathlib.Path) -> None:
    address = f"{_ADDRESS}{name}.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            path = pathlib.Path(scratch) / f"{name}.gz"
            with urllib.request.urlopen(address, timeout=60) as answer, open(path, "wb") as file:
                shutil.copyfileobj(answer, file)
            _checked(path, name)
            os.replace(path, folder / path.name)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"MNIST must be in {folder}, or be downloaded there. Got {error} from {address}: put the four IDX files "
            "there, or set JFLOW_DATA_DIR to a folder whose subfolder mnist holds them."
        ) from error
