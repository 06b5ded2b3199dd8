"""The journal lists the shards that a running pass has finished, one line per shard.

The manifest holds the shards of a pass that is over. To write it again for every shard would take
time that grows with the square of their number, so a pass adds lines to this file instead. Each
line has a digest: one that a killed process left incomplete, or that was damaged, does not count,
and its shard is mined again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import timmscope.checked_json as checked_json
from timmscope.durable import sync
from timmscope.safe_files import open_regular

from . import files

if TYPE_CHECKING:
    from .manifest import ShardRecord

NAME = "journal.jsonl"
_LONGEST_LINE = 4096


def add_to_journal(folder: Path, pass_digest: str, number: int, record: ShardRecord) -> None:
    """Add a finished shard; it is on disk when this returns.

    Raises:
        StoreError: the disk is full or read-only.
    """
    path = folder / NAME
    values = {"pass": pass_digest, "shard": number, **record.model_dump(mode="json")}
    try:
        with path.open("ab") as file:
            new = not file.tell()
            file.write((b"" if new else b"\n") + checked_json.dump(values))  # ends a torn line
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(folder)
    except OSError as error:
        raise files.disk_error(error, path) from error


def read_journal(folder: Path, pass_digest: str) -> Iterator[tuple[int, ShardRecord]]:
    """Yield number and record of the shards of a pass; lines that are damaged are left out."""
    from .manifest import ShardRecord

    try:
        file = open_regular(folder / NAME)
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(_LONGEST_LINE):
            with suppress(ValueError):
                values = checked_json.load(line)
                number, digest = values.pop("shard", None), values.pop("pass", None)
                if digest == pass_digest and isinstance(number, int):
                    yield number, ShardRecord.model_validate(values)


def end_journal(folder: Path) -> None:
    """Remove the journal, after the manifest that holds all its shards was written.

    Raises:
        StoreError: the disk is read-only or fails.
    """
    try:
        (folder / NAME).unlink()
        sync(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise files.disk_error(error, folder / NAME) from error
