"""The images with the highest maximum of every unit, whatever the order in which they come.

Each entry is one 64-bit key: the bits of the value, inverted so that larger values give smaller
keys, followed by the image id. Sorting the keys sorts by (-value, id), so that ties are broken by
id in every order of arrival, and selecting the best is one `argpartition` over integers.
"""

from __future__ import annotations

import numpy as np

from timmscope_registry import ParameterError

from .base import Collector, LayerBatch, State, check_rows, check_state

_EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_SIGN = np.uint32(0x8000_0000)
_IDS = np.uint64(0xFFFF_FFFF)


class TopK(Collector):
    """The k images with the highest maximum of every unit, with the cell of that maximum.

    Of images with equal maxima the one with the smaller id comes first. NaN and infinite maxima are
    counted as ``nonfinite`` and otherwise left out.

    State: ``values`` (C, m) float32 in descending order, ``ids`` (C, m) int64, ``positions`` (C, m)
    int32, where m <= k is the length of the longest unit's list and shorter ones are padded with
    NaN and -1; ``nonfinite`` (C,) int64.

    Args:
        k: number of images per unit.

    Raises:
        ParameterError: k is below 1.
    """

    name = "top-k"
    settings = ("k",)
    needs = ("max", "argmax")

    def __init__(self, k: int = 100) -> None:
        if k < 1:
            raise ParameterError(f"k must be at least 1, not {k}", parameter="k")
        self.k = k
        self._keys = np.empty((0, k), dtype=np.uint64)  # ascending, so the best entry is first
        self._positions = np.empty((0, k), dtype=np.int32)
        self._nonfinite = np.empty(0, dtype=np.int64)

    def update(self, batch: LayerBatch) -> None:
        """Add rows ``max`` and ``argmax``, (n, C).

        Raises:
            ParameterError: rows are missing, or an image id does not fit into 32 bits.
        """
        check_rows(self, batch)
        values = np.ascontiguousarray(batch.rows["max"].T, dtype=np.float32)  # (C, n)
        if len(batch.ids) and (batch.ids.min() < 0 or batch.ids.max() > int(_IDS)):
            raise ParameterError("image ids must lie between 0 and 2**32 - 1")
        self._reserve(len(values))
        finite = np.isfinite(values)
        self._nonfinite += values.shape[1] - finite.sum(axis=1)
        keys = np.where(finite, _encode(values, batch.ids.astype(np.uint64)), _EMPTY)
        # Select only units with a better image, because late in a run there are few.
        changed = np.flatnonzero((keys < self._keys[:, -1:]).any(axis=1))
        if len(changed):
            self._add(changed, keys[changed], batch.rows["argmax"].T[changed])

    def merge(self, other: TopK) -> None:
        """Add the entries of another collector."""
        self._reserve(len(other._keys))
        if len(other._keys):
            self._nonfinite += other._nonfinite
            self._add(np.arange(len(other._keys)), other._keys, other._positions)

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
        """Replace all entries.

        Raises:
            ValueError: the arrays do not fit each other.
        """
        check_state(state, TopK(k=1).state())
        ids = state["ids"].astype(np.int64)
        if not (
            ids.shape == state["values"].shape == state["positions"].shape
            and len(ids) == len(state["nonfinite"])
            and (not ids.size or -1 <= ids.min() <= ids.max() <= int(_IDS))
        ):
            raise ValueError("the lists of strongest images do not fit each other")
        keys = _encode(state["values"].astype(np.float32), np.maximum(ids, 0).astype(np.uint64))
        self._keys = np.empty((0, self.k), dtype=np.uint64)
        self._reserve(len(ids))
        used = min(ids.shape[1], self.k)
        self._keys[:, :used] = np.where(ids < 0, _EMPTY, keys)[:, :used]
        self._positions[:, :used] = state["positions"][:, :used]
        self._nonfinite = state["nonfinite"].astype(np.int64)

    def _reserve(self, units: int) -> None:
        """Allocate empty lists when the number of units is first known."""
        if not len(self._keys) and units:
            self._keys = np.full((units, self.k), _EMPTY)
            self._positions = np.full((units, self.k), -1, dtype=np.int32)
            self._nonfinite = np.zeros(units, dtype=np.int64)

    def _add(self, units: np.ndarray, keys: np.ndarray, positions: np.ndarray) -> None:
        """Add entries (u, n) to some units and keep the k best of each."""
        keys = np.concatenate([self._keys[units], keys], axis=1)  # (u, k + n)
        positions = np.concatenate([self._positions[units], positions], axis=1)
        if keys.shape[1] > self.k:
            best = np.argpartition(keys, self.k - 1, axis=1)[:, : self.k]
            keys = np.take_along_axis(keys, best, axis=1)
            positions = np.take_along_axis(positions, best, axis=1)
        order = np.argsort(keys, axis=1)
        keys = np.take_along_axis(keys, order, axis=1)
        self._keys[units] = keys
        positions = np.take_along_axis(positions, order, axis=1)
        self._positions[units] = np.where(keys == _EMPTY, -1, positions)


def _encode(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Combine values and image ids into keys."""
    bits = (values + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    keys: np.ndarray = ((~ascending).astype(np.uint64) << np.uint64(32)) | ids
    return keys


def _decode(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split keys into values and image ids."""
    ascending = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ascending & _SIGN, ascending ^ _SIGN, ~ascending)
    return bits.view(np.float32), (keys & _IDS).astype(np.int64)
