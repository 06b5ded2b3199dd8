"""Reads columns of a store's images shard by shard, whole or to select images by a condition."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt

from timmscope.images import LabelTable
from timmscope_registry import ParameterError, did_you_mean

from .metadata import Metadata
from .shards import READ, ShardFiles
from .where import Block, Condition, Kind, Values

STORE_COLUMNS: dict[str, Kind] = {
    "id": "number",
    "path": "text",
    "name": "text",
    "folder": "text",
    "label": "text",
    "width": "number",
    "height": "number",
    "readable": "bool",
}
"""Columns that every store has. ``name`` is the part of ``path`` after the last slash, ``folder``
the part before it; ``width`` and ``height`` are in pixels and missing for unreadable images."""


def kinds(metadata: Metadata | None) -> dict[str, Kind]:
    """Return the kind of every column that a condition may name."""
    added = {} if metadata is None else metadata.columns
    return STORE_COLUMNS | {name: column.kind for name, column in added.items()}


def column(
    files: ShardFiles, name: str, metadata: Metadata | None
) -> LabelTable | npt.NDArray[np.float64]:
    """Return a column of text as labels, or one of numbers as (N,) float64, NaN where missing.

    Raises:
        ParameterError: there is no such column, or it holds neither text nor numbers.
        StoreError: the store is not finished.
    """
    known = {each: kind for each, kind in kinds(metadata).items() if kind in ("text", "number")}
    if name not in known:
        hint = did_you_mean(name, known)
        raise ParameterError(
            f"{files.folder.name} has no column {name!r} of text or numbers; "
            f"{f'{hint} ' if hint else ''}there are {', '.join(known)}",
            parameter="column",
        )
    files.require_all()

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start, stop, block in blocks(files, [name], metadata):
            found = block[name]
            missing = np.zeros(stop - start, bool) if found.missing is None else found.missing
            yield np.broadcast_to(found.values, (stop - start,)), missing

    if known[name] == "number":
        numbers = [np.where(missing, np.nan, values) for values, missing in parts()]
        return np.concatenate(numbers)
    texts = (np.where(missing, np.bytes_(b""), values) for values, missing in parts())
    return LabelTable.of_columns(texts)


def select_images(
    files: ShardFiles, where: str | npt.ArrayLike, metadata: Metadata | None
) -> np.ndarray:
    """Return whether each image is selected by a condition, a mask or a list of ids, (N,) bool.

    Raises:
        ParameterError: the condition is wrong, the mask does not have N entries, or an id is
            unknown.
        StoreError: `where` is a condition and the store is not finished.
    """
    if not isinstance(where, str):
        return _as_mask(np.asarray(where), files.manifest.images.count)
    condition = Condition(where, kinds(metadata))
    files.require_all()
    result = np.zeros(files.manifest.images.count, dtype=bool)
    for start, stop, block in blocks(files, condition.columns, metadata):
        result[start:stop] = condition(block, stop - start)
    return result


def _as_mask(chosen: np.ndarray, count: int) -> np.ndarray:
    if chosen.dtype == bool and chosen.shape == (count,):
        return chosen
    are_ids = chosen.ndim == 1 and (chosen.dtype.kind in "iu" or not chosen.size)
    if not are_ids or (chosen.size and not 0 <= chosen.min() <= chosen.max() < count):
        raise ParameterError(
            f"where has shape {chosen.shape} and type {chosen.dtype}: expected a condition as "
            f"text, a mask of {count} bools, or ids from 0 to {count - 1}",
            parameter="where",
        )
    result = np.zeros(count, dtype=bool)
    result[chosen.astype(np.int64)] = True
    return result


def blocks(
    files: ShardFiles, names: Collection[str], metadata: Metadata | None
) -> Iterator[tuple[int, int, Block]]:
    """Yield the first id, the id after the last, and the named columns of every shard."""
    added = {} if metadata is None else metadata.columns
    stored = [name for name in names if name not in added and name != "id"]

    for number in range(files.manifest.shard_count):
        start, stop = files.manifest.span(number)
        block = {name: added[name].block(start, stop) for name in names if name in added}
        if "id" in names and "id" not in added:
            block["id"] = Values(np.arange(start, stop))
        if stored:
            block |= {name: _stored_column(files, number, name) for name in stored}
        yield start, stop, block


def _stored_column(files: ShardFiles, number: int, name: str) -> Values:
    if name in ("name", "folder"):
        parts = np.char.rpartition(files.column(number, "path"), b"/")
        return Values(parts[:, 2 if name == "name" else 0])
    if name in ("width", "height"):
        return Values(files.column(number, name), files.column(number, "status") != READ)
    if name == "readable":
        return Values(files.column(number, "status") == READ)
    column = files.column(number, name)
    return Values(column, column == b"" if name == "label" else None)
