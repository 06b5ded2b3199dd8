"""Keeps the finished batches of a shard that is being mined, so that a stopped pass loses little.

A shard is written when all its images are done, which can take minutes. Until then each batch is
added to a file of its own, which a resumed pass reads instead of running the model again. The file
is not synced to the disk: it helps after a stop or a kill of the process, and after a power failure
its checksums show where it ends.

The file is a header line, then records: length and XXH3 checksum (8 bytes each, little-endian),
a line of JSON with names, labels, sizes and reasons, and the rows of every layer and kind.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import xxhash

from timmscope.safe_files import open_regular
from timmscope.store import Manifest
from timmscope.store.files import disk_error
from timmscope_registry import StoreError

from .batch_rows import BatchRows

if TYPE_CHECKING:
    from .plan import Plan

_HEAD = struct.Struct("<QQ")


def partial_file(folder: Path, number: int) -> Path:
    """Return the path of the file with a shard's finished batches."""
    return folder / "shards" / f"{number:05d}.partial"


def remove_partial_shards(folder: Path) -> None:
    """Remove what a complete store no longer needs."""
    for path in (folder / "shards").glob("*.partial"):
        with suppress(OSError):
            path.unlink()


def _header(manifest: Manifest, number: int) -> bytes:
    """Return the first line; rows of other settings or libraries are not used."""
    versions = sorted(manifest.versions.items())
    return (json.dumps([manifest.pass_digest(), number, versions]) + "\n").encode()


class PartialShard:
    """The finished batches of one shard.

    Args:
        folder: the store.
        number: the shard.
        manifest: the description of the pass.
        plan: the plan of the pass.
    """

    def __init__(self, folder: Path, number: int, manifest: Manifest, plan: Plan) -> None:
        self._path = partial_file(folder, number)
        self._header = _header(manifest, number)
        self._batches = plan.ranges(*manifest.span(number))
        self._columns = [
            (layer.name, kind, column)
            for layer in plan.layers
            for kind, column in plan.columns(layer).items()
        ]
        self._end = 0
        self._file: BinaryIO | None = None

    def batches(self) -> Iterator[BatchRows]:
        """Yield the batches that are kept, in order; the last batch of a shard is never kept.

        What cannot be read ends them: its images are mined again.

        Raises:
            StoreError: the file is a pipe or a device.
        """
        self._end = 0
        try:
            file = open_regular(self._path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._path}: cannot be read ({error}); delete it") from error
        with file:
            if file.read(len(self._header)) != self._header:
                return
            self._end = file.tell()
            size = os.fstat(file.fileno()).st_size
            for start, stop in self._batches[:-1]:
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    return
                length, checksum = _HEAD.unpack(head)
                if length > size - file.tell():
                    return
                data = file.read(length)
                if xxhash.xxh3_64_intdigest(data, self._end) != checksum:
                    return
                rows = self._unpack(data, start, stop)
                if rows is None:
                    return
                self._end = file.tell()
                yield rows

    def add(self, rows: BatchRows) -> None:
        """Add the next batch.

        Raises:
            StoreError: the disk is full or read-only.
        """
        if rows.start == self._batches[-1][0]:
            return  # the shard itself is written next
        info = {
            "paths": rows.paths, "labels": rows.labels, "sizes": rows.sizes, "reasons": rows.reasons
        }  # fmt: skip
        parts = [memoryview((json.dumps(info) + "\n").encode())]
        for layer, kind, column in self._columns:
            values = np.ascontiguousarray(rows.layers[layer][kind], column.dtype)
            parts.append(values.reshape(-1).view(np.uint8).data)
        try:
            if self._file is None:
                self._file = self._path.open("rb+" if self._end else "wb+", buffering=0)
                if not self._end:
                    self._file.write(self._header)
                    self._end = len(self._header)
                self._file.truncate(self._end)
                self._file.seek(self._end)
            checksum = xxhash.xxh3_64(seed=self._end)
            for part in parts:
                checksum.update(part)
            head = _HEAD.pack(sum(map(len, parts)), checksum.intdigest())
            for part in (memoryview(head), *parts):
                written = 0
                while written < len(part):
                    written += self._file.write(part[written:])
                self._end += written
        except OSError as error:
            raise disk_error(error, self._path) from error

    def _unpack(self, data: bytes, start: int, stop: int) -> BatchRows | None:
        """Return the batch that a record holds; None if it does not fit."""
        line, _, values = data.partition(b"\n")
        layers: dict[str, dict[str, np.ndarray]] = {}
        low = 0
        count = stop - start
        for layer, kind, column in self._columns:
            shape, dtype = (count, *column.shape), np.dtype(column.dtype)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if low + size > len(values):
                return None
            array = np.frombuffer(values, dtype, offset=low, count=size // dtype.itemsize)
            layers.setdefault(layer, {})[kind] = array.reshape(shape)
            low += size
        with suppress(ValueError, KeyError, TypeError):
            info = json.loads(line)
            return BatchRows(
                start=start,
                layers=layers,
                paths=info["paths"],
                labels=info["labels"],
                sizes=[(int(width), int(height)) for width, height in info["sizes"]],
                reasons=info["reasons"],
            )
        return None

    def close(self) -> None:
        """Close the file; what was added stays."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """Close and remove the file; if that fails, the end of the pass removes it."""
        self.close()
        with suppress(OSError):
            self._path.unlink()
