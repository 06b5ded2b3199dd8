"""Finds each unit's strongest images: in the lists that the pass kept, or else in all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from timmscope.collectors.registered import TOP_K_ID
from timmscope.progress import task

if TYPE_CHECKING:
    from .store_layer import StoreLayer


_UNITS_AT_ONCE = 64
"""Number of units whose cells are looked up together."""


class TopEntry(NamedTuple):
    """One of a unit's strongest images: its id, the unit's maximum, and its cell (row, column)."""

    image_id: int
    value: float
    position: tuple[int, int]


def top_entries(
    layer: StoreLayer, units: Sequence[int], k: int, where: str | npt.ArrayLike | None
) -> list[list[TopEntry]]:
    """Return each unit's `k` images with the highest maximum, best first, ties by image id.

    This is instant for units whose kept list holds enough of the images that `where` selects. The
    rows of all other units are read once, together, in memory that depends only on the number of
    units.
    """
    store = layer.store
    chosen = None if where is None else store.images.where(where)
    wanted = min(k, len(layer) if chosen is None else int(chosen.sum()))
    collector = store.manifest.collector(TOP_K_ID)
    found: dict[int, list[TopEntry]] = {}
    for unit in dict.fromkeys(units) if collector is not None else ():
        assert collector is not None
        state = layer.kept_top(collector.name, unit)
        ids = state["ids"][state["ids"] >= 0]
        places = np.arange(len(ids)) if chosen is None else np.flatnonzero(chosen[ids])
        length = collector.parameters.get("k")
        all_listed = isinstance(length, int) and len(ids) < length
        if len(places) >= wanted or all_listed:
            columns = (state[name][places[:k]] for name in ("ids", "values", "positions"))
            found[unit] = [
                TopEntry(int(image), float(value), layer.record.cell(int(position)))
                for image, value, position in zip(*columns, strict=True)
            ]
    missing = [unit for unit in dict.fromkeys(units) if unit not in found]
    if missing:
        found |= zip(missing, _scan_rows(layer, missing, k, chosen), strict=True)
    return [found[unit] for unit in units]


def _scan_rows(
    layer: StoreLayer, units: list[int], k: int, chosen: np.ndarray | None
) -> list[list[TopEntry]]:
    """Find the strongest images by reading the maxima of all chosen images."""
    manifest = layer.store.manifest
    shards = [
        number
        for number in range(manifest.shard_count)
        if chosen is None or chosen[slice(*manifest.span(number))].any()
    ]
    best = [np.empty(0, np.int64) for _ in units]
    values = [np.empty(0, np.float32) for _ in units]
    least = np.full(len(units), -np.inf, np.float32)  # values at or below it are not kept
    with task("strongest images", total=len(layer)) as advance:
        for ids, rows in layer.iter_rows("max", shards=shards):
            advance(len(ids))
            if chosen is not None:
                kept = chosen[ids]
                ids, rows = ids[kept], rows[kept]
            columns = rows[:, units]
            full = np.array([len(each) >= k for each in values])
            with np.errstate(invalid="ignore"):  # among equal values the smaller id is kept
                better = np.isfinite(columns) & ((columns > least) | ~full)
            for at in np.flatnonzero(better.any(axis=0)).tolist():
                new = better[:, at]
                candidates = np.append(best[at], ids[new])
                scores = np.append(values[at], columns[new, at])
                order = np.lexsort((candidates, -scores))[:k]
                best[at], values[at] = candidates[order], scores[order]
                if len(order) >= k:
                    least[at] = scores[order[-1]]
    entries: list[list[TopEntry]] = []
    for first in range(0, len(units), _UNITS_AT_ONCE):
        part = range(first, min(first + _UNITS_AT_ONCE, len(units)))
        ids = np.unique(np.concatenate([best[at] for at in part]))
        cells = np.asarray(layer.argmax[ids, [units[at] for at in part]])
        for at in part:
            positions = cells[np.searchsorted(ids, best[at]), at - first].tolist()
            found = zip(best[at].tolist(), values[at].tolist(), positions, strict=True)
            entries.append([TopEntry(i, value, layer.record.cell(c)) for i, value, c in found])
    return entries
