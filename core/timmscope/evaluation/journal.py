"""What an evaluation has found so far, a line a map, so that a killed one goes on.

`evaluation.json` says what is being evaluated; a folder goes on with that alone. `records.jsonl`
has a line for each map, in a fixed order: its length says where to go on, and a line that a killed
process left unfinished is taken back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timmscope.store.files import TEMPORARY, write_bytes
from timmscope_registry import StoreCorrupted, StoreError, StoreMismatch

SETTINGS = "evaluation.json"
RECORDS = "records.jsonl"
_BEFORE_RECORDS = (".lock", SETTINGS, SETTINGS + TEMPORARY)
"""All that a process killed before its first record can have left."""

Record = dict[str, Any]


class Journal:
    """The records of one evaluation; without a folder they live in memory.

    Args:
        folder: where they are kept; it exists.
        settings: what is evaluated, as JSON values.

    Raises:
        StoreMismatch: the folder holds an evaluation of something else.
        StoreCorrupted: a line of it is none of ours.
        StoreError: the folder holds other things.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.count = 0
        self._kept: list[Record] = []
        if folder is None:
            return
        settings = json.loads(json.dumps(settings))
        if (folder / RECORDS).exists() and (folder / SETTINGS).exists():
            self._agree(folder, settings)
            self.count = _cut_to_whole_lines(folder / RECORDS)
        elif any(entry.name not in _BEFORE_RECORDS for entry in folder.iterdir()):
            raise StoreError(f"{folder}: not an evaluation, and not empty; choose another folder")
        else:
            text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
            write_bytes(folder / SETTINGS, text.encode("utf-8", "surrogateescape"))

    def add(self, record: Record) -> None:
        """Keep a record, on disk before the next one is begun."""
        self.count += 1
        if self.folder is None:
            self._kept.append(record)
        else:
            with (self.folder / RECORDS).open("ab") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())

    def __iter__(self) -> Iterator[Record]:
        """The records in their order, from disk: a large evaluation does not fit in memory."""
        if self.folder is None:
            yield from self._kept
            return
        file = self.folder / RECORDS
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield _record(file, number, line)

    def _agree(self, folder: Path, settings: dict[str, Any]) -> None:
        try:
            known = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreCorrupted(f"{folder / SETTINGS} cannot be read: {error}") from error
        if known != settings:
            keys = [key for key in settings if known.get(key) != settings[key]]
            raise StoreMismatch(
                f"{folder} holds an evaluation of something else ({', '.join(keys) or 'more'} "
                "differ); choose another folder, or repeat its settings",
                differences=keys,
            )


def _line(record: Record) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def _cut_to_whole_lines(file: Path) -> int:
    """Count the whole lines, and cut off what a killed process left after them."""
    count = end = 0
    with file.open("rb+") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            _record(file, number, line)
            count, end = number, end + len(line)
        lines.truncate(end)
    return count


def _record(file: Path, number: int, line: bytes) -> Record:
    try:
        record: Record = json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise StoreCorrupted(
            f"{file}, line {number} cannot be read ({error}); delete it and all below it to "
            "have those maps evaluated again"
        ) from error
    return record
