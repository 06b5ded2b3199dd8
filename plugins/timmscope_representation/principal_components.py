"""Principal components of rows that need not fit memory: one pass, then one eigenproblem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope import ParameterError, Rows

Numbers = npt.NDArray[Any]

MAX_WIDTH = 8192
"""Longest rows: their covariance takes 0.5 GB, its eigenvectors four times as much in all."""
_BLOCK_ROWS, _BLOCK_NUMBERS = 8192, 1 << 23
"""Rows of a block, and how many numbers it may have at most."""


@dataclass(frozen=True)
class PrincipalComponents:
    """Directions of largest variance, each at right angles to those before.

    Of the two signs of a component the one is taken whose entry of largest magnitude (the first of
    them) is positive, as scikit-learn does.

    Attributes:
        mean: `(d,)` float64, of the rows.
        components: `(k, d)` float64, of length 1, largest variance first.
        variance: `(k,)` along each, with n - 1 in the denominator.
        explained: `(k,)` share of the variance of all rows.
    """

    mean: Numbers
    components: Numbers
    variance: Numbers
    explained: Numbers

    @classmethod
    def fit(cls, rows: Rows, count: int) -> PrincipalComponents:
        """Find the first `count` components in one pass, in memory that depends on `d` alone.

        The covariance is added up in float64 and its eigenproblem solved: `n d²` multiplications
        and as many additions, of which NumPy does half, then some `9 d³`.

        Raises:
            ParameterError: too few rows, too short or too long ones, rows that are all equal or
                that hold NaN or infinite values.
        """
        if rows.dim < count:
            raise ParameterError(
                f"rows of length {rows.dim} have no {count} principal components: {rows.title}",
                parameter="source",
            )
        if rows.dim > MAX_WIDTH:
            raise ParameterError(
                f"principal components are computed of rows up to {MAX_WIDTH} long, those of "
                f"{rows.title} are {rows.dim}: choose another layer, or fewer columns",
                parameter="source",
            )
        rows.require(count + 1, f"{count} principal components", "source")
        found = _Moments.of(rows)
        values, vectors = found.eigen()
        total = float(values.sum())
        if np.isnan(total):
            raise ParameterError(
                f"the values of {rows.title} are too large to be squared: scale them down",
                parameter="source",
            )
        if not total > found.noise():
            raise ParameterError(
                f"all {len(rows)} rows of {rows.title} are equal: there is nothing to lay out",
                parameter="source",
            )
        components = vectors[:, :count].T
        largest = np.abs(components).argmax(1)
        components = (
            components * np.where(components[range(count), largest] < 0, -1.0, 1.0)[:, None]
        )
        variance = np.maximum(values[:count], 0)
        return cls(found.mean, components, variance, variance / total)

    def transform(self, rows: Numbers) -> Numbers:
        """Coordinates `(n, k)` float64 of rows `(n, d)`, known ones or new ones."""
        centred = np.asarray(rows, np.float64) - self.mean
        coordinates: Numbers = centred @ self.components.T
        return coordinates


class _Moments:
    """Sums over rows, from which the mean of the first batch is taken, block by block in float64.

    Products in float32 take half the time, but their errors do not cancel over the blocks: of
    components whose variances differ by a few thousandths, entries were wrong by 3e-5.

    Attributes:
        count: number of rows.
    """

    def __init__(self, first: Numbers) -> None:
        dim = first.shape[1]
        self._shift: Numbers = first.mean(0, dtype=np.float64)
        self.count = 0
        self._total, self._products = np.zeros(dim), np.zeros((dim, dim))
        self._block = np.empty((max(1, min(_BLOCK_ROWS, _BLOCK_NUMBERS // dim)), dim))
        self._filled = 0

    @classmethod
    def of(cls, rows: Rows) -> _Moments:
        """Read all rows once."""
        sums: _Moments | None = None
        for _, part in rows.batches("principal components"):
            sums = sums or cls(part)
            sums._add(part)
        assert sums is not None  # Rows are never empty
        sums._multiply()
        return sums

    def _add(self, part: Numbers) -> None:
        """Gather rows: one large product takes less time than several small ones."""
        start = 0
        while start < len(part):
            room = self._block[self._filled : self._filled + len(part) - start]
            np.subtract(part[start : start + len(room)], self._shift, out=room)
            self._filled += len(room)
            start += len(room)
            if self._filled == len(self._block):
                self._multiply()

    def _multiply(self) -> None:
        rows = self._block[: self._filled]
        with np.errstate(over="ignore", invalid="ignore"):
            self._products += rows.T @ rows  # of which NumPy computes one half
            self._total += rows.sum(0)
        self.count += len(rows)
        self._filled = 0

    @property
    def mean(self) -> Numbers:
        """Of all rows, `(d,)`."""
        mean: Numbers = self._shift + self._total / self.count
        return mean

    def eigen(self) -> tuple[Numbers, Numbers]:
        """Eigenvalues `(d,)`, falling, and eigenvectors `(d, d)` in columns, of the covariance."""
        mean = self._total / self.count
        with np.errstate(over="ignore", invalid="ignore"):
            covariance = (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)
        if not np.isfinite(covariance).all():
            return np.full(len(mean), np.nan), covariance
        values, vectors = np.linalg.eigh(covariance)
        return values[::-1], vectors[:, ::-1]

    def noise(self) -> float:
        """Total variance that rounding alone gives equal rows."""
        return float(np.square(self._shift).sum()) * float(np.finfo(np.float32).eps) ** 2
