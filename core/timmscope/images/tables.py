"""Tables of strings as NumPy arrays, because a list of a million Python strings takes much memory.

A worker process that reads a Python string writes to its reference count and so copies its memory
page: with a list of paths, each worker gradually copies the whole list. A table is two NumPy
arrays, whatever its length.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt


class TextColumn(Sequence[str]):
    """A sequence of strings of which many can be taken at once."""

    @abstractmethod
    def take(self, indices: npt.ArrayLike) -> list[str]:
        """Return the strings at some indices, which must not be negative."""

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

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"

    @abstractmethod
    def _get(self, index: int) -> str: ...


class StringTable(TextColumn):
    """An immutable sequence of strings, stored as one array of UTF-8 bytes and one of offsets.

    File names that are not valid UTF-8 are preserved (by surrogate escapes), and so are newlines.
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
        """Join columns of fixed-length UTF-8 (``S``), as HDF5 stores them."""
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

    def take(self, indices: npt.ArrayLike) -> list[str]:
        """Return the strings at some indices, which must not be negative."""
        rows = np.asarray(indices, dtype=np.int64)
        begins, ends = self._ends[rows].tolist(), self._ends[rows + 1].tolist()
        cells = self._bytes.data
        return [decode(cells[begin:end]) for begin, end in zip(begins, ends, strict=True)]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        return (self._get(i) for i in range(len(self)))

    def _get(self, index: int) -> str:
        return decode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


class LabelTable(Sequence[str | None]):
    """An immutable sequence of labels, None where there is none; equal labels are stored once."""

    def __init__(self, labels: Iterable[str | None]) -> None:
        codes: dict[str, int] = {}
        column = [-1 if name is None else codes.setdefault(name, len(codes)) for name in labels]
        self._codes = np.asarray(column, dtype=np.int32)
        self._names = tuple(codes)

    @classmethod
    def of_columns(cls, columns: Iterable[np.ndarray]) -> LabelTable:
        """Join columns of fixed-length UTF-8 (``S``), as HDF5 stores them; empty text is None."""
        codes: dict[str, int] = {}
        parts = [np.empty(0, dtype=np.int32)]
        for column in columns:
            names, first, inverse = np.unique(column, return_index=True, return_inverse=True)
            code_of = np.empty(len(names), dtype=np.int32)
            for row in np.argsort(first).tolist():  # numbered in order of first appearance
                name = decode(bytes(names[row]))
                code_of[row] = codes.setdefault(name, len(codes)) if name else -1
            parts.append(code_of[inverse.reshape(-1)])
        table = cls(())
        table._codes, table._names = np.concatenate(parts), tuple(codes)
        return table

    def take(self, indices: np.ndarray) -> LabelTable:
        """Return the labels at some indices, with the same `names`."""
        table = LabelTable(())
        table._codes, table._names = self._codes[indices], self._names
        return table

    @property
    def names(self) -> tuple[str, ...]:
        """The distinct labels, in order of first appearance."""
        return self._names

    @property
    def codes(self) -> np.ndarray:
        """Index of every label in `names`, (N,) int32; -1 where there is none."""
        return self._codes

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[str | None]: ...
    def __getitem__(self, index: int | slice) -> str | list[str | None] | None:
        if isinstance(index, slice):
            return self._labels(self._codes[index])
        return self._labels(self._codes[[int(index)]])[0]

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._labels(self._codes))

    def __repr__(self) -> str:
        return f"<LabelTable of {len(self)}, {len(self._names)} names>"

    def _labels(self, codes: np.ndarray) -> list[str | None]:
        names = (*self._names, None)  # code -1 gives the last, None
        return [names[code] for code in codes.tolist()]


def encode(text: str) -> bytes:
    """Encode text, which may be a file name that is not valid UTF-8, as bytes."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes | memoryview) -> str:
    """The inverse of `encode`."""
    return str(data, "utf-8", "surrogateescape")
