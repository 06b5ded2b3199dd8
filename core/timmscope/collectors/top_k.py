"""The images that drive every unit highest, independent of how they were split up.

Each entry is one 64-bit key: the value's bits, flipped so that larger values give smaller keys,
and below them the image id. Sorting keys therefore sorts by (-value, id), ties are broken by id in
every order of arrival, and selection is one `argpartition` over integers.
"""

from __future__ import annotations

import numpy as np

from timmscope_registry import ParameterError

from .base import Collector, LayerBatch, State, check_rows

_EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_SIGN = np.uint32(0x8000_0000)
_IDS = np.uint64(0xFFFF_FFFF)


class TopK(Collector):
    """The k images with the highest maximum of every unit, with the cell of that maximum.

    Ties go to the smaller image id. Maxima that are NaN or infinite are left out and counted.

    State: ``values`` (C, m) float32 in falling order, ``ids`` (C, m) int64, ``positions`` (C, m)
    int32, where m <= k is the length of the longest unit's list and shorter ones are padded with
    NaN and -1; ``nonfinite`` (C,) int64.
    """

    name = "top-k"
    settings = ("k",)
    needs = ("max", "argmax")

    def __init__(self, k: int = 100) -> None:
        if k < 1:
            raise ParameterError(f"k must be at least 1, not {k}", parameter="k")
        self.k = k
        self._keys = np.empty((0, k), dtype=np.uint64)  # rising: the best entry first
        self._positions = np.empty((0, k), dtype=np.int32)
        self._nonfinite = np.empty(0, dtype=np.int64)

    def update(self, batch: LayerBatch) -> None:
        """Take in rows ``max`` and ``argmax``, (n, C)."""
        check_rows(self, batch)
        values = np.ascontiguousarray(batch.rows["max"].T, dtype=np.float32)  # (C, n)
        if len(batch.ids) and (batch.ids.min() < 0 or batch.ids.max() > int(_IDS)):
            raise ParameterError("image ids must lie between 0 and 2**32 - 1")
        self._reserve(len(values))
        finite = np.isfinite(values)
        self._nonfinite += values.shape[1] - finite.sum(axis=1)
        keys = np.where(finite, _encode(values, batch.ids.astype(np.uint64)), _EMPTY)
        # Threshold first: late in a run few units still find a better image.
        open_units = np.flatnonzero((keys < self._keys[:, -1:]).any(axis=1))
        if len(open_units):
            positions = batch.rows["argmax"].T[open_units]
            self._take(open_units, keys[open_units], positions)

    def merge(self, other: TopK) -> None:
        """Take in another's entries."""
        self._reserve(len(other._keys))
        if len(other._keys):
            self._nonfinite += other._nonfinite
            self._take(np.arange(len(other._keys)), other._keys, other._positions)

    def state(self) -> State:
        """Return values, ids, positions and the count of non-finite maxima."""
        used = int((self._keys != _EMPTY).sum(axis=1).max(initial=0))
        keys = self._keys[:, :used]
        empty = keys == _EMPTY
        values, ids = _decode(keys)
        return {
            "values": np.where(empty, np.float32(np.nan), values),
            "ids": np.where(empty, -1, ids),
            "positions": self._positions[:, :used].copy(),
            "nonfinite": self._nonfinite.copy(),
        }

    def load(self, state: State) -> None:
        """Replace all entries."""
        ids = state["ids"].astype(np.int64)
        keys = _encode(state["values"].astype(np.float32), np.maximum(ids, 0).astype(np.uint64))
        self._keys = np.empty((0, self.k), dtype=np.uint64)
        self._reserve(len(ids))
        used = min(ids.shape[1], self.k)
        self._keys[:, :used] = np.where(ids < 0, _EMPTY, keys)[:, :used]
        self._positions[:, :used] = state["positions"][:, :used]
        self._nonfinite = state["nonfinite"].astype(np.int64)

    def _reserve(self, units: int) -> None:
        if not len(self._keys) and units:
            self._keys = np.full((units, self.k), _EMPTY)
            self._positions = np.full((units, self.k), -1, dtype=np.int32)
            self._nonfinite = np.zeros(units, dtype=np.int64)

    def _take(self, units: np.ndarray, keys: np.ndarray, positions: np.ndarray) -> None:
        keys = np.concatenate([self._keys[units], keys], axis=1)  # (u, k + n)
        positions = np.concatenate([self._positions[units], positions], axis=1)
        if keys.shape[1] > self.k:
            best = np.argpartition(keys, self.k - 1, axis=1)[:, : self.k]
            keys = np.take_along_axis(keys, best, axis=1)
            positions = np.take_along_axis(positions, best, axis=1)
        order = np.argsort(keys, axis=1)
        keys = np.take_along_axis(keys, order, axis=1)
        self._keys[units] = keys
        chosen = np.take_along_axis(positions, order, axis=1)
        self._positions[units] = np.where(keys == _EMPTY, -1, chosen)


def _encode(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    bits = (values + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0
    rising = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    keys: np.ndarray = ((~rising).astype(np.uint64) << np.uint64(32)) | ids
    return keys


def _decode(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rising = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(rising & _SIGN, rising ^ _SIGN, ~rising)
    return bits.view(np.float32), (keys & _IDS).astype(np.int64)
