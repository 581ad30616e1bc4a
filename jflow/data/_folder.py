"""Folders of pictures: found, read by pillow in threads, brought to one size."""

import concurrent.futures
import math
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from .._extra import from_extra
from .._kinds import check_kinds
from .._validate import check_count
from ._dataset import Dataset

_NAMED = 5  # files of a message


def from_folder(path: str | os.PathLike[str], size: int, *, grey: bool = False, labels: bool | None = None) -> Dataset:
    """A data set of the pictures in a folder, `(n, size, size, 3)`, or `(n, size, size, 1)` in shades of grey.

    Every format that pillow reads is taken, sizes and formats may differ. A picture is turned upright as its EXIF says,
    laid on white where it is transparent, cut to its central square, and resized without aliasing (Lanczos). A JPEG
    whose sides are at least 4, 8 or 16 times `size` is decoded at a half, a quarter or an eighth of them, which is
    several times as fast for photographs. The pictures are decoded once, in threads, into bytes that stay in memory,
    `n * size * size * 3` of them; a batch of them is scaled to [-1, 1] when it is taken. Their order is that of their
    names.

    Where pictures lie in two sub-folders or more and none beside these, each sub-folder is a class, numbered from 0 by
    its name; pictures deeper inside belong to it. Files and folders that begin with a dot are skipped, as is what has
    no suffix of a picture, and a sub-folder without pictures is no class. A picture that cannot be read, because it is
    damaged or has vanished, is left out, and one warning names it.

    Args:
        path: The folder.
        size: The side of the pictures in the data set.
        grey: Whether colours are left out.
        labels: Whether sub-folders are classes: `True` raises where they cannot be, `False` takes all pictures
            without classes, and `None` decides as above.

    Raises `FileNotFoundError` where there is no such folder, and `ValueError` where it has no picture that can be read,
    where pictures lie beside sub-folders with pictures and `labels` does not say `False`, where a class has no picture
    that can be read, and where half of the memory does not hold the data set: read such a folder with `loader`.

    ```python
    import pathlib, tempfile
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        for name, colour in {"day": "white", "night": "black"}.items():
            pathlib.Path(folder, name).mkdir()
            Image.new("RGB", (40, 30), colour).save(pathlib.Path(folder, name, "sky.png"))
        data = jf.data.from_folder(folder, size=8)
    assert data.classes == ("day", "night") and data.x.dtype == np.uint8
    assert (data[0]["x"] == 1).all() and data[1]["label"] == 1
    ```
    """
    check_kinds(from_folder, locals())
    check_count(size=size)
    root = pathlib.Path(path).expanduser()
    files, label, classes = list_pictures(root, labels)
    channels = 1 if grey else 3
    check_fits(len(files), size, channels)
    x = np.empty((len(files), size, size, channels), np.uint8)

    def read(i: int) -> str | None:
        try:
            x[i] = _decode(files[i], size, grey)
        except Exception as error:  # pillow has a dozen kinds for what a file may hold
            return str(error).partition("\n")[0] or type(error).__name__
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = list(pool.map(read, range(len(files))))
    good = np.array([fault is None for fault in faults])
    bad = [f"{file.relative_to(root)} ({why})" for file, why in zip(files, faults, strict=True) if why is not None]
    if not good.any():
        raise ValueError(f"A folder must have a picture that can be read. Got {root}, which has none: {_few(bad)}.")
    if bad:
        warnings.warn(
            f"{len(bad)} of {len(files)} pictures of {root} cannot be read and are left out: {_few(bad)}", stacklevel=2
        )
        x = x[good]
    if label is None or classes is None:
        return Dataset(x, None, root.name, None)
    kept = np.asarray(label)[good]
    if empty := [name for c, name in enumerate(classes) if not (kept == c).any()]:
        raise ValueError(
            f"Each class must have a picture that can be read. Got none in {', '.join(empty)} of {root}: remove these "
            f"folders, or put the pictures right. {_few(bad)}."
        )
    return Dataset(x, kept, root.name, len(classes), classes)


def list_pictures(
    root: pathlib.Path, labels: bool | None = None
) -> tuple[list[pathlib.Path], list[int] | None, tuple[str, ...] | None]:
    """The pictures below a folder in the order of their names, and their classes, as `from_folder` says."""
    if not root.is_dir():
        what = "which is a file" if root.exists() else "which does not exist"
        raise FileNotFoundError(f"Pictures must be in a folder. Got {root}, {what}.")
    suffixes = _suffixes()
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    beside = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in suffixes]
    inside = {entry.name: list(_walk(entry, suffixes)) for entry in entries if entry.is_dir()}
    inside = {name: files for name, files in inside.items() if files}
    if not beside and not inside:
        raise ValueError(
            f"A folder must have pictures of a format that pillow reads, as .png or .jpg. Got {root}, which has none."
        )
    if labels is None and beside and len(inside) > 1:
        raise ValueError(
            f"Pictures must lie all in sub-folders, one a class, or all have no class. Got {root}, which has "
            f"{len(beside)} beside {len(inside)} sub-folders with pictures, the first {beside[0].name}: move them into "
            "sub-folders, or pass labels=False."
        )
    if labels and (beside or len(inside) < 2):
        raise ValueError(
            f"Classes must be two sub-folders or more that hold all pictures. Got {root}, which has {len(inside)} "
            f"with pictures, and {len(beside)} pictures beside them: sort them into sub-folders, or leave out labels."
        )
    files = sorted([*beside, *(file for group in inside.values() for file in group)])
    if labels is False or beside or len(inside) < 2:
        return files, None, None
    pairs = [(file, c) for c, group in enumerate(inside.values()) for file in group]
    return [file for file, _ in pairs], [c for _, c in pairs], tuple(inside)


def fit(images: np.ndarray, size: int, grey: bool) -> np.ndarray:
    """Images `(n, H, W, C)` of bytes in the form that `from_folder` gives to pictures."""
    with from_extra("Resizing"):
        from PIL import Image

    check_fits(len(images), size, 1 if grey else 3)
    return np.stack([_fitted(Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x), size, grey) for x in images])


def check_fits(n: int, size: int, channels: int) -> None:
    """Raises `ValueError` where half of the memory of the machine does not hold so many pictures."""
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    memory = math.prod(map(os.sysconf, names)) if hasattr(os, "sysconf") else math.inf
    if n * size * size * channels > memory / 2:
        raise ValueError(
            f"Half of the memory must hold the pictures, here {memory / 2**31:.3g} GiB. Got {n} pictures of "
            f"{size} x {size} x {channels} bytes, {n * size * size * channels / 2**30:.3g} GiB: take a smaller size, "
            "or read one at a time with jflow.data.loader."
        )


def _suffixes() -> set[str]:
    with from_extra("jflow.data.from_folder"):
        from PIL import Image

    return {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}


def _walk(folder: pathlib.Path, suffixes: set[str]) -> Iterator[pathlib.Path]:
    """The pictures below a folder by name, without what begins with a dot."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for where, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (pathlib.Path(where, name) for name in sorted(names) if not name.startswith("."))
        yield from (file for file in files if file.suffix.lower() in suffixes)


def _decode(file: pathlib.Path, size: int, grey: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image.draft("L" if grey else "RGB", (2 * size, 2 * size))  # of a JPEG alone
        ImageOps.exif_transpose(image, in_place=True)
        return _fitted(image, size, grey)


def _fitted(image: Any, size: int, grey: bool) -> np.ndarray:
    """A picture of pillow as bytes `(size, size, C)`."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which pillow would cut at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    side = min(image.size)  # cut first: what is cut off is not to tinge the edge
    left, top = ((length - side) // 2 for length in image.size)
    image = image if image.mode == (mode := "L" if grey else "RGB") else image.convert(mode)
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS)).reshape(size, size, -1)


def _few(lines: list[str]) -> str:
    return ", ".join(lines[:_NAMED]) + (f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else "")
