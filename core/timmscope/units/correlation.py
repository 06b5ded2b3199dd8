"""Computes Pearson's correlation of some units with all units in one pass over the rows.

Sums of products use deviations from the mean of the first batch. That is as accurate as two passes:
if the first n₀ of n rows have a mean δ from the mean of all, the variance is at least (n₀/n) δ², so
subtracting the mean afterwards loses log₁₀(n/n₀) of float64's 16 digits, 2 or 3 for a million rows.

A value that is not finite excludes its image from the correlations of its unit only (pairwise
complete), so a unit that overflows does not affect the others.
"""

from __future__ import annotations

import numpy as np

_EPS = float(np.finfo(np.float64).eps)


class Correlation:
    """Correlations of units `first` to `last` - 1 with all units.

    Args:
        units: number of units.
        first: first unit of the block.
        last: end of the block, exclusive.
    """

    def __init__(self, units: int, first: int = 0, last: int | None = None) -> None:
        self._own = slice(first, units if last is None else last)
        own = len(range(units)[self._own])
        self._shift = np.zeros(units)
        self._known = np.zeros(units, dtype=bool)
        self._count = 0
        self._sum = np.zeros(units)
        self._squares = np.zeros(units)
        self._products = np.zeros((own, units))
        self._partial: _PairSums | None = None

    def update(self, rows: np.ndarray) -> None:
        """Add rows (n, C)."""
        finite = np.isfinite(rows)
        all_finite = bool(finite.all())
        values = rows.astype(np.float64)
        if not all_finite:
            values[~finite] = 0
        if not self._known.all():
            new = ~self._known & finite.any(axis=0)
            sums = values[:, new].sum(axis=0)
            self._shift[new] = sums / finite[:, new].sum(axis=0)
            self._known |= new
        values -= self._shift
        if not all_finite:
            values[~finite] = 0
        own = values[:, self._own]
        self._products += own.T @ values
        if all_finite:
            self._count += len(values)
            self._sum += values.sum(axis=0)
            self._squares += np.square(values).sum(axis=0)
            return
        self._partial = self._partial or _PairSums(self._products.shape)
        self._partial.add(values, finite.astype(np.float64), self._own)

    def matrix(self) -> np.ndarray:
        """Return the correlations (last - first, C); NaN for constant or never finite units."""
        count, own_sum, sums, own_squares, squares = self._totals()
        with np.errstate(divide="ignore", invalid="ignore"):
            covariance = self._products - own_sum * sums / count
            own_variance = own_squares - np.square(own_sum) / count
            variance = squares - np.square(sums) / count
            # Rounding error of a constant; a single different float32 gives far more.
            error = 16 * _EPS * np.abs(self._shift)
            own_error = error[self._own, None]
            constant = (own_variance <= count * own_error**2) | (variance <= count * error**2)
            result = covariance / np.sqrt(own_variance * variance)
        result[constant] = np.nan
        return np.asarray(np.clip(result, -1, 1))

    def _totals(self) -> tuple[np.ndarray, ...]:
        """Return the number of images, sums and sums of squares of both units of every pair."""
        sums = (
            np.asarray(float(self._count)),
            self._sum[self._own, None],
            self._sum,
            self._squares[self._own, None],
            self._squares,
        )
        if self._partial is None:
            return sums
        return tuple(a + b for a, b in zip(sums, self._partial.sums, strict=True))


class _PairSums:
    """Sums over the images for which both units of a pair are finite."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.sums = [np.zeros(shape) for _ in range(5)]

    def add(self, values: np.ndarray, finite: np.ndarray, own: slice) -> None:
        squares = np.square(values)
        self.sums[0] += finite[:, own].T @ finite
        self.sums[1] += values[:, own].T @ finite
        self.sums[2] += finite[:, own].T @ values
        self.sums[3] += squares[:, own].T @ finite
        self.sums[4] += finite[:, own].T @ squares


def strongest_partners(matrix: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each unit's correlation of highest magnitude with another unit, and that unit.

    Args:
        matrix: (n, C) result of `Correlation.matrix` for units from `first`.
        first: number of the first unit.

    Returns:
        Correlations (n,) and units (n,) int64, the lowest number among equals; NaN and -1 if a unit
        has no correlation.
    """
    rows = np.arange(len(matrix))
    magnitude = np.abs(matrix)
    magnitude[rows, first + rows] = np.nan
    known = ~np.isnan(magnitude).all(axis=1)
    highest = np.argmax(np.where(np.isnan(magnitude), -1.0, magnitude), axis=1)
    partner = np.where(known, highest, -1)
    return np.where(known, matrix[rows, partner], np.nan), partner
