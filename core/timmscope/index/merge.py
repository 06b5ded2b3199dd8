"""Indexes of stores that were mined apart, when these become one store.

An index of a part knows its part's rows alone: its centres and codes are trained on them. So the
whole gets the index that it would have got if it had been mined at once, built with the settings
of the parts' indexes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.index.files import IndexRecord, index_path, read_record
from timmscope.index.vector_index import VectorIndex
from timmscope.index.verify import index_files
from timmscope_registry import VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store


def join_indexes(parts: Iterable[tuple[str, Path]], whole: Store) -> None:
    """Build an index over the whole for every layer of which a part has one, and save it.

    The settings are those of the first part that has one; a warning names the parts that have
    others or none. A good index that the whole has already stays, so a merge that was killed
    goes on where it stopped.

    Args:
        parts: name and folder of each, in order.
        whole: the store of all their rows.
    """
    parts = list(parts)
    records = {name: _records(name, folder) for name, folder in parts}
    for layer in whole.layers:
        having = {name: found[layer] for name, found in records.items() if layer in found}
        if not having or _has(whole, layer):
            continue
        first, record = next(iter(having.items()))
        _tell(layer, first, having, [name for name, _ in parts if name not in having])
        try:
            VectorIndex.build(whole.layer(layer), **record.settings).save()
        except VectorIndexError as error:  # as when the memory that sufficed for a part does not
            warnings.warn(f"{whole.path.name} gets no index of {layer}: {error}", stacklevel=3)


def _records(name: str, folder: Path) -> dict[str, IndexRecord]:
    """What a part's indexes were built with, by layer."""
    found = {}
    for path in index_files(folder):
        try:
            record = read_record(path, verify=False)
        except VectorIndexError as error:
            warnings.warn(f"an index of {name} is left out: {error}", stacklevel=4)
        else:
            found[record.layer] = record
    return found


def _has(whole: Store, layer: str) -> bool:
    if not index_path(whole.path, layer).exists():
        return False
    try:
        return not VectorIndex.load(whole, layer).missing_rows
    except VectorIndexError:
        return False


def _tell(layer: str, first: str, having: dict[str, IndexRecord], without: list[str]) -> None:
    settings = having[first].settings
    lines = [
        f"{name} has another ({', '.join(changed)})"
        for name, record in having.items()
        if (changed := [f"{k}={v}" for k, v in record.settings.items() if settings.get(k) != v])
    ]
    lines += [f"{name} has none" for name in without]
    lines += [
        f"{record.removed} rows that were taken out of that of {name} are in it again"
        for name, record in having.items()
        if record.removed
    ]
    if lines:
        warnings.warn(
            f"the index of {layer} is built over all rows with the settings of {first}; "
            + "; ".join(lines),
            stacklevel=4,
        )
