"""Data: real digits, sets in the plane, your own pictures and arrays, and batches of them."""

from ._augment import augment, crop, flip
from ._batch import batch, loader
from ._binary import cifar10, fashion_mnist, from_idx
from ._dataset import Dataset, from_array, from_npz
from ._digits import digits
from ._folder import from_folder
from ._mnist import mnist
from ._planar import checkerboard, circles, eight_gaussians, moons, spirals

__all__ = [
    "Dataset",
    "augment",
    "batch",
    "checkerboard",
    "cifar10",
    "circles",
    "crop",
    "digits",
    "eight_gaussians",
    "fashion_mnist",
    "flip",
    "from_array",
    "from_folder",
    "from_idx",
    "from_npz",
    "loader",
    "mnist",
    "moons",
    "spirals",
]
