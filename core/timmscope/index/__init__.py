"""Nearest-neighbour search over the rows of a store's layer."""

from timmscope.index.backend import Backend, BuildHints, RecallBenchmark
from timmscope.index.vector_index import Hits, VectorIndex

__all__ = ["Backend", "BuildHints", "Hits", "RecallBenchmark", "VectorIndex"]
