"""Judges the robustness of a model: attacks at several radii, defences, transfer, and checks."""

from timmscope.evaluation.under_attack.result import Robustness, Share
from timmscope.evaluation.under_attack.run import robustness

__all__ = ["Robustness", "Share", "robustness"]
