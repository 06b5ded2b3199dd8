"""`Journal` writes the records of a long run, one per line, so that it can be resumed.

A file of settings says what is run; a run resumes only with the same settings. `records.jsonl` has
one line per map, image or chunk of images, in a fixed order, so its length says where to resume. A
line that a killed process has not finished is removed. Both have digests, and each line holds its
own number, so that a damaged, edited, missing or foreign line is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timmscope.checked_json as checked_json
from timmscope.durable import sync
from timmscope.results import to_json
from timmscope.safe_files import open_regular, read_regular
from timmscope.store.files import TEMPORARY, disk_error, machine_error, write_bytes
from timmscope.store.lock import NAME as LOCK
from timmscope.store.settings import require_same_settings
from timmscope_registry import StoreCorrupted, StoreError

RECORDS = "records.jsonl"
_MOST_BYTES = 1 << 28
"""Size of the settings, or of a line of the records, that is read."""

Record = dict[str, Any]


class Journal:
    """The records of one run, on disk or, without a folder, in memory.

    Args:
        folder: the folder of the run, which exists.
        settings: what is run, as JSON values.
        name: name of the file of settings, without `.json`.
        what: what the run is, for messages.
        before: names of files that a run killed before its first record can leave behind, besides
            those of the journal.

    Raises:
        StoreMismatch: the folder holds a run with other settings.
        StoreCorrupted: a line of its records is damaged.
        StoreError: the folder holds other files, or cannot be read or written now.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: dict[str, Any],
        name: str = "evaluation",
        what: str = "an evaluation",
        before: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.count = 0
        self._records: list[Record] = []
        if folder is None:
            return
        settings = json.loads(json.dumps(settings))
        file = folder / f"{name}.json"
        allowed = {LOCK, file.name, file.name + TEMPORARY, *before}
        if (folder / RECORDS).exists() and file.exists():
            require_same_settings(folder, what, read_settings(folder, name), settings)
            self.count = _cut_to_whole_lines(folder / RECORDS)
        elif any(entry.name not in allowed for entry in folder.iterdir()):
            raise StoreError(f"{folder}: not {what}, and not empty; choose another folder")
        else:
            write_bytes(file, checked_json.dump(settings, indent=2))

    def add(self, record: Record) -> None:
        """Add a record, with NaN as None; it is on disk when this returns.

        Raises:
            StoreError: the disk is full or read-only.
        """
        record = to_json(record)
        if self.folder is None:
            self._records.append(record)
        else:
            self._write(self.folder / RECORDS, {"line": self.count + 1, **record})
        self.count += 1

    @staticmethod
    def _write(path: Path, line: Record) -> None:
        try:
            with path.open("ab") as file:
                new = not file.tell()
                file.write(checked_json.dump(line))
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(path.parent)
        except OSError as error:
            raise disk_error(error, path) from error

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in order, from disk, as those of a large evaluation exceed memory."""
        if self.folder is None:
            yield from self._records
            return
        if self.count:
            yield from read_records(self.folder)


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Return the settings of the run in a folder.

    Raises:
        StoreCorrupted: they are damaged.
        StoreError: they cannot be read now.
    """
    file = folder / f"{name}.json"
    try:
        return checked_json.load(read_regular(file, _MOST_BYTES))
    except (OSError, ValueError, MemoryError) as error:
        raise _unreadable(file, error) from error


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records of the run in a folder, in order.

    Raises:
        StoreCorrupted: a line is damaged.
        StoreError: they cannot be read now.
    """
    file = folder / RECORDS
    for number, line in _lines(file):
        yield _parse(file, number, line)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and contents of every line."""
    try:
        with open_regular(file) as lines:
            number = 0
            while line := lines.readline(_MOST_BYTES):
                number += 1
                yield number, line
    except (OSError, ValueError, MemoryError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> StoreError:
    return machine_error(error, file) or StoreCorrupted(
        f"{file} cannot be read: {error}; restore it from a copy, or choose another folder"
    )


def _cut_to_whole_lines(file: Path) -> int:
    """Return the number of complete lines, and cut off a line that is not complete."""
    count = end = 0
    for number, line in _lines(file):
        if not line.endswith(b"\n"):
            break
        _parse(file, number, line)
        count, end = number, end + len(line)
    try:
        if end < file.stat().st_size:
            os.truncate(file, end)
    except OSError as error:
        raise disk_error(error, file) from error
    return count


def _parse(file: Path, number: int, line: bytes) -> Record:
    try:
        record = checked_json.load(line)
        if (found := record.pop("line", None)) != number:
            raise ValueError(f"it is line {found} of a run")
    except ValueError as error:
        raise StoreCorrupted(
            f"{file}, line {number} cannot be read ({error}); delete this line and all below it, "
            "and they are computed again"
        ) from error
    return record
