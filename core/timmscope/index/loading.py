"""Reads a saved index: its record, its engine, and whether both match each other and the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.index.backend import Backend, find_backend
from timmscope.index.files import IndexRecord, first_line, locked, read_record
from timmscope.index.metrics import space_of
from timmscope.index.ownership import check_matches_store
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store


def read_index(
    path: Path, store: Store | None, *, verify: bool | None, mmap: bool
) -> tuple[Backend, IndexRecord]:
    """Read an index file and its record; see `VectorIndex.load`.

    Raises:
        VectorIndexError: the index is missing, damaged, or does not belong to the store.
    """
    with locked(path):
        record = read_record(path, verify=verify)
        kind, space = find_backend(record.backend), space_of(record.metric)
        try:
            engine = kind.load(path, record.dim, space, record.facts, mmap=mmap)
        except VectorIndexError:
            raise
        except Exception as error:  # engines raise errors of any class for a damaged file
            raise VectorIndexError(
                f"the index {path} cannot be read ({first_line(error)}): build it again"
            ) from error
        if len(engine) != record.count:
            raise VectorIndexError(
                f"the index {path} holds {len(engine)} rows, its record says {record.count}: "
                "build it again"
            )
        if store is not None:
            check_matches_store(path, record, store)
        return engine, record
