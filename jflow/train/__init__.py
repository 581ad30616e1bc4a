"""Training: `init` a state, `step` it on a batch, or `fit` the whole run with metrics and checkpoints.

A loss is `loss(field, key, example)` of one example; `step` vmaps it over the batch and takes the mean.
"""

from ._average import PowerEMA
from ._checkpoint import restore, save, warm_start
from ._couple import AbstractPlan, Assignment, Coupling, Independent, Pairs, Sinkhorn, couple
from ._fit import fit
from ._posthoc import posthoc
from ._state import State, init
from ._step import Info, mean_loss, step

__all__ = [
    "AbstractPlan",
    "Assignment",
    "Coupling",
    "Independent",
    "Info",
    "Pairs",
    "PowerEMA",
    "Sinkhorn",
    "State",
    "couple",
    "fit",
    "init",
    "mean_loss",
    "posthoc",
    "restore",
    "save",
    "step",
    "warm_start",
]
