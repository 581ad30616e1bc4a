"""Training: `init` a state, `step` it on a batch, or `fit` the whole run with metrics and checkpoints.

A loss is `loss(field, key, example)` of one example; `step` vmaps it over the batch and takes the mean.
"""

from ._checkpoint import restore, save
from ._couple import AbstractPlan, Assignment, Coupling, Independent, Pairs, Sinkhorn, couple
from ._fit import fit
from ._state import State, init
from ._step import Info, step

__all__ = [
    "AbstractPlan",
    "Assignment",
    "Coupling",
    "Independent",
    "Info",
    "Pairs",
    "Sinkhorn",
    "State",
    "couple",
    "fit",
    "init",
    "restore",
    "save",
    "step",
]
