"""What a layer's units are worth: dead, sparse, saturated, redundant, selective of a class."""

from .judge import Thresholds, judge_units
from .report import UnitReport

__all__ = ["Thresholds", "UnitReport", "judge_units"]
