"""Solvers of fields, one method a file, each a `diffrax.AbstractSolver`."""

from ._checks import adds_noise as adds_noise
from ._checks import check_ode_solver as check_ode_solver
from ._checks import check_same_clock as check_same_clock
from ._checks import choose_clock as choose_clock
from ._multistep import AbstractMultistep as AbstractMultistep
from .adams import Adams as Adams
from .cfgpp import CFGpp as CFGpp
from .churn import EDMChurn as EDMChurn
from .deis import DEIS as DEIS
from .dpmpp import DPMpp as DPMpp
from .dpmpp_singlestep import DPMppSinglestep as DPMppSinglestep
from .guidance_momentum import GuidanceMomentum as GuidanceMomentum
from .non_stationary import NonStationary as NonStationary
from .sa import SASolver as SASolver
from .unipc import UniPC as UniPC
