"""A graph of near neighbours: quick to search, slow to build, all of its codes in memory.

Malkov & Yashunin, arXiv:1603.09320, over 8-bit codes. FAISS builds the graph with several threads,
so the same rows give another graph each time, of the same quality; `auto` does not choose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from timmscope.index.backend import BuildHints, Rows, Space
from timmscope.index.exact import Places
from timmscope.index.faiss_threads import faiss_library, faiss_threads
from timmscope.index.reranked import Mask, RefinedBackend, sample_places
from timmscope.index.table import RowTable
from timmscope.index.tuning import steps
from timmscope_registry import VectorIndexError

_LINKS = 32
_EFFORT_BUILDING = 80
_THIN = 0.75
"""A filter empties a neighbourhood that keeps less than so much of its share of the rows."""
_SAMPLE = 1 << 16
"""Rows that set the range of the codes."""


def _needed_memory(rows: int, dim: int) -> int:
    """Bytes of codes, links and ids."""
    return rows * (dim + 8 * _LINKS + 17)


class HNSWBackend(RefinedBackend):
    """A graph over 8-bit codes, and rows on disk.

    Removed rows stay in the graph, unseen, until `compact` builds it again.
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
        """An empty graph, with codes of the range that a sample of the rows has."""
        faiss = faiss_library()
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        index = faiss.IndexHNSWSQ(table.dim, faiss.ScalarQuantizer.QT_8bit, _LINKS, metric)
        index.hnsw.efConstruction = _EFFORT_BUILDING
        index.train(table[sample_places(len(table), _SAMPLE, held_out, self._hints.seed)])
        return faiss.IndexIDMap(index)

    def waits(self, count: int) -> int:
        """A node finds its own neighbours too easily, so recall is measured by rows outside."""
        return count // 10

    def efforts(self) -> Sequence[int]:
        """Numbers of nodes kept in view during a search."""
        return steps(16, 4096)

    def candidates(
        self, queries: Rows, count: int, effort: int, selector: Any | None
    ) -> tuple[Rows, Places]:
        """Walk the graph; no more candidates than nodes in view."""
        faiss = faiss_library()
        settings = {} if selector is None else {"sel": selector}
        with faiss_threads():
            found: tuple[Rows, Places] = self._index.search(
                self.padded(queries),
                min(count, effort),
                params=faiss.SearchParametersHNSW(efSearch=effort, **settings),
            )
        return found

    def astray(
        self, queries: Rows, found: tuple[Rows, Places], k: int, effort: int, allowed: Mask
    ) -> Mask:
        """Whether fewer nodes near a query may be found than three quarters of their share."""
        _, near = self.candidates(queries, self.effort, self.effort, None)
        share = (allowed[near] & (near >= 0)).mean(1)
        return np.asarray(share < _THIN * allowed.mean())

    def scan_bytes(self, effort: int) -> float:
        """Codes of the neighbours of the nodes in view, read here and there."""
        return 3.0 * effort * _LINKS * self._table.dim

    def check(self, index: Any) -> Any:
        """The FAISS index, if it is of this kind."""
        faiss = faiss_library()
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        graph = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else None
        if not isinstance(graph, faiss.IndexHNSWSQ) or index.metric_type != metric:
            raise ValueError(f"holds no {self._space} graph")
        if index.ntotal != len(self._table) or index.d != self._table.dim:
            raise ValueError(f"holds {index.ntotal} nodes of {len(self._table)} rows")
        return index

    def describe(self) -> dict[str, Any]:
        """Links, codes, nodes in view, and that it is not the same twice."""
        return {
            "type": f"HNSW{_LINKS},SQ8,refine",
            "ef_search": self.effort,
            "deterministic": False,
            "memory_bytes": _needed_memory(len(self._table), self._table.dim),
        }
