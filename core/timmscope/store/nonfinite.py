"""Which units answered with NaN or infinity, and how often: the first thing to know of a pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np

from timmscope.collectors.registered import STATISTICS_ID

from . import shards

if TYPE_CHECKING:
    from .store import Store

_KINDS = ("pooled", "max")


def nonfinite_counts(store: Store) -> dict[str, np.ndarray]:
    """Images at which each unit's mean or maximum is NaN or infinite, (C,) int64, by layer.

    Counted over the shards that are done, so a part and a store that is not finished answer too;
    empty for a pass without statistics. Both kinds are counted apart, and the larger is given.

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
                group: h5py.Group = file[f"{collector.name}/{shards.layer_group(layer)}"]
                for row, kind in zip(total, _KINDS, strict=True):
                    found = np.asarray(group[f"{kind}.nonfinite"][:])
                    row[: len(found)] += found  # empty when no image of the shard could be read
    return {layer: total.max(axis=0) for layer, total in counts.items()}
