"""Finds the exact nearest rows: FAISS proposes candidates, which are scored again in float64.

FAISS computes in float32, and for more than 20 queries by ``|q|² + |x|² − 2qx``, which suffers from
cancellation: a row is then not at distance 0 from itself, equal rows have any order, and both
depend on the number of queries. Therefore a few more candidates than requested are fetched, scored
again in float64, and sorted by (value, id). If float32 cannot tell whether the right candidates
were fetched, more are fetched. So the answer is exact and depends only on the query and the rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Ids, Rows, Space
from timmscope.index.faiss_threads import faiss_library, faiss_threads

Places = npt.NDArray[np.int64]
"""Row numbers in a table, in contrast to ids."""

_EXTRA = 16
"""Number of candidates beyond k, so that near ties rarely need a second round."""
_BLOCK_BYTES = 32 << 20
"""Size of the largest temporary array, in float64."""
_QUERIES = 256
"""Number of queries that FAISS gets at once."""
_EPS = float(np.finfo(np.float32).eps)
_OVERFLOW = float(np.finfo(np.float32).max) / 8


class RowsAt(Protocol):
    """Rows that can be read in parts, as those of an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows and their width."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any, /) -> Rows:
        """Return the rows at some places, or a slice of them."""
        ...


class ExactSearch:
    """Exhaustive search over all rows `(N, dim)`, or over some of them.

    Args:
        data: the rows; may be a memory map, which is read in blocks.
        ids: ids of the rows, `(N,)`; equal values are sorted by them.
        space: `ip` or `l2`.
    """

    def __init__(self, data: RowsAt, ids: Ids, space: Space) -> None:
        self._data = data
        self._ids = ids
        self._space: Space = space
        self._longest: float | None = None

    def search(self, queries: Rows, k: int, places: Places | None = None) -> tuple[Rows, Places]:
        """Return the `k` best rows of each query, best first, equal values by ascending id.

        Args:
            queries: `(Q, dim)`.
            k: at least 1 and at most the number of rows that are searched.
            places: numbers of the rows to search; all by default.

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

    def _best(self, query: Rows, places: Places, k: int) -> tuple[Rows, Places]:
        """Return the `k` best of some rows for one query `(dim,)`: values and row numbers."""
        values = self._values(query, places)
        keys = -values if self._space == "ip" else values
        order = np.lexsort((self._ids[places], keys))[:k]
        return values[order], places[order]

    def _search_block(
        self, queries: Rows, k: int, places: Places | None, values: Rows, found: Places
    ) -> None:
        total = len(self._data) if places is None else len(places)
        pending = np.arange(len(queries))
        overflowing: list[int] = []
        width = k + _EXTRA
        while len(pending) and width < total / 2:
            coarse, candidates, longest = self._candidates(queries[pending], width, places)
            tolerance = self._tolerance(queries[pending], longest)
            uncertain = []
            for at, row in enumerate(pending.tolist()):
                if not np.isfinite(tolerance[at]):
                    overflowing.append(row)
                    continue
                best, where = self._best(queries[row], candidates[at], k)
                if self._margin(best[-1], float(coarse[at, -1])) > tolerance[at]:
                    values[row], found[row] = best, where
                else:
                    uncertain.append(row)
            pending = np.asarray(uncertain, np.int64)
            width *= 4
        everything = np.arange(total) if places is None else places
        for row in [*pending.tolist(), *overflowing]:
            values[row], found[row] = self._best(queries[row], everything, k)

    def _candidates(
        self, queries: Rows, width: int, places: Places | None
    ) -> tuple[Rows, Places, float]:
        """Return FAISS's `width` best, `(Q, width)` each, and the length of the longest row."""
        faiss = faiss_library()
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        if places is None:
            if self._longest is None:
                self._longest = self._longest_row()
            with faiss_threads():
                values, found = faiss.knn(queries, self._data, width, metric)
            return values, found, self._longest
        step = max(width, _BLOCK_BYTES // (4 * self._data.shape[1]))
        values, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), int)
        longest = 0.0
        for start in range(0, len(places), step):
            part = places[start : start + step]
            rows = np.ascontiguousarray(self._data[part])
            longest = max(longest, float(np.einsum("ij,ij->i", rows, rows).max()))
            with faiss_threads():
                more, at = faiss.knn(queries, rows, min(width, len(part)), metric)
            values, found = np.hstack([values, more]), np.hstack([found, part[at]])
            order = np.argsort(-values if self._space == "ip" else values, 1, kind="stable")
            values = np.take_along_axis(values, order[:, :width], 1)
            found = np.take_along_axis(found, order[:, :width], 1)
        return values, found, float(np.sqrt(longest))

    def _longest_row(self) -> float:
        """Return the length of the longest row."""
        step = max(1, _BLOCK_BYTES // (8 * self._data.shape[1]))
        parts = [
            float(np.square(self._data[at : at + step], dtype=np.float64).sum(1).max())
            for at in range(0, len(self._data), step)
        ]
        return float(np.sqrt(max(parts, default=0.0)))

    def _tolerance(self, queries: Rows, longest: float) -> npt.NDArray[np.float64]:
        """Return a bound of FAISS's float32 error for each query `(Q,)`; inf where it overflows."""
        lengths = np.sqrt(np.square(queries, dtype=np.float64).sum(1))
        scale = lengths * longest if self._space == "ip" else np.square(lengths + longest)
        # Rounding errors of d products add up like a random walk; the bound is twice that, plus 8.
        tolerance = _EPS * (2 * np.sqrt(queries.shape[1]) + 8) * scale + np.finfo(np.float32).tiny
        return np.where(scale < _OVERFLOW, tolerance, np.inf)

    def _margin(self, kth: float, worst: float) -> float:
        """Return by how much, in FAISS's values, the k-th answer beats all rows not fetched."""
        return kth - worst if self._space == "ip" else worst - kth * kth

    def _values(self, query: Rows, places: Places) -> Rows:
        """Return the values `(n,)` of some rows, computed in float64 and rounded to float32."""
        wide = query.astype(np.float64)
        values = np.empty(len(places), np.float32)
        step = max(1, _BLOCK_BYTES // (8 * len(query)))
        for start in range(0, len(places), step):
            rows = self._data[places[start : start + step]].astype(np.float64)
            # Sums along rows instead of a matrix product: BLAS may round equal rows differently.
            if self._space == "ip":
                result = (rows * wide).sum(1)
            else:
                result = np.sqrt(np.square(rows - wide).sum(1))
            with np.errstate(over="ignore"):
                values[start : start + step] = result
        return values
