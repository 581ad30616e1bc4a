"""The engine: equations in a clock, the loop of a grid, adaptive solves, the pool."""

from .adaptive import check_source, check_tree, run_adaptive
from .count import evaluation_nodes, levy_kinds, rule_evaluations
from .density import with_density, with_divergence
from .equation import AbstractEquation, DriftEquation, FieldEquation
from .grid_loop import run_grid
from .lowered import lowered
from .pool import continuous, takes_lanes
from .solver_rule import SolverRule
from .stepper import Stepper, adaptive_equation, bind, check_is_ode, drift_stepper, meet, meet_ode, ode_stepper, stepper
