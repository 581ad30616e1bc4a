"""Solvers of fields, one method a file, each a `diffrax.AbstractSolver`."""

from ._multistep import AbstractMultistep as AbstractMultistep
from ._multistep import History as History
from ._traits import AbstractFieldSolver as AbstractFieldSolver
from ._traits import unwrapped as unwrapped
from .adams import Adams as Adams
from .cfgpp import CFGpp as CFGpp
from .churn import EDMChurn as EDMChurn
from .deis import DEIS as DEIS
from .dpmpp import DPMpp as DPMpp
from .dpmpp_singlestep import DPMppSinglestep as DPMppSinglestep
from .non_stationary import NonStationary as NonStationary
from .sa import SASolver as SASolver
from .unipc import UniPC as UniPC
