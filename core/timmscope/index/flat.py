"""`FlatBackend` searches exhaustively: it compares a query with every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np

from timmscope.index.backend import BuildHints, Ids, RecallBenchmark, Rows, Space
from timmscope.index.exact import ExactSearch
from timmscope.index.faiss_files import read_faiss, write_faiss
from timmscope.index.faiss_threads import faiss_library
from timmscope_registry import VectorIndexError


class FlatBackend:
    """Keeps all rows in one table and compares them one by one; exact to the last digit of float32.

    Args:
        dim: width of a row.
        space: `ip` or `l2`.
        hints: memory is reserved for `count` rows, so that growing the table does not double it.

    Raises:
        VectorIndexError: the rows need more memory than `hints` allow.
    """

    def __init__(self, dim: int, space: Space, hints: BuildHints) -> None:
        size = 4 * hints.count * dim
        if hints.memory is not None and size > hints.memory:
            raise VectorIndexError(
                f"exact search keeps all rows in memory, {size} bytes for {hints.count} rows of "
                f"{dim}, and memory is {hints.memory}: allow more, or use backend='ivf'"
            )
        faiss = faiss_library()
        flat = faiss.IndexFlatIP(dim) if space == "ip" else faiss.IndexFlatL2(dim)
        if hints.count:
            flat.codes.resize(size)  # the memory stays reserved after the next line
            flat.codes.resize(0)
        self._set_index(faiss.IndexIDMap(flat), space, mapped=False)

    def _set_index(self, index: Any, space: Space, *, mapped: bool) -> None:
        faiss = faiss_library()
        self._index = index
        self._flat: Any = faiss.downcast_index(index.index)
        self._space: Space = space
        self._mapped = mapped
        self._clear_caches()

    def _clear_caches(self) -> None:
        """Drop what was derived from the rows, before they change or move."""
        self._exact: ExactSearch | None = None
        self._by_id: tuple[Ids, Ids] | None = None

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def ids(self) -> Ids:
        """Ids of the rows `(N,)`."""
        faiss = faiss_library()
        ids: Ids = faiss.vector_to_array(self._index.id_map)
        return ids

    def add(self, rows: Rows, ids: Ids) -> None:
        """Append rows under their ids."""
        self._make_writable()
        self._index.add_with_ids(np.ascontiguousarray(rows, np.float32), np.asarray(ids, np.int64))

    def finish(self, held_out: Ids) -> None:
        """Do nothing, because there is nothing to train."""

    def remove(self, ids: Ids) -> None:
        """Remove rows from the table."""
        self._make_writable()
        self._index.remove_ids(np.asarray(ids, np.int64))

    def compact(self) -> None:
        """Do nothing, because removed rows take no space."""

    def search(self, queries: Rows, k: int, allowed: Ids | None = None) -> tuple[Rows, Ids]:
        """Find the exact nearest rows; see `Backend.search`."""
        if self._exact is None:
            self._exact = ExactSearch(self._data(), self.ids, self._space)
        places = None if allowed is None else self._places(allowed)
        values, found = self._exact.search(queries, k, places)
        return values, self.ids[found]

    def rows(self, ids: Ids) -> Rows:
        """Return rows by their ids; raise `KeyError` for an unknown id."""
        rows: Rows = self._data()[self._places(ids)]
        return rows

    def tune(self, benchmark: RecallBenchmark, recall: float, *, timed: bool) -> float:
        """Return 1, because every answer is exact."""
        return 1.0

    def save(self, path: Path) -> None:
        """Write a file that FAISS alone can read too."""
        write_faiss(self._index, path)

    @classmethod
    def load(cls, path: Path, dim: int, space: Space, facts: dict[str, Any], *, mmap: bool) -> Self:
        """Read a file that `save` wrote."""
        faiss = faiss_library()
        flag = getattr(faiss, "IO_FLAG_MMAP_IFC", 0) if mmap else 0
        index = read_faiss(path, flag)
        metric = faiss.METRIC_INNER_PRODUCT if space == "ip" else faiss.METRIC_L2
        if not isinstance(index, faiss.IndexIDMap) or (index.d, index.metric_type) != (dim, metric):
            raise ValueError(f"it is not a flat {space} index of {dim} dimensions")
        flat = faiss.downcast_index(index.index)
        if not isinstance(flat, faiss.IndexFlat) or (flat.d, flat.ntotal) != (dim, index.ntotal):
            raise ValueError("its ids do not belong to a table of rows")
        backend = cls.__new__(cls)
        backend._set_index(index, space, mapped=bool(flag))
        return backend

    def facts(self) -> dict[str, Any]:
        """Return the type of the index and the version of FAISS."""
        faiss = faiss_library()
        return {"faiss": faiss.__version__, "type": "Flat", "exact": True, "tombstones": 0}

    def _make_writable(self) -> None:
        """Copy mapped rows into memory, because FAISS crashes when it changes those of a file."""
        if self._mapped:
            faiss = faiss_library()
            dim = self._flat.d
            flat = faiss.IndexFlatIP(dim) if self._space == "ip" else faiss.IndexFlatL2(dim)
            index = faiss.IndexIDMap(flat)
            index.add_with_ids(self._data(), self.ids)
            self._set_index(index, self._space, mapped=False)
        self._clear_caches()

    def _places(self, ids: Ids) -> Ids:
        """Return the row numbers of ids; raise `KeyError` for an unknown id."""
        if self._by_id is None:
            order = np.argsort(self.ids, kind="stable")
            self._by_id = (self.ids[order], order)
        ordered, order = self._by_id
        at = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        if not len(ordered) or (wrong := ordered[at] != ids).any():
            raise KeyError(int(ids[np.argmax(wrong)]) if len(ordered) else int(ids[0]))
        places: Ids = order[at]
        return places

    def _data(self) -> Rows:
        """Return the rows `(N, dim)` as a view into the index, which is valid until it changes."""
        faiss = faiss_library()
        size = len(self) * self._flat.d
        if not size:
            return np.empty((0, self._flat.d), np.float32)
        flat: Rows = faiss.rev_swig_ptr(self._flat.get_xb(), size)
        return flat.reshape(-1, self._flat.d)
