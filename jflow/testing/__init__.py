"""Certificates: checks of paths, fields and samplers that a user runs on their own."""

from ._certify import certify
from ._checks import check_field, check_path
from ._maps import Residuals, check_map, diagnose
from ._report import Check, Report

__all__ = ["Check", "Report", "Residuals", "certify", "check_field", "check_map", "check_path", "diagnose"]
