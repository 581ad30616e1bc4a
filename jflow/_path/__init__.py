"""Paths: how noise and data are mixed at each time, one path a file."""

from ._abstract import AbstractAffinePath as AbstractAffinePath
from ._abstract import AbstractDifferentiablePath as AbstractDifferentiablePath
from ._abstract import AbstractPath as AbstractPath
from .cond_ot import CondOT as CondOT
from .cosine import Cosine as Cosine
from .custom import CustomPath as CustomPath
from .linear_vp import LinearVP as LinearVP
from .table import TablePath as TablePath
from .ve import VE as VE
from .vp import VP as VP
