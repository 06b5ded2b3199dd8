"""Principal components of rows that need not fit in memory: one pass, then one eigenproblem."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from timmscope import ParameterError, Rows
from timmscope_representation.moments import Moments, Numbers

MAX_WIDTH = 8192
"""Longest rows: their covariance takes 0.5 GB, the eigenproblem four times as much in total."""


@dataclass(frozen=True)
class PrincipalComponents:
    """Orthogonal directions of largest variance, with the signs of `Moments.components`.

    Attributes:
        mean: `(d,)` float64, mean of the rows.
        components: `(k, d)` float64, of length 1, largest variance first.
        variance: `(k,)`, along each component, with n - 1 in the denominator.
        explained: `(k,)`, as shares of the total variance.
    """

    mean: Numbers
    components: Numbers
    variance: Numbers
    explained: Numbers

    @classmethod
    def fit(cls, rows: Rows, count: int) -> PrincipalComponents:
        """Compute the first `count` components in one pass, in memory that depends only on `d`.

        The covariance is summed in float64, and its eigenproblem solved: `n d²` multiplications and
        as many additions, of which NumPy does half, then about `9 d³`.

        Raises:
            ParameterError: rows are too few, too short, too long, all equal, or hold NaN or
                infinite values.
        """
        if rows.dim < count:
            raise ParameterError(
                f"rows of length {rows.dim} have no {count} principal components: {rows.title}",
                parameter="source",
            )
        if rows.dim > MAX_WIDTH:
            raise ParameterError(
                f"principal components take rows of at most {MAX_WIDTH} values, those of "
                f"{rows.title} have {rows.dim}: choose another layer, or fewer columns",
                parameter="source",
            )
        rows.require(count + 1, f"PCA with {count} components", "source")
        moments = Moments.of(rows.dim, (part for _, part in rows.batches("principal components")))
        if not moments.finite:
            raise ParameterError(
                f"the values of {rows.title} are too large to be squared: scale them down",
                parameter="source",
            )
        if moments.constant:
            raise ParameterError(
                f"all {len(rows)} rows of {rows.title} are equal: there is nothing to map",
                parameter="source",
            )
        components, variances = moments.components(count)
        variance = variances[:count]
        return cls(moments.mean, components, variance, variance / variances.sum())

    def transform(self, rows: Numbers) -> Numbers:
        """Coordinates `(n, k)` float64 of rows `(n, d)`, of the fit or new ones."""
        centred = np.asarray(rows, np.float64) - self.mean
        coordinates: Numbers = centred @ self.components.T
        return coordinates
