"""Pictures in binary files of fixed layout: IDX and CIFAR-10's."""

import gzip
import math
import os
import pathlib
import zlib

import numpy as np

from .._kinds import check_kinds
from ._dataset import Dataset, check_split

_DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_CLOTHES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ROW = 1 + 3 * 32 * 32  # label, then red, green and blue planes


def from_idx(images: str | os.PathLike[str], label: str | os.PathLike[str] | None = None) -> Dataset:
    """A data set of an IDX file of images, and one of labels: the layout of MNIST, compressed (`.gz`) or not.

    Images `(n, H, W)` of bytes become `(n, H, W, 1)`, held as bytes and scaled to [-1, 1] when they are taken.

    Raises `FileNotFoundError` where there is no such file, and `ValueError` for a file that is no IDX file of bytes, is
    truncated or has more than its header says, and for labels that are not as many as the images.

    ```python
    import pathlib, struct, tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "mine-images-idx3-ubyte")
        file.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 4) + bytes(32))
        data = jf.data.from_idx(file)
    assert data.x.shape == (2, 4, 4, 1) and (data[0]["x"] == -1).all()
    ```
    """
    check_kinds(from_idx, locals())
    x = _read_idx(pathlib.Path(images), 3)[..., None]
    name = pathlib.Path(images).name.removesuffix(".gz")
    if label is None:
        return Dataset(x, None, name, None)
    classes = _read_idx(pathlib.Path(label), 1)
    return Dataset(x, classes, name, int(classes.max(initial=0)) + 1)


def fashion_mnist(split: str = "train", dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Pictures of clothes of 28 x 28 pixels in ten classes, `(n, 28, 28, 1)`, held as bytes.

    The four IDX files, compressed (`.gz`) or not, are looked for in `dir`, by default in
    `$JFLOW_DATA_DIR/fashion-mnist` and where Debian's package `dataset-fashion-mnist` puts them. `split` is the
    official `"train"` (60,000), `"test"` (10,000), or `"all"`.

    Raises `FileNotFoundError` where a file is missing, and `ValueError` for one that is damaged.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747.

    ```python
    import pathlib, struct, tempfile

    with tempfile.TemporaryDirectory() as folder:  # in the place of the real files
        for kind, size in {"images-idx3": (2, 28, 28), "labels-idx1": (2,)}.items():
            head = struct.pack(f">4B{len(size)}I", 0, 0, 8, len(size), *size)
            pathlib.Path(folder, f"t10k-{kind}-ubyte").write_bytes(head + bytes(np.prod(size)))
        data = jf.data.fashion_mnist("test", folder)
    assert data.x.shape == (2, 28, 28, 1) and data.classes[0] == "t-shirt"
    ```
    """
    check_kinds(fashion_mnist, locals())
    check_split(split)
    folders = [_DEBIAN] if dir is None else [pathlib.Path(dir).expanduser()]
    if dir is None and (root := os.environ.get("JFLOW_DATA_DIR")):
        folders.insert(0, pathlib.Path(root).expanduser() / "fashion-mnist")

    def read(kind: str, axes: int) -> np.ndarray:
        return np.concatenate([_read_idx(find_idx(folders, f"{part}-{kind}-ubyte"), axes) for part in parts])

    parts = {"train": ("train",), "test": ("t10k",), "all": ("train", "t10k")}[split]
    return Dataset(read("images-idx3", 3)[..., None], read("labels-idx1", 1), "fashion-mnist", 10, _CLOTHES)


def cifar10(split: str = "train", dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Photographs of 32 x 32 pixels in ten classes, `(n, 32, 32, 3)`, held as bytes.

    The binary files `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin` are looked for in `dir`, by default
    `$JFLOW_DATA_DIR/cifar-10-batches-bin`; nothing is downloaded. `split` is `"train"` (50,000), `"test"` (10,000), or
    `"all"`.

    Raises `FileNotFoundError` where a file is missing, and `ValueError` for one that is truncated or has a label that
    is no class.

    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.

    ```python
    import pathlib, tempfile

    with tempfile.TemporaryDirectory() as folder:  # in the place of the real file
        pathlib.Path(folder, "test_batch.bin").write_bytes(bytes([3, *bytes(3072)]) * 2)
        data = jf.data.cifar10("test", folder)
    assert data.x.shape == (2, 32, 32, 3) and data.classes[data[0]["label"]] == "cat"
    ```
    """
    check_kinds(cifar10, locals())
    check_split(split)
    root = os.environ.get("JFLOW_DATA_DIR", ".") if dir is None else None
    folder = pathlib.Path(root, "cifar-10-batches-bin") if root is not None else pathlib.Path(dir or "").expanduser()
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    names = {"train": train, "test": ["test_batch.bin"], "all": [*train, "test_batch.bin"]}[split]
    rows = np.concatenate([_read_rows(folder / name) for name in names])
    x = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Dataset(np.ascontiguousarray(x), rows[:, 0], "cifar-10", 10, _OBJECTS)


def find_idx(folders: list[pathlib.Path], name: str) -> pathlib.Path:
    """The first of `name` and `name.gz` in the folders."""
    found = [path for folder in folders for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"Fashion-MNIST must be in its four IDX files. Got no {name} in {' or '.join(map(str, folders))}: install "
            "Debian's package dataset-fashion-mnist, or set JFLOW_DATA_DIR to a folder whose sub-folder fashion-mnist "
            "holds them."
        )
    return found[0]


def _read_rows(path: pathlib.Path) -> np.ndarray:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(
            f"CIFAR-10 must be in its binary files, data_batch_1.bin to data_batch_5.bin and test_batch.bin. Got "
            f"{path}: {error.strerror}; unpack cifar-10-binary.tar.gz, and set JFLOW_DATA_DIR to the folder above."
        ) from None
    if not content or len(content) % _ROW:
        raise ValueError(
            f"A file of CIFAR-10 must have {_ROW} bytes a picture. Got {path} of {len(content)} bytes: copy it again."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, _ROW)
    if rows[:, 0].max() > 9:
        raise ValueError(f"A label of CIFAR-10 must be 0 to 9. Got {rows[:, 0].max()} in {path}: copy it again.")
    return rows


def _read_idx(path: pathlib.Path, axes: int) -> np.ndarray:
    """The bytes of an IDX file of so many axes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"A data set must be read from an IDX file. Got {path}: no such file.") from None
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"An IDX file must unpack. Got {path}, which is damaged ({error}): copy it again.") from error
    start = 4 + 4 * axes
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) < start:
        raise ValueError(
            f"An IDX file of bytes with {axes} axes must begin with 0 0 8 {axes}. Got {path}, which begins with "
            f"{' '.join(map(str, content[:4]))}."
        )
    shape = tuple(int(side) for side in np.frombuffer(content, ">u4", axes, 4))
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"An IDX file must hold what its header says. Got {path} with {len(content) - start} bytes for shape "
            f"{shape}: copy it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
