"""The scanned digits that ship inside scikit-learn."""

import numpy as np

from .._extra import from_extra
from .._kinds import check_kinds
from ._dataset import Dataset, check_seed, check_split, take_split


def digits(split: str = "train", seed: int = 0) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels, shape `(n, 8, 8, 1)`, the values 0..16 going to [-1, 1].

    `split` is `"train"` (1,437), `"test"` (360) or `"all"` (the one after the other), stratified by class and
    drawn, with the order, by `seed`. Needs scikit-learn, which holds the files: nothing is downloaded.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), the test part.

    ```python
    data = jf.data.digits("test")
    assert data.x.shape == (360, 8, 8, 1) and data.num_classes == 10
    ```
    """
    check_kinds(digits, locals())
    with from_extra("jflow.data.digits"):
        from sklearn.datasets import load_digits

    check_split(split)
    check_seed(seed)
    pixels, label = load_digits(return_X_y=True)
    x = (pixels.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
    return take_split(Dataset(x, label, "digits", 10), split, 360, seed)
