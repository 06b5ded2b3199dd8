"""`RerankedBackend` searches in two steps: a compressed index proposes candidates, rows rank them.

`IVFBackend` and `HNSWBackend` share it: rows on disk, a FAISS index of their codes in memory,
candidates scored again in float32 and the best of them in float64, filters, removal, and the choice
of search parameters by measured recall.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import BuildHints, Ids, RecallBenchmark, Rows, Space
from timmscope.index.exact import ExactSearch, Places
from timmscope.index.faiss_files import read_faiss, write_faiss
from timmscope.index.faiss_threads import faiss_library, faiss_threads
from timmscope.index.scoring import EXTRA, rerank, scores
from timmscope.index.table import RowTable
from timmscope.index.tuning import WIDTHS, Recalls, Setting, fastest_setting, settings_for
from timmscope.progress import task
from timmscope_registry import VectorIndexError

Mask = npt.NDArray[np.bool_]

_BLOCK = 1 << 16
"""Number of rows that are encoded at a time."""
_QUERIES = 1024
"""Number of queries that FAISS gets at a time; those that need the same list read it together."""
_CANDIDATES = 1 << 22
"""Number of candidates in memory at a time."""
_EXACT_SHARE = 64
"""If a filter leaves at most one in this many rows, they are searched exactly."""
_EXACT_ROWS = 5_000
"""If a filter leaves at most this many rows, they are searched exactly."""
_MAX_LENGTH = 4e18
"""Length up to which squared distances of vectors fit in float32; FAISS aborts if they do not."""


def sample_places(count: int, size: int, held_out: Places, seed: int) -> Places:
    """Return places of training rows, ascending; held-out rows are only used to fill up."""
    places = np.random.default_rng(seed).permutation(count)
    places = places[np.argsort(np.isin(places, held_out), kind="stable")]
    return np.sort(places[:size])


def _too_long(rows: Rows) -> Places:
    """Return the numbers of the rows whose distances may overflow float32."""
    with np.errstate(over="ignore"):
        return np.flatnonzero(np.einsum("ij,ij->i", rows, rows) > _MAX_LENGTH**2)


class RerankedBackend(ABC):
    """Takes candidates from a FAISS index of codes and ranks them by their rows.

    A subclass creates the FAISS index, searches it with a given effort, and estimates the cost of
    that. In the FAISS index a row's id is its place in the table.
    """

    def __init__(self, dim: int, space: Space, hints: BuildHints) -> None:
        self._start(RowTable(dim, hints.scratch), space, hints)

    def _start(self, table: RowTable, space: Space, hints: BuildHints) -> None:
        self._table = table
        self._space: Space = space
        self._hints = hints
        self._index: Any = None
        self._withheld: Places = np.empty(0, np.int64)
        self.effort, self.width = 1, WIDTHS[-1]
        self._speed: float | None = None

    # Methods that a subclass defines

    @abstractmethod
    def make_index(self, table: RowTable, held_out: Places) -> Any:
        """Create an empty FAISS index that is trained on rows of the table except `held_out`."""

    def withheld(self, count: int) -> int:
        """Return how many held-out rows the FAISS index gets only after recall is measured."""
        return 0

    @abstractmethod
    def efforts(self) -> Sequence[int]:
        """Return the values of FAISS's search parameter, from the least effort to the largest."""

    @abstractmethod
    def candidates(
        self, queries: Rows, count: int, effort: int, selector: Any | None
    ) -> tuple[Rows, Places]:
        """Return likely neighbours, best first.

        Returns:
            Estimated inner products or squared distances `(Q, count)` and places `(Q, count)`; -1
            where there are no more.
        """

    @abstractmethod
    def unreliable(
        self, queries: Rows, found: tuple[Rows, Places], k: int, effort: int, allowed: Mask
    ) -> Mask:
        """Return whether a filter leaves too few rows near each query `(Q,)` for an effort.

        Recall was measured without a filter. An effort reaches it if allowed rows are as frequent
        near the query as everywhere, but they may all be far from the query (as pictures of cats
        for a query with a dog).

        Args:
            queries: `(Q, dim)`.
            found: the result of `candidates`.
            k: number of wanted neighbours.
            effort: the effort of that search.
            allowed: `(places,)`, whether each row may be found.
        """

    @abstractmethod
    def scan_bytes(self, effort: int) -> float:
        """Return the bytes that one search reads, to compare the costs of efforts."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return type and parameters for `facts`, and `effort` under FAISS's name."""

    @abstractmethod
    def validate_index(self, index: Any) -> Any:
        """Return the FAISS index that was read as its own class.

        Raises:
            ValueError: it is an index of another kind, or of other rows.
        """

    def require_each_place(self, places: Places) -> None:
        """Refuse a FAISS index that does not hold each place of the table once.

        Raises:
            ValueError: a place is missing, occurs twice, or is outside the table.
        """
        count = len(self._table)
        inside = places[(places >= 0) & (places < count)]
        if len(inside) != count or (np.bincount(inside, minlength=count) != 1).any():
            raise ValueError(f"it does not hold each of the {count} rows once")

    # Rows

    def __len__(self) -> int:
        return len(self._table) - self._table.dropped

    @property
    def ids(self) -> Ids:
        """Ids of the rows `(N,)`."""
        return self._table.live_ids

    def add(self, rows: Rows, ids: Ids) -> None:
        """Append rows under their ids.

        Raises:
            VectorIndexError: a row is so long that distances overflow float32.
        """
        long = _too_long(rows)
        if len(long):
            raise VectorIndexError(
                f"the row with id {ids[long[0]]} is longer than {_MAX_LENGTH:.0e}, too long for "
                "codes to compare in float32: use backend='flat' or metric='cosine'"
            )
        self._table.append(rows, ids)
        if self._index is not None:
            self._encode_rest()

    def finish(self, held_out: Ids) -> None:
        """Train the FAISS index on rows other than `held_out`, then add the rows to it."""
        places = self._table.places(held_out)
        with task("training"), faiss_threads():
            self._index = self.make_index(self._table, places)
        self._withheld = places[: self.withheld(len(self._table))]
        self._encode(np.setdiff1d(np.arange(len(self._table)), self._withheld))
        self.effort = self.efforts()[-1]

    def _encode_rest(self) -> None:
        """Encode the rows that have no codes yet: new ones, and those of an interrupted change."""
        self._encode(np.arange(self._index.ntotal, len(self._table)))

    def _encode(self, places: Places) -> None:
        with task("encoding", total=len(places)) as advance:
            for start in range(0, len(places), _BLOCK):
                part = places[start : start + _BLOCK]
                rows = self.padded(self._table[part])
                try:
                    with faiss_threads():
                        self._index.add_with_ids(rows, part)
                except MemoryError:
                    self._index.reset()  # it may hold some of them
                    raise
                advance(len(part))

    def remove(self, ids: Ids) -> None:
        """Leave rows out of all searches; they stay in the file until `compact`.

        FAISS cannot remove nodes from a graph. It can remove codes from fast-scan lists, but rows
        that are added to these lists afterwards get wrong codes (faiss 1.15.1).
        """
        self._table.drop(self._table.places(ids))

    def compact(self) -> None:
        """Encode the remaining rows again, without the removed ones."""
        if self._table.dropped:
            self._table = self._table.compacted()
            self._index.reset()
            self._encode_rest()

    def rows(self, ids: Ids) -> Rows:
        """Return rows by their ids; raise `KeyError` for an unknown id."""
        return self._table[self._table.places(ids)]

    def padded(self, rows: Rows) -> Rows:
        """Return rows padded with zeros to the width of the FAISS index."""
        missing = int(self._index.d) - rows.shape[1]
        rows = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
        return np.ascontiguousarray(rows, np.float32)

    # Searching

    def search(self, queries: Rows, k: int, allowed: Ids | None = None) -> tuple[Rows, Ids]:
        """Find the nearest rows; see `Backend.search`."""
        places = None if allowed is None else self._table.places(allowed)
        count = len(self) if places is None else len(places)
        few = places is not None and count <= max(_EXACT_ROWS, len(self) // _EXACT_SHARE)
        if places is None and self._table.dropped:
            places = np.flatnonzero(self._table.live)
        mask = None
        if places is not None:
            mask = np.zeros(len(self._table), bool)
            mask[places] = True
        only_exact = few or k * self.width > count // 2
        values = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        step = max(1, min(_QUERIES, _CANDIDATES // (k * WIDTHS[-1] + EXTRA)))
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            part, into = queries[block], (values[block], found[block])
            left = np.arange(len(part))
            coded = np.setdiff1d(left, left if only_exact else _too_long(part))
            if len(coded):
                answers = np.empty((len(coded), k), np.float32), np.empty((len(coded), k), np.int64)
                rest = self._search_block(part[coded], k, mask, *answers)
                into[0][coded], into[1][coded] = answers
                left = np.setdiff1d(left, np.delete(coded, rest))
            if len(left):
                exact = ExactSearch(self._table, self._table.ids, self._space)
                some = np.arange(len(self._table)) if places is None else places  # read in blocks
                into[0][left], into[1][left] = exact.search(part[left], k, some)
        return values, self._table.ids[found]

    def _search_block(
        self,
        queries: Rows,
        k: int,
        allowed: Mask | None,
        values: Rows,
        found: Places,
    ) -> Places:
        """Fill in the answers, and return the queries that only exact search can answer."""
        left = np.arange(len(queries))
        # If one row in n is allowed, n times the effort is needed to find as many of them.
        effort = self.effort if allowed is None else self.effort / allowed.mean()
        first = min((e for e in self.efforts() if e >= effort), default=self.efforts()[-1])
        for effort, width in ((first, self.width), (self.efforts()[-1], WIDTHS[-1])):
            count = min(width * k + EXTRA, len(self._table))
            proposed = self.candidates(queries[left], count, effort, self._selector(allowed))
            places = proposed[1]
            good = np.sum(places >= 0, axis=1) >= k
            if allowed is not None:
                good &= ~self.unreliable(queries[left], proposed, k, effort, allowed)
            done = left[good]
            if len(done):
                answers = rerank(self._table, self._space, queries[done], places[good], k)
                values[done], found[done] = answers
            left = left[~good]
            if not len(left):
                break
        return left

    def _selector(self, allowed: Mask | None) -> Any | None:
        """Return FAISS's object for the rows that may be found."""
        if allowed is None:
            return None
        return faiss_library().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))

    # Search parameters

    def tune(self, benchmark: RecallBenchmark, recall: float, *, timed: bool) -> float:
        """Use the cheapest effort and width that reach a recall; see `Backend.tune`."""
        sufficient = settings_for(self, benchmark, recall, explore=timed)
        chosen, self._speed = sufficient[0], None
        if timed:

            def search(setting: Setting) -> object:
                self.effort, self.width = setting.effort, setting.width
                return self.search(benchmark.queries, min(benchmark.k + 1, len(self)))

            chosen, seconds = fastest_setting(sufficient, search)
            self._speed = float(f"{len(benchmark.queries) / seconds:.3g}")
        self.effort, self.width = chosen.effort, chosen.width
        self._encode(self._withheld)
        self._withheld = self._withheld[:0]
        return chosen.recall

    def recalls(self, benchmark: RecallBenchmark, effort: int) -> tuple[Recalls, Recalls]:
        """Return recall and its standard error at each width, from one search with the largest."""
        counts = []
        for start in range(0, len(benchmark.queries), _QUERIES):
            block = benchmark.part(slice(start, start + _QUERIES))
            count = WIDTHS[-1] * benchmark.k + EXTRA
            _, places = self.candidates(block.queries, count, effort, None)
            withheld = np.broadcast_to(self._withheld, (len(places), len(self._withheld)))
            found = np.cumsum(self._true_neighbours(block, places), axis=1)
            counts.append(found + self._true_neighbours(block, withheld).sum(1, keepdims=True))
        hits = np.minimum(np.concatenate(counts), benchmark.k)
        ends = [min(width * benchmark.k + EXTRA, hits.shape[1]) - 1 for width in WIDTHS]
        recalls = hits[:, ends] / benchmark.k
        return recalls.mean(0), recalls.std(0) / len(recalls) ** 0.5

    def _true_neighbours(self, benchmark: RecallBenchmark, places: Places) -> Mask:
        """Return which places `(Q, n)` hold a true neighbour of their query."""
        found = scores(self._table, self._space, benchmark.queries, places)
        kth = benchmark.kth_values[:, None]
        tolerance = 1e-5 * np.abs(kth)  # scores equal to the k-th are rounded to float32
        if self._space == "ip":
            good = found >= kth - tolerance
        else:
            good = np.sqrt(np.maximum(found, 0)) <= kth + tolerance
        query_places = self._table.places(benchmark.query_ids)[:, None]
        found_others = (places >= 0) & (places != query_places)
        return np.asarray(good & found_others & self._table.live[places])

    def rerank_bytes(self, candidates: int) -> float:
        """Return the bytes of the candidates' rows, times 3, since they are read out of order."""
        return 3.0 * 4 * self._table.dim * candidates

    # Disk

    def save(self, path: Path) -> None:
        """Write the FAISS index, which FAISS alone can read too, and after it the rows."""
        self._encode_rest()
        write_faiss(self._index, path)
        self._table.write(path)

    @classmethod
    def load(cls, path: Path, dim: int, space: Space, facts: dict[str, Any], *, mmap: bool) -> Self:
        """Read a file that `save` wrote: codes into memory; rows are mapped unless `mmap=False`."""
        backend = cls.__new__(cls)
        table = RowTable.read(path, dim, mmap=mmap)
        backend._start(table, space, BuildHints(count=len(table), scratch=path.parent))
        backend._index = backend.validate_index(read_faiss(path))
        backend.effort, backend.width = facts["effort"], facts["width"]
        if backend.effort not in backend.efforts() or backend.width not in WIDTHS:
            raise ValueError(
                f"its search parameters are {backend.effort} and {backend.width}, which no search "
                "has"
            )
        backend._speed = facts.get("queries_per_s")
        return backend

    def facts(self) -> dict[str, Any]:
        """Return type, parameters, the speed if it was measured, and the version of FAISS."""
        faiss = faiss_library()
        return {
            "faiss": faiss.__version__,
            "exact": False,
            "tombstones": self._table.dropped,
            **self.describe(),
            "effort": self.effort,
            "width": self.width,
            "queries_per_s": self._speed,
        }
