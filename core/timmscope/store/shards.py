"""Reads and writes shards: HDF5 files that hold the rows of a fixed range of images.

::

    /images/{path,label,reason}          fixed-length UTF-8
    /images/{status,width,height}        uint8 (0 read, 1 unreadable), int32 (0 when unreadable)
    /layers/<layer>/<kind>               (n, …): pooled, max, argmax, maps or a plugin's kind
    attributes start, stop               image ids, so that swapped files are noticed

Every dataset has one Fletcher-32 checksum per chunk, and chunks of at most 1 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from timmscope_registry import StoreCorrupted, StoreError

from .manifest import FileRecord, Manifest

CHUNK_BYTES = 1 << 20
MERGED = "reduced/merged.h5"

READ, UNREADABLE = 0, 1
"""Values of an image's status."""

T = TypeVar("T")


def rows_file(number: int) -> str:
    """Return the name of the file with a shard's rows, relative to the store."""
    return f"shards/{number:05d}.h5"


def reduced_file(number: int) -> str:
    """Return the name of the file with the collectors' state of a shard, relative to the store."""
    return f"reduced/{number:05d}.h5"


def layer_group(name: str) -> str:
    """Return the name of a layer's HDF5 group; slashes, which would nest groups, are escaped."""
    return "layers/" + name.replace("%", "%25").replace("/", "%2F")


def new_dataset(
    parent: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any, data: Any = None
) -> h5py.Dataset:
    """Create a dataset with checksums, in chunks of whole rows where these fit into 1 MiB."""
    if not shape or 0 in shape:  # scalars and empty arrays cannot be chunked
        return parent.create_dataset(name, shape, dtype, data=data, track_times=False)
    chunk = list(shape)
    for axis in range(len(shape)):
        below = int(np.prod(shape[axis + 1 :])) * np.dtype(dtype).itemsize
        chunk[axis] = max(1, min(shape[axis], CHUNK_BYTES // below))
        if below <= CHUNK_BYTES:
            break
    return parent.create_dataset(
        name, shape, dtype, data=data, chunks=tuple(chunk), fletcher32=True, track_times=False
    )


def write_strings(parent: h5py.Group, name: str, values: list[bytes]) -> None:
    """Write fixed-length strings, because HDF5 keeps no checksum of variable-length ones."""
    width = max(1, *map(len, values)) if values else 1
    array = np.array(values, dtype=h5py.string_dtype("utf-8", width))
    new_dataset(parent, name, array.shape, array.dtype, array)


def read_strings(dataset: h5py.Dataset) -> list[bytes]:
    """Read the strings that `write_strings` wrote."""
    return [bytes(value) for value in dataset[:]]


def write_arrays(parent: h5py.Group, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a collector's state."""
    for name, array in arrays.items():
        value = np.asarray(array)
        new_dataset(parent, name, value.shape, value.dtype, value)


def read_arrays(group: h5py.Group) -> dict[str, np.ndarray]:
    """Read a collector's state."""
    return {name: np.asarray(dataset[()]) for name, dataset in group.items()}


class ShardFiles:
    """Opens a store's files for reading and turns every kind of damage into `StoreCorrupted`.

    No file stays open between reads, so a store may be pickled, forked and shared by threads.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @contextmanager
    def open(self, name: str, expected: FileRecord) -> Iterator[h5py.File]:
        """Open a file of the store; errors while it is read inside the block are converted too.

        Raises:
            StoreCorrupted: the file is missing, damaged, or its size differs from the manifest's.
        """
        path = self.folder / name
        try:
            size = path.stat().st_size
            if size != expected.size:
                raise self.corrupted(name, f"{size} bytes instead of {expected.size}")
            with h5py.File(path, "r") as file:
                yield file
        except FileNotFoundError as error:
            raise self.corrupted(name, "the file is missing") from error
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(f"cannot be read ({error})".split())
            raise self.corrupted(name, reason) from error

    def read(self, number: int, reader: Callable[[h5py.File], T]) -> T:
        """Call `reader` with a shard's open file and return what it returns.

        Raises:
            StoreCorrupted: as for `open`, or the file holds another range of images.
            StoreError: the shard is not mined yet, or belongs to another part.
        """
        self.require([number])
        name, record = rows_file(number), self.manifest.shards[number]
        with self.open(name, record.rows) as file:
            span = (int(file.attrs["start"]), int(file.attrs["stop"]))
            if span != (record.start, record.stop):
                raise self.corrupted(
                    name,
                    f"holds images {span[0]} to {span[1] - 1} "
                    f"instead of {record.start} to {record.stop - 1}",
                )
            return reader(file)

    def damage(self, name: str, expected: FileRecord) -> str:
        """Return what is wrong with a file by size and checksum; empty if nothing is."""
        try:
            actual = FileRecord.of(self.folder / name)
        except FileNotFoundError:
            return "the file is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if actual == expected:
            return ""
        for number, shard in self.manifest.shards.items():
            if actual in (shard.rows, shard.reduced):
                other = rows_file(number) if actual == shard.rows else reduced_file(number)
                return f"it holds the contents of {other}"
        if actual.size != expected.size:
            return f"{actual.size} bytes instead of {expected.size}"
        return "its checksum differs: the contents were altered"

    def require(self, numbers: Iterable[int]) -> None:
        """Raise `StoreError` if a shard is not mined yet or belongs to another part."""
        missing = [number for number in numbers if number not in self.manifest.shards]
        if not missing:
            return
        name, part, own = self.folder.name, self.manifest.part, self.manifest.own_shards
        if part is not None and missing[0] not in own:
            raise StoreError(
                f"{name} is part {part[0]} of {part[1]}, with shards {own.start} to {own.stop - 1} "
                f"of {self.manifest.shard_count}; join the parts with timmscope merge PARTS "
                "-o WHOLE.scope and read that"
            )
        raise StoreError(
            f"{name} is not finished: {len(self.manifest.missing)} of {len(own)} "
            "shards are missing; run the same timmscope mine again to complete it"
        )

    def require_all(self) -> None:
        """Raise `StoreError` unless the store holds every shard of the whole."""
        self.require(range(self.manifest.shard_count))

    def corrupted(self, name: str, reason: str) -> StoreCorrupted:
        """Return the error for a damaged file."""
        return StoreCorrupted(
            f"{self.folder / name}: {reason}; "
            f"run timmscope verify --repair {self.folder} to mine it again",
            shard=name,
        )
