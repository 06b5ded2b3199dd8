"""Mean and covariance of streamed rows, in float64, one pass and the memory of a `d × d` matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

_EQUAL = 1e-12
"""Rows whose spread relative to their length is this small differ only by rounding."""
_BLOCK_ROWS, _BLOCK_NUMBERS = 8192, 1 << 23
"""Rows of a block, and the largest number of values in it."""


class Moments:
    """Count, mean `(d,)` and scatter `(d, d)`, the sum of outer products of centred rows.

    Products in float32 would take half the time, but their errors do not cancel over the blocks: in
    components whose variances differ by a few thousandths, entries were wrong by 3e-5.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    @classmethod
    def of(cls, dim: int, batches: Iterable[Numbers]) -> Moments:
        """Moments of all rows `(b, d)` of some batches; values too large to be squared give NaN.

        The mean of the first block is subtracted from all rows, so that rows far from zero lose no
        digits.
        """
        moments = cls(dim)
        shift, total = np.zeros(dim), np.zeros(dim)
        with np.errstate(over="ignore", invalid="ignore"):
            for rows in _blocks(dim, batches):
                if not moments.count:
                    shift = rows.mean(0)
                rows -= shift
                moments.scatter += rows.T @ rows  # NumPy computes one half only
                total += rows.sum(0)
                moments.count += len(rows)
            if moments.count:
                rest = total / moments.count
                moments.scatter -= moments.count * np.outer(rest, rest)
                moments.mean = shift + rest
        return moments

    def merge(self, other: Moments) -> None:
        """Add the moments of other rows (Chan, Golub & LeVeque 1979)."""
        total = self.count + other.count
        step = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(step * (self.count * other.count / total), step)
        self.mean = self.mean + step * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Numbers:
        """Covariance `(d, d)` with divisor n - 1; it needs two rows."""
        covariance: Numbers = self.scatter / (self.count - 1)
        return covariance

    @property
    def finite(self) -> bool:
        """Whether no square overflowed."""
        return bool(np.isfinite(np.trace(self.scatter)))

    @property
    def constant(self) -> bool:
        """Whether all rows are equal, up to rounding."""
        size = self.count * float(self.mean @ self.mean)
        return float(np.trace(self.scatter)) <= _EQUAL**2 * size

    def components(self, count: int) -> tuple[Numbers, Numbers]:
        """Directions `(count, d)` of largest variance, of length 1, and all variances, descending.

        The sign of a direction makes its entry of largest magnitude (the first of them) positive,
        as in scikit-learn.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        directions = vectors[:, ::-1][:, :count].T
        largest = directions[np.arange(len(directions)), np.abs(directions).argmax(1)]
        return directions * np.where(largest < 0, -1.0, 1.0)[:, None], np.maximum(values[::-1], 0)


def _blocks(dim: int, batches: Iterable[Numbers]) -> Iterator[Numbers]:
    """The same rows in float64 and in larger blocks, which are faster to multiply.

    A caller may write to a block; the next block overwrites it.
    """
    block = np.empty((max(1, min(_BLOCK_ROWS, _BLOCK_NUMBERS // max(dim, 1))), dim))
    filled = 0
    for batch in batches:
        start = 0
        while start < len(batch):
            part = batch[start : start + len(block) - filled]
            block[filled : filled + len(part)] = part
            filled += len(part)
            start += len(part)
            if filled == len(block):
                yield block
                filled = 0
    if filled:
        yield block[:filled]
