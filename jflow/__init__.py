"""Flow and diffusion generative models in JAX.

Pure functions define vector fields and diffusion coefficients, diffrax integrates them, flax networks are trained with
optax. Time runs from noise (t = 0) to data (t = 1); everything along time is a function `f(t, x, args)` of one example.
"""

import importlib as _importlib
import typing as _typing

from . import laws as laws
from ._args import Args as Args
from ._args import bare as bare
from ._batched import batched as batched
from ._batched import generate as generate
from ._brownian import Recorded as Recorded
from ._brownian import dyadic_noise as dyadic_noise
from ._clock import AbstractClock as AbstractClock
from ._clock import AngleClock as AngleClock
from ._clock import PathClock as PathClock
from ._clock import RatioClock as RatioClock
from ._clock import SigmaClock as SigmaClock
from ._clock import ThetaClock as ThetaClock
from ._divergence import AbstractDivergence as AbstractDivergence
from ._divergence import ExactDivergence as ExactDivergence
from ._divergence import Hutchinson as Hutchinson
from ._divergence import HutchPlusPlus as HutchPlusPlus
from ._engine import Stepper as Stepper
from ._engine import evaluation_nodes as evaluation_nodes
from ._engine import stepper as stepper
from ._field import AbstractField as AbstractField
from ._field import Field as Field
from ._field import Preconditioned as Preconditioned
from ._field import change_path as change_path
from ._flow_map import FlowMap as FlowMap
from ._flow_map import Jump as Jump
from ._grid import AbstractGridRule as AbstractGridRule
from ._grid import CosineGrid as CosineGrid
from ._grid import EasedGrid as EasedGrid
from ._grid import KarrasGrid as KarrasGrid
from ._grid import LogSNRGrid as LogSNRGrid
from ._grid import RatioGrid as RatioGrid
from ._grid import ShiftedGrid as ShiftedGrid
from ._grid import UniformGrid as UniformGrid
from ._guidance import APG as APG
from ._guidance import AbstractGuidanceRule as AbstractGuidanceRule
from ._guidance import AbstractGuide as AbstractGuide
from ._guidance import CFGZero as CFGZero
from ._guidance import ClassifierGuided as ClassifierGuided
from ._guidance import Guided as Guided
from ._guidance import Rescaled as Rescaled
from ._guidance import Thresholded as Thresholded
from ._guidance import drop_condition as drop_condition
from ._log_prob import bits_per_dim as bits_per_dim
from ._log_prob import dequantize as dequantize
from ._log_prob import log_prob as log_prob
from ._loss import matching_loss as matching_loss
from ._noise_rule import AbstractNoiseRule as AbstractNoiseRule
from ._noise_rule import Ancestral as Ancestral
from ._path import VE as VE
from ._path import VP as VP
from ._path import AbstractAffinePath as AbstractAffinePath
from ._path import AbstractDifferentiablePath as AbstractDifferentiablePath
from ._path import AbstractPath as AbstractPath
from ._path import CondOT as CondOT
from ._path import Cosine as Cosine
from ._path import CustomPath as CustomPath
from ._path import LinearVP as LinearVP
from ._path import TablePath as TablePath
from ._prediction import AbstractPrediction as AbstractPrediction
from ._prediction import Logits as Logits
from ._prediction import Row as Row
from ._prediction import Velocity as Velocity
from ._prediction import convert as convert
from ._prediction import given as given
from ._recommended import recommended as recommended
from ._rule import AbstractStepRule as AbstractStepRule
from ._sample import decode as decode
from ._sample import encode as encode
from ._sample import sample as sample
from ._sampler import AdaptiveSteps as AdaptiveSteps
from ._sampler import FixedSteps as FixedSteps
from ._serialise import from_json as from_json
from ._serialise import to_json as to_json
from ._solve import ODEFlow as ODEFlow
from ._solve import solve as solve
from ._solver import DEIS as DEIS
from ._solver import DPM2 as DPM2
from ._solver import AbstractFieldSolver as AbstractFieldSolver
from ._solver import AbstractMultistep as AbstractMultistep
from ._solver import Adams as Adams
from ._solver import CFGpp as CFGpp
from ._solver import DPMpp as DPMpp
from ._solver import DPMppSinglestep as DPMppSinglestep
from ._solver import EDMChurn as EDMChurn
from ._solver import LangevinCorrector as LangevinCorrector
from ._solver import NonStationary as NonStationary
from ._solver import SASolver as SASolver
from ._solver import UniPC as UniPC
from ._source import GIVEN as GIVEN
from ._source import AbstractGaussianSource as AbstractGaussianSource
from ._source import AbstractNoiseMap as AbstractNoiseMap
from ._source import AbstractSource as AbstractSource
from ._source import Coloured as Coloured
from ._source import Given as Given
from ._source import Normal as Normal
from ._source import ZeroCentre as ZeroCentre
from ._trainable import frozen as frozen
from ._trainable import trainable as trainable
from ._tree import brownian_tree as brownian_tree
from ._types import Noun as Noun
from ._types import Solution as Solution
from ._weight import edm_weight as edm_weight
from ._weight import likelihood_weight as likelihood_weight
from ._weight import min_snr_weight as min_snr_weight
from ._weight import sigmoid_weight as sigmoid_weight
from ._weight import soft_min_snr_weight as soft_min_snr_weight

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
