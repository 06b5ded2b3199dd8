"""`Sketch` estimates quantiles of many units from histograms over the leading bits of floats.

A bin contains the floats with the same sign, exponent and first five bits of the mantissa. It is at
most 1/32 of its value wide, so that its middle is within 1/64 (1.6 %) of every value in it. Counts
are integers, so that merging is exact in any order. Only bins that are not empty are stored.
"""

from __future__ import annotations

import numpy as np

RELATIVE_ERROR = 1 / 64
"""Largest relative error of a quantile (for values beyond 1e-38)."""

_SHIFT = np.uint32(18)  # 32 bits less sign, 8 exponent bits, 5 mantissa bits
_BINS = 1 << 14
_HALF = np.uint32(_BINS // 2)


class Sketch:
    """Histograms of C units.

    Attributes:
        offsets: start of each unit in `bins` and `counts`, (C + 1,) int64.
        bins: numbers of the non-empty bins, unit after unit, ascending in each unit, uint16.
        counts: number of values in each of them, int64.
    """

    def __init__(self, units: int = 0) -> None:
        self.offsets = np.zeros(units + 1, dtype=np.int64)
        self.bins = np.empty(0, dtype=np.uint16)
        self.counts = np.empty(0, dtype=np.int64)

    @classmethod
    def load(cls, units: int, offsets: np.ndarray, bins: np.ndarray, counts: np.ndarray) -> Sketch:
        """Create the sketch of some units from its saved arrays.

        Raises:
            ValueError: the arrays do not fit each other.
        """
        ends = np.concatenate([[0], offsets, [len(bins)]])
        if not (
            len(offsets) == units + 1
            and len(bins) == len(counts)
            and (np.diff(ends) >= 0).all()
            and ends[0] == ends[1]
            and ends[-2] == ends[-1]
            and (bins < _BINS).all()
            and (counts > 0).all()
        ):
            raise ValueError("the arrays of the quantile sketch do not fit each other")
        sketch = cls()
        sketch.offsets, sketch.bins, sketch.counts = offsets, bins, counts
        return sketch

    def update(self, values: np.ndarray) -> None:
        """Count values (C, n) float32; NaN and infinities are left out."""
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
        """Add the counts of another sketch."""
        units = len(other.offsets) - 1
        unit = np.repeat(np.arange(units), np.diff(other.offsets))
        self._add(unit, other.bins, other.counts, units)

    def quantile(self, q: float) -> np.ndarray:
        """Return every unit's value number floor(q * (n - 1)) in ascending order, from 0.

        Returns:
            (C,) float64, within `RELATIVE_ERROR` of the exact values; NaN for units without values.
        """
        result = np.full(len(self.offsets) - 1, np.nan)
        for unit, (start, stop) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            if stop > start:
                ends = np.cumsum(self.counts[start:stop])
                index = np.searchsorted(ends, np.floor(q * (ends[-1] - 1)), side="right")
                result[unit] = _middle(self.bins[start:stop][[index]])[0]
        return result

    def positive(self) -> np.ndarray:
        """Number of values above zero of every unit, (C,) int64; exact for values beyond 1e-38."""
        ends = np.concatenate([[0], np.cumsum(np.where(self.bins > _HALF, self.counts, 0))])
        return np.asarray(ends[self.offsets[1:]] - ends[self.offsets[:-1]])

    def _add(self, unit: np.ndarray, bins: np.ndarray, counts: np.ndarray, units: int) -> None:
        own_unit = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        keys = np.concatenate([own_unit * _BINS + self.bins, unit * _BINS + bins.astype(np.int64)])
        all_counts = np.concatenate([self.counts, counts])
        units = max(units, len(self.offsets) - 1)
        if not len(keys):
            self.offsets = np.zeros(units + 1, dtype=np.int64)
            return
        order = np.argsort(keys, kind="stable")
        keys, all_counts = keys[order], all_counts[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        keys = keys[starts]
        self.counts = np.add.reduceat(all_counts, starts).astype(np.int64)
        self.bins = (keys % _BINS).astype(np.uint16)
        self.offsets = np.searchsorted(keys, np.arange(units + 1) * _BINS).astype(np.int64)


def _bin(values: np.ndarray) -> np.ndarray:
    """Return the number of each value's bin; larger values have larger numbers."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32) >> _SHIFT
    negative = bits >= _HALF
    return np.where(negative, np.uint32(_BINS - 1) - bits, bits + _HALF).astype(np.uint16)


def _middle(bins: np.ndarray) -> np.ndarray:
    """Return the middle of each bin, and exactly 0 for the bin of zero."""
    number = bins.astype(np.int64)
    negative = number < int(_HALF)
    bits = np.where(negative, int(_HALF) - 1 - number, number - int(_HALF))
    low = (bits.astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
    high = ((bits + 1).astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
    middle = np.where(bits == 0, 0.0, np.where(np.isfinite(high), (low + high) / 2, low))
    return np.where(negative, -middle, middle)
