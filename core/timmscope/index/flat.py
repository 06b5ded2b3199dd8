"""Exhaustive search: FAISS finds candidates, float64 decides between them.

FAISS computes in float32, and above 20 queries by ``|q|² + |x|² − 2qx``, which cancels: a row is
then not at distance 0 from itself, equal rows come in any order, and both change with the number
of queries. So a few more candidates than asked for are fetched, scored again in float64 and sorted
by (value, id); where float32 cannot tell whether the right candidates were fetched, more are.
The answer is the exact one and depends on nothing but the query and the rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Ids, Rows, Space

_SPARE = 16
"""Candidates fetched beyond k, so that near ties rarely need a second round."""
_BLOCK_BYTES = 32 << 20
"""Size of the largest temporary, in float64."""
_QUERIES = 256
"""Queries that FAISS sees at once."""
_EPS = float(np.finfo(np.float32).eps)
_OVERFLOW = float(np.finfo(np.float32).max) / 8


class FlatBackend:
    """All rows in memory, compared one by one; exact to float32's last digit.

    Args:
        dim: width of a row.
        space: `ip` or `l2`.
        capacity: number of rows to reserve memory for, so that growth does not double it.
    """

    def __init__(self, dim: int, space: Space, *, capacity: int = 0) -> None:
        import faiss  # 0.3 s, and starts OpenMP: only when an index is really used

        flat = faiss.IndexFlatIP(dim) if space == "ip" else faiss.IndexFlatL2(dim)
        if capacity:
            flat.codes.resize(capacity * dim * 4)  # keeps its memory when emptied again
            flat.codes.resize(0)
        self._adopt(faiss.IndexIDMap(flat), space)

    def _adopt(self, index: Any, space: Space) -> None:
        import faiss

        self._index = index
        self._flat: Any = faiss.downcast_index(index.index)
        self._space: Space = space
        self._positions: dict[int, int] | None = None
        self._largest: float | None = None

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def ids(self) -> Ids:
        """Ids of the rows `(N,)`."""
        import faiss

        ids: Ids = faiss.vector_to_array(self._index.id_map)
        return ids

    def add(self, rows: Rows, ids: Ids) -> None:
        """Append rows under their ids."""
        self._index.add_with_ids(np.ascontiguousarray(rows, np.float32), np.asarray(ids, np.int64))
        self._positions = self._largest = None

    def rows(self, ids: Ids) -> Rows:
        """Rows of ids; `KeyError` for one that is not there."""
        if self._positions is None:
            self._positions = {int(id_): place for place, id_ in enumerate(self.ids)}
        return self._data()[[self._positions[int(id_)] for id_ in ids]]

    def save(self, path: Path) -> None:
        """Write a FAISS file, which FAISS alone can read as well."""
        import faiss

        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, dim: int, space: Space) -> Self:
        """Read a file that `save` wrote."""
        import faiss

        index = faiss.read_index(str(path))
        metric = faiss.METRIC_INNER_PRODUCT if space == "ip" else faiss.METRIC_L2
        if not isinstance(index, faiss.IndexIDMap) or (index.d, index.metric_type) != (dim, metric):
            raise ValueError(f"holds no flat {space} index of {dim} dimensions")
        backend = cls.__new__(cls)
        backend._adopt(index, space)
        return backend

    def facts(self) -> dict[str, Any]:
        """The library's version."""
        import faiss

        return {"faiss": faiss.__version__, "exact": True}

    def search(self, queries: Rows, k: int) -> tuple[Rows, Ids]:
        """Exact nearest rows; see `Backend.search`."""
        queries = np.ascontiguousarray(queries, np.float32)
        values = np.empty((len(queries), k), np.float32)
        places = np.empty((len(queries), k), np.int64)
        ids = self.ids
        for start in range(0, len(queries), _QUERIES):
            block = slice(start, start + _QUERIES)
            self._search_block(queries[block], k, ids, values[block], places[block])
        return values, ids[places]

    def _search_block(
        self, queries: Rows, k: int, ids: Ids, values: Rows, places: npt.NDArray[np.int64]
    ) -> None:
        total = len(self)
        tolerance = self._tolerance(queries)
        pending = np.flatnonzero(np.isfinite(tolerance))
        unsure = np.flatnonzero(~np.isfinite(tolerance)).tolist()
        width = k + _SPARE
        while len(pending) and width < total / 2:
            with _threads():
                coarse, found = self._flat.search(queries[pending], width)
            doubtful = []
            for row, candidates, worst in zip(pending, found, coarse[:, -1], strict=True):
                exact = self._exact(queries[row], candidates)
                order = self._order(exact, ids[candidates])[:k]
                edge = self._edge(exact[order[-1]], float(worst))
                if edge > tolerance[row]:
                    values[row], places[row] = exact[order], candidates[order]
                else:
                    doubtful.append(row)
            pending = np.asarray(doubtful, np.int64)
            width *= 4
        everything = np.arange(total)
        for left in [*pending.tolist(), *unsure]:
            exact = self._exact(queries[left], everything)
            order = self._order(exact, ids)[:k]
            values[left], places[left] = exact[order], order

    def _tolerance(self, queries: Rows) -> npt.NDArray[np.float64]:
        """How far FAISS's float32 may be off for each query `(Q,)`; infinite where it overflows."""
        lengths = np.sqrt(np.square(queries, dtype=np.float64).sum(1))
        if self._largest is None:
            data = self._data()
            step = max(1, _BLOCK_BYTES // (8 * data.shape[1]))
            parts = [
                float(np.square(data[at : at + step], dtype=np.float64).sum(1).max())
                for at in range(0, len(data), step)
            ]
            self._largest = float(np.sqrt(max(parts, default=0.0)))
        if self._space == "ip":
            scale = lengths * self._largest
        else:
            scale = np.square(lengths + self._largest)
        # Rounding errors of d products add up like a random walk; twice that, and some more.
        tolerance = _EPS * (2 * np.sqrt(queries.shape[1]) + 8) * scale + np.finfo(np.float32).tiny
        return np.where(scale < _OVERFLOW, tolerance, np.inf)

    def _edge(self, last: float, worst: float) -> float:
        """How clearly, in FAISS's own values, the k-th answer beats everything not fetched."""
        return last - worst if self._space == "ip" else worst - last * last

    def _exact(self, query: Rows, places: npt.NDArray[np.int64]) -> Rows:
        """Values `(n,)` of some rows, computed in float64 row by row and rounded to float32."""
        data, wide = self._data(), query.astype(np.float64)
        values = np.empty(len(places), np.float32)
        step = max(1, _BLOCK_BYTES // (8 * len(query)))
        for start in range(0, len(places), step):
            rows = data[places[start : start + step]].astype(np.float64)
            # Sums along a row, not a matrix product: BLAS may round equal rows differently.
            if self._space == "ip":
                result = (rows * wide).sum(1)
            else:
                result = np.sqrt(np.square(rows - wide).sum(1))
            with np.errstate(over="ignore"):
                values[start : start + step] = result
        return values

    def _order(self, values: Rows, ids: Ids) -> npt.NDArray[np.int64]:
        return np.lexsort((ids, -values if self._space == "ip" else values))

    def _data(self) -> Rows:
        """The rows themselves `(N, dim)`, a view into the index; valid until rows are added."""
        import faiss

        size = len(self) * self._flat.d
        if not size:
            return np.empty((0, self._flat.d), np.float32)
        flat: Rows = faiss.rev_swig_ptr(self._flat.get_xb(), size)
        return flat.reshape(-1, self._flat.d)


_owner: int | None = None


@contextmanager
def _threads() -> Iterator[None]:
    """Let FAISS use as many threads as torch may, and hand its setting back.

    A process forked after FAISS ran has OpenMP's locks but not its threads and would wait for
    them for ever; there, FAISS works alone.
    """
    global _owner
    import sys

    import faiss

    _owner = _owner or os.getpid()
    torch = sys.modules.get("torch")
    before = faiss.omp_get_max_threads()
    wanted = before if torch is None else min(before, torch.get_num_threads())
    faiss.omp_set_num_threads(1 if os.getpid() != _owner else max(1, wanted))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
