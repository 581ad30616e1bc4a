"""Solvers of fields, one method a file, each a `diffrax.AbstractSolver`."""

from ._multistep import AbstractMultistep as AbstractMultistep
from ._multistep import History as History
from ._traits import AbstractFieldSolver as AbstractFieldSolver
from ._traits import AbstractWrappedRule as AbstractWrappedRule
from ._traits import unwrapped as unwrapped
from ._traits import with_solver as with_solver
from .adams import Adams as Adams
from .cfgpp import CFGpp as CFGpp
from .churn import EDMChurn as EDMChurn
from .deis import DEIS as DEIS
from .dpm_2 import DPM2 as DPM2
from .dpmpp import DPMpp as DPMpp
from .dpmpp_singlestep import DPMppSinglestep as DPMppSinglestep
from .langevin import LangevinCorrector as LangevinCorrector
from .maps import carried as carried
from .maps import check_is_map as check_is_map
from .maps import inverse as inverse
from .maps import log_det as log_det
from .maps import step_of as step_of
from .non_stationary import NonStationary as NonStationary
from .sa import SASolver as SASolver
from .unipc import UniPC as UniPC
from .watched import Watched as Watched
from .watched import smaller as smaller
from .watched import watched as watched
