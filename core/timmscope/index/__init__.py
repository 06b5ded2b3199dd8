"""Searches a store for the images nearest to a query, or highest in an objective."""

from .backend import Backend, BuildHints, RecallBenchmark
from .queries import Hits
from .search import Found, search
from .strongest import strongest
from .vector_index import VectorIndex

__all__ = [
    "Backend",
    "BuildHints",
    "Found",
    "Hits",
    "RecallBenchmark",
    "VectorIndex",
    "search",
    "strongest",
]
