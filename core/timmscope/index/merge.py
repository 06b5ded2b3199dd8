"""Builds the indexes of a merged store with the settings of its parts' indexes.

The indexes of parts cannot be joined, because the centres and codes of each are trained on the rows
of its part. So the whole store gets the index that it would have if it had been mined at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from timmscope.index.files import IndexRecord, UnreadableIndex, index_path, read_record
from timmscope.index.vector_index import VectorIndex
from timmscope.index.verify import index_files
from timmscope_registry import PluginError, VectorIndexError

if TYPE_CHECKING:
    from timmscope.store import Store


def merge_indexes(parts: Iterable[tuple[str, Path]], whole: Store) -> None:
    """Build and save an index of the whole store for every layer of which a part has an index.

    The settings are those of the first part that has one; a warning names the parts with other
    settings or without an index. A good index that the whole store has already is kept, so a merge
    that was killed resumes.

    Args:
        parts: name and folder of each, in order.
        whole: the store of all their rows.
    """
    parts = list(parts)
    records = {name: _records(name, folder) for name, folder in parts}
    for layer in whole.layers:
        indexed = {name: found[layer] for name, found in records.items() if layer in found}
        if not indexed or _has_good_index(whole, layer):
            continue
        first, record = next(iter(indexed.items()))
        _warn_of_settings(layer, first, indexed, [name for name, _ in parts if name not in indexed])
        try:
            VectorIndex.build(whole.layer(layer), **record.settings).save()
        except VectorIndexError as error:  # the memory for a part may be too small for the whole
            warnings.warn(f"{whole.path.name} gets no index of {layer}: {error}", stacklevel=3)


def _records(name: str, folder: Path) -> dict[str, IndexRecord]:
    """Return the records of a part's indexes, by layer."""
    found = {}
    for path in index_files(folder):
        try:
            record = read_record(path, verify=False)
        except VectorIndexError as error:
            warnings.warn(f"an index of {name} is left out: {error}", stacklevel=4)
        else:
            found[record.layer] = record
    return found


def _has_good_index(whole: Store, layer: str) -> bool:
    if not index_path(whole.path, layer).exists():
        return False
    try:
        return not VectorIndex.load(whole, layer).missing_rows
    except (UnreadableIndex, PluginError) as error:
        warnings.warn(f"{error}; it is kept", stacklevel=4)
        return True
    except VectorIndexError:
        return False


def _warn_of_settings(
    layer: str, first: str, indexed: dict[str, IndexRecord], without: list[str]
) -> None:
    settings = indexed[first].settings
    lines = [
        f"{name} has others ({', '.join(changed)})"
        for name, record in indexed.items()
        if (changed := [f"{k}={v}" for k, v in record.settings.items() if settings.get(k) != v])
    ]
    lines += [f"{name} has no index" for name in without]
    lines += [
        f"{record.removed} rows that were removed from that of {name} are in it again"
        for name, record in indexed.items()
        if record.removed
    ]
    if lines:
        warnings.warn(
            f"the index of {layer} is built over all rows with the settings of {first}; "
            + "; ".join(lines),
            stacklevel=4,
        )
