"""The engine: equations in a clock, the loop of a grid, adaptive solves, the pool."""

from .adaptive import check_source as check_source
from .adaptive import check_tree as check_tree
from .adaptive import run_adaptive as run_adaptive
from .count import evaluation_nodes as evaluation_nodes
from .count import levy_kinds as levy_kinds
from .density import with_density as with_density
from .density import with_divergence as with_divergence
from .equation import AbstractEquation as AbstractEquation
from .equation import DriftEquation as DriftEquation
from .equation import FieldEquation as FieldEquation
from .grid_loop import run_grid as run_grid
from .lowered import lowered as lowered
from .pool import continuous as continuous
from .pool import takes_lanes as takes_lanes
from .solver_rule import SolverRule as SolverRule
from .stepper import Stepper as Stepper
from .stepper import adaptive_equation as adaptive_equation
from .stepper import bind as bind
from .stepper import drift_stepper as drift_stepper
from .stepper import meet as meet
from .stepper import meet_ode as meet_ode
from .stepper import ode_stepper as ode_stepper
from .stepper import stepper as stepper
