"""`IVFBackend` searches inverted lists of 4-bit product codes: quick to build, small in memory.

k-means makes about 2 √N lists. A row's code belongs to the list of its nearest centre, and a search
reads the lists nearest to the query (Jégou et al., TPAMI 2011). A code has 4 bits for every 2
values of a row (for more values if memory is short). FAISS compares such codes in a CPU's registers
(PQ fast-scan, André et al., arXiv:1704.07355), several times as fast as 8-bit scalar codes. They
rank worse, so more candidates are scored by their rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Rows
from timmscope.index.exact import Places
from timmscope.index.faiss_threads import faiss_library, faiss_threads
from timmscope.index.reranked import Mask, RerankedBackend, sample_places
from timmscope.index.scoring import scores
from timmscope.index.table import RowTable
from timmscope.index.tuning import geometric_steps
from timmscope_registry import VectorIndexError

_TRAINING_ROWS = 64
"""Number of training rows per list; FAISS recommends 39 to 256."""
_MIN_ROWS = 39
"""Smallest number of rows per list."""
_ITERATIONS = 10
"""Number of iterations of k-means."""
_MAX_LISTS = 1 << 16
_THIN = 0.75
"""A filter leaves too few rows near a query if they keep less than this share of their average."""
_SURE = 3
"""No better row is expected beyond the last candidate if that is worse than the k-th answer by this
many standard deviations of the codes' error."""
_ID_BYTES = 8


def list_count(rows: int) -> int:
    """Return the number of inverted lists: a power of two near 2 √N, with enough rows per list."""
    wanted = min(2 * rows**0.5, rows / _MIN_ROWS, _MAX_LISTS)
    return 1 << max(0, round(math.log2(max(1.0, wanted))))


def needed_memory(rows: int, dim: int, values: int) -> int:
    """Return the bytes of codes, ids and centres if `values` values share a 4-bit code."""
    parts = -(-dim // values)
    return rows * (-(-parts // 2) + 2 * _ID_BYTES + 1) + 4 * parts * values * list_count(rows)


def code_values(rows: int, dim: int, memory: int | None) -> int:
    """Return how many values of a row share a 4-bit code: the fewest that memory allows, from 2.

    Raises:
        VectorIndexError: the memory is too small for the coarsest codes.
    """
    sizes = (2, 4, 8, 16)
    for values in sizes:
        if memory is None or needed_memory(rows, dim, values) <= memory:
            return values
    raise VectorIndexError(
        f"an index of {rows} rows of {dim} needs {needed_memory(rows, dim, sizes[-1])} bytes of "
        f"memory at least, but memory is {memory}: allow more"
    )


class IVFBackend(RerankedBackend):
    """Inverted lists of PQ fast-scan codes in memory, and rows on disk.

    Removed rows stay in their lists and are never returned, until `compact` fills the lists again.
    """

    _list_numbers: tuple[RowTable, npt.NDArray[np.int32]] | None = None

    def make_index(self, table: RowTable, held_out: Places) -> Any:
        """Train centres and codes on a sample of 64 rows per list."""
        faiss = faiss_library()
        count, dim = len(table), table.dim
        lists = list_count(count)
        values = code_values(count, dim, self._hints.memory)
        parts = -(-dim // values)
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        width = parts * values
        coarse = faiss.IndexFlatIP(width) if self._space == "ip" else faiss.IndexFlatL2(width)
        index = faiss.IndexIVFPQFastScan(coarse, width, lists, parts, 4, metric)
        index.own_fields = True
        coarse.this.disown()
        index.by_residual = False  # one table of distances per query instead of one per list
        index.cp.seed = index.pq.cp.seed = self._hints.seed + 1
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = 1 << 20  # the sample is chosen below
        index.cp.niter = _ITERATIONS
        index.cp.spherical = self._space == "ip"
        sample = sample_places(count, max(lists, 16) * _TRAINING_ROWS, held_out, self._hints.seed)
        rows = table[sample]
        rows = np.pad(rows, ((0, 0), (0, width - dim)))
        index.train(np.resize(rows, (max(len(rows), 16), width)))  # 16 codes need as many rows
        return index

    def efforts(self) -> Sequence[int]:
        """Return numbers of lists that a search may read (`nprobe`)."""
        return geometric_steps(1, int(self._index.nlist))

    def candidates(
        self, queries: Rows, count: int, effort: int, selector: Any | None
    ) -> tuple[Rows, Places]:
        """Read the `effort` lists nearest to each query."""
        faiss = faiss_library()
        settings = {"nprobe": effort} if selector is None else {"nprobe": effort, "sel": selector}
        with faiss_threads():
            found: tuple[Rows, Places] = self._index.search(
                self.padded(queries), count, params=faiss.SearchParametersIVF(**settings)
            )
        return found

    def unreliable(
        self, queries: Rows, found: tuple[Rows, Places], k: int, effort: int, allowed: Mask
    ) -> Mask:
        """Return whether a filter allows too few of the rows in the lists nearest to each query.

        If all lists are read, return instead whether a row that is not a candidate may be one of
        the `k` best, assuming that its code is as inexact as those of the candidates.
        """
        if effort == self._index.nlist:
            return self._uncertain(queries, *found, k, int(allowed.sum()))
        lists = self._row_lists()
        sizes = np.bincount(lists, minlength=self._index.nlist)
        kept = np.bincount(lists[allowed], minlength=self._index.nlist)
        with faiss_threads():
            _, near = self._index.quantizer.search(self.padded(queries), effort)
        least = _THIN * allowed.mean()
        thin = np.zeros(len(queries), bool)
        for some in (near[:, : self.effort], near):
            thin |= kept[some].sum(1) < least * sizes[some].sum(1)
        return thin

    def _uncertain(
        self, queries: Rows, estimates: Rows, places: Places, k: int, allowed: int
    ) -> Mask:
        if places.shape[1] >= allowed:
            return np.zeros(len(queries), bool)
        sign = -1 if self._space == "ip" else 1
        true = sign * scores(self._table, self._space, queries, places)
        error = true - sign * estimates
        bound = sign * estimates[:, -1] + error.mean(1) - _SURE * error.std(1)
        return np.asarray(np.partition(true, k - 1, axis=1)[:, k - 1] > bound)

    def _row_lists(self) -> npt.NDArray[np.int32]:
        """Return the number of every row's list, by place."""
        known = self._list_numbers
        if known is not None and known[0] is self._table and len(known[1]) == len(self._table):
            return known[1]
        faiss = faiss_library()
        lists = np.empty(len(self._table), np.int32)
        for number in range(self._index.nlist):
            if size := self._index.invlists.list_size(number):
                lists[faiss.rev_swig_ptr(self._index.invlists.get_ids(number), size)] = number
        self._list_numbers = (self._table, lists)
        return lists

    def scan_bytes(self, effort: int) -> float:
        """Return the bytes of the centres, counted as a quarter, and of the codes in the lists."""
        lists = int(self._index.nlist)
        codes = len(self._table) * int(self._index.code_size)
        return lists * int(self._index.d) + codes * effort / lists

    def validate_index(self, index: Any) -> Any:
        """Return the FAISS index if it has inverted lists of these rows."""
        faiss = faiss_library()
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        if not isinstance(index, faiss.IndexIVFPQFastScan) or index.metric_type != metric:
            raise ValueError(f"it has no {self._space} lists of product codes")
        if index.ntotal != len(self._table) or index.d < self._table.dim:
            raise ValueError(f"it has {index.ntotal} codes for {len(self._table)} rows")
        lists = index.invlists
        sizes = [lists.list_size(number) for number in range(index.nlist)]
        places = [
            faiss.rev_swig_ptr(lists.get_ids(number), size)
            for number, size in enumerate(sizes)
            if size
        ]
        self.require_each_place(np.concatenate(places or [np.empty(0, np.int64)]))
        return index

    def describe(self) -> dict[str, Any]:
        """Return type, number of lists that a search reads, and memory."""
        lists, parts = int(self._index.nlist), int(self._index.pq.M)
        return {
            "type": f"IVF{lists},PQ{parts}x4fs,refine",
            "n_probe": self.effort,
            "memory_bytes": len(self._table) * (int(self._index.code_size) + 2 * _ID_BYTES + 1)
            + 4 * int(self._index.d) * lists,
        }
