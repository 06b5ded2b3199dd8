"""What a condition reads: the columns of a store's images, a shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import h5py
import numpy as np
import numpy.typing as npt

from timmscope_registry import ParameterError

from .metadata import Metadata
from .shards import READ, ShardFiles
from .where import Block, Condition, Kind, Values

OWN: dict[str, Kind] = {
    "id": "number",
    "path": "text",
    "name": "text",
    "folder": "text",
    "label": "text",
    "width": "number",
    "height": "number",
    "readable": "truth",
}
"""Columns that every store has. ``name`` is what follows the last slash of ``path``, ``folder``
what precedes it; ``width`` and ``height`` are pixels, missing where an image could not be read."""


def kinds(metadata: Metadata | None) -> dict[str, Kind]:
    """All columns that a condition may name."""
    added = {} if metadata is None else metadata.columns
    return OWN | {name: column.kind for name, column in added.items()}


def selected(
    files: ShardFiles, where: str | npt.ArrayLike, metadata: Metadata | None
) -> np.ndarray:
    """Which images meet a condition, are true in a mask or are named by id, (N,) bool.

    Raises:
        ParameterError: the condition is wrong, the mask is not one of N, or an id is unknown.
        StoreError: the store is not finished, and there is a condition.
    """
    if not isinstance(where, str):
        return _mask(np.asarray(where), files.manifest.images.count)
    condition = Condition(where, kinds(metadata))
    files.require_all()
    result = np.zeros(files.manifest.images.count, dtype=bool)
    for start, stop, block in blocks(files, condition.columns, metadata):
        result[start:stop] = condition(block, stop - start)
    return result


def _mask(chosen: np.ndarray, count: int) -> np.ndarray:
    if chosen.dtype == bool and chosen.shape == (count,):
        return chosen
    whole = chosen.ndim == 1 and (chosen.dtype.kind in "iu" or not chosen.size)
    if not whole or (chosen.size and not 0 <= chosen.min() <= chosen.max() < count):
        raise ParameterError(
            f"where has shape {chosen.shape} and type {chosen.dtype}: expected a condition in "
            f"words, a mask of {count} bools, or ids from 0 to {count - 1}",
            parameter="where",
        )
    result = np.zeros(count, dtype=bool)
    result[chosen.astype(np.int64)] = True
    return result


def blocks(
    files: ShardFiles, names: Collection[str], metadata: Metadata | None
) -> Iterator[tuple[int, int, Block]]:
    """Yield the first id, the one after the last, and the columns asked for, shard by shard."""
    added = {} if metadata is None else metadata.columns
    own = [name for name in names if name not in added]
    for number in range(files.manifest.shard_count):
        start, stop = files.manifest.span(number)
        block = {name: added[name].block(start, stop) for name in names if name in added}
        if "id" in own:
            block["id"] = Values(np.arange(start, stop))
        stored = [name for name in own if name != "id"]
        if stored:
            block |= files.read(number, _reader(stored))
        yield start, stop, block


def _reader(names: Iterable[str]) -> Callable[[h5py.File], dict[str, Values]]:
    return lambda file: {name: _own(file["images"], name) for name in names}


def _own(images: h5py.Group, name: str) -> Values:
    if name in ("name", "folder"):
        parts = np.char.rpartition(np.asarray(images["path"][:]), b"/")
        return Values(parts[:, 2 if name == "name" else 0])
    if name in ("width", "height"):
        return Values(np.asarray(images[name][:]), np.asarray(images["status"][:] != READ))
    if name == "readable":
        return Values(np.asarray(images["status"][:] == READ))
    column = np.asarray(images[name][:])
    return Values(column, column == b"" if name == "label" else None)
