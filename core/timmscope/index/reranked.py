"""Search in two steps: a compressed engine names candidates, the rows themselves decide.

`IVFBackend` and `HNSWBackend` share this: rows on disk, a FAISS index of their codes in memory,
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
from timmscope.index.faiss_threads import faiss_library, faiss_threads
from timmscope.index.scoring import SPARE, decide, scores
from timmscope.index.table import RowTable
from timmscope.index.tuning import WIDTHS, Setting, Shares, quickest, settings_for
from timmscope.progress import task
from timmscope_registry import VectorIndexError

_BLOCK = 1 << 16
"""Rows encoded at a time."""
_QUERIES = 1024
"""Queries that FAISS sees at a time: those that read the same list share the reading."""
Mask = npt.NDArray[np.bool_]
_CANDIDATES = 1 << 22
"""Candidates in memory at a time."""
_NARROW = 64
"""A filter that leaves fewer than one row in so many is searched exactly,"""
_FEW = 5_000
"""and so is one that leaves no more than this."""
_LONGEST = 4e18
"""Length of vectors whose squared distances fit in float32; FAISS aborts where they do not."""


def sample_places(count: int, size: int, held_out: Places, seed: int) -> Places:
    """Places of rows to train with, ascending; those held out only where there are too few."""
    places = np.random.default_rng(seed).permutation(count)
    places = places[np.argsort(np.isin(places, held_out), kind="stable")]
    return np.sort(places[:size])


def _long(rows: Rows) -> Places:
    """Numbers of the rows whose distances may leave float32."""
    with np.errstate(over="ignore"):
        return np.flatnonzero(np.einsum("ij,ij->i", rows, rows) > _LONGEST**2)


class RefinedBackend(ABC):
    """Candidates from a FAISS index of codes, scored by the rows.

    A subclass makes the FAISS index, searches it with a given effort, and says what that costs.
    In the FAISS index a row's id is its place in the table.
    """

    def waits(self, count: int) -> int:
        """How many of the rows held out stay out of the FAISS index until recall is measured."""
        return 0

    def __init__(self, dim: int, space: Space, hints: BuildHints) -> None:
        self._start(RowTable(dim, hints.scratch), space, hints)

    def _start(self, table: RowTable, space: Space, hints: BuildHints) -> None:
        self._table = table
        self._space: Space = space
        self._hints = hints
        self._index: Any = None
        self._waiting: Places = np.empty(0, np.int64)
        self.effort, self.width = 1, WIDTHS[-1]
        self._speed: float | None = None

    # What a subclass says

    @abstractmethod
    def make_index(self, table: RowTable, held_out: Places) -> Any:
        """A FAISS index trained on rows of the table, not on `held_out`, and still empty."""

    @abstractmethod
    def efforts(self) -> Sequence[int]:
        """How far the FAISS index may look, least first."""

    @abstractmethod
    def candidates(
        self, queries: Rows, count: int, effort: int, selector: Any | None
    ) -> tuple[Rows, Places]:
        """Likely neighbours, best first: estimated inner products or squared distances `(Q, count)`
        and places `(Q, count)`, -1 where there are no more."""

    @abstractmethod
    def astray(
        self, queries: Rows, found: tuple[Rows, Places], k: int, effort: int, allowed: Mask
    ) -> Mask:
        """Queries `(Q,)` around which a filter leaves too few rows for an effort to be enough.

        Recall was measured without a filter: an effort reaches it when allowed rows are as
        frequent near the query as everywhere. Those that a query wants may all be far from it
        (cats, asked for with a dog), where codes and effort have to prove that they suffice.

        Args:
            queries: `(Q, dim)`.
            found: what `candidates` gave.
            k: how many are wanted.
            effort: that was spent on them.
            allowed: `(places,)`, which rows may be found.
        """

    @abstractmethod
    def scan_bytes(self, effort: int) -> float:
        """Bytes that one search reads for so much effort; what parameters are compared by."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Type and parameters, for `facts`; what `effort` means among them."""

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
            VectorIndexError: a row is so long that distances leave float32.
        """
        long = _long(rows)
        if len(long):
            raise VectorIndexError(
                f"the row with id {ids[long[0]]} is longer than {_LONGEST:.0e}, too long for codes "
                "to compare in float32: use backend='flat' or metric='cosine'"
            )
        first = len(self._table) if self._index is not None else 0
        self._table.append(rows, ids)
        if self._index is not None:
            self._encode(np.arange(first, len(self._table)))

    def finish(self, held_out: Ids) -> None:
        """Train the FAISS index on other rows than `held_out`, and give it all rows."""
        places = self._table.places(held_out)
        with task("training"), faiss_threads():
            self._index = self.make_index(self._table, places)
        self._waiting = places[: self.waits(len(self._table))]
        self._encode(np.setdiff1d(np.arange(len(self._table)), self._waiting))
        self.effort = self.efforts()[-1]

    def _encode(self, places: Places) -> None:
        with task("encoding", total=len(places)) as advance:
            for start in range(0, len(places), _BLOCK):
                part = places[start : start + _BLOCK]
                rows = self.padded(self._table[part])
                with faiss_threads():
                    self._index.add_with_ids(rows, part)
                advance(len(part))

    def remove(self, ids: Ids) -> None:
        """Leave rows out of all searches; they stay where they are until `compact`.

        FAISS cannot take nodes out of a graph. It can take codes out of fast-scan lists, but what
        is added to these afterwards gets wrong codes (faiss 1.15.1).
        """
        self._table.drop(self._table.places(ids))

    def compact(self) -> None:
        """Encode the rows that are left anew, without those dropped."""
        if self._table.dropped:
            self._table = self._table.compacted()
            self._index.reset()
            self._encode(np.arange(len(self._table)))

    def rows(self, ids: Ids) -> Rows:
        """Rows of ids; `KeyError` for one that is not there."""
        return self._table[self._table.places(ids)]

    def padded(self, rows: Rows) -> Rows:
        """Rows as wide as the FAISS index wants them."""
        missing = self._index_dim - rows.shape[1]
        rows = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
        return np.ascontiguousarray(rows, np.float32)

    @property
    def _index_dim(self) -> int:
        return self._table.dim if self._index is None else int(self._index.d)

    # Searching

    def search(self, queries: Rows, k: int, allowed: Ids | None = None) -> tuple[Rows, Ids]:
        """Nearest rows; see `Backend.search`."""
        places = None if allowed is None else self._table.places(allowed)
        count = len(self) if places is None else len(places)
        few = places is not None and count <= max(_FEW, len(self) // _NARROW)
        if places is None and self._table.dropped:
            places = np.flatnonzero(self._table.live)
        mask = None
        if places is not None:
            mask = np.zeros(len(self._table), bool)
            mask[places] = True
        exactly = few or k * self.width > count // 2
        values = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        step = max(1, min(_QUERIES, _CANDIDATES // (k * WIDTHS[-1] + SPARE)))
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            part, into = queries[block], (values[block], found[block])
            left = np.arange(len(part))
            usual = np.setdiff1d(left, left if exactly else _long(part))
            if len(usual):
                answers = np.empty((len(usual), k), np.float32), np.empty((len(usual), k), np.int64)
                rest = self._search_block(part[usual], k, mask, *answers)
                into[0][usual], into[1][usual] = answers
                left = np.setdiff1d(left, np.delete(usual, rest))
            if len(left):
                everything = ExactSearch(self._table, self._table.ids, self._space)
                some = np.arange(len(self._table)) if places is None else places  # in blocks
                into[0][left], into[1][left] = everything.search(part[left], k, some)
        return values, self._table.ids[found]

    def _search_block(
        self,
        queries: Rows,
        k: int,
        allowed: Mask | None,
        values: Rows,
        found: Places,
    ) -> Places:
        """Fill in the answers; gives the queries that only exact search can answer."""
        left = np.arange(len(queries))
        # With one row in n allowed, n times as far must be looked for as many of them.
        effort = self.effort if allowed is None else self.effort / allowed.mean()
        first = min((e for e in self.efforts() if e >= effort), default=self.efforts()[-1])
        for effort, width in ((first, self.width), (self.efforts()[-1], WIDTHS[-1])):
            count = min(width * k + SPARE, len(self._table))
            named = self.candidates(queries[left], count, effort, self._selector(allowed))
            places = named[1]
            good = np.sum(places >= 0, axis=1) >= k
            if allowed is not None:
                good &= ~self.astray(queries[left], named, k, effort, allowed)
            done = left[good]
            if len(done):
                answers = decide(self._table, self._space, queries[done], places[good], k)
                values[done], found[done] = answers
            left = left[~good]
            if not len(left):
                break
        return left

    def _selector(self, allowed: Mask | None) -> Any | None:
        """What tells FAISS which rows count."""
        if allowed is None:
            return None
        return faiss_library().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))

    # Choosing

    def tune(self, exam: RecallBenchmark, recall: float, *, timed: bool) -> float:
        """Use the cheapest effort and width that reach a recall; see `Backend.tune`."""
        enough = settings_for(self, exam, recall, doubt=timed)
        chosen, self._speed = enough[0], None
        if timed:

            def search(setting: Setting) -> object:
                self.effort, self.width = setting.effort, setting.width
                return self.search(exam.queries, min(exam.k + 1, len(self)))

            chosen, seconds = quickest(enough, search)
            self._speed = float(f"{len(exam.queries) / seconds:.3g}")
        self.effort, self.width = chosen.effort, chosen.width
        self._encode(self._waiting)
        self._waiting = self._waiting[:0]
        return chosen.share

    def recalls(self, exam: RecallBenchmark, effort: int) -> tuple[Shares, Shares]:
        """Recall at each of the widths and its standard error, from one search with the largest."""
        counts = []
        for start in range(0, len(exam.queries), _QUERIES):
            block = exam.part(slice(start, start + _QUERIES))
            count = WIDTHS[-1] * exam.k + SPARE
            _, places = self.candidates(block.queries, count, effort, None)
            waiting = np.broadcast_to(self._waiting, (len(places), len(self._waiting)))
            found = np.cumsum(self._true(block, places), axis=1)
            counts.append(found + self._true(block, waiting).sum(1, keepdims=True))
        hits = np.minimum(np.concatenate(counts), exam.k)
        ends = [min(width * exam.k + SPARE, hits.shape[1]) - 1 for width in WIDTHS]
        shares = hits[:, ends] / exam.k
        return shares.mean(0), shares.std(0) / len(shares) ** 0.5

    def _true(self, exam: RecallBenchmark, places: Places) -> Mask:
        """Which places `(Q, n)` hold a true neighbour of their query."""
        found = scores(self._table, self._space, exam.queries, places)
        worst = exam.worst[:, None]
        slack = 1e-5 * np.abs(worst)  # float32 rounds scores that are the k-th one's
        if self._space == "ip":
            good = found >= worst - slack
        else:
            good = np.sqrt(np.maximum(found, 0)) <= worst + slack
        own = self._table.places(exam.own)[:, None]
        return np.asarray(good & (places >= 0) & (places != own) & self._table.live[places])

    def refine_bytes(self, candidates: int) -> float:
        """What scoring candidates costs beside reading in order: three times as much."""
        return 3.0 * 4 * self._table.dim * candidates

    # Disk

    def save(self, path: Path) -> None:
        """Write the FAISS index, which FAISS alone can read as well, and behind it the rows."""
        faiss = faiss_library()
        faiss.write_index(self._index, str(path))
        self._table.write(path)

    @classmethod
    def load(cls, path: Path, dim: int, space: Space, facts: dict[str, Any], *, mmap: bool) -> Self:
        """Read a file that `save` wrote; codes are read, rows are mapped."""
        faiss = faiss_library()
        backend = cls.__new__(cls)
        table = RowTable.read(path, dim, mmap=mmap)
        backend._start(table, space, BuildHints(count=len(table), scratch=path.parent))
        backend._index = backend.check(faiss.read_index(str(path)))
        backend.effort, backend.width = int(facts["effort"]), int(facts["width"])
        backend._speed = facts.get("queries_per_s")
        return backend

    @abstractmethod
    def check(self, index: Any) -> Any:
        """The FAISS index as its own class; ValueError where it is another."""

    def facts(self) -> dict[str, Any]:
        """Type, parameters, speed where it was measured, and the library's version."""
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
