"""Quantiles of many units at once, from histograms whose bins are the leading bits of a float.

A bin holds the floats that share sign, exponent and the first five bits of the mantissa, so it is
at most 1/32 of its value wide, and its middle is within 1/64 (1.6 %) of every value in it. Counts
are integers: merging is exact, in any order. Only bins that are not empty are kept.
"""

from __future__ import annotations

import numpy as np

RELATIVE_ERROR = 1 / 64
"""Largest relative error of a quantile (for values beyond 1e-38)."""

_SHIFT = np.uint32(18)  # 32 bits less sign, 8 exponent bits, 5 mantissa bits
_BINS = 1 << 14
_HALF = np.uint32(_BINS // 2)


class Sketch:
    """Histograms of C units. State: ``offsets`` (C + 1,), ``bins`` and ``counts``, unit by unit."""

    def __init__(self, units: int = 0) -> None:
        self.offsets = np.zeros(units + 1, dtype=np.int64)
        self.bins = np.empty(0, dtype=np.uint16)
        self.counts = np.empty(0, dtype=np.int64)

    def update(self, values: np.ndarray) -> None:
        """Count values (C, n) float32; those that are not finite are left out."""
        finite = np.isfinite(values)
        keys = np.where(finite, _bin(values), np.uint16(_BINS))
        keys.sort(axis=1)
        first = np.ones(keys.shape, dtype=bool)
        first[:, 1:] = keys[:, 1:] != keys[:, :-1]
        unit, column = np.nonzero(first)
        bins = keys[unit, column]
        start = unit * keys.shape[1] + column
        counts = np.diff(start, append=keys.size)
        kept = bins < _BINS
        self._add(unit[kept], bins[kept], counts[kept], len(values))

    def merge(self, other: Sketch) -> None:
        """Add another's counts."""
        units = len(other.offsets) - 1
        unit = np.repeat(np.arange(units), np.diff(other.offsets))
        self._add(unit, other.bins, other.counts, units)

    def quantile(self, q: float) -> np.ndarray:
        """Return the order statistic number floor(q * (n - 1)) of every unit, NaN without values.

        (C,) float64, within `RELATIVE_ERROR` of the exact one.
        """
        result = np.full(len(self.offsets) - 1, np.nan)
        for unit, (start, stop) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            if stop > start:
                ends = np.cumsum(self.counts[start:stop])
                place = np.searchsorted(ends, np.floor(q * (ends[-1] - 1)), side="right")
                result[unit] = _middle(self.bins[start:stop][[place]])[0]
        return result

    def positive(self) -> np.ndarray:
        """Number of values of every unit above zero, (C,) int64; exact beyond 1e-38."""
        ends = np.concatenate([[0], np.cumsum(np.where(self.bins > _HALF, self.counts, 0))])
        return np.asarray(ends[self.offsets[1:]] - ends[self.offsets[:-1]])

    def _add(self, unit: np.ndarray, bins: np.ndarray, counts: np.ndarray, units: int) -> None:
        own = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        keys = np.concatenate([own * _BINS + self.bins, unit * _BINS + bins.astype(np.int64)])
        every = np.concatenate([self.counts, counts])
        units = max(units, len(self.offsets) - 1)
        if not len(keys):
            self.offsets = np.zeros(units + 1, dtype=np.int64)
            return
        order = np.argsort(keys, kind="stable")
        keys, every = keys[order], every[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        keys = keys[starts]
        self.counts = np.add.reduceat(every, starts).astype(np.int64)
        self.bins = (keys % _BINS).astype(np.uint16)
        self.offsets = np.searchsorted(keys, np.arange(units + 1) * _BINS).astype(np.int64)


def _bin(values: np.ndarray) -> np.ndarray:
    """Number of each value's bin, rising with the value."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32) >> _SHIFT
    negative = bits >= _HALF
    return np.where(negative, np.uint32(_BINS - 1) - bits, bits + _HALF).astype(np.uint16)


def _middle(bins: np.ndarray) -> np.ndarray:
    """Middle of each bin, exactly 0 for the bin of zero."""
    number = bins.astype(np.int64)
    negative = number < int(_HALF)
    bits = np.where(negative, int(_HALF) - 1 - number, number - int(_HALF))
    low = (bits.astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
    high = ((bits + 1).astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
    middle = np.where(bits == 0, 0.0, np.where(np.isfinite(high), (low + high) / 2, low))
    return np.where(negative, -middle, middle)
