"""What a layer's units are worth: dead, sparse, saturated, redundant, selective of a class."""

from .judge import UnitThresholds, judge_units
from .report import UnitReport

__all__ = ["UnitReport", "UnitThresholds", "judge_units"]
