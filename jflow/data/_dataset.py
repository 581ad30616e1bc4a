"""A data set held in memory, and the ways to make one of your own arrays."""

import dataclasses
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped, UInt8

from .._extra import from_extra
from .._kinds import check_kinds
from .._validate import check_count, shown
from ._npz import read_npz


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Examples and, where there are any, their classes; immutable, checked once.

    - `x`: float32, shape `(n, *event)`, finite; images are `(n, H, W, C)` in [-1, 1]. Or uint8, images in 0..255 that
      stay bytes in memory.
    - `label`: int32, shape `(n,)`, values `0 .. num_classes - 1`; `None` without classes.
    - `name`: what reports call it.
    - `num_classes`: `None` without classes.
    - `classes`: the names of the classes, where they have names.

    `dataset[i]` is `{"x": x[i], "label": label[i]}` (no `"label"` without classes) for an index, a slice or
    an array of indices: one record, or a batch of them. Bytes become float32 there, `x[i] / 127.5 - 1`.

    Raises `ValueError` where one of these rules is broken.

    ```python
    data = jf.data.Dataset(np.zeros((3, 2), np.float32), np.array([0, 1, 1]), "mine", num_classes=2)
    assert len(data) == 3 and data[1:]["x"].shape == (2, 2) and data[0]["label"] == 0
    ```
    """

    x: Float[np.ndarray, "..."] | UInt8[np.ndarray, "..."]
    label: Integer[np.ndarray, "..."] | None
    name: str
    num_classes: int | None
    classes: tuple[str, ...] | None = None

    def __post_init__(self):
        check_kinds(Dataset, vars(self))
        x = np.asarray(self.x)
        x = x if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
        _check_examples(x, self.name)
        object.__setattr__(self, "x", _frozen(x))
        if (self.label is None) != (self.num_classes is None):
            raise ValueError(
                "label and num_classes must come together or not at all. "
                f"Got label {'missing' if self.label is None else 'given'}, num_classes {self.num_classes}."
            )
        if self.label is not None:
            object.__setattr__(self, "label", np.asarray(self.label))
            _check_labels(self.label, len(self.x), self.num_classes, self.name)
            object.__setattr__(self, "label", _frozen(self.label.astype(np.int32)))
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"Each class must have one name. Got {self.classes} for {self.num_classes} classes.")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        x = _scaled(self.x[index]) if self.x.dtype == np.uint8 else self.x[index]
        return {"x": x} if self.label is None else {"x": x, "label": self.label[index]}

    def __repr__(self) -> str:
        classes = "" if self.num_classes is None else f", {self.num_classes} classes"
        return f"Dataset({self.name}: {len(self)} x {self.x.shape[1:]}{classes})"


def from_array(
    x: Shaped[np.ndarray | Array, "..."],
    label: Shaped[np.ndarray | Array, "..."] | None = None,
    *,
    name: str = "array",
    num_classes: int | None = None,
) -> Dataset:
    """A data set of your own arrays, copied.

    Args:
        x: The examples, shape `(n, *event)` with at least one axis after the first. uint8 is read as images, 0..255
            going to [-1, 1] as `x / 127.5 - 1`; floats of any width become float32 and are not rescaled.
        label: The classes, shape `(n,)`, integers from 0.
        name: What reports call the set.
        num_classes: The number of classes, by default the largest label plus one.

    Raises `ValueError` for any other type, a wrong rank or length, an empty set, a value that is not finite
    in float32, a label out of range.

    ```python
    images = np.full((3, 8, 8, 1), 255, np.uint8)
    data = jf.data.from_array(images, np.array([0, 1, 2]), name="white")
    assert (data.x == 1).all() and data.num_classes == 3
    ```
    """
    try:
        x, label = np.asarray(x), None if label is None else np.asarray(label)
    except (TypeError, ValueError):  # lists of several lengths, keys, traced arrays
        raise ValueError(f"x and label must be known arrays of numbers. Got {shown(x)} and {shown(label)}.") from None
    if x.dtype == np.uint8:
        x = _scaled(x)
    elif jnp.issubdtype(x.dtype, jnp.floating):
        with np.errstate(over="ignore"):  # what overflows is reported as non-finite
            x = x.astype(np.float32)
    else:
        raise ValueError(
            f"x must be uint8 (images, 0..255) or floating point. Got {x.dtype}; convert it with "
            "x.astype(np.uint8) or x.astype(np.float32), whichever it means."
        )
    if label is None:
        return Dataset(x, None, name, None)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"Labels must be integers. Got {label.dtype}; use label.astype(np.int32).")
    if label.max(initial=0) >= 2**31:
        raise ValueError(
            f"Labels must be below 2^31. Got {label.min()} .. {label.max()}; np.unique(label, return_inverse=True)[1] "
            "numbers classes from 0."
        )
    if num_classes is None:
        num_classes = int(label.max(initial=0)) + 1
    return Dataset(x, label, name, num_classes)


def from_npz(path: str | os.PathLike[str]) -> Dataset:
    """A data set of the arrays `x` and, if there, `label` of an `.npz` file, as `from_array` reads them.

    Nothing is unpickled, and every member is read to its end and checked, whatever its name. Raises
    `FileNotFoundError` where there is no such file, and `ValueError` for a file that is not an `.npz`, is truncated
    or damaged, says of its arrays what is not so, holds Python objects or lacks `x`.

    ```python
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/mine.npz", x=np.ones((3, 2), np.float32), label=np.array([0, 1, 1]))
        data = jf.data.from_npz(f"{folder}/mine.npz")
    assert len(data) == 3 and data.name == "mine" and data.num_classes == 2
    ```
    """
    check_kinds(from_npz, locals())
    arrays = read_npz(path, ("x", "label"))
    x, label = arrays.get("x"), arrays.get("label")
    if x is None:
        raise ValueError(
            f"An .npz file must hold the examples under the name x. Got {path}, which holds {list(arrays)}; "
            "write it with np.savez(path, x=x, label=label)."
        )
    return from_array(x, label, name=os.path.splitext(os.path.basename(path))[0])


def take_split(dataset: Dataset, split: str, num_test: int, seed: int) -> Dataset:
    """The `split` of a labelled data set: `num_test` test examples, stratified by class and drawn by `seed`.

    The order is drawn by `seed` too: the files are sorted by writer, and a prefix must be a fair sample.
    """
    with from_extra("A data set that is divided"):
        from sklearn.model_selection import train_test_split

    check_split(split)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2^32 - 1. Got {seed}.")
    index = np.arange(len(dataset))
    train, test = train_test_split(index, test_size=num_test, stratify=dataset.label, random_state=seed)
    kept = {"train": train, "test": test, "all": np.concatenate([train, test])}[split]
    return Dataset(**dataset[kept], name=dataset.name, num_classes=dataset.num_classes)


def check_seed(seed: Any) -> None:
    """Raises `ValueError` for what is no seed: generators take the others modulo 2^32, or not at all."""
    check_count(0, seed=seed)
    if seed >= 2**32:
        raise ValueError(f"seed must be an integer below 2^32. Got {seed}.")


def check_split(split: str) -> None:
    """Raises `ValueError` where there is no such split."""
    if split not in ("train", "test", "all"):
        raise ValueError(f"A split must be 'train', 'test' or 'all'. Got {split!r}.")


def _scaled(x: Any) -> np.ndarray:
    """Bytes as float32 in [-1, 1]."""
    return x.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _frozen(x: np.ndarray) -> np.ndarray:
    view = x.view()
    view.setflags(write=False)
    return view


def _check_examples(x: np.ndarray, name: str) -> None:
    if x.ndim < 2:
        raise ValueError(
            f"x must have shape (n, *event) with at least one axis after the first. Got {x.shape} for {name}; "
            "n numbers are x[:, None], one example is x[None]."
        )
    if x.size == 0:
        raise ValueError(f"A data set must have at least one example, each of at least one number. Got {x.shape}.")
    if not np.isfinite(x).all():
        bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
        raise ValueError(
            f"Data must be finite in float32. Got {bad.sum()} of {len(x)} examples of {name} that are not, the first "
            f"at index {bad.argmax()}; keep x[np.isfinite(x).reshape(len(x), -1).all(1)], or rescale."
        )


def _check_labels(label: np.ndarray, n: int, num_classes: int | None, name: str) -> None:
    if label.shape != (n,):
        raise ValueError(
            f"There must be one label for each example: shape ({n},). Got {label.shape} for {name}; "
            "one-hot rows become labels by label.argmax(1)."
        )
    if num_classes is None or label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"Labels must be 0 .. num_classes - 1, here 0 .. {(num_classes or 0) - 1}. Got {label.min()} .. "
            f"{label.max()} for {name}; np.unique(label, return_inverse=True)[1] numbers classes from 0."
        )
