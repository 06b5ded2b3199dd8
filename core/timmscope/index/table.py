"""`RowTable` keeps an index's rows on disk, because only their codes have to be in memory.

While an index is built, its rows are written to an unnamed temporary file. A saved index has them
after the engine's own part of the index file, and a loaded index maps them from there. Rows that
are added to a loaded index go to a temporary file too, so there are up to two pieces.
"""

from __future__ import annotations

import struct
import tempfile
import weakref
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Ids, Rows
from timmscope.index.exact import Places
from timmscope.safe_files import open_regular
from timmscope_registry import VectorIndexError

_FOOTER = struct.Struct("<8sQQ")
"""Magic, number of rows, width: the last bytes of the file."""
_MAGIC = b"tmscrows"
_ALIGNMENT = 4096
_BLOCK_ROWS = 1 << 14


class RowTable:
    """Rows `(n, dim)` float32, each with an id; a row's number in the table is its place.

    Dropped rows keep their places.

    Args:
        dim: width of a row.
        scratch: folder for the temporary file; None for the system's.
    """

    def __init__(self, dim: int, scratch: Path | None = None) -> None:
        self.dim = dim
        self.ids: Ids = np.empty(0, np.int64)
        self.live: npt.NDArray[np.bool_] = np.empty(0, bool)
        self._scratch = scratch
        self._saved: Rows = np.empty((0, dim), np.float32)
        self._spool: FileIO | None = None
        self._spooled = 0  # rows in the temporary file; a failed write leaves more after them
        self._fresh: Rows = np.empty((0, dim), np.float32)
        self._pending: list[tuple[Ids, npt.NDArray[np.bool_]]] = []
        self._by_id: tuple[Ids, Places] | None = None

    __iter__ = None  # otherwise NumPy would read the table as a sequence, row by row

    def __len__(self) -> int:
        """Number of places, including those of dropped rows."""
        return len(self._flush().ids)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of places, and width."""
        return len(self), self.dim

    @property
    def pieces(self) -> list[tuple[int, Rows]]:
        """First place and contiguous rows of each piece."""
        self._flush()
        first = len(self._saved)
        return [(at, rows) for at, rows in ((0, self._saved), (first, self._fresh)) if len(rows)]

    @property
    def live_ids(self) -> Ids:
        """Ids of the rows that were not dropped, in the order of their places."""
        self._flush()
        return self.ids if self.live.all() else self.ids[self.live]

    @property
    def dropped(self) -> int:
        """Number of places whose row was dropped."""
        return len(self) - int(self.live.sum())

    def append(self, rows: Rows, ids: Ids) -> None:
        """Append rows, all or none.

        Raises:
            VectorIndexError: the disk is full.
        """
        try:
            if self._spool is None:
                self._spool = _temporary_file(self._scratch)
                weakref.finalize(self, self._spool.close)
            self._spool.seek(4 * self.dim * self._spooled)
            left = np.ascontiguousarray(rows, np.float32).reshape(-1).view(np.uint8).data
            while left:
                left = left[self._spool.write(left) :]
        except OSError as error:
            raise VectorIndexError(
                f"rows of the index cannot be kept on disk while it is built: {error}"
            ) from error
        self._pending.append((np.asarray(ids, np.int64), np.ones(len(ids), bool)))
        self._spooled += len(ids)
        self._by_id = None

    def __getitem__(self, places: Any) -> Rows:
        """Return a copy of the rows at some places `(m,)`, or at a slice of them."""
        self._flush()
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        first = len(self._saved)
        if not len(self._fresh):
            return np.asarray(self._saved[places])
        if not first:
            return np.asarray(self._fresh[places])
        rows = np.empty((len(places), self.dim), np.float32)
        old = places < first
        rows[old], rows[~old] = self._saved[places[old]], self._fresh[places[~old] - first]
        return rows

    def places(self, ids: Ids) -> Places:
        """Return the places of rows by their ids; raise `KeyError` for unknown or dropped ids."""
        self._flush()
        if self._by_id is None:
            live = np.flatnonzero(self.live)
            order = live[np.argsort(self.ids[live], kind="stable")]
            self._by_id = (self.ids[order], order)
        ordered, order = self._by_id
        if not len(ordered):
            raise KeyError(int(ids[0]))
        at = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        wrong = ordered[at] != ids
        if wrong.any():
            raise KeyError(int(ids[np.argmax(wrong)]))
        return np.asarray(order[at], np.int64)

    def drop(self, places: Places) -> None:
        """Drop the rows at some places; the places stay."""
        self._flush()
        self.live = self.live.copy()
        self.live[places] = False
        self._by_id = None

    def compacted(self) -> RowTable:
        """Return a new table without the dropped rows."""
        table = RowTable(self.dim, self._scratch)
        live = np.flatnonzero(self.live)
        for start in range(0, len(live), _BLOCK_ROWS):
            part = live[start : start + _BLOCK_ROWS]
            table.append(self[part], self.ids[part])
        return table

    def write(self, path: Path) -> None:
        """Append the table to a file that holds the engine's own part."""
        with path.open("ab") as file:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            for _, rows in self.pieces:
                for start in range(0, len(rows), _BLOCK_ROWS):
                    file.write(np.ascontiguousarray(rows[start : start + _BLOCK_ROWS]).data)
            file.write(self.ids.data)
            file.write(self.live.data)
            file.write(_FOOTER.pack(_MAGIC, len(self), self.dim))

    @classmethod
    def read(cls, path: Path, dim: int, *, mmap: bool) -> RowTable:
        """Read a table from a file; rows are mapped, or read into memory if `mmap` is False."""
        with open_regular(path) as file:
            file.seek(-_FOOTER.size, 2)
            end = file.tell()
            magic, count, width = _FOOTER.unpack(file.read(_FOOTER.size))
            if magic != _MAGIC or width != dim:
                raise ValueError(f"it has no rows of {dim} values")
            first = end - count * (4 * dim + 9)
            if first < 0 or first % _ALIGNMENT:
                raise ValueError("its rows start at an impossible place")
            file.seek(end - 9 * count)
            table = cls(dim)
            table.ids = np.fromfile(file, np.int64, count)
            table.live = np.fromfile(file, np.uint8, count) != 0
            if mmap and count:
                table._saved = np.memmap(file, np.float32, "r", first, (count, dim))
            elif count:
                file.seek(first)
                table._saved = np.fromfile(file, np.float32, count * dim).reshape(count, dim)
        return table

    def _flush(self) -> RowTable:
        """Write the appended rows to the temporary file, and map them."""
        if self._pending and self._spool is not None:
            self.ids = np.concatenate([self.ids, *(ids for ids, _ in self._pending)])
            self.live = np.concatenate([self.live, *(live for _, live in self._pending)])
            self._pending = []
            if self._spooled:
                shape = (self._spooled, self.dim)
                self._fresh = np.memmap(self._spool, np.float32, "r", 0, shape)
        return self


def _temporary_file(scratch: Path | None) -> FileIO:
    """Open a file that is deleted when closed; in the system's folder if `scratch` is read-only.

    It has no buffer, which could fail to be written when the file is closed.
    """
    try:
        return tempfile.TemporaryFile(buffering=0, dir=scratch, prefix="timmscope-")
    except OSError:
        if scratch is None:
            raise
        return tempfile.TemporaryFile(buffering=0, prefix="timmscope-")
