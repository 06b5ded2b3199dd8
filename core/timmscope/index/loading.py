"""Reads a saved index: its record, its engine, and whether both match each other and the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from timmscope.index.backend import Backend, Ids, find_backend
from timmscope.index.files import IndexRecord, UnreadableIndex, first_line, locked, read_record
from timmscope.index.metrics import space_of
from timmscope.index.ownership import check_matches_store
from timmscope.store.files import machine_error
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store


def read_index(
    path: Path, store: Store | None, *, verify: bool | None, mmap: bool
) -> tuple[Backend, IndexRecord]:
    """Read an index file and its record; see `VectorIndex.load`.

    Raises:
        UnreadableIndex: its engine is not installed, or cannot read a file that is undamaged.
        VectorIndexError: the index is missing, damaged, or does not belong to the store.
        PluginError: its engine cannot be loaded.
        StoreError: a file cannot be read now.
    """
    with locked(path):
        record = read_record(path, verify=verify)
        try:
            kind = find_backend(record.backend)
        except VectorIndexError as error:
            raise UnreadableIndex(
                f"the index {path} cannot be read: {error}; install its plugin, or build it again"
            ) from error
        space = space_of(record.metric)
        try:
            engine = kind.load(path, record.dim, space, record.facts, mmap=mmap)
        except VectorIndexError:
            raise
        except Exception as error:  # engines raise errors of any class for a damaged file
            if (failure := machine_error(error, path)) is not None:
                raise failure from error
            read_record(path, verify=True)  # raises an error if the file was altered
            raise UnreadableIndex(
                f"the index {path} cannot be read ({first_line(error)}): build it again"
            ) from error
        if len(engine) != record.count:
            raise VectorIndexError(
                f"the index {path} holds {len(engine)} rows, its record says {record.count}: "
                "build it again"
            )
        _require_ids(path, engine.ids, store)
        if store is not None:
            check_matches_store(path, record, store)
        return engine, record


def _require_ids(path: Path, ids: Ids, store: Store | None) -> None:
    """Refuse an index with ids that its store does not have, or with one of them twice.

    Raises:
        VectorIndexError: there is such an id.
    """
    if not len(ids):
        return
    ordered = ids if (ids[1:] > ids[:-1]).all() else np.sort(ids)
    images = np.inf if store is None else store.manifest.images.count
    if ordered[0] < 0 or ordered[-1] >= images:
        foreign = ordered[0] if ordered[0] < 0 else ordered[-1]
        owner = "an index" if store is None else f"{store.path}, which has {images} images,"
        raise VectorIndexError(
            f"the index {path} holds a row of id {foreign}, which {owner} cannot have: build it "
            "again"
        )
    if len(twice := ordered[1:][ordered[1:] == ordered[:-1]]):
        raise VectorIndexError(f"the index {path} holds id {twice[0]} twice: build it again")
