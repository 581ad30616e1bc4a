"""Data: real digits, sets in the plane, your own arrays, and batches of them."""

from ._batch import batch, loader
from ._dataset import Dataset, from_array, from_npz
from ._digits import digits
from ._mnist import mnist
from ._planar import checkerboard, circles, eight_gaussians, moons, spirals

__all__ = [
    "Dataset",
    "batch",
    "checkerboard",
    "circles",
    "digits",
    "eight_gaussians",
    "from_array",
    "from_npz",
    "loader",
    "mnist",
    "moons",
    "spirals",
]
