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
TOLERANCE = 1e-5
"""How far rounding may turn a component, in radians, before float32 products are not enough."""


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
        passes: how often the rows were read: 1, or 2 where float32 products were not enough.
    """

    mean: Numbers
    components: Numbers
    variance: Numbers
    explained: Numbers
    passes: int

    @classmethod
    def fit(cls, rows: Rows, count: int) -> PrincipalComponents:
        """Find the first `count` components in one pass, in memory that depends on `d` alone.

        Covariances are products of blocks of rows, from which the mean of the first block is
        taken so that large means do not cost digits, and are added up in float64. Products of
        float32 rows are float32 at half the time. What that costs is measured at the first block,
        and where components lie so close that it could turn one by more than `TOLERANCE`, the
        rows are read again with float64 products.

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
        found = _Moments.of(rows, single=True)
        values, vectors = found.eigen()
        passes = 1
        if not found.turn(values, vectors, count) <= TOLERANCE:
            found, passes = _Moments.of(rows, single=False), 2
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
        return cls(found.mean, components, variance, variance / total, passes)

    def transform(self, rows: Numbers) -> Numbers:
        """Coordinates `(n, k)` float64 of rows `(n, d)`, known ones or new ones."""
        centred = np.asarray(rows, np.float64) - self.mean
        coordinates: Numbers = centred @ self.components.T
        return coordinates


@dataclass
class _Moments:
    """Sums over shifted rows.

    Attributes:
        shift: `(d,)` that was taken from every row.
        count: number of rows.
        total: `(d,)` sum of the shifted rows.
        products: `(d, d)` sum of their products.
        error: `(d, d)` by which the first block's float32 product was off, or None.
        blocks: number of blocks.
    """

    shift: Numbers
    count: int
    total: Numbers
    products: Numbers
    error: Numbers | None
    blocks: int

    @classmethod
    def of(cls, rows: Rows, *, single: bool) -> _Moments:
        sums: _Moments | None = None
        for _, block in rows.batches("principal components"):
            if block.dtype not in (np.float32, np.float64):
                block = block.astype(np.float64)
            if sums is None:
                sums = cls._begun(block, single)
            else:
                sums._add(block, single)
        assert sums is not None  # Rows are never empty
        return sums

    @classmethod
    def _begun(cls, block: Numbers, single: bool) -> _Moments:
        shift = block.mean(0, dtype=np.float64).astype(block.dtype)
        dim = block.shape[1]
        sums = cls(shift, 0, np.zeros(dim), np.zeros((dim, dim)), None, 0)
        # The first block in float64 anyway: small data never are anything else.
        sums._add(block, False)
        if single and block.dtype == np.float32:
            sums.error = _product(block - shift) - sums.products
        return sums

    def _add(self, block: Numbers, single: bool) -> None:
        shifted = np.subtract(block, self.shift, dtype=block.dtype if single else np.float64)
        self.products += _product(shifted)
        self.total += shifted.sum(0, dtype=np.float64)
        self.count += len(block)
        self.blocks += 1

    @property
    def mean(self) -> Numbers:
        mean: Numbers = self.shift.astype(np.float64) + self.total / self.count
        return mean

    def eigen(self) -> tuple[Numbers, Numbers]:
        """Eigenvalues `(d,)`, falling, and eigenvectors `(d, d)` in columns, of the covariance."""
        mean = self.total / self.count
        with np.errstate(over="ignore", invalid="ignore"):
            covariance = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        if not np.isfinite(covariance).all():  # float32 overflowed: `turn` says so
            return np.full(len(mean), np.nan), np.full_like(covariance, np.nan)
        values, vectors = np.linalg.eigh(covariance)
        return values[::-1], vectors[:, ::-1]

    def turn(self, values: Numbers, vectors: Numbers, count: int) -> float:
        """By how much, in radians, rounding may have turned one of the first components.

        First-order perturbation theory with the first block's error; those of the blocks are as
        good as independent, so that they add up like the square root of their number. Doubled.
        """
        if self.error is None or self.blocks == 1:
            return 0.0
        scale = 2 * np.sqrt(self.blocks) / (self.count - 1)
        error = np.abs(vectors.T @ self.error @ vectors[:, :count])  # (d, k)
        gaps = np.abs(values[:, None] - values[None, :count])
        np.fill_diagonal(error, 0)
        np.fill_diagonal(gaps, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(scale * np.linalg.norm(error / gaps, axis=0).max())

    def noise(self) -> float:
        """Total variance that rounding alone gives equal rows."""
        size = np.square(self.shift, dtype=np.float64).sum()
        return float(size) * float(np.finfo(np.float32).eps) ** 2


def _product(rows: Numbers) -> Numbers:
    """`rowsᵀ rows`, of which NumPy computes one half."""
    with np.errstate(over="ignore", invalid="ignore"):
        product: Numbers = rows.T @ rows
    return product
