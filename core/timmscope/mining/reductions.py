"""Merges the collectors' states of all shards, at the end of a pass or of a merge of parts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from timmscope.collectors import Collector
from timmscope.collectors.merge_tree import MergeTree
from timmscope.progress import track
from timmscope.store import FileRecord, Manifest, shards
from timmscope.store.checked_hdf5 import read_group, write_group
from timmscope.store.files import new_hdf5
from timmscope.store.journal import end_journal

from .collector_errors import collector_errors, storable_state


def write_merged(folder: Path, manifest: Manifest, reducers: Iterable[Collector]) -> Manifest:
    """Merge all shards' states, write the result, and complete the manifest.

    Args:
        folder: the store.
        manifest: the manifest, with every shard of the whole.
        reducers: the pass's collectors whose state is in ``reduced/``.

    Raises:
        StoreCorrupted: a shard's state is damaged.
        PluginError: a collector failed; the message names it, the layer and the images.
    """
    files = shards.ShardFiles(folder, manifest)
    files.require_all()
    every = list(reducers)
    whole = {
        (layer.name, f"{reducer.name}/{shards.layer_group(layer.name)}"): MergeTree(reducer)
        for layer in manifest.layers
        for reducer in every
    }
    for number, record in track(manifest.shards.items(), "merging", len(manifest.shards)):
        name = shards.reduced_file(number)
        if reason := files.damage(name, record.reduced):  # undetectable once it is merged
            raise files.corrupted(name, reason)
        with files.open(name, record.reduced) as file:
            for (layer, group), tree in whole.items():
                state = read_group(file, group)
                with collector_errors(tree.empty, layer, record.start, record.stop):
                    tree.add(state)
    path = folder / shards.MERGED
    with new_hdf5(path) as (file, _):
        for (layer, group), tree in whole.items():
            with collector_errors(tree.empty, layer, 0, manifest.images.count):
                state = storable_state(tree.merged().state())
            write_group(file, group, state, files.place(shards.MERGED))
    done = manifest.model_copy(update={"merged": FileRecord.of(path)})
    done.write(folder)
    end_journal(folder)
    return done
