"""Flow and diffusion generative models in JAX.

Pure functions define vector fields and diffusion coefficients, diffrax integrates them, flax networks are trained with
optax. Time runs from noise (t = 0) to data (t = 1); everything along time is a function `f(t, x, args)` of one example.
"""

import importlib as _importlib
import typing as _typing

from . import laws
from ._args import Args, bare
from ._batched import batched, generate
from ._brownian import Recorded, dyadic_noise
from ._clock import AbstractClock, AngleClock, PathClock, RatioClock, SigmaClock, ThetaClock
from ._divergence import AbstractDivergence, ExactDivergence, Hutchinson, HutchPlusPlus
from ._engine import Stepper, evaluation_nodes, stepper
from ._field import AbstractField, Field, Preconditioned, change_path
from ._flow_map import FlowMap, Jump
from ._grid import AbstractGridRule, CosineGrid, EasedGrid, KarrasGrid, LogSNRGrid, RatioGrid, ShiftedGrid, UniformGrid
from ._guidance import (
    APG,
    AbstractGuidanceRule,
    AbstractGuide,
    CFGZero,
    ClassifierGuided,
    Guided,
    Rescaled,
    Thresholded,
    drop_condition,
)
from ._log_prob import bits_per_dim, dequantize, log_prob
from ._loss import matching_loss
from ._noise_rule import AbstractNoiseRule, Ancestral
from ._path import (
    VE,
    VP,
    AbstractAffinePath,
    AbstractDifferentiablePath,
    AbstractPath,
    CondOT,
    Cosine,
    CustomPath,
    LinearVP,
    TablePath,
)
from ._prediction import AbstractPrediction, Logits, Row, Velocity, convert, given
from ._recommended import recommended
from ._rule import AbstractStepRule
from ._sample import decode, encode, sample
from ._sampler import AdaptiveSteps, FixedSteps
from ._serialise import from_json, to_json
from ._solve import ODEFlow, solve
from ._solver import (
    DEIS,
    DPM2,
    AbstractFieldSolver,
    AbstractMultistep,
    Adams,
    CFGpp,
    DPMpp,
    DPMppSinglestep,
    EDMChurn,
    LangevinCorrector,
    NonStationary,
    SASolver,
    UniPC,
)
from ._source import (
    GIVEN,
    AbstractGaussianSource,
    AbstractNoiseMap,
    AbstractSource,
    Coloured,
    Given,
    Normal,
    ZeroCentre,
)
from ._trainable import frozen, trainable
from ._tree import brownian_tree
from ._types import Noun, Solution
from ._weight import edm_weight, likelihood_weight, min_snr_weight, sigmoid_weight, soft_min_snr_weight

__all__ = [  # the wings come lazily
    "APG", "AbstractAffinePath", "AbstractClock", "AbstractDifferentiablePath", "AbstractDivergence",
    "AbstractField", "AbstractFieldSolver", "AbstractGaussianSource", "AbstractGridRule", "AbstractGuidanceRule",
    "AbstractGuide", "AbstractMultistep", "AbstractNoiseMap", "AbstractNoiseRule", "AbstractPath",
    "AbstractPrediction", "AbstractSource", "AbstractStepRule", "Adams", "AdaptiveSteps", "Ancestral", "AngleClock",
    "Args", "CFGZero", "CFGpp", "ClassifierGuided", "Coloured", "CondOT", "Cosine", "CosineGrid", "CustomPath",
    "DEIS", "DPM2", "DPMpp", "DPMppSinglestep", "EDMChurn", "EasedGrid", "ExactDivergence", "Field", "FixedSteps",
    "FlowMap", "GIVEN", "Given", "Guided", "HutchPlusPlus", "Hutchinson", "Jump", "KarrasGrid", "LangevinCorrector",
    "LinearVP", "LogSNRGrid", "Logits", "NonStationary", "Normal", "Noun", "ODEFlow", "PathClock", "Preconditioned",
    "RatioClock", "RatioGrid", "Recorded", "Rescaled", "Row", "SASolver", "ShiftedGrid", "SigmaClock", "Solution",
    "Stepper", "TablePath", "ThetaClock", "Thresholded", "UniPC", "UniformGrid", "VE", "VP", "Velocity",
    "ZeroCentre", "bare", "batched", "bits_per_dim", "brownian_tree", "change_path", "convert", "decode",
    "dequantize", "drop_condition", "dyadic_noise", "edm_weight", "encode", "evaluation_nodes", "from_json",
    "frozen", "generate", "given", "laws", "likelihood_weight", "log_prob", "matching_loss", "min_snr_weight",
    "recommended", "sample", "sigmoid_weight", "soft_min_snr_weight", "solve", "stepper", "to_json", "trainable",
]  # fmt: skip

__version__ = "0.2.0.dev0"

_WINGS = (
    *("nn", "train", "data", "metrics", "plot", "distributions"),
    *("processes", "testing", "samplers", "search", "few_step"),
)

if _typing.TYPE_CHECKING:  # what an editor sees; at run time a wing is imported when it is used
    from . import data, distributions, few_step, metrics, nn, plot, processes, samplers, search, testing, train
    from .train._model import load, save
else:

    def __getattr__(name: str):
        if name in _WINGS:
            return _importlib.import_module(f".{name}", __name__)
        if name in ("load", "save"):
            return getattr(_importlib.import_module(".train._model", __name__), name)
        raise AttributeError(f"module 'jflow' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_WINGS, "load", "save"})
