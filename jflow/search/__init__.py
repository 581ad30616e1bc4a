"""Samplers fitted to a field: a grid of times, or the best of many samplers at a given number of evaluations."""

from .best import Best, best_sampler
from .times import optimize_times

__all__ = ["Best", "best_sampler", "optimize_times"]
