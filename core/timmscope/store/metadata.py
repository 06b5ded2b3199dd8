"""A table of one's own beside a store: columns of a CSV file, joined to the images.

The file is read twice, in blocks: once to find the rows' images and which columns are numbers, once
for the values. A column of text is kept as numbers of its distinct texts, so a million images cost
a few bytes each.
"""

from __future__ import annotations

import csv
import keyword
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from timmscope.images.tables import encode
from timmscope_registry import ParameterError

from .where import Kind, Values

JOINS = ("path", "name", "id")
"""Columns that say which image a row belongs to; the first of them that the file has."""
OWN = ("id", "path", "name", "folder", "width", "height", "readable")
"""Columns that stay the store's own, whatever the file says. Its ``label`` is taken."""
_BLOCK = 4096
_NONE = ("", "nan")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*|[-+]?inf", re.ASCII)
_EXACT = 1 << 53


@dataclass
class Column:
    """One column: numbers with NaN where there is none, or codes of texts with -1."""

    values: np.ndarray
    texts: dict[bytes, int] | None = None
    _names: list[bytes] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """Whether it holds numbers or text."""
        return "number" if self.texts is None else "text"

    @property
    def names(self) -> list[bytes]:
        """The distinct texts, by code."""
        if self.texts and not self._names:
            self._names = list(self.texts)
        return self._names

    def block(self, start: int, stop: int) -> Values:
        """The values of some images."""
        part = self.values[start:stop]
        if self.texts is None:
            return Values(part, np.isnan(part))
        codes, places = np.unique(part, return_inverse=True)
        texts = [b"" if code < 0 else self.names[code] for code in codes.tolist()]
        return Values(np.array(texts, dtype=np.bytes_)[places.reshape(-1)], part < 0)


@dataclass
class Metadata:
    """Columns joined to a store's images.

    Attributes:
        path: the file.
        columns: by name, with what a name cannot hold turned into ``_``.
        joined: the column that the images were found by.
        matched: images with a row.
        unmatched: rows without an image.
    """

    path: Path
    columns: dict[str, Column]
    joined: str
    matched: int
    unmatched: int


def read_metadata(file: str | os.PathLike[str], paths: Sequence[str]) -> Metadata:
    """Read a CSV file (commas, semicolons or tabs; UTF-8; a line of names first).

    Args:
        file: the file.
        paths: the store's images; a row belongs to the one of that ``path``, ``name`` (what follows
            the last slash) or ``id``.

    Raises:
        ParameterError: the file cannot be read, has none of these columns, lines of different
            lengths, two rows for one image, or no row for any.
    """
    table = _Table(Path(file))
    ids, numeric = _survey(table, paths)
    found = np.flatnonzero(ids >= 0)
    if not len(found):
        shown = next((cells[table.key] for _, cells in table.rows()), None)
        first = repr(shown) if shown is not None else "nothing"
        theirs = {"path": paths[0], "name": _name(paths[0]), "id": f"0 to {len(paths) - 1}"}
        raise table.error(
            f"no row belongs to an image of the store: its column {table.joined!r} begins with "
            f"{first}, the store's with {theirs[table.joined]!r}"
        )
    columns = {
        name: Column(np.full(len(paths), np.nan))
        if numeric[place]
        else Column(np.full(len(paths), -1, np.int32), {})
        for name, place in table.places.items()
    }
    at = 0
    for _, rows in table.blocks():
        here = ids[at : at + len(rows)]
        at += len(rows)
        kept = np.flatnonzero(here >= 0)
        for name, place in table.places.items():
            column = columns[name]
            cells = [rows[row][place] for row in kept.tolist()]
            if column.texts is None:
                column.values[here[kept]] = _numbers(cells)
            else:
                texts = column.texts
                column.values[here[kept]] = [
                    texts.setdefault(encode(cell), len(texts)) if cell else -1 for cell in cells
                ]
    return Metadata(table.path, columns, table.joined, len(found), len(ids) - len(found))


class _Table:
    """The file's rows, with the number of their line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        heads = self._open()
        names = [_identifier(head) for head in heads]
        folded = [head.strip().lower() for head in heads]
        self.width = len(heads)
        self.joined = next((join for join in JOINS if join in folded), "")
        if not self.joined:
            raise self.error(
                "needs a column path, name or id to find the images by, it has "
                f"{', '.join(heads) or 'none'}"
            )
        self.key = folded.index(self.joined)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or "" in names:
            what = f"two columns are called {twice[0]!r}" if twice and twice[0] else ""
            raise self.error(what or f"column {names.index('') + 1} has no name")
        self.places = {
            name: place for place, name in enumerate(names) if place != self.key and name not in OWN
        }

    def _open(self) -> list[str]:
        try:
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                self.delimiter = max(",;\t", key=file.readline().count)
                file.seek(0)
                return next(csv.reader(file, delimiter=self.delimiter), [])
        except OSError as error:
            raise self.error(f"cannot be read ({error.strerror})") from error
        except csv.Error as error:
            raise self.error(f"its first line cannot be read ({error})") from error

    def error(self, reason: str) -> ParameterError:
        return ParameterError(f"metadata {self.path}: {reason}", parameter="metadata")

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            try:
                next(reader)
                for cells in reader:
                    if len(cells) == self.width:
                        yield reader.line_num, cells
                    elif cells:
                        raise self.error(
                            f"line {reader.line_num} has {len(cells)} values, the first line names "
                            f"{self.width} columns"
                        )
            except csv.Error as error:
                raise self.error(f"line {reader.line_num} cannot be read ({error})") from error

    def blocks(self) -> Iterator[tuple[list[int], list[list[str]]]]:
        rows = self.rows()
        while block := list(islice(rows, _BLOCK)):
            yield [line for line, _ in block], [cells for _, cells in block]


def _survey(table: _Table, paths: Sequence[str]) -> tuple[np.ndarray, list[bool]]:
    """The image of every row (-1 where there is none), and which columns are numbers."""
    places = _Places(table, paths)
    numeric = [True] * table.width
    for name, place in table.places.items():
        numeric[place] = name != "label"  # class names, even where they look like numbers
    parts, lines = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for numbers, rows in table.blocks():
        parts.append(places.find([cells[table.key] for cells in rows], numbers))
        lines.append(np.asarray(numbers))
        for place, still in enumerate(numeric):
            if still and not all(_is_number(cells[place]) for cells in rows):
                numeric[place] = False
    ids, where = np.concatenate(parts), np.concatenate(lines)
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero((np.diff(ids[order]) == 0) & (ids[order][1:] >= 0))
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise table.error(
            f"lines {where[first]} and {where[second]} are both for image {paths[ids[first]]!r}"
        )
    return ids, numeric


class _Places:
    """Finds images by what a row calls them, through sorted hashes: 16 bytes an image."""

    def __init__(self, table: _Table, paths: Sequence[str]) -> None:
        self._table, self._paths = table, paths
        if table.joined == "id":
            return
        keys = np.fromiter((hash(self._key(path)) for path in paths), np.int64, len(paths))
        self._order = np.argsort(keys, kind="stable")
        self._hashes = keys[self._order]

    def _key(self, path: str) -> str:
        return path if self._table.joined == "path" else _name(path)

    def find(self, cells: list[str], lines: list[int]) -> np.ndarray:
        """Image of every cell, -1 where there is none."""
        if self._table.joined == "id":
            return np.array([self._id(*item) for item in zip(cells, lines, strict=True)], np.int64)
        hashes = np.fromiter(map(hash, cells), np.int64, len(cells))
        low = np.searchsorted(self._hashes, hashes, side="left")
        high = np.searchsorted(self._hashes, hashes, side="right")
        found = np.full(len(cells), -1, np.int64)
        for row in np.flatnonzero(high > low).tolist():
            candidates = self._order[low[row] : high[row]].tolist()
            same = [i for i in candidates if self._key(self._paths[i]) == cells[row]]
            if len(same) > 1:
                raise self._table.error(
                    f"line {lines[row]} names {cells[row]!r}, and the store has it as "
                    f"{self._paths[same[0]]!r} and {self._paths[same[1]]!r}: join on `path` instead"
                )
            found[row] = same[0] if same else -1
        return found

    def _id(self, cell: str, line: int) -> int:
        try:
            number = int(cell)
        except ValueError:
            raise self._table.error(
                f"line {line} has the id {cell!r}, expected a whole number"
            ) from None
        return number if 0 <= number < len(self._paths) else -1


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _identifier(head: str) -> str:
    """A column's name as a condition can hold it."""
    name = re.sub(r"\W", "_", head.strip())
    if not name:
        return ""
    if name[0].isdigit():
        name = f"_{name}"
    reserved = keyword.iskeyword(name) or name.lower() in ("none", "null", "true", "false")
    return f"{name}_" if reserved else name


def _is_number(cell: str) -> bool:
    text = cell.strip().lower()
    if text in _NONE:
        return True
    if not _NUMBER.fullmatch(text):
        return False
    return "." in text or "e" in text or "inf" in text or abs(int(text)) <= _EXACT


def _numbers(cells: Iterable[str]) -> list[float]:
    return [float(cell) if cell.strip() else float("nan") for cell in cells]
