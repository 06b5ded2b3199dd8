"""What a layer's units are worth: dead, sparse, saturated, redundant, selective of a class."""

from .judge import UnitThresholds, judge_rows, judge_units
from .report import UnitReport
from .unit_rows import UnitRows

__all__ = ["UnitReport", "UnitRows", "UnitThresholds", "judge_rows", "judge_units"]
