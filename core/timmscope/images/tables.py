"""Flat tables of strings, because a list of a million Python strings costs too much.

Every worker process that touches a Python string writes to its reference count and so copies the
page it lies on: with a list of paths, memory grows in each worker until the whole list is copied.
A table is two NumPy arrays, whatever its length.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt


class StringTable(Sequence[str]):
    """An immutable sequence of strings kept as one block of UTF-8 bytes and its offsets.

    File names that are not valid UTF-8 survive (surrogate escapes), as do newlines in them.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        ends, joined = array("q", [0]), bytearray()
        for text in strings:
            joined += encode(text)
            ends.append(len(joined))
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self._bytes = np.frombuffer(joined, dtype=np.uint8)

    @classmethod
    def of_columns(cls, columns: Iterable[np.ndarray]) -> StringTable:
        """Join columns of fixed-length UTF-8 (``S``), as HDF5 keeps them."""
        lengths, parts = [np.zeros(1, dtype=np.int64)], [np.empty(0, dtype=np.uint8)]
        for column in columns:
            cells = np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)
            length = np.char.str_len(column)
            lengths.append(length)
            parts.append(cells[np.arange(cells.shape[1]) < length[:, None]])
        table = cls(())
        table._ends = np.cumsum(np.concatenate(lengths))
        table._bytes = np.concatenate(parts)
        return table

    def take(self, places: npt.ArrayLike) -> list[str]:
        """Strings at some places, each from 0 on."""
        wanted = np.asarray(places, dtype=np.int64)
        begins, ends = self._ends[wanted].tolist(), self._ends[wanted + 1].tolist()
        cells = self._bytes.data
        return [decode(cells[begin:end]) for begin, end in zip(begins, ends, strict=True)]

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        position = int(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of a table of {len(self)}")
        return self._get(position)

    def __iter__(self) -> Iterator[str]:
        return (self._get(i) for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"

    def _get(self, index: int) -> str:
        return decode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


class LabelTable(Sequence[str | None]):
    """An immutable sequence of labels, None where there is none; each name is kept once."""

    def __init__(self, labels: Iterable[str | None]) -> None:
        codes: dict[str, int] = {}
        column = [-1 if name is None else codes.setdefault(name, len(codes)) for name in labels]
        self._codes = np.asarray(column, dtype=np.int32)
        self._names = tuple(codes)

    @classmethod
    def of_columns(cls, columns: Iterable[np.ndarray]) -> LabelTable:
        """Join columns of fixed-length UTF-8 (``S``), as HDF5 keeps them; empty is None."""
        codes: dict[str, int] = {}
        parts = [np.empty(0, dtype=np.int32)]
        for column in columns:
            found, first, inverse = np.unique(column, return_index=True, return_inverse=True)
            own = np.empty(len(found), dtype=np.int32)
            for place in np.argsort(first).tolist():  # numbered in order of first appearance
                name = decode(bytes(found[place]))
                own[place] = codes.setdefault(name, len(codes)) if name else -1
            parts.append(own[inverse.reshape(-1)])
        table = cls(())
        table._codes, table._names = np.concatenate(parts), tuple(codes)
        return table

    def take(self, places: np.ndarray) -> LabelTable:
        """Labels at some places; `names` and their order stay."""
        table = LabelTable(())
        table._codes, table._names = self._codes[places], self._names
        return table

    @property
    def names(self) -> tuple[str, ...]:
        """The distinct labels, in order of first appearance."""
        return self._names

    @property
    def codes(self) -> np.ndarray:
        """Place of every label in `names`, (N,) int32; -1 where there is none."""
        return self._codes

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[str | None]: ...
    def __getitem__(self, index: int | slice) -> str | list[str | None] | None:
        if isinstance(index, slice):
            return self._spelt(self._codes[index])
        return self._spelt(self._codes[[int(index)]])[0]

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._spelt(self._codes))

    def __repr__(self) -> str:
        return f"<LabelTable of {len(self)}, {len(self._names)} names>"

    def _spelt(self, codes: np.ndarray) -> list[str | None]:
        names = (*self._names, None)  # -1 is the last
        return [names[code] for code in codes.tolist()]


def encode(text: str) -> bytes:
    """UTF-8 bytes of a name that may come from a file system with another encoding."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes | memoryview) -> str:
    """The inverse of `encode`."""
    return str(data, "utf-8", "surrogateescape")
