"""Exact nearest rows: FAISS finds candidates, float64 decides between them.

FAISS computes in float32, and above 20 queries by ``|q|² + |x|² − 2qx``, which cancels: a row is
then not at distance 0 from itself, equal rows come in any order, and both change with the number
of queries. So a few more candidates than asked for are fetched, scored again in float64 and sorted
by (value, id); where float32 cannot tell whether the right candidates were fetched, more are.
The answer is the exact one and depends on nothing but the query and the rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Ids, Rows, Space
from timmscope.index.faiss_threads import faiss_library, faiss_threads

Places = npt.NDArray[np.int64]
"""Row numbers, as against ids."""

_SPARE = 16
"""Candidates fetched beyond k, so that near ties rarely need a second round."""
_BLOCK_BYTES = 32 << 20
"""Size of the largest temporary, in float64."""
_QUERIES = 256
"""Queries that FAISS sees at once."""
_EPS = float(np.finfo(np.float32).eps)
_OVERFLOW = float(np.finfo(np.float32).max) / 8


class RowsAt(Protocol):
    """Rows that are read a part at a time, as an array's are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows and their width."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any, /) -> Rows:
        """Rows at some places, or a slice of them."""
        ...


class ExactSearch:
    """Exhaustive search over rows `(N, dim)`, all of them or some.

    Args:
        data: the rows; may be a memory map, which is read in blocks.
        ids: of the rows, `(N,)`; they decide between equal values.
        space: `ip` or `l2`.
    """

    def __init__(self, data: RowsAt, ids: Ids, space: Space) -> None:
        self._data = data
        self._ids = ids
        self._space: Space = space
        self._largest: float | None = None

    def search(self, queries: Rows, k: int, places: Places | None = None) -> tuple[Rows, Places]:
        """The `k` best rows of each query, best first, equal values by ascending id.

        Args:
            queries: `(Q, dim)`.
            k: at least 1 and at most the number of rows searched.
            places: rows to search, by number; all by default.

        Returns:
            Values `(Q, k)`, rounded from float64, and row numbers `(Q, k)`.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        values = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), _QUERIES):
            block = slice(start, start + _QUERIES)
            self._search_block(queries[block], k, places, values[block], found[block])
        return values, found

    def best(self, query: Rows, places: Places, k: int) -> tuple[Rows, Places]:
        """The `k` best of some rows for one query `(dim,)`: values `(k,)` and row numbers."""
        values = self._values(query, places)
        order = self._order(values, self._ids[places])[:k]
        return values[order], places[order]

    def _search_block(
        self, queries: Rows, k: int, places: Places | None, values: Rows, found: Places
    ) -> None:
        total = len(self._data) if places is None else len(places)
        pending = np.arange(len(queries))
        hopeless: list[int] = []
        width = k + _SPARE
        while len(pending) and width < total / 2:
            coarse, candidates, largest = self._coarse(queries[pending], width, places)
            tolerance = self._tolerance(queries[pending], largest)
            doubtful = []
            for at, row in enumerate(pending.tolist()):
                if not np.isfinite(tolerance[at]):
                    hopeless.append(row)
                    continue
                best, where = self.best(queries[row], candidates[at], k)
                if self._edge(best[-1], float(coarse[at, -1])) > tolerance[at]:
                    values[row], found[row] = best, where
                else:
                    doubtful.append(row)
            pending = np.asarray(doubtful, np.int64)
            width *= 4
        everything = np.arange(total) if places is None else places
        for row in [*pending.tolist(), *hopeless]:
            values[row], found[row] = self.best(queries[row], everything, k)

    def _coarse(
        self, queries: Rows, width: int, places: Places | None
    ) -> tuple[Rows, Places, float]:
        """FAISS's `width` best, `(Q, width)` each, and the length of the longest row."""
        faiss = faiss_library()
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        if places is None:
            if self._largest is None:
                self._largest = self._longest()
            with faiss_threads():
                values, found = faiss.knn(queries, self._data, width, metric)
            return values, found, self._largest
        step = max(width, _BLOCK_BYTES // (4 * self._data.shape[1]))
        values, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), int)
        largest = 0.0
        for start in range(0, len(places), step):
            part = places[start : start + step]
            rows = np.ascontiguousarray(self._data[part])
            largest = max(largest, float(np.einsum("ij,ij->i", rows, rows).max()))
            with faiss_threads():
                more, at = faiss.knn(queries, rows, min(width, len(part)), metric)
            values, found = np.hstack([values, more]), np.hstack([found, part[at]])
            order = np.argsort(-values if self._space == "ip" else values, 1, kind="stable")
            values = np.take_along_axis(values, order[:, :width], 1)
            found = np.take_along_axis(found, order[:, :width], 1)
        return values, found, float(np.sqrt(largest))

    def _longest(self) -> float:
        """Length of the longest row."""
        step = max(1, _BLOCK_BYTES // (8 * self._data.shape[1]))
        parts = [
            float(np.square(self._data[at : at + step], dtype=np.float64).sum(1).max())
            for at in range(0, len(self._data), step)
        ]
        return float(np.sqrt(max(parts, default=0.0)))

    def _tolerance(self, queries: Rows, largest: float) -> npt.NDArray[np.float64]:
        """How far FAISS's float32 may be off for each query `(Q,)`; infinite where it overflows."""
        lengths = np.sqrt(np.square(queries, dtype=np.float64).sum(1))
        scale = lengths * largest if self._space == "ip" else np.square(lengths + largest)
        # Rounding errors of d products add up like a random walk; twice that, and some more.
        tolerance = _EPS * (2 * np.sqrt(queries.shape[1]) + 8) * scale + np.finfo(np.float32).tiny
        return np.where(scale < _OVERFLOW, tolerance, np.inf)

    def _edge(self, last: float, worst: float) -> float:
        """How clearly, in FAISS's own values, the k-th answer beats everything not fetched."""
        return last - worst if self._space == "ip" else worst - last * last

    def _values(self, query: Rows, places: Places) -> Rows:
        """Values `(n,)` of some rows, computed in float64 row by row and rounded to float32."""
        wide = query.astype(np.float64)
        values = np.empty(len(places), np.float32)
        step = max(1, _BLOCK_BYTES // (8 * len(query)))
        for start in range(0, len(places), step):
            rows = self._data[places[start : start + step]].astype(np.float64)
            # Sums along a row, not a matrix product: BLAS may round equal rows differently.
            if self._space == "ip":
                result = (rows * wide).sum(1)
            else:
                result = np.sqrt(np.square(rows - wide).sum(1))
            with np.errstate(over="ignore"):
                values[start : start + step] = result
        return values

    def _order(self, values: Rows, ids: Ids) -> Places:
        return np.lexsort((ids, -values if self._space == "ip" else values))
