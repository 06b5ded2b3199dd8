"""Keeping an index current: rows added and removed, without building it again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from timmscope.index.backend import Backend, Ids
from timmscope.index.building import fill
from timmscope.index.files import IndexRecord, index_path
from timmscope.index.ownership import check_belongs
from timmscope.index.source import RowSource, array_source, checked_ids, store_source
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store


def add(
    engine: Backend, record: IndexRecord, rows: npt.ArrayLike, ids: npt.ArrayLike
) -> tuple[IndexRecord, int]:
    """Add rows under new ids; returns the new record and how many rows were finite.

    Raises:
        VectorIndexError: wrong shapes, or an id that is double or there already.
    """
    source = array_source(rows, ids, "rows")
    if source.dim != record.dim:
        raise VectorIndexError(
            f"rows of {source.dim} values cannot join the index of {record.layer!r}, whose rows "
            f"have {record.dim}"
        )
    there = np.intersect1d(np.asarray(ids, np.int64), engine.ids)
    if len(there):
        raise VectorIndexError(
            f"{len(there)} of the ids are in the index of {record.layer!r} already, the first is "
            f"{there[0]}: remove them first"
        )
    before = len(engine)
    non_finite = fill(engine, source, record.metric)
    record = record.model_copy(update={"non_finite": record.non_finite + non_finite})
    return current(engine, record), len(engine) - before


def add_missing(engine: Backend, record: IndexRecord, store: Store) -> tuple[IndexRecord, int]:
    """Add the rows of a store's shards that the index never saw; returns record and number.

    Raises:
        VectorIndexError: the store was mined again.
        StoreCorrupted: a shard cannot be read.
    """
    check_belongs(index_path(store.path, record.layer), record, store)
    source = store_source(store.layer(record.layer), record.shards)
    source = without(source, engine.ids)
    before = len(engine)
    non_finite = fill(engine, source, record.metric)
    record = record.model_copy(
        update={
            "non_finite": record.non_finite + non_finite,
            "failed": record.failed + source.failed,
            "shards": dict(sorted({**record.shards, **source.shards}.items())),
        }
    )
    return current(engine, record), len(engine) - before


def remove(engine: Backend, record: IndexRecord, ids: npt.ArrayLike) -> tuple[IndexRecord, int]:
    """Take rows out; returns the new record and their number.

    Raises:
        VectorIndexError: an id that is not there or comes twice, or no row would be left.
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
    return current(engine, record), len(gone)


def without(source: RowSource, ids: Ids) -> RowSource:
    """A source without the rows that an index has already, as when its owner added them."""
    batches = (
        (numbers[new], rows[new])
        for numbers, rows in source.batches
        for new in [~np.isin(numbers, ids)]
    )
    return replace(source, batches=batches)


def current(engine: Backend, record: IndexRecord) -> IndexRecord:
    """The record with the engine's number of rows and facts of now."""
    facts = {**record.facts, **engine.facts()}
    return record.model_copy(update={"count": len(engine), "facts": facts})


def reopened(store: Store | None, layer: str) -> Store:
    """The store as it is on disk now.

    Raises:
        VectorIndexError: there is none.
    """
    if store is None:
        raise VectorIndexError(
            f"the index of {layer!r} belongs to no store: add(rows, ids) adds rows of one's own"
        )
    from timmscope.store import Store

    return Store.open(store.path)
