"""Mean and covariance of rows that stream by: float64, one pass, memory of one `d × d` matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

_EQUAL = 1e-12
"""Rows whose spread is this small beside their length are rounding errors of one row."""


class Moments:
    """Count, mean `(d,)` and scatter `(d, d)`, the sum of outer products of centred rows.

    Batches are centred by their own mean and joined (Chan, Golub & LeVeque 1979), so that a mean
    far from zero costs no digits.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    @classmethod
    def of(cls, dim: int, batches: Iterable[Numbers]) -> Moments:
        """Moments of all rows `(b, d)` of some batches."""
        moments = cls(dim)
        for rows in batches:
            moments.update(rows)
        return moments

    def update(self, rows: Numbers) -> None:
        """Add rows `(b, d)`."""
        if not len(rows):
            return
        other = Moments(0)
        other.count, other.mean = len(rows), rows.mean(0, dtype=np.float64)
        centred = rows - other.mean
        other.scatter = centred.T @ centred
        self.merge(other)

    def merge(self, other: Moments) -> None:
        """Add what another has seen."""
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
    def constant(self) -> bool:
        """Whether all rows are equal, up to rounding."""
        size = self.count * float(self.mean @ self.mean)
        return float(np.trace(self.scatter)) <= _EQUAL**2 * size
