"""Counts the images at which a unit's value is NaN or infinite, so that a pass can report them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from timmscope.collectors.registered import STATISTICS_ID

from . import shards

if TYPE_CHECKING:
    from .store import Store

_KINDS = ("pooled", "max")


def nonfinite_counts(store: Store) -> dict[str, np.ndarray]:
    """Return how often each unit's mean or maximum is NaN or infinite, (C,) int64 by layer.

    Only finished shards are counted, so it works for a part and for an unfinished store too. Means
    and maxima are counted separately, and the larger count is returned. The result is empty for a
    pass without statistics.

    Raises:
        StoreCorrupted: a reduced state cannot be read.
    """
    manifest = store.manifest
    collector = manifest.collector(STATISTICS_ID)
    if collector is None:
        return {}
    sources = {shards.reduced_file(n): shard.reduced for n, shard in manifest.shards.items()}
    if manifest.merged is not None:
        sources = {shards.MERGED: manifest.merged}
    counts = {
        layer.name: np.zeros((len(_KINDS), layer.channels), np.int64) for layer in manifest.layers
    }
    for name, record in sources.items():
        with store.files.open(name, record) as file:
            for layer, total in counts.items():
                group = f"{collector.name}/{shards.layer_group(layer)}"
                for row, kind in zip(total, _KINDS, strict=True):
                    found = file.read(f"{group}/{kind}.nonfinite")
                    row[: len(found)] += found  # empty when no image of the shard could be read
    return {layer: total.max(axis=0) for layer, total in counts.items()}
