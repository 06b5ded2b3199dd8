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
from timmscope.store.shards import ShardFiles, rows_file


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
    manifest = Manifest.read(store)
    files, name = ShardFiles(store, manifest), rows_file(number)
    arrays = files.read(number, lambda file: {path: file.read(path) for path in file.arrays()})
    change(arrays)
    with new_hdf5(store / name) as (file, _):
        for path, array in arrays.items():
            write_array(file, path, array, files.place(name))
    record = manifest.shards[number].model_copy(update={"rows": FileRecord.of(store / name)})
    manifest.with_shard(number, record).write(store)
