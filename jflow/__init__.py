"""Flow and diffusion generative models in JAX.

Pure functions define vector fields and diffusion coefficients, diffrax integrates them, flax networks are trained with
optax. Time runs from noise (t = 0) to data (t = 1); everything along time is a function `f(t, x, args)` of one example.
"""

import importlib as _importlib

from ._brownian import Recorded as Recorded
from ._brownian import dyadic_noise as dyadic_noise
from ._clock import AbstractClock as AbstractClock
from ._clock import AngleClock as AngleClock
from ._clock import PathClock as PathClock
from ._clock import RatioClock as RatioClock
from ._clock import SigmaClock as SigmaClock
from ._clock import ThetaClock as ThetaClock
from ._custom_path import Path as Path
from ._divergence import Exact as Exact
from ._divergence import Hutchinson as Hutchinson
from ._divergence import HutchPlusPlus as HutchPlusPlus
from ._field import AbstractField as AbstractField
from ._field import Field as Field
from ._field import Preconditioned as Preconditioned
from ._field import change_path as change_path
from ._field import trainable as trainable
from ._generate import generate as generate
from ._guidance import APG as APG
from ._guidance import AbstractRule as AbstractRule
from ._guidance import CFGZero as CFGZero
from ._guidance import ClassifierGuided as ClassifierGuided
from ._guidance import Guided as Guided
from ._guidance import Rescaled as Rescaled
from ._guidance import Thresholded as Thresholded
from ._guidance import drop_condition as drop_condition
from ._log_prob import bits_per_dim as bits_per_dim
from ._log_prob import dequantize as dequantize
from ._log_prob import log_prob as log_prob
from ._loss import edm_weight as edm_weight
from ._loss import likelihood_weight as likelihood_weight
from ._loss import matching_loss as matching_loss
from ._loss import min_snr_weight as min_snr_weight
from ._loss import sigmoid_weight as sigmoid_weight
from ._path import VE as VE
from ._path import VP as VP
from ._path import AbstractPath as AbstractPath
from ._path import CondOT as CondOT
from ._path import Cosine as Cosine
from ._path import LinearVP as LinearVP
from ._prediction import convert as convert
from ._sample import decode as decode
from ._sample import encode as encode
from ._sample import sample as sample
from ._search import Best as Best
from ._search import best_sampler as best_sampler
from ._search import optimize_times as optimize_times
from ._solve import flow_map as flow_map
from ._solve import solve as solve
from ._solver import DEIS as DEIS
from ._solver import Adams as Adams
from ._solver import CFGpp as CFGpp
from ._solver import DPMpp as DPMpp
from ._solver import DPMppSinglestep as DPMppSinglestep
from ._solver import EDMChurn as EDMChurn
from ._solver import GuidanceMomentum as GuidanceMomentum
from ._solver import NonStationary as NonStationary
from ._solver import SASolver as SASolver
from ._solver import UniPC as UniPC
from ._times import AbstractLaw as AbstractLaw
from ._times import LogitNormal as LogitNormal
from ._times import LogNormalSigma as LogNormalSigma
from ._times import Uniform as Uniform
from ._times import cosine_times as cosine_times
from ._times import eased_times as eased_times
from ._times import karras_times as karras_times
from ._times import log_snr_times as log_snr_times
from ._times import ratio_times as ratio_times
from ._times import stratified_times as stratified_times
from ._times import uniform_times as uniform_times
from ._types import Solution as Solution

__version__ = "0.1.0"

_WINGS = ("nn", "train", "data", "metrics", "plot", "distributions", "processes", "testing")


def __getattr__(name: str):
    if name in _WINGS:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'jflow' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_WINGS])
