"""Mean and covariance of rows that stream by: float64, one pass, memory of one `d × d` matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

_EQUAL = 1e-12
"""Rows whose spread is this small beside their length are rounding errors of one row."""
_BLOCK_ROWS, _BLOCK_NUMBERS = 8192, 1 << 23
"""Rows of a block, and how many numbers it may have at most."""


class Moments:
    """Count, mean `(d,)` and scatter `(d, d)`, the sum of outer products of centred rows.

    Products in float32 would take half the time, but their errors do not cancel over the blocks: of
    components whose variances differ by a few thousandths, entries were wrong by 3e-5.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    @classmethod
    def of(cls, dim: int, batches: Iterable[Numbers]) -> Moments:
        """Moments of all rows `(b, d)` of some batches; values too large to be squared give NaN.

        The mean of the first rows is taken from all of them, so that one far from zero costs no
        digits.
        """
        moments = cls(dim)
        shift, total = np.zeros(dim), np.zeros(dim)
        with np.errstate(over="ignore", invalid="ignore"):
            for rows in _blocks(dim, batches):
                if not moments.count:
                    shift = rows.mean(0)
                rows -= shift
                moments.scatter += rows.T @ rows  # of which NumPy computes one half
                total += rows.sum(0)
                moments.count += len(rows)
            if moments.count:
                rest = total / moments.count
                moments.scatter -= moments.count * np.outer(rest, rest)
                moments.mean = shift + rest
        return moments

    def merge(self, other: Moments) -> None:
        """Add what another has seen (Chan, Golub & LeVeque 1979)."""
        total = self.count + other.count
        step = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(step * (self.count * other.count / total), step)
        self.mean = self.mean + step * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Numbers:
        """Covariance `(d, d)` with divisor n - 1; needs two rows."""
        covariance: Numbers = self.scatter / (self.count - 1)
        return covariance

    @property
    def finite(self) -> bool:
        """Whether the values could be squared."""
        return bool(np.isfinite(np.trace(self.scatter)))

    @property
    def constant(self) -> bool:
        """Whether all rows are equal, up to rounding."""
        size = self.count * float(self.mean @ self.mean)
        return float(np.trace(self.scatter)) <= _EQUAL**2 * size

    def components(self, count: int) -> tuple[Numbers, Numbers]:
        """Directions `(count, d)` of largest variance, of length 1, and all variances, falling.

        Of the two signs of a direction the one is taken whose entry of largest magnitude (the first
        of them) is positive, as scikit-learn does.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        found = vectors[:, ::-1][:, :count].T
        largest = found[np.arange(len(found)), np.abs(found).argmax(1)]
        return found * np.where(largest < 0, -1.0, 1.0)[:, None], np.maximum(values[::-1], 0)


def _blocks(dim: int, batches: Iterable[Numbers]) -> Iterator[Numbers]:
    """The same rows in float64 and in larger portions, which take less time to multiply.

    Each portion may be written to, and is gone when the next one comes.
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
