"""Distances of two sets of rows: FID, KID, precision, recall, density, coverage.

Input and output are plain arrays and numbers. Whatever grows with the square of the number of rows
is computed in blocks: one product of two rows serves both the kernel and the distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from timmscope_representation.moments import Moments, Numbers

_BLOCK_BYTES = 1 << 24
_SAME = 1e-12
"""Squared distances this small relative to the rows' squared lengths are rounding: zero."""


def frechet_distance(first: Moments, second: Moments) -> float:
    """Fréchet distance of the Gaussians with these moments.

    FID (Heusel et al., NeurIPS 2017, equation 6): `|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)`. The
    last trace is the sum of the singular values of `R1ᵀ R2` for any roots `C = R Rᵀ`, which avoids
    complex numbers, and roots of rounding errors where a covariance does not have full rank.
    """
    gap = first.mean - second.mean
    cross = np.linalg.svd(_root(first.covariance).T @ _root(second.covariance), compute_uv=False)
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return max(0.0, float(gap @ gap + traces - 2 * cross.sum()))


def _root(covariance: Numbers) -> Numbers:
    """A root `R` `(d, r)` with `R Rᵀ = covariance`, r being its numerical rank."""
    values, vectors = np.linalg.eigh(covariance)
    floor = len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    kept = values > floor
    root: Numbers = vectors[:, kept] * np.sqrt(values[kept])
    return root


@dataclass(frozen=True, kw_only=True)
class SetDistances:
    """Distances of n rows of a first set and m rows of a second set.

    Attributes:
        kid: squared maximum mean discrepancy, unbiased, so it may be below zero.
        kid_error: its standard error.
        precision: share of the second set within the first's manifold.
        recall: share of the first set within the second's manifold.
        density: mean number of neighbourhoods of the first set around a row of the second, over k.
        coverage: share of the first set's neighbourhoods that hold a row of the second.
        nearest: position of the nearest row of the other set, `(n,)` and `(m,)`.
        distances: distance to that row, `(n,)` and `(m,)`.
    """

    kid: float
    kid_error: float
    precision: float
    recall: float
    density: float
    coverage: float
    nearest: tuple[Numbers, Numbers]
    distances: tuple[Numbers, Numbers]


def set_distances(
    first: Numbers, second: Numbers, k: int, advance: Callable[[int], None] = lambda _: None
) -> SetDistances:
    """Compare two sets of rows by all pairs, in blocks of 16 MiB.

    - KID (Bińkowski et al., ICLR 2018): unbiased MMD² with the kernel `(x·y / d + 1)³`. Its
      standard error is the jackknife's over rows of both sets.
    - Precision and recall (Kynkäänniemi et al., NeurIPS 2019): a row is in the other set's manifold
      if its distance to one of the set's rows is at most that row's distance to its k-th neighbour
      in the set.
    - Density and coverage (Naeem et al., ICML 2020), by the same neighbourhoods of the first set.

    Args:
        first: `(n, d)`, the reference; more than k and at least 3 rows.
        second: `(m, d)`, likewise.
        k: number of neighbours.
        advance: called with the number of rows done, of `2 n + m` in total.
    """
    x, y = np.array(first, np.float64), np.array(second, np.float64)
    # Rows are centred, because distances of rows far from zero lose digits. The centre is the row
    # nearest to the mean, so that integers stay integers, and equal distances stay equal.
    centre = x[(np.einsum("ij,ij->i", x, x) - 2 * x @ x.mean(0)).argmin()].copy()
    x -= centre
    y -= centre
    kernel_x, radius_x = _within(x, centre, k, advance)
    kernel_y, radius_y = _within(y, centre, k, advance)
    n, m = len(x), len(y)
    sums_x, sums_y = np.empty(n), np.zeros(m)
    near_x, near_y = np.empty(n, np.int64), np.zeros(m, np.int64)
    gap_x, gap_y = np.empty(n), np.full(m, np.inf)
    covered, recalled, within = np.empty(n, bool), np.empty(n, bool), np.zeros(m, np.int64)
    for part, kernel, gaps in _blocks(x, y, centre):
        sums_x[part] = kernel.sum(1)
        sums_y += kernel.sum(0)
        near_x[part] = gaps.argmin(1)
        gap_x[part] = np.take_along_axis(gaps, near_x[part, None], 1)[:, 0]
        rows = gaps.argmin(0)
        found = gaps[rows, np.arange(m)]
        closer = found < gap_y
        near_y[closer], gap_y[closer] = rows[closer] + part.start, found[closer]
        inside = gaps <= radius_x[part, None]
        covered[part] = inside.any(1)
        within += inside.sum(0)
        recalled[part] = (gaps <= radius_y).any(1)
        advance(len(kernel))
    kid, kid_error = _kid(kernel_x, kernel_y, sums_x, sums_y)
    return SetDistances(
        kid=kid,
        kid_error=kid_error,
        precision=float((within > 0).mean()),
        recall=float(recalled.mean()),
        density=float(within.mean() / k),
        coverage=float(covered.mean()),
        nearest=(near_x, near_y),
        distances=(np.sqrt(gap_x), np.sqrt(gap_y)),
    )


def _within(
    rows: Numbers, centre: Numbers, k: int, advance: Callable[[int], None]
) -> tuple[Numbers, Numbers]:
    """For each row the sum of kernels with the others of its set, and the k-th squared distance."""
    sums, radii = np.empty(len(rows)), np.empty(len(rows))
    for part, kernel, gaps in _blocks(rows, rows, centre):
        own = np.arange(len(kernel)), np.arange(part.start, part.stop)
        kernel[own], gaps[own] = 0.0, np.inf
        sums[part] = kernel.sum(1)
        radii[part] = np.partition(gaps, k - 1, 1)[:, k - 1]
        advance(len(kernel))
    return sums, radii


def _blocks(x: Numbers, y: Numbers, centre: Numbers) -> Iterator[tuple[slice, Numbers, Numbers]]:
    """Yield a range of rows of x, their kernels with all of y, and their squared distances.

    Rows are relative to the centre, whose contribution to the products of the kernels is added.
    """
    along_x, along_y = x @ centre, y @ centre + centre @ centre
    lengths_x, lengths_y = (np.einsum("ij,ij->i", rows, rows) for rows in (x, y))
    step = max(1, _BLOCK_BYTES // (8 * len(y)))
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        products = x[part] @ y.T
        lengths = lengths_x[part, None] + lengths_y
        gaps = lengths - 2 * products
        gaps[gaps <= _SAME * lengths] = 0.0
        products += along_x[part, None]
        products += along_y
        yield part, (products / x.shape[1] + 1) ** 3, gaps


def _kid(
    within_x: Numbers, within_y: Numbers, across_x: Numbers, across_y: Numbers
) -> tuple[float, float]:
    """MMD² and its jackknife standard error, from each row's sums of kernels.

    Leaving a row out subtracts its own sums, so all n + m estimates need no further kernel.
    """
    n, m = len(within_x), len(within_y)
    x, y, xy = within_x.sum(), within_y.sum(), across_x.sum()
    kid = x / (n * (n - 1)) + y / (m * (m - 1)) - 2 * xy / (n * m)
    variance = 0.0
    for own, within, across, count, other in (
        (x, within_x, across_x, n, m),
        (y, within_y, across_y, m, n),
    ):
        left_out = (own - 2 * within) / ((count - 1) * (count - 2))
        left_out -= 2 * (xy - across) / ((count - 1) * other)
        variance += (count - 1) * float(left_out.var())
    return float(kid), float(np.sqrt(variance))
