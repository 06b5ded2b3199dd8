"""Principal components of rows that need not fit memory: one pass, then one eigenproblem."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from timmscope import ParameterError, Rows
from timmscope_representation.moments import Moments, Numbers

MAX_WIDTH = 8192
"""Longest rows: their covariance takes 0.5 GB, its eigenvectors four times as much in all."""


@dataclass(frozen=True)
class PrincipalComponents:
    """Directions of largest variance, each at right angles to those before; signs as `Moments`.

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
        rows.require(count + 1, f"PCA with {count} components", "source")
        found = Moments.of(rows.dim, (part for _, part in rows.batches("principal components")))
        if not found.finite:
            raise ParameterError(
                f"the values of {rows.title} are too large to be squared: scale them down",
                parameter="source",
            )
        if found.constant:
            raise ParameterError(
                f"all {len(rows)} rows of {rows.title} are equal: there is nothing to lay out",
                parameter="source",
            )
        components, variances = found.components(count)
        variance = variances[:count]
        return cls(found.mean, components, variance, variance / variances.sum())

    def transform(self, rows: Numbers) -> Numbers:
        """Coordinates `(n, k)` float64 of rows `(n, d)`, known ones or new ones."""
        centred = np.asarray(rows, np.float64) - self.mean
        coordinates: Numbers = centred @ self.components.T
        return coordinates
