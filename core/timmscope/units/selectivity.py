"""Measures how well a unit separates one class from the rest, by class means and histograms.

The selectivity index of Morcos et al. ("On the importance of single directions for
generalization", ICLR 2018, section 2.3) is (μ_max - μ_-max) / (μ_max + μ_-max), where μ_max is the
highest mean of a unit within a class and μ_-max the mean over the other classes' means. It assumes
activations that are not negative; the values of a unit with negative ones are measured from its
lowest value. The index depends on the unit's offset, so it is reported with the area under the ROC
curve of that class against all other images: the share of pairs in which the image of the class has
the higher value, where equal values count half (Mann and Whitney, 1947).
"""

from __future__ import annotations

import numpy as np

_SHIFT = 18  # drops bits of a float32 and leaves 5 of the mantissa: bins are 1/32 of a value wide
_OCTAVES = 24
_SIDE = (_OCTAVES << 5) + 1
_BINS = 2 * _SIDE + 1


class ClassMeans:
    """Mean of every unit within every class.

    Args:
        classes: number of classes.
        units: number of units.
    """

    def __init__(self, classes: int, units: int) -> None:
        self._sums = np.zeros((classes, units))
        self._counts = np.zeros((classes, units), dtype=np.int64)
        self._images = np.zeros(classes, dtype=np.int64)

    def update(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Add rows (n, C) of classes `codes` (n,), without rows that have no class (-1)."""
        kept = np.flatnonzero(codes >= 0)
        if not len(kept):
            return
        order = kept[np.argsort(codes[kept], kind="stable")]
        found, starts = np.unique(codes[order], return_index=True)
        values = rows[order].astype(np.float64)
        finite = np.isfinite(values)
        values[~finite] = 0
        self._sums[found] += np.add.reduceat(values, starts, axis=0)
        self._counts[found] += np.add.reduceat(finite, starts, axis=0, dtype=np.int64)
        self._images[found] += np.diff(starts, append=len(order))

    def means(self, least: int) -> np.ndarray:
        """Return means (K, C); NaN for classes with under `least` images or no finite values."""
        enough = (self._images >= least)[:, None] & (self._counts > 0)
        return np.where(enough, self._sums / np.maximum(self._counts, 1), np.nan)


def best_classes(means: np.ndarray, lowest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each unit's class of highest mean, and its selectivity index.

    Args:
        means: (K, C), NaN for classes that do not count.
        lowest: (C,) lowest value of every unit; the index measures from it if it is negative.

    Returns:
        Classes (C,) int64 and indices (C,); -1 and NaN if fewer than two classes count or all
        have the same mean, as for a constant unit.
    """
    known = ~np.isnan(means)
    if len(means) < 2:
        return np.full(means.shape[1], -1), np.full(means.shape[1], np.nan)
    enough = known.sum(axis=0) >= 2
    above = np.where(known, means - np.minimum(lowest, 0), -np.inf)  # (K, C), not negative
    enough &= above.max(axis=0) > np.where(known, above, np.inf).min(axis=0)
    best = np.where(enough, np.argmax(above, axis=0), -1)
    units = np.arange(means.shape[1])
    highest = above[best, units]
    rest = np.where(known, above, 0).sum(axis=0) - highest
    with np.errstate(divide="ignore", invalid="ignore"):
        others = rest / (known.sum(axis=0) - 1)
        index = (highest - others) / (highest + others)
    return best, np.where(enough, index, np.nan)


class OneAgainstRest:
    """Area under the ROC curve of each unit for one class, from histograms.

    Values are measured from the unit's value nearest to zero, so that bins also resolve units that
    vary little relative to their size. Bins are 1/32 of a value wide, down to 2**-24 of the
    largest; values in one bin count as equal. The error of the area is at most half the share of
    pairs in the same bin.

    Args:
        best: (C,) class of every unit, -1 for none.
        low: (C,) lowest value of every unit.
        high: (C,) highest value of every unit.
    """

    def __init__(self, best: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        self._best = best
        self._origin = np.clip(0.0, low, high)
        largest = np.maximum(high - self._origin, self._origin - low)
        self._scale = np.where(largest > 0, largest, 1)
        self._counts = np.zeros((2, len(best), _BINS), dtype=np.int64)

    def update(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Add rows (n, C) of classes `codes` (n,), without rows that have no class (-1)."""
        kept = codes >= 0
        if not kept.any():
            return
        rows, codes = rows[kept], codes[kept]
        member = codes[:, None] == self._best  # (n, C)
        units = len(self._best)
        bins = _bins((rows - self._origin) / self._scale)
        place = (member * units + np.arange(units)) * _BINS + bins
        counts = np.bincount(place[np.isfinite(rows)], minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)

    def areas(self) -> np.ndarray:
        """Return areas (C,); NaN for a unit without a class or without pairs."""
        rest, members = self._counts
        below = np.cumsum(rest, axis=1) - rest
        wins = (members * (below + rest / 2)).sum(axis=1)
        pairs = members.sum(axis=1) * rest.sum(axis=1)
        return np.where((pairs > 0) & (self._best >= 0), wins / np.maximum(pairs, 1), np.nan)


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the bin of each value in [-1, 1], in ascending order; the middle bin holds zero."""
    magnitude = np.abs(values.astype(np.float32)).view(np.uint32) >> _SHIFT
    lowest = (127 - _OCTAVES) << 5  # the bin of 2**-24
    steps = np.clip(magnitude.astype(np.int64) - lowest + 1, 0, _SIDE)
    return np.where(values < 0, _SIDE - steps, _SIDE + steps)
