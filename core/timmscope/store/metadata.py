"""Joins the columns of a CSV file to a store's images.

The file is read twice, in blocks: first to find the image of each row and the columns that hold
numbers, then for the values. A column of text is kept as codes of its distinct texts, so a million
images need only a few bytes each.
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
from timmscope.safe_files import UnsafeFile, require_regular, why
from timmscope_registry import ParameterError

from .where import Kind, Values

JOINS = ("path", "name", "id")
"""Columns that say which image a row belongs to; the first one that the file has is used."""
RESERVED = ("id", "path", "name", "folder", "width", "height", "readable")
"""Columns that a file cannot replace; unlike these, its ``label`` replaces the store's."""
_BLOCK = 4096
_NONE = ("", "nan")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*|[-+]?inf", re.ASCII)
_EXACT = 1 << 53  # the largest integer up to which float64 holds all integers


@dataclass
class Column:
    """One column: numbers, NaN where missing, or codes of texts, -1 where missing."""

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
        """Return the values of the images from `start` to `stop` - 1."""
        part = self.values[start:stop]
        if self.texts is None:
            return Values(part, np.isnan(part))
        codes, inverse = np.unique(part, return_inverse=True)
        texts = [b"" if code < 0 else self.names[code] for code in codes.tolist()]
        return Values(np.array(texts, dtype=np.bytes_)[inverse.reshape(-1)], part < 0)


@dataclass
class Metadata:
    """Columns joined to a store's images.

    Attributes:
        path: the file.
        columns: the columns by name; ``_`` replaces characters that a name cannot hold.
        joined: the column by which the images were found.
        matched: number of images with a row.
        unmatched: number of rows without an image.
    """

    path: Path
    columns: dict[str, Column]
    joined: str
    matched: int
    unmatched: int


def read_metadata(file: str | os.PathLike[str], paths: Sequence[str]) -> Metadata:
    """Read a CSV file (commas, semicolons or tabs; UTF-8; the first line names the columns).

    Args:
        file: the file.
        paths: the store's images; a row belongs to the image with its ``path``, ``name`` (the part
            after the last slash) or ``id``.

    Raises:
        ParameterError: the file cannot be read, has none of these columns, has lines of different
            lengths or two rows for one image, or no row belongs to an image.
    """
    table = _Table(Path(file))
    ids, numeric = _match_rows(table, paths)
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
        if numeric[at]
        else Column(np.full(len(paths), -1, np.int32), {})
        for name, at in table.positions.items()
    }
    done = 0
    for _, rows in table.blocks():
        images = ids[done : done + len(rows)]
        done += len(rows)
        kept = np.flatnonzero(images >= 0)
        for name, at in table.positions.items():
            column = columns[name]
            cells = [rows[row][at] for row in kept.tolist()]
            if column.texts is None:
                column.values[images[kept]] = _numbers(cells)
            else:
                texts = column.texts
                column.values[images[kept]] = [
                    texts.setdefault(encode(cell), len(texts)) if cell else -1 for cell in cells
                ]
    return Metadata(table.path, columns, table.joined, len(found), len(ids) - len(found))


class _Table:
    """The rows of the CSV file, with their line numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = self._read_header()
        names = [_identifier(head) for head in header]
        lower = [head.strip().lower() for head in header]
        self.width = len(header)
        self.joined = next((join for join in JOINS if join in lower), "")
        if not self.joined:
            raise self.error(
                "needs a column path, name or id to find the images by, it has "
                f"{', '.join(header) or 'none'}"
            )
        self.key = lower.index(self.joined)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or "" in names:
            what = f"two columns are called {twice[0]!r}" if twice and twice[0] else ""
            raise self.error(what or f"column {names.index('') + 1} has no name")
        self.positions = {
            name: at for at, name in enumerate(names) if at != self.key and name not in RESERVED
        }

    def _read_header(self) -> list[str]:
        try:
            require_regular(self.path)
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                self.delimiter = max(",;\t", key=file.readline().count)
                file.seek(0)
                return next(csv.reader(file, delimiter=self.delimiter), [])
        except (OSError, UnsafeFile) as error:
            raise self.error(f"cannot be read ({why(error)})") from error
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


def _match_rows(table: _Table, paths: Sequence[str]) -> tuple[np.ndarray, list[bool]]:
    """Return the image of every row (-1 where there is none), and which columns are numbers."""
    finder = _ImageFinder(table, paths)
    numeric = [True] * table.width
    for name, at in table.positions.items():
        numeric[at] = name != "label"  # class names, even where they look like numbers
    parts, lines = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for numbers, rows in table.blocks():
        parts.append(finder.find([cells[table.key] for cells in rows], numbers))
        lines.append(np.asarray(numbers))
        for at, still in enumerate(numeric):
            if still and not all(_is_number(cells[at]) for cells in rows):
                numeric[at] = False
    ids, where = np.concatenate(parts), np.concatenate(lines)
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero((np.diff(ids[order]) == 0) & (ids[order][1:] >= 0))
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise table.error(
            f"lines {where[first]} and {where[second]} are both for image {paths[ids[first]]!r}"
        )
    return ids, numeric


class _ImageFinder:
    """Finds images by path, name or id through sorted hashes, which take 16 bytes per image."""

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
        """Return the image id of every cell, -1 where there is none."""
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
    """Return a column's name as a condition can write it."""
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
