"""Search: the images of a store nearest to a query, or highest in an objective."""

from .backend import Backend, BuildHints, RecallBenchmark
from .search import Found, search
from .strongest import strongest
from .vector_index import Hits, VectorIndex

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
