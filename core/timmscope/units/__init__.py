"""What a layer's units are worth: dead, sparse, saturated, redundant, selective of a class."""

from .judge import UnitThresholds, judge_rows, judge_units
from .judged_units import JudgedUnits
from .report import UnitReport
from .unit_rows import UnitRows

__all__ = ["JudgedUnits", "UnitReport", "UnitRows", "UnitThresholds", "judge_rows", "judge_units"]
