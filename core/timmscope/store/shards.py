"""Names the files of a store, and opens them for reading.

A shard is two HDF5 files: the rows of a fixed range of images, and the states of the collectors
that reduce them. Both hold plain arrays with checksums (`checked_hdf5`)::

    /images/{path,label,reason}          fixed-length UTF-8
    /images/{status,width,height}        uint8 (0 read, 1 unreadable), int32 (0 when unreadable)
    /layers/<layer>/<kind>               (n, …): pooled, max, argmax, maps or a plugin's kind
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from timmscope.safe_files import open_regular
from timmscope_registry import StoreCorrupted, StoreError

from . import files
from .checked_hdf5 import CheckedFile
from .manifest import FileRecord, Manifest

MERGED = "reduced/merged.h5"

READ, UNREADABLE = 0, 1
"""Values of an image's status."""

READ_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that a damaged HDF5 file can cause in the code that reads it."""

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


def string_array(values: Sequence[bytes]) -> np.ndarray:
    """Return bytes as one array of fixed length, which HDF5 can hold in one piece."""
    return np.array(values, dtype=f"S{max([1, *map(len, values)])}")


class ShardFiles:
    """Opens a store's files for reading and turns every kind of damage into `StoreCorrupted`.

    No file stays open between reads, so a store may be pickled, forked and shared by threads.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @cached_property
    def _pass(self) -> str:
        return self.manifest.pass_digest()

    def place(self, name: str) -> str:
        """Return what the checksums of a file are bound to: the pass, and the file's name."""
        return f"{self._pass}/{name}"

    @contextmanager
    def open(self, name: str, expected: FileRecord) -> Iterator[CheckedFile]:
        """Open a file of the store; errors while it is read inside the block are converted too.

        Raises:
            StoreCorrupted: the file is missing, damaged, or its size differs from the manifest's.
            StoreError: the machine cannot read it now.
        """
        path = self.folder / name
        try:
            with open_regular(path) as raw:
                size = os.fstat(raw.fileno()).st_size
                if size != expected.size:
                    raise self.corrupted(name, f"{size} bytes instead of {expected.size}")
                with closing(CheckedFile(raw, self.place(name), size)) as file:
                    yield file
        except FileNotFoundError as error:
            raise self.corrupted(name, "the file is missing") from error
        except READ_ERRORS as error:
            if (failure := files.machine_error(error, path)) is not None:
                raise failure from error
            raise self.corrupted(name, f"cannot be read ({error})") from error

    def read(self, number: int, reader: Callable[[CheckedFile], T]) -> T:
        """Call `reader` with a shard's open file and return what it returns.

        Raises:
            StoreCorrupted: as for `open`.
            StoreError: the shard is not mined yet, belongs to another part, or cannot be read now.
        """
        self.require([number])
        name, record = rows_file(number), self.manifest.shards[number]
        with self.open(name, record.rows) as file:
            return reader(file)

    def column(self, number: int, name: str, low: int = 0, high: int | None = None) -> np.ndarray:
        """Read a column of a shard's images, or its rows from `low` to `high` - 1.

        Raises:
            StoreCorrupted: as for `read`.
        """
        return self.read(number, lambda file: self.image_column(file, number, name, low, high))

    def image_column(
        self, file: CheckedFile, number: int, name: str, low: int = 0, high: int | None = None
    ) -> np.ndarray:
        """Read a column of the images from a shard's open file."""
        values = file.read(f"images/{name}", low, high)
        record = self.manifest.shards[number]
        count = len(range(record.stop - record.start)[low:high])
        kinds = {"status": "u", "width": "i", "height": "i"}
        if values.shape != (count,) or values.dtype.kind != kinds.get(name, "S"):
            raise ValueError(f"images/{name} is {values.dtype}{values.shape}")
        return values

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
        missing = next((n for n in numbers if n not in self.manifest.shards), None)
        if missing is None:
            return
        name, part, own = self.folder.name, self.manifest.part, self.manifest.own_shards
        if part is not None and missing not in own:
            raise StoreError(
                f"{name} is part {part[0]} of {part[1]}, with shards {own.start} to {own.stop - 1} "
                f"of {self.manifest.shard_count}; join the parts with timmscope merge PARTS "
                "-o WHOLE.scope and read that"
            )
        raise StoreError(
            f"{name} is not finished: {len(own) - len(self.manifest.shards)} of {len(own)} "
            "shards are missing; run the same timmscope mine again to complete it"
        )

    def require_all(self) -> None:
        """Raise `StoreError` unless the store holds every shard of the whole."""
        self.require(range(self.manifest.shard_count))

    def corrupted(self, name: str, reason: str) -> StoreCorrupted:
        """Return the error for a damaged file."""
        reason = " ".join(reason.split())
        return StoreCorrupted(
            f"{self.folder / name}: {reason}; "
            f"run timmscope verify --repair {self.folder} to mine it again",
            shard=name,
        )
