"""Samplers fitted to a field."""

from .best import Best as Best
from .best import best_sampler as best_sampler
from .times import optimize_times as optimize_times
