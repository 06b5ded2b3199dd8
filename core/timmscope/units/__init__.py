"""Which units of a layer are dead, sparse, saturated, redundant, or selective of a class."""

from .judge import UnitThresholds, judge_rows, judge_units
from .unit_report import UnitReport
from .unit_rows import UnitRows

__all__ = ["UnitReport", "UnitRows", "UnitThresholds", "judge_rows", "judge_units"]
