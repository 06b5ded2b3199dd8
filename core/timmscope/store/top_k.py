"""The strongest images of units: from the lists that the pass kept, else from all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from timmscope.collectors.registered import TOP_K_ID
from timmscope.progress import task

if TYPE_CHECKING:
    from .store_layer import StoreLayer


_AT_ONCE = 64
"""Units whose cells are looked up together."""


class TopEntry(NamedTuple):
    """One of a unit's strongest images: its id, the value, and the cell (row, column)."""

    image_id: int
    value: float
    position: tuple[int, int]


def top_entries(
    layer: StoreLayer, units: Sequence[int], k: int, where: str | npt.ArrayLike | None
) -> list[list[TopEntry]]:
    """Of each unit the `k` images with the highest maximum, best first, ties by image id.

    Instant for units of whose own list enough is chosen; the rows of all others are read once,
    together, in memory that depends on the number of units alone.
    """
    store = layer.store
    chosen = None if where is None else store.images.where(where)
    wanted = min(k, len(layer) if chosen is None else int(chosen.sum()))
    kept = store.manifest.collector(TOP_K_ID)
    found: dict[int, list[TopEntry]] = {}
    for unit in dict.fromkeys(units) if kept is not None else ():
        assert kept is not None
        state = layer.state_of(kept.name, unit)
        ids = state["ids"][state["ids"] >= 0]
        places = np.arange(len(ids)) if chosen is None else np.flatnonzero(chosen[ids])
        length = kept.parameters.get("k")
        all_kept = isinstance(length, int) and len(ids) < length
        if len(places) >= wanted or all_kept:
            columns = (state[name][places[:k]] for name in ("ids", "values", "positions"))
            found[unit] = [
                TopEntry(int(image), float(value), layer.record.cell(int(position)))
                for image, value, position in zip(*columns, strict=True)
            ]
    missing = [unit for unit in dict.fromkeys(units) if unit not in found]
    if missing:
        found |= zip(missing, _of_rows(layer, missing, k, chosen), strict=True)
    return [found[unit] for unit in units]


def _of_rows(
    layer: StoreLayer, units: list[int], k: int, chosen: np.ndarray | None
) -> list[list[TopEntry]]:
    """By going through the maxima of all chosen images."""
    manifest = layer.store.manifest
    shards = [
        number
        for number in range(manifest.shard_count)
        if chosen is None or chosen[slice(*manifest.span(number))].any()
    ]
    best = [np.empty(0, np.int64) for _ in units]
    values = [np.empty(0, np.float32) for _ in units]
    least = np.full(len(units), -np.inf, np.float32)  # what a value must exceed to be kept
    with task("strongest images", total=len(layer)) as advance:
        for ids, rows in layer.iter_rows("max", shards=shards):
            advance(len(ids))
            if chosen is not None:
                kept = chosen[ids]
                ids, rows = ids[kept], rows[kept]
            columns = rows[:, units]
            full = np.array([len(each) >= k for each in values])
            with np.errstate(invalid="ignore"):  # of equal values the earlier id stays
                better = np.isfinite(columns) & ((columns > least) | ~full)
            for place in np.flatnonzero(better.any(axis=0)).tolist():
                at = better[:, place]
                ours = np.append(best[place], ids[at])
                theirs = np.append(values[place], columns[at, place])
                order = np.lexsort((ours, -theirs))[:k]
                best[place], values[place] = ours[order], theirs[order]
                if len(order) >= k:
                    least[place] = theirs[order[-1]]
    entries: list[list[TopEntry]] = []
    for first in range(0, len(units), _AT_ONCE):
        part = range(first, min(first + _AT_ONCE, len(units)))
        ids = np.unique(np.concatenate([best[place] for place in part]))
        cells = np.asarray(layer.argmax[ids, [units[place] for place in part]])
        for place in part:
            own = cells[np.searchsorted(ids, best[place]), place - first].tolist()
            entries.append(
                [
                    TopEntry(image, value, layer.record.cell(cell))
                    for image, value, cell in zip(
                        best[place].tolist(), values[place].tolist(), own, strict=True
                    )
                ]
            )
    return entries
