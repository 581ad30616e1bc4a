"""Exact worlds: distributions whose fields are known along every path.

Each has `sample(key)` (one event), `log_prob(x)` and `score(x)` where it has a density, `at(path, t)`, the marginal
at a time, and `field(path)`, the exact field: velocity, data, noise and score at every time. Paths are affine, from
white noise. Check solvers, paths, losses and trained networks against them.
"""

from ._abstract import AbstractDensity, AbstractDistribution, ExactField, Moments
from ._boxes import Boxes, checkerboard
from ._gaussian import Gaussian
from ._labelled import HierarchicalGaussian, LabelledMixture
from ._mixture import GaussianMixture
from ._planar import circles, moons, spirals
from ._points import PointSet

__all__ = [
    "AbstractDensity",
    "AbstractDistribution",
    "Boxes",
    "ExactField",
    "Gaussian",
    "GaussianMixture",
    "HierarchicalGaussian",
    "LabelledMixture",
    "Moments",
    "PointSet",
    "checkerboard",
    "circles",
    "moons",
    "spirals",
]
