"""Adds rows to an index and removes rows from it, without building it again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Backend, Ids
from timmscope.index.building import add_rows
from timmscope.index.files import IndexRecord, index_path
from timmscope.index.ownership import check_matches_store
from timmscope.index.source import RowSource, array_source, checked_ids, store_source
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store


def add(
    engine: Backend, record: IndexRecord, rows: npt.ArrayLike, ids: npt.ArrayLike
) -> tuple[IndexRecord, int]:
    """Add rows under new ids; return the new record and the number of finite rows.

    Raises:
        VectorIndexError: the shapes are wrong, or an id occurs twice or is in the index.
    """
    source = array_source(rows, ids, "rows")
    if source.dim != record.dim:
        raise VectorIndexError(
            f"rows of {source.dim} values cannot be added to the index of {record.layer!r}, whose "
            f"rows have {record.dim}"
        )
    known = np.intersect1d(np.asarray(ids, np.int64), engine.ids)
    if len(known):
        raise VectorIndexError(
            f"{len(known)} of the ids are in the index of {record.layer!r} already, the first is "
            f"{known[0]}: remove them first"
        )
    before = len(engine)
    non_finite = add_rows(engine, source, record.metric)
    record = record.model_copy(update={"non_finite": record.non_finite + non_finite})
    return refreshed(engine, record), len(engine) - before


def add_missing(engine: Backend, record: IndexRecord, store: Store) -> tuple[IndexRecord, int]:
    """Add the rows of shards that are not in the index; return the new record and their number.

    Raises:
        VectorIndexError: the store was mined again.
        StoreCorrupted: a shard cannot be read.
    """
    check_matches_store(index_path(store.path, record.layer), record, store)
    source = store_source(store.layer(record.layer), record.shards)
    source = _without_ids(source, engine.ids)
    before = len(engine)
    non_finite = add_rows(engine, source, record.metric)
    record = record.model_copy(
        update={
            "non_finite": record.non_finite + non_finite,
            "failed": record.failed + source.failed,
            "shards": dict(sorted({**record.shards, **source.shards}.items())),
        }
    )
    return refreshed(engine, record), len(engine) - before


def remove(engine: Backend, record: IndexRecord, ids: npt.ArrayLike) -> tuple[IndexRecord, int]:
    """Remove rows; return the new record and the number of removed rows.

    Raises:
        VectorIndexError: an id is unknown or occurs twice, or no row would be left.
    """
    gone = checked_ids(ids)
    unknown = np.setdiff1d(gone, engine.ids)
    if len(unknown):
        raise VectorIndexError(
            f"{len(unknown)} of {len(gone)} ids are not in the index of {record.layer!r}, the "
            f"first is {unknown[0]}"
        )
    if len(gone) == len(engine):
        raise VectorIndexError(
            f"these are all {len(gone)} rows of the index of {record.layer!r}: delete its file "
            "instead"
        )
    if len(gone):
        engine.remove(gone)
    record = record.model_copy(update={"removed": record.removed + len(gone)})
    return refreshed(engine, record), len(gone)


def _without_ids(source: RowSource, ids: Ids) -> RowSource:
    """Return a source without the rows that the index has already, because a caller added them."""
    batches = (
        (numbers[new], rows[new])
        for numbers, rows in source.batches
        for new in [~np.isin(numbers, ids)]
    )
    return replace(source, batches=batches)


def refreshed(engine: Backend, record: IndexRecord) -> IndexRecord:
    """Return the record with the engine's present number of rows and facts."""
    facts = {**record.facts, **engine.facts()}
    return record.model_copy(update={"count": len(engine), "facts": facts})


def reopened(store: Store | None, layer: str) -> Store:
    """Open a store again, since it may have gained shards.

    Raises:
        VectorIndexError: there is no store.
    """
    if store is None:
        raise VectorIndexError(
            f"the index of {layer!r} belongs to no store: use add(rows, ids) to add rows"
        )
    from timmscope.store import Store

    return Store.open(store.path, trust=store.trust)
