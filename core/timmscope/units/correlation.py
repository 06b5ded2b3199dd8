"""Computes Pearson's correlation of some units with all, reading the rows once.

Sums of products are of deviations from the mean of the first rows seen. That is as good as two
passes: if the first n₀ of n rows lie δ from the mean, the variance is at least (n₀/n) δ², so
subtracting the mean afterwards costs log₁₀(n/n₀) of float64's 16 digits, 2 or 3 for a million rows.

A value that is not finite leaves its image out of that unit's correlations alone (pairwise
complete): a unit that overflows changes nothing about the others.
"""

from __future__ import annotations

import numpy as np

_EPS = float(np.finfo(np.float64).eps)


class Correlation:
    """Correlations of units `first` to `last` - 1 with all.

    Args:
        units: number of units.
        first: the first of the block.
        last: the one after its last.
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
        self._partial: _Pairs | None = None

    def update(self, rows: np.ndarray) -> None:
        """Take in rows (n, C)."""
        finite = np.isfinite(rows)
        whole = bool(finite.all())
        values = rows.astype(np.float64)
        if not whole:
            values[~finite] = 0
        if not self._known.all():
            fresh = ~self._known & finite.any(axis=0)
            sums = values[:, fresh].sum(axis=0)
            self._shift[fresh] = sums / finite[:, fresh].sum(axis=0)
            self._known |= fresh
        values -= self._shift
        if not whole:
            values[~finite] = 0
        own = values[:, self._own]
        self._products += own.T @ values
        if whole:
            self._count += len(values)
            self._sum += values.sum(axis=0)
            self._squares += np.square(values).sum(axis=0)
            return
        self._partial = self._partial or _Pairs(self._products.shape)
        self._partial.add(values, finite.astype(np.float64), self._own)

    def matrix(self) -> np.ndarray:
        """The correlations (last - first, C); NaN where a unit is constant or never finite."""
        count, own_sum, sums, own_squares, squares = self._totals()
        with np.errstate(divide="ignore", invalid="ignore"):
            covariance = self._products - own_sum * sums / count
            own_variance = own_squares - np.square(own_sum) / count
            variance = squares - np.square(sums) / count
            # What rounding leaves of a constant; one float32 that differs leaves far more.
            noise = 16 * _EPS * np.abs(self._shift)
            own_noise = noise[self._own, None]
            constant = (own_variance <= count * own_noise**2) | (variance <= count * noise**2)
            result = covariance / np.sqrt(own_variance * variance)
        result[constant] = np.nan
        return np.asarray(np.clip(result, -1, 1))

    def _totals(self) -> tuple[np.ndarray, ...]:
        """Number of images, sums and sums of squares of the two units of every pair."""
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


class _Pairs:
    """Sums over the images at which both units of a pair are finite."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.sums = [np.zeros(shape) for _ in range(5)]

    def add(self, values: np.ndarray, finite: np.ndarray, own: slice) -> None:
        squares = np.square(values)
        self.sums[0] += finite[:, own].T @ finite
        self.sums[1] += values[:, own].T @ finite
        self.sums[2] += finite[:, own].T @ values
        self.sums[3] += squares[:, own].T @ finite
        self.sums[4] += finite[:, own].T @ squares


def strongest(matrix: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Each unit's correlation of highest magnitude with another, and that other (lowest number).

    Args:
        matrix: (n, C), as `Correlation.matrix` gives it for units from `first`.
        first: number of the first unit.

    Returns:
        Correlations (n,) and units (n,) int64; NaN and -1 where there is none.
    """
    rows = np.arange(len(matrix))
    size = np.abs(matrix)
    size[rows, first + rows] = np.nan
    some = ~np.isnan(size).all(axis=1)
    partner = np.where(some, np.argmax(np.where(np.isnan(size), -1.0, size), axis=1), -1)
    return np.where(some, matrix[rows, partner], np.nan), partner
