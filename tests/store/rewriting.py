"""Changes what a store holds as somebody could who knows the format: every checksum fits again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from timmscope import checked_json
from timmscope.store import FileRecord, Manifest
from timmscope.store.checked_hdf5 import write_array
from timmscope.store.files import new_hdf5
from timmscope.store.shards import MERGED, ShardFiles, rows_file


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the values of a JSON file with a digest."""
    values = json.loads(path.read_text())
    values.pop(checked_json.DIGEST)
    change(values)
    path.write_bytes(checked_json.dump(values, indent=1))


def rewrite_manifest(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the values of a store's manifest."""
    rewrite_json(store / "manifest.json", change)


def rewrite_rows(store: Path, number: int, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the arrays of a shard's rows, by their path in the file."""
    arrays = read_arrays(store, rows_file(number))
    change(arrays)
    write_arrays(store, rows_file(number), arrays)


def read_arrays(store: Path, name: str) -> dict[str, np.ndarray]:
    """Read all arrays of a shard's rows, or of the merged state, by their path in the file."""
    manifest = Manifest.read(store)
    with ShardFiles(store, manifest).open(name, _record(manifest, name)) as file:
        return {path: file.read(path) for path in file.arrays()}


def write_arrays(store: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Replace a file of a store, and its record in the manifest."""
    manifest = Manifest.read(store)
    place = ShardFiles(store, manifest).place(name)
    with new_hdf5(store / name) as (file, _):
        for path, array in arrays.items():
            write_array(file, path, array, place)
    written = FileRecord.of(store / name)
    if name == MERGED:
        manifest = manifest.model_copy(update={"merged": written})
    else:
        number = int(Path(name).stem)
        record = manifest.shards[number].model_copy(update={"rows": written})
        manifest = manifest.with_shard(number, record)
    manifest.write(store)


def _record(manifest: Manifest, name: str) -> FileRecord:
    record = manifest.merged if name == MERGED else manifest.shards[int(Path(name).stem)].rows
    assert record is not None
    return record
