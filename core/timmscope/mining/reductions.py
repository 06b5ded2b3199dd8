"""Joins the reduced state of all shards: what a pass ends with, and what a merge of parts does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

from timmscope.progress import track
from timmscope.store import FileRecord, Manifest, shards
from timmscope.store.files import new_hdf5
from timmscope_registry import import_string

from .collectors import Collector, RowCollector


def write_merged(folder: Path, manifest: Manifest, reducers: Iterable[Collector]) -> Manifest:
    """Merge all shards' reduced state in order of id, write it, and complete the manifest.

    Args:
        folder: the store.
        manifest: with every shard of the whole.
        reducers: the pass's collectors of rows, as `reducers_of` makes them.

    Raises:
        StoreCorrupted: a shard's reduced state is damaged.
    """
    files = shards.ShardFiles(folder, manifest)
    files.require_all()
    every = list(reducers)
    whole = {
        f"{reducer.name}/{shards.layer_group(layer.name)}": reducer.fresh()
        for layer in manifest.layers
        for reducer in every
    }
    for number, record in track(manifest.shards.items(), "merging", len(manifest.shards)):
        name = shards.reduced_file(number)
        with files.open(name, record.reduced) as file:
            if int(file.attrs["start"]) != record.start:
                raise files.corrupted(name, "holds another range of images")
            for group, collector in whole.items():
                part = collector.fresh()
                part.load(shards.read_arrays(file[group]))
                collector.merge(part)
    path = folder / shards.MERGED
    with new_hdf5(path) as (file, _):
        for group, collector in whole.items():
            shards.write_arrays(file.require_group(group), collector.state())
    done = manifest.model_copy(update={"merged": FileRecord.of(path)})
    done.write(folder)
    return done


def reducers_of(manifest: Manifest) -> list[Collector]:
    """The collectors whose state lies in ``reduced/``, empty."""
    every = [
        cast("type[Collector]", import_string(record.impl))(**record.parameters)
        for record in manifest.collectors
    ]
    return [collector for collector in every if not isinstance(collector, RowCollector)]
