"""Opens the atlas of a layer beside its store, and refuses that of another store."""

from __future__ import annotations

import os
from pathlib import Path

from timmscope.results import load_result
from timmscope.results.result import ARRAYS, RECORD
from timmscope.store import Store
from timmscope_registry import StoreCorrupted, StoreError, TimmscopeError

from .files import NAME, atlas_folder, inside, require_same_store
from .result import Atlas


def open_atlas(
    store: Store | str | os.PathLike[str],
    layer: str,
    folder: str | os.PathLike[str] | None = None,
) -> Atlas:
    """Open the atlas of a layer of a store, made by anyone.

    Args:
        store: the store, or its folder.
        layer: layer of the store.
        folder: folder of the atlas; by default `STORE.atlas/LAYER`, beside the store.

    Raises:
        LayerNotFound: the store has no such layer.
        StoreError: there is no atlas, or it is not finished.
        StoreMismatch: the atlas belongs to another store or layer, or the store has changed.
        StoreCorrupted: it was damaged, or leads out of its folder.
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    place = Path(folder) if folder is not None else atlas_folder(opened, layer)
    command = f"timmscope atlas {opened.path} {layer}"
    if not (place / RECORD).exists():
        if (place / f"{NAME}.json").exists():
            raise StoreError(f"{place}: this atlas is not finished: finish it by `{command}`")
        raise StoreError(f"{place}: there is no atlas of {layer}: make one by `{command}`")
    for name in (RECORD, ARRAYS):
        inside(place, name)
    try:
        atlas = load_result(place, Atlas)
    except TimmscopeError as error:
        raise StoreCorrupted(f"{error}; `{command}` writes it again", shard=RECORD) from error
    require_same_store(place, atlas.store, opened)
    if atlas.layer != layer:
        raise StoreError(f"{place} is the atlas of {atlas.layer}, not of {layer}: name that layer")
    return atlas
