"""Finds the units of a layer that are dead, sparse, saturated, redundant or selective."""

from .judge import UnitThresholds, judge_rows, judge_units
from .unit_report import UnitReport
from .unit_rows import UnitRows

__all__ = ["UnitReport", "UnitRows", "UnitThresholds", "judge_rows", "judge_units"]
