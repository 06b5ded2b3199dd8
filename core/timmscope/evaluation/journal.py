"""`Journal` writes the records of an evaluation, one line per map, so that it can be resumed.

`evaluation.json` holds the settings; an evaluation resumes only with the same settings.
`records.jsonl` has one line per map, in a fixed order, so its length says where to resume. A line
that a killed process has not finished is removed. Both have digests, and each line holds its own
number, so that a damaged, edited, missing or foreign line is noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timmscope.checked_json as checked_json
from timmscope.durable import sync
from timmscope.results import to_json
from timmscope.safe_files import open_regular, read_regular
from timmscope.store.files import TEMPORARY, disk_error, machine_error, write_bytes
from timmscope_registry import StoreCorrupted, StoreError, StoreMismatch

SETTINGS = "evaluation.json"
RECORDS = "records.jsonl"
_BEFORE_RECORDS = (".lock", SETTINGS, SETTINGS + TEMPORARY)
"""The only files that a process killed before its first record can leave behind."""

_MOST_BYTES = 1 << 28
"""Size of the settings, or of a line of the records, that is read."""

Record = dict[str, Any]


class Journal:
    """The records of one evaluation, on disk or, without a folder, in memory.

    Args:
        folder: the folder of the evaluation, which exists.
        settings: what is evaluated, as JSON values.

    Raises:
        StoreMismatch: the folder holds an evaluation with other settings.
        StoreCorrupted: a line of its records is damaged.
        StoreError: the folder holds other files, or cannot be read or written now.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.count = 0
        self._records: list[Record] = []
        if folder is None:
            return
        settings = json.loads(json.dumps(settings))
        if (folder / RECORDS).exists() and (folder / SETTINGS).exists():
            _require_same_settings(folder, settings)
            self.count = _cut_to_whole_lines(folder / RECORDS)
        elif any(entry.name not in _BEFORE_RECORDS for entry in folder.iterdir()):
            raise StoreError(f"{folder}: not an evaluation, and not empty; choose another folder")
        else:
            write_bytes(folder / SETTINGS, checked_json.dump(settings, indent=2))

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
        file = self.folder / RECORDS
        for number, line in _lines(file):
            yield _parse(file, number, line)


def _require_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    try:
        known = checked_json.load(read_regular(folder / SETTINGS, _MOST_BYTES))
    except (OSError, ValueError, MemoryError) as error:
        raise _unreadable(folder / SETTINGS, error) from error
    if known != settings:
        keys = [key for key in settings if known.get(key) != settings[key]]
        raise StoreMismatch(
            f"{folder} holds an evaluation of something else ({', '.join(keys) or 'more'} "
            "differ); choose another folder, or repeat its settings",
            differences=keys,
        )


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
        f"{file} cannot be read: {error}; restore it from a copy, or evaluate into another folder"
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
            raise ValueError(f"it is line {found} of an evaluation")
    except ValueError as error:
        raise StoreCorrupted(
            f"{file}, line {number} cannot be read ({error}); delete this line and all below it, "
            "and those maps are evaluated again"
        ) from error
    return record
