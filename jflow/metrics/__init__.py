"""How far draws are from data: distances between two samples, computed on the host in float64.

A sample is an array `(n, *event)`; an event of any shape counts as one vector of its components, and an
array `(n,)` as `n` numbers. The two samples may differ in size. Energy distance and MMD are V-statistics:
averages over all pairs, a point's pair with itself among them, hence never negative (beyond rounding), zero
for identical samples, and biased upwards by O(1/n + 1/m). Every function raises `ValueError` for an empty
sample, a value that is not finite, or two samples whose events differ in size.

Where events are padded, as point clouds of different sizes are, `mask=(mask_x, mask_y)` says what is there, along the
first axes of each sample, as `(n, points)` for clouds `(n, points, d)`: padding counts as zero, whatever stands there.
Such a distance is that of the padded laws, sizes included, and `x[mask_x]` are the points of all clouds together.
"""

from ._distances import (
    c2st,
    c2st_power,
    class_accuracy,
    energy_distance,
    frechet_distance,
    kid,
    mmd,
    nearest_distance,
    precision_recall,
    sliced_wasserstein,
    straightness,
    transport_cost,
    wasserstein_1d,
)
from ._features import Features, features

__all__ = [
    "Features",
    "c2st",
    "c2st_power",
    "class_accuracy",
    "energy_distance",
    "features",
    "frechet_distance",
    "kid",
    "mmd",
    "nearest_distance",
    "precision_recall",
    "sliced_wasserstein",
    "straightness",
    "transport_cost",
    "wasserstein_1d",
]
