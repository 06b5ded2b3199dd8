"""`HNSWBackend` searches a graph of near neighbours: quick to search, but slow to build and large.

The graph is a hierarchical navigable small world (Malkov & Yashunin, arXiv:1603.09320) over 8-bit
codes, all in memory. FAISS builds it with several threads, so the same rows give a different graph
each time, of the same quality; `auto` does not choose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from timmscope.index.backend import BuildHints, Rows, Space
from timmscope.index.exact import Places
from timmscope.index.faiss_threads import faiss_library, faiss_threads
from timmscope.index.reranked import Mask, RerankedBackend, sample_places
from timmscope.index.table import RowTable
from timmscope.index.tuning import geometric_steps
from timmscope_registry import VectorIndexError

_LINKS = 32
_BUILD_EFFORT = 80
_THIN = 0.75
"""A filter leaves too few rows near a query if they keep less than this share of their average."""
_SAMPLE = 1 << 16
"""Number of rows that determine the range of the codes."""


def _needed_memory(rows: int, dim: int) -> int:
    """Return the bytes of codes, links and ids."""
    return rows * (dim + 8 * _LINKS + 17)


class HNSWBackend(RerankedBackend):
    """A graph over 8-bit codes in memory, and rows on disk.

    Removed rows stay in the graph and are never returned, until `compact` builds it again.

    Raises:
        VectorIndexError: the graph needs more memory than `hints` allow.
    """

    def __init__(self, dim: int, space: Space, hints: BuildHints) -> None:
        needed = _needed_memory(hints.count, dim)
        if hints.memory is not None and needed > hints.memory:
            raise VectorIndexError(
                f"a graph of {hints.count} rows of {dim} needs {needed} bytes of memory, and "
                f"memory is {hints.memory}: allow more, or use backend='ivf'"
            )
        super().__init__(dim, space, hints)

    def make_index(self, table: RowTable, held_out: Places) -> Any:
        """Create an empty graph whose codes have the range of a sample of the rows."""
        faiss = faiss_library()
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        index = faiss.IndexHNSWSQ(table.dim, faiss.ScalarQuantizer.QT_8bit, _LINKS, metric)
        index.hnsw.efConstruction = _BUILD_EFFORT
        index.train(table[sample_places(len(table), _SAMPLE, held_out, self._hints.seed)])
        return faiss.IndexIDMap(index)

    def withheld(self, count: int) -> int:
        """Return a tenth: recall is measured with rows outside the graph, as nodes are too easy."""
        return count // 10

    def efforts(self) -> Sequence[int]:
        """Return sizes of the list of best nodes that a search keeps (`efSearch`)."""
        return geometric_steps(16, 4096)

    def candidates(
        self, queries: Rows, count: int, effort: int, selector: Any | None
    ) -> tuple[Rows, Places]:
        """Search the graph, which finds at most `effort` candidates."""
        faiss = faiss_library()
        settings = {} if selector is None else {"sel": selector}
        with faiss_threads():
            found: tuple[Rows, Places] = self._index.search(
                self.padded(queries),
                min(count, effort),
                params=faiss.SearchParametersHNSW(efSearch=effort, **settings),
            )
        return found

    def unreliable(
        self, queries: Rows, found: tuple[Rows, Places], k: int, effort: int, allowed: Mask
    ) -> Mask:
        """Return whether a filter allows too few of the nodes near each query."""
        _, near = self.candidates(queries, self.effort, self.effort, None)
        share = (allowed[near] & (near >= 0)).mean(1)
        return np.asarray(share < _THIN * allowed.mean())

    def scan_bytes(self, effort: int) -> float:
        """Return the bytes of the codes of all neighbours, times 3, as they are scattered."""
        return 3.0 * effort * _LINKS * self._table.dim

    def validate_index(self, index: Any) -> Any:
        """Return the FAISS index if it is a graph of these rows."""
        faiss = faiss_library()
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        graph = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else None
        if not isinstance(graph, faiss.IndexHNSWSQ) or index.metric_type != metric:
            raise ValueError(f"it has no {self._space} graph")
        if index.ntotal != len(self._table) or index.d != self._table.dim:
            raise ValueError(f"it has {index.ntotal} nodes for {len(self._table)} rows")
        self.require_each_place(faiss.vector_to_array(index.id_map))
        return index

    def describe(self) -> dict[str, Any]:
        """Return type, effort and memory, and that the graph is not reproducible."""
        return {
            "type": f"HNSW{_LINKS},SQ8,refine",
            "ef_search": self.effort,
            "deterministic": False,
            "memory_bytes": _needed_memory(len(self._table), self._table.dim),
        }
