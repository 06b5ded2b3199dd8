"""Collectors: mergeable accumulators fed during a pass over a data set."""

from .base import Collector, Column, LayerBatch, RowCollector, State
from .rows import Extrema, Maps, Pooled
from .sketch import RELATIVE_ERROR
from .statistics import Moments, Statistics
from .top_k import TopK

__all__ = [
    "RELATIVE_ERROR",
    "Collector",
    "Column",
    "Extrema",
    "LayerBatch",
    "Maps",
    "Moments",
    "Pooled",
    "RowCollector",
    "State",
    "Statistics",
    "TopK",
]
