"""Voronoi cells around centres, and which of them may hold rows near each other.

Along the line through the centres of two cells, a row `x` of cell `i` and a row `y` of cell `j` are
`(x @ (c_i - c_j) + y @ (c_j - c_i)) / |c_i - c_j|` apart, and their distance is at least that. So
the smallest `x @ (c_i - c_j)` of cell `i` and the smallest `y @ (c_j - c_i)` of cell `j` give a
lower bound for all pairs of their rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

_ITERATIONS = 3
"""Iterations of k-means: the centres need not be optimal."""


class VoronoiCells:
    """Cells that rows are sorted into, batch by batch.

    Args:
        sample: rows `(m, d)` float32 to compute the centres from, at least as many as cells.
        count: number of cells.
        seed: seed of the centres.
    """

    def __init__(self, sample: Numbers, count: int, seed: int) -> None:
        import faiss

        dim = sample.shape[1]
        kmeans = faiss.Kmeans(dim, count, niter=_ITERATIONS, seed=seed, min_points_per_centroid=1)
        kmeans.train(sample)
        self._centres: Numbers = np.asarray(kmeans.centroids)
        self._halves = np.einsum("ij,ij->i", self._centres, self._centres) / 2
        self._largest = np.full((count, count), -np.inf, np.float32)
        self._longest = np.zeros(count)

    def sort(self, rows: Numbers, lengths: Numbers) -> npt.NDArray[np.int64]:
        """Number `(b,)` of the cell of each row.

        Args:
            rows: `(b, d)` float32.
            lengths: `(b,)`, the lengths of the rows.
        """
        products = rows @ self._centres.T
        own: npt.NDArray[np.int64] = (products - self._halves).argmax(1)
        products -= products[np.arange(len(own)), own, None]
        for cell, towards in zip(own.tolist(), products, strict=True):
            largest = self._largest[cell]
            np.maximum(largest, towards, out=largest)
        np.maximum.at(self._longest, own, lengths)
        return own

    def near(self, distance: float) -> npt.NDArray[np.bool_]:
        """Which pairs of cells may hold rows within a distance: `(cells, cells)`.

        It allows for the rounding of products of `d` float32 values.
        """
        centres = self._centres.astype(np.float64)
        squares = np.einsum("ij,ij->i", centres, centres)
        gaps = np.sqrt(np.maximum(squares[:, None] + squares - 2 * centres @ centres.T, 0))
        reach = distance * gaps
        longest = self._longest + self._longest[:, None]
        rounding = (centres.shape[1] + 8) * 2.0**-22 * np.sqrt(squares.max())
        largest = self._largest.astype(np.float64)
        found: npt.NDArray[np.bool_] = largest + largest.T + reach + rounding * longest >= 0
        return found
