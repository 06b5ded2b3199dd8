"""The cut of least error through the overlap of two blocks, by dynamic programming.

A straight seam between two blocks shows, because it crosses edges of the texture. A cut that goes
round them does not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def minimum_cut(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the column of the cut in each row, from the top to the bottom of an overlap.

    The cut minimises the sum of the errors on it, and its column changes by at most one per row
    (Efros & Freeman, SIGGRAPH 2001, section 2.1): `E_ij = e_ij + min(E_i-1,j-1, E_i-1,j,
    E_i-1,j+1)`.

    Args:
        errors: `(rows, columns)`, the squared difference of the two blocks at each pixel.

    Returns:
        `(rows,)` columns.
    """
    rows, columns = errors.shape
    sums = errors.copy()
    steps = np.zeros((rows, columns), np.int64)
    for row in range(1, rows):
        padded = np.pad(sums[row - 1], 1, constant_values=np.inf)
        above = np.stack([padded[1:-1], padded[:-2], padded[2:]])  # straight on first, if equal
        best = above.argmin(0)
        steps[row] = np.array([0, -1, 1])[best]
        sums[row] += np.take_along_axis(above, best[None], 0)[0]
    path = np.empty(rows, np.int64)
    path[-1] = sums[-1].argmin()
    for row in range(rows - 1, 0, -1):
        path[row - 1] = path[row] + steps[row, path[row]]
    return path


def cut_error(errors: npt.NDArray[np.float64], path: npt.NDArray[np.int64]) -> float:
    """Return the sum of the errors on a cut."""
    return float(errors[np.arange(len(errors)), path].sum())


def straight_error(errors: npt.NDArray[np.float64]) -> float:
    """Return the sum of the errors on the best straight seam, a single column."""
    return float(errors.sum(0).min())
