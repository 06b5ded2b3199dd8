"""`RowArray` reads a layer's rows across all shards like a NumPy array that stays on disk."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from .shards import ShardFiles, layer_group

_DENSE = 8
"""If at least one in this many rows of a span is wanted, the whole span is read at once."""


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
        rows = np.empty((stop - start, *self._row_shape), dtype=self.dtype)
        size = self._files.manifest.shard_size
        numbers = range(start // size, -(-stop // size)) if stop > start else range(0)
        self._files.require(numbers)
        for number in numbers:
            first, last = self._files.manifest.span(number)
            low, high = max(first, start), min(last, stop)
            rows[low - start : high - start] = self._from_shard(
                number, slice(low - first, high - first)
            )
        return rows

    def _read(self, ids: np.ndarray) -> np.ndarray:
        rows = np.empty((len(ids), *self._row_shape), dtype=self.dtype)
        shards = ids // self._files.manifest.shard_size
        for number in np.unique(shards).tolist():
            places = np.flatnonzero(shards == number)
            local = ids[places] - self._files.manifest.span(number)[0]
            low, high = int(local.min()), int(local.max()) + 1
            if (high - low) <= _DENSE * len(local):
                rows[places] = self._from_shard(number, slice(low, high))[local - low]
            else:
                distinct, inverse = np.unique(local, return_inverse=True)
                rows[places] = self._from_shard(number, distinct)[inverse]
        return rows

    def _from_shard(self, number: int, selection: slice | np.ndarray) -> np.ndarray:
        def read(file: h5py.File) -> np.ndarray:
            dataset = file[self._dataset]
            if dataset.shape[1:] != self._row_shape or dataset.dtype != self.dtype:
                raise ValueError(f"{self._dataset} is {dataset.dtype}{dataset.shape}")
            rows: np.ndarray = dataset[selection]
            return rows

        return self._files.read(number, read)
