"""Guidance: fields made of fields, one method a file."""

from ._guide import AbstractGuide as AbstractGuide
from ._rule import AbstractGuidanceRule as AbstractGuidanceRule
from .apg import APG as APG
from .cfg_zero import CFGZero as CFGZero
from .classifier import ClassifierGuided as ClassifierGuided
from .guided import Guided as Guided
from .guided import drop_condition as drop_condition
from .rescale import Rescaled as Rescaled
from .threshold import Thresholded as Thresholded
