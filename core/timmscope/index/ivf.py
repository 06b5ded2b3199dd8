"""Inverted lists of 4-bit product codes: quick to build, small in memory, rows decide at the end.

k-means makes about 2 √N lists; a row's code goes to the list of its nearest centre, and a search
reads the lists nearest to the query. A code gives 4 bits to every 2 values of a row (to more of
them where memory is short), which FAISS compares in a processor's registers (PQ fast-scan, André et
al., arXiv:1704.07355), several times as fast as 8-bit scalar codes; that it ranks worse is made up
for by scoring more candidates by their rows.
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
from timmscope.index.reranked import Mask, RefinedBackend, sample_places
from timmscope.index.scoring import scores
from timmscope.index.table import RowTable
from timmscope.index.tuning import steps
from timmscope_registry import VectorIndexError

_POINTS = 64
"""Rows that train a list; FAISS wants 39 to 256."""
_FEWEST = 39
_ROUNDS = 10
"""Rounds of k-means."""
_MOST_LISTS = 1 << 16
_THIN = 0.75
"""A filter empties a neighbourhood that keeps less than so much of its share of the rows."""
_SURE = 3
"""Standard deviations of the codes' error by which the last candidate must be worse than the k-th
answer, for there to be none better behind it."""
_ID_BYTES = 8


def list_count(rows: int) -> int:
    """Number of inverted lists: a power of two near 2 √N that leaves enough rows to train each."""
    wanted = min(2 * rows**0.5, rows / _FEWEST, _MOST_LISTS)
    return 1 << max(0, round(math.log2(max(1.0, wanted))))


def needed_memory(rows: int, dim: int, values: int) -> int:
    """Bytes of codes, ids and centres when a 4-bit code stands for so many values."""
    parts = -(-dim // values)
    return rows * (-(-parts // 2) + 2 * _ID_BYTES + 1) + 4 * parts * values * list_count(rows)


def code_values(rows: int, dim: int, memory: int | None) -> int:
    """How many values of a row share a 4-bit code: the fewest that memory allows, from 2.

    Raises:
        VectorIndexError: memory does not suffice for the coarsest codes.
    """
    sizes = (2, 4, 8, 16)
    for values in sizes:
        if memory is None or needed_memory(rows, dim, values) <= memory:
            return values
    raise VectorIndexError(
        f"an index of {rows} rows of {dim} needs {needed_memory(rows, dim, sizes[-1])} bytes of "
        f"memory at least, and memory is {memory}: allow more"
    )


class IVFBackend(RefinedBackend):
    """Inverted lists of PQ fast-scan codes over rows on disk.

    Removed rows stay in their lists, unseen, until `compact` fills these again.
    """

    _list_of: tuple[RowTable, npt.NDArray[np.int32]] | None = None

    def make_index(self, table: RowTable, held_out: Places) -> Any:
        """Train centres and codes on a sample, 64 rows a list."""
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
        index.by_residual = False  # one table of distances a query, not one a list
        index.cp.seed = index.pq.cp.seed = self._hints.seed + 1
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = 1 << 20  # the sample is ours to choose
        index.cp.niter = _ROUNDS
        index.cp.spherical = self._space == "ip"
        sample = sample_places(count, max(lists, 16) * _POINTS, held_out, self._hints.seed)
        rows = table[sample]
        rows = np.pad(rows, ((0, 0), (0, width - dim)))
        index.train(np.resize(rows, (max(len(rows), 16), width)))  # 16 codes need as many rows
        return index

    def efforts(self) -> Sequence[int]:
        """Numbers of lists to read."""
        return steps(1, int(self._index.nlist))

    def candidates(
        self, queries: Rows, count: int, effort: int, selector: Any | None
    ) -> tuple[Rows, Places]:
        """Read the lists nearest to each query."""
        faiss = faiss_library()
        settings = {"nprobe": effort} if selector is None else {"nprobe": effort, "sel": selector}
        with faiss_threads():
            found: tuple[Rows, Places] = self._index.search(
                self.padded(queries), count, params=faiss.SearchParametersIVF(**settings)
            )
        return found

    def astray(
        self, queries: Rows, found: tuple[Rows, Places], k: int, effort: int, allowed: Mask
    ) -> Mask:
        """Whether lists nearest to a query hold less than three quarters of their share of rows.

        With all lists read, whether a row that codes ranked behind all candidates may yet be one
        of the `k` best: codes are wrong by as much for it as for the candidates.
        """
        if effort == self._index.nlist:
            return self._unsure(queries, *found, k, int(allowed.sum()))
        lists = self._lists()
        sizes = np.bincount(lists, minlength=self._index.nlist)
        kept = np.bincount(lists[allowed], minlength=self._index.nlist)
        with faiss_threads():
            _, near = self._index.quantizer.search(self.padded(queries), effort)
        least = _THIN * allowed.mean()
        thin = np.zeros(len(queries), bool)
        for some in (near[:, : self.effort], near):
            thin |= kept[some].sum(1) < least * sizes[some].sum(1)
        return thin

    def _unsure(self, queries: Rows, estimates: Rows, places: Places, k: int, allowed: int) -> Mask:
        if places.shape[1] >= allowed:
            return np.zeros(len(queries), bool)
        sign = -1 if self._space == "ip" else 1
        true = sign * scores(self._table, self._space, queries, places)
        error = true - sign * estimates
        bound = sign * estimates[:, -1] + error.mean(1) - _SURE * error.std(1)
        return np.asarray(np.partition(true, k - 1, axis=1)[:, k - 1] > bound)

    def _lists(self) -> npt.NDArray[np.int32]:
        """The list of every row, by place."""
        known = self._list_of
        if known is not None and known[0] is self._table and len(known[1]) == len(self._table):
            return known[1]
        faiss = faiss_library()
        lists = np.empty(len(self._table), np.int32)
        for number in range(self._index.nlist):
            if size := self._index.invlists.list_size(number):
                lists[faiss.rev_swig_ptr(self._index.invlists.get_ids(number), size)] = number
        self._list_of = (self._table, lists)
        return lists

    def scan_bytes(self, effort: int) -> float:
        """Centres, which go through the caches quickly, and the codes in so many lists."""
        lists = int(self._index.nlist)
        codes = len(self._table) * int(self._index.code_size)
        return lists * int(self._index.d) + codes * effort / lists

    def check(self, index: Any) -> Any:
        """The FAISS index, if it is of this kind."""
        faiss = faiss_library()
        metric = faiss.METRIC_INNER_PRODUCT if self._space == "ip" else faiss.METRIC_L2
        if not isinstance(index, faiss.IndexIVFPQFastScan) or index.metric_type != metric:
            raise ValueError(f"holds no {self._space} lists of product codes")
        if index.ntotal != len(self._table) or index.d < self._table.dim:
            raise ValueError(f"holds {index.ntotal} codes of {len(self._table)} rows")
        return index

    def describe(self) -> dict[str, Any]:
        """Lists, codes and how many lists a search reads."""
        lists, parts = int(self._index.nlist), int(self._index.pq.M)
        return {
            "type": f"IVF{lists},PQ{parts}x4fs,refine",
            "n_probe": self.effort,
            "memory_bytes": len(self._table) * (int(self._index.code_size) + 2 * _ID_BYTES + 1)
            + 4 * int(self._index.d) * lists,
        }
