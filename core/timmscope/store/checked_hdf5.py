"""Writes and reads HDF5 arrays in blocks with checksums that are bound to the blocks' place.

An array lies in one piece in the file, without HDF5's chunks and filters. Its attribute ``sums``
has one XXH3 checksum (64 bits) per block of whole rows. The seed is made from the place of the
block: the pass, the file, the array and the block's number. So zeros that a lost write left
behind, or a block of another place, are noticed: Fletcher-32, HDF5's own checksum, is zero for a
block of zeros. A read of a few rows reads and checks only their blocks.

A file from a stranger is read with care: nothing but plain arrays that lie in the file itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from timmscope.safe_files import hdf5_datasets, hdf5_member, open_hdf5

BLOCK_BYTES = 1 << 14
"""Blocks have at most this size, or one row if a row is larger."""

_SUMS = "sums"
_BLOCKS_AT_ONCE = 64
_GAP = 4
"""Blocks that are not wanted are read too if at most so many lie between two that are."""
_KINDS = "biufcS"


def _rows_per_block(shape: tuple[int, ...], itemsize: int) -> int:
    row = math.prod(shape[1:]) * itemsize
    return max(1, BLOCK_BYTES // max(row, 1))


def _seed(place: str, name: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{place}\0{name}".encode("utf-8", "surrogateescape"))


def _block_sums(rows: np.ndarray, seed: int, first: int, per_block: int) -> npt.NDArray[np.uint64]:
    """Return the checksums of contiguous rows that start with the block number `first`."""
    if not rows.size:
        return np.empty(0, np.uint64)
    data = rows.reshape(len(rows), -1).view(np.uint8).data.cast("B")
    step = per_block * (len(data) // len(rows))
    sums = [
        xxhash.xxh3_64_intdigest(data[low : low + step], (seed + first + i) % (1 << 64))
        for i, low in enumerate(range(0, len(data), step))
    ]
    return np.array(sums, np.uint64)


def write_array(file: h5py.File, name: str, values: np.ndarray, place: str) -> None:
    """Write an array and its checksums.

    Args:
        file: a new file.
        name: path of the array in the file.
        values: numbers, or fixed-length bytes.
        place: what the checksums are bound to beside the name: the pass and the file.
    """
    values = np.ascontiguousarray(values) if values.ndim else values
    dataset = file.create_dataset(name, data=values, track_times=False)
    rows = values.reshape(-1) if not values.ndim else values
    per_block = _rows_per_block(rows.shape, rows.dtype.itemsize)
    dataset.attrs[_SUMS] = _block_sums(rows, _seed(place, name), 0, per_block)


class StreamedArray:
    """An array that is written in steps, one checksum per row.

    Its rows are at least as large as a block.
    """

    def __init__(
        self, file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, place: str
    ) -> None:
        self._seed = _seed(place, name)
        self._dataset = file.create_dataset(name, shape, dtype, track_times=False)
        self._sums = np.zeros(shape[0], np.uint64)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows from a row on."""
        rows = np.ascontiguousarray(rows, self._dataset.dtype)
        self._dataset[start : start + len(rows)] = rows
        self._sums[start : start + len(rows)] = _block_sums(rows, self._seed, start, 1)

    def finish(self) -> None:
        """Write the checksums."""
        self._dataset.attrs[_SUMS] = self._sums


@dataclass(frozen=True)
class _Array:
    """Where an array lies in the file, and its checksums."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    sums: npt.NDArray[np.uint64]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def per_block(self) -> int:
        return _rows_per_block(self.shape, self.dtype.itemsize)


class CheckedFile:
    """Reads the arrays that `write_array` and `StreamedArray` wrote.

    HDF5 says where an array lies; its rows are then read from the file as ranges of bytes. Every
    method raises `ValueError` if an array is not plain or does not match its checksums, and
    `KeyError` if there is none.

    Args:
        raw: the file, opened for reading in binary mode.
        place: as when it was written.
        size: size of the file in bytes.
    """

    def __init__(self, raw: BinaryIO, place: str, size: int) -> None:
        self._raw = raw
        self._file = open_hdf5(raw)
        self._place = place
        self._size = size
        self._groups: dict[str, h5py.Group] = {}

    def close(self) -> None:
        """Close HDF5's view of the file."""
        self._groups.clear()
        self._file.close()

    def names(self, group: str) -> list[str]:
        """Return the names of the arrays in a group."""
        return list(self._group(group))

    def arrays(self) -> list[str]:
        """Return the paths of all arrays."""
        return [path for path, _ in hdf5_datasets(self._file)]

    def read(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        *,
        like: tuple[tuple[int, ...], np.dtype[Any]] | None = None,
    ) -> np.ndarray:
        """Read an array, or its rows from `start` to `stop` - 1.

        Args:
            name: path of the array in the file.
            start: first row.
            stop: the row after the last; by default the end.
            like: the shape and the type that the array must have.
        """
        array = self._array(name, like)
        if not array.shape:
            scalar = replace(array, shape=(1,))
            return self._blocks(scalar, 0, 1).reshape(())
        start, stop, _ = slice(start, stop).indices(array.shape[0])
        stop = max(start, stop)
        first = start // array.per_block
        low = first * array.per_block
        rows = self._blocks(array, first, -(-stop // array.per_block))
        return rows[start - low : stop - low]

    def check(self, name: str) -> None:
        """Read an array in steps and compare it with its checksums."""
        array = self._array(name, None)
        array = array if array.shape else replace(array, shape=(1,))
        for first in range(0, len(array.sums), _BLOCKS_AT_ONCE):
            self._blocks(array, first, min(first + _BLOCKS_AT_ONCE, len(array.sums)))

    def rows(
        self, name: str, ids: np.ndarray, *, like: tuple[tuple[int, ...], np.dtype[Any]]
    ) -> np.ndarray:
        """Read some rows, (n, …), in the order of `ids`; only their blocks are read."""
        array = self._array(name, like)
        found = np.empty((len(ids), *array.shape[1:]), array.dtype)
        blocks = ids // array.per_block
        wanted = np.unique(blocks)
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > _GAP) + 1):
            if len(run):
                first, last = int(run[0]), int(run[-1])
                places = (blocks >= first) & (blocks <= last)
                rows = self._blocks(array, first, last + 1)
                found[places] = rows[ids[places] - first * array.per_block]
        return found

    def _blocks(self, array: _Array, first: int, last: int) -> np.ndarray:
        """Read the rows of the blocks from `first` to `last` - 1, and check them."""
        low, high = first * array.per_block, min(last * array.per_block, array.shape[0])
        rows = np.empty((max(0, high - low), *array.shape[1:]), array.dtype)
        if not rows.size:
            return rows
        data = rows.reshape(len(rows), -1).view(np.uint8).data.cast("B")
        self._raw.seek(array.offset + low * array.row_bytes)
        done = 0
        while done < len(data):
            if not (got := self._raw.readinto(data[done:])):  # type: ignore[attr-defined]
                raise ValueError(f"{array.name} ends before its end")
            done += got
        seed = _seed(self._place, array.name)
        found = _block_sums(rows, seed, first, array.per_block)
        if not np.array_equal(array.sums[first:last], found):
            raise ValueError(f"{array.name} does not match its checksums")
        return rows

    def _group(self, path: str) -> h5py.Group:
        if path not in self._groups:
            group = hdf5_member(self._file, path)
            if not isinstance(group, h5py.Group):
                raise ValueError(f"{path} is not a group")
            self._groups[path] = group
        return self._groups[path]

    def _array(self, name: str, like: tuple[tuple[int, ...], np.dtype[Any]] | None) -> _Array:
        """Find an array; refuse all but plain pieces of this file, reached by hard links.

        This asks HDF5 for what `hdf5_member` and `require_stored` ask, but not through h5py's own
        objects: states have hundreds of small arrays, which would take twice as long to merge.
        """
        above, _, last = name.rpartition("/")
        group, key = self._group(above).id, last.encode("utf-8", "surrogateescape")
        if not group.links.exists(key):
            raise KeyError(name)
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{name} is a link to another place")
        item = h5py.h5o.open(group, key)
        if not isinstance(item, h5py.h5d.DatasetID):
            raise ValueError(f"{name} is not an array")
        layout = item.get_create_plist()
        if layout.get_layout() != h5py.h5d.CONTIGUOUS or layout.get_external_count():
            raise ValueError(f"{name} does not lie in one piece in the file")
        shape, dtype = item.shape, item.dtype
        if dtype.kind not in _KINDS or item.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            raise ValueError(f"{name} holds no plain numbers or text")
        if like is not None and (shape, dtype) != like:
            raise ValueError(f"{name} is {dtype}{shape}, expected {like[1]}{like[0]}")
        size = math.prod(shape) * dtype.itemsize
        offset = item.get_offset() or 0
        if size and (item.get_storage_size() != size or offset + size > self._size):
            raise ValueError(f"{name} has {size} bytes, the file does not hold them")
        return _Array(name, shape, dtype, offset, _read_sums(item, name, shape, dtype))


def _read_sums(
    item: h5py.h5d.DatasetID, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[np.uint64]:
    rows = shape or (1,)
    count = -(-rows[0] // _rows_per_block(rows, dtype.itemsize)) if math.prod(rows) else 0
    written = h5py.h5a.open(item, _SUMS.encode())
    if written.shape != (count,) or written.dtype != np.uint64:
        raise ValueError(f"the checksums of {name} are {written.dtype}{written.shape}")
    sums = np.empty(count, np.uint64)
    if count:
        written.read(sums)
    return sums


def read_group(file: CheckedFile, group: str) -> dict[str, np.ndarray]:
    """Read all arrays of a group, by name."""
    return {name: file.read(f"{group}/{name}") for name in file.names(group)}


def write_group(file: h5py.File, group: str, arrays: Mapping[str, np.ndarray], place: str) -> None:
    """Write arrays into a group, by name; a group without arrays exists too."""
    file.require_group(group)
    for name, array in arrays.items():
        write_array(file, f"{group}/{name}", np.asarray(array), place)
