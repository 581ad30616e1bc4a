"""Few-step models: what a flow map is trained by, and the joint laws of its two times.

`jflow.FlowMap` is the map `X_{s,t}`, `jflow.Jump` its step. Here are the losses whose optimum is the flow map of the
data's own velocity, or of a teacher's: `flow_map_loss` takes one example, and the objective is one object.
`distribution_matching_loss` matches the law of a teacher's draws. `reflow` writes the pairs of a
flow, on which `jflow.matching_loss` trains a straighter one.
"""

from ._distribution import distribution_matching_loss
from ._law import AbstractPairLaw, DyadicPairs, Pair, TimePairs, ToData
from ._loss import flow_map_loss
from ._objective import (
    AbstractObjective,
    Consistency,
    Example,
    ImprovedMeanFlow,
    Lagrangian,
    MeanFlow,
    Semigroup,
    Shortcut,
)
from ._reflow import reflow
from ._weight import AdaptiveWeight, PseudoHuber

__all__ = [
    "AbstractObjective",
    "AbstractPairLaw",
    "AdaptiveWeight",
    "Consistency",
    "DyadicPairs",
    "Example",
    "ImprovedMeanFlow",
    "Lagrangian",
    "MeanFlow",
    "Pair",
    "PseudoHuber",
    "Semigroup",
    "Shortcut",
    "TimePairs",
    "ToData",
    "distribution_matching_loss",
    "flow_map_loss",
    "reflow",
]
