"""`RowArray` reads a layer's rows across all shards like a NumPy array that stays on disk."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .checked_hdf5 import CheckedFile
from .shards import ShardFiles, layer_group


class RowArray:
    """Rows (N, …) of one kind, indexed like a NumPy array and kept on disk.

    Only the rows that an index selects are read. The first index may be a number, a slice, a list
    of ids or a boolean mask; further indices apply to the selected rows. Rows of images that could
    not be read are NaN (-1 for integers).

    Indexing raises `StoreCorrupted` if a shard that it needs is missing, truncated or altered.
    """

    def __init__(
        self,
        files: ShardFiles,
        layer: str,
        kind: str,
        row_shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._files = files
        self._dataset = f"{layer_group(layer)}/{kind}"
        self._row_shape = row_shape
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of images, then the shape of a row."""
        return (self._files.manifest.images.count, *self._row_shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<RowArray {self._dataset} {self.shape} {self.dtype}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        rows = self._read_span(0, len(self))
        return rows if dtype is None else rows.astype(dtype)

    def __getitem__(self, key: Any) -> Any:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if isinstance(first, int | np.integer):
            index = int(first) + (len(self) if first < 0 else 0)
            return self._read(self._check(np.array([index])))[(0, *rest)]
        if isinstance(first, slice):
            start, stop, step = first.indices(len(self))
            if step == 1:
                rows = self._read_span(start, max(start, stop))
            else:
                rows = self._read(np.arange(start, stop, step))
        else:
            ids = np.asarray(first)
            if ids.dtype == bool:
                if ids.shape != (len(self),):
                    raise IndexError(f"a mask of shape {ids.shape} for {len(self)} rows")
                ids = np.flatnonzero(ids)
            ids = ids.astype(np.int64)
            rows = self._read(self._check(np.where(ids < 0, ids + len(self), ids)))
        return rows[(slice(None), *rest)] if rest else rows

    def _check(self, ids: np.ndarray) -> np.ndarray:
        outside = ids[(ids < 0) | (ids >= len(self))]
        if len(outside):
            raise IndexError(f"image {outside[0]} of a store of {len(self)} images")
        return ids

    def _read_span(self, start: int, stop: int) -> np.ndarray:
        size = self._files.manifest.shard_size
        numbers = range(start // size, -(-stop // size)) if stop > start else range(0)
        self._files.require(numbers)
        rows = np.empty((stop - start, *self._row_shape), dtype=self.dtype)
        for number in numbers:
            first, last = self._files.manifest.span(number)
            low, high = max(first, start), min(last, stop)
            rows[low - start : high - start] = self._files.read(
                number,
                partial(
                    CheckedFile.read,
                    name=self._dataset,
                    start=low - first,
                    stop=high - first,
                    like=self._like(number),
                ),
            )
        return rows

    def _read(self, ids: np.ndarray) -> np.ndarray:
        shards = ids // self._files.manifest.shard_size
        self._files.require(np.unique(shards).tolist())
        rows = np.empty((len(ids), *self._row_shape), dtype=self.dtype)
        for number in np.unique(shards).tolist():
            places = shards == number
            local = ids[places] - self._files.manifest.span(number)[0]
            like = self._like(number)
            rows[places] = self._files.read(
                number, partial(CheckedFile.rows, name=self._dataset, ids=local, like=like)
            )
        return rows

    def _like(self, number: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and the type that the rows of a shard must have."""
        start, stop = self._files.manifest.span(number)
        return (stop - start, *self._row_shape), self.dtype
