"""Three outlier scores of rows, each computed from streamed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope import ParameterError, Rows
from timmscope_representation.moments import Moments
from timmscope_representation.row_space import RowSpace

Numbers = npt.NDArray[Any]

_HELD = 1 << 26
"""Values of the rows compared with all others at a time: 256 MiB."""
_BATCH = 4096
_PER_NEIGHBOUR = 16
"""Values that the search needs per row and neighbour, including those being sorted."""
_SAMPLE = 1 << 24
"""Values of the rows from which medians are computed: 128 MiB."""
_NORMAL, _DEVIATION = 1.4826, 1.2533
"""Standard deviation of a normal variable divided by its median and mean absolute deviation."""
_QUANTILE = 1.96
"""Standard normal quantile at 0.975."""
_VARIANCE = 0.8
_ROWS_PER_COMPONENT = 5


def neighbour_distances(space: RowSpace, k: int) -> Numbers:
    """Distance `(n,)` of each row to its k-th nearest other row (Ramaswamy et al., SIGMOD 2000).

    It is exact up to the rounding of float32. All pairs are compared in blocks: the rows are read
    again for each block of rows, so memory is bounded.

    Args:
        space: more than `k` rows, and their metric.
        k: which neighbour.
    """
    import faiss

    rows = space.rows
    size = max(1, min(len(rows), _HELD // (rows.dim + _PER_NEIGHBOUR * (k + 1))))
    origin = space.middle()
    scores = np.empty(len(rows))
    for start in range(0, len(rows), size):
        block = _block(space, start, min(start + size, len(rows)), origin)
        best = np.full((len(block), k + 1), np.inf, np.float32)
        places = np.full((len(block), k + 1), -1, np.int64)
        at = 0
        for _, values in space.batches("finding neighbours", origin):
            squares, found = faiss.knn(block, values, min(k + 1, len(values)))
            both = np.hstack([best, squares])
            among = np.hstack([places, found + at])
            order = np.argpartition(both, k, axis=1)[:, : k + 1]
            best = np.take_along_axis(both, order, 1)
            places = np.take_along_axis(among, order, 1)
            at += len(values)
        best[places == np.arange(start, start + len(block))[:, None]] = np.inf
        best.sort(axis=1)
        squares = np.maximum(best[:, k - 1], 0).astype(np.float64)
        scores[start : start + len(block)] = (
            squares / 2 if space.metric == "cosine" else np.sqrt(squares)
        )
    return scores


def mahalanobis(rows: Rows) -> tuple[Numbers, float]:
    """Mahalanobis distance `(n,)` to the mean, with a shrunk covariance, and the shrinkage.

    The covariance is that of Ledoit and Wolf (J. Multivariate Analysis 2004): it is moved towards a
    multiple of the identity by the amount that minimises its expected error, so that it can be
    inverted with fewer rows than units. Three passes over the rows; memory of a few `d × d`
    matrices.

    Args:
        rows: at least two different ones.
    """
    space = RowSpace(rows, "l2")  # it refuses values that overflow when squared
    batches = rows.batches("mean and covariance")
    moments = Moments.of(rows.dim, (space.prepared(values) for _, values in batches))
    covariance = moments.scatter / moments.count
    fourth = 0.0
    for _, values in rows.batches("shrinkage"):
        centred = values - moments.mean
        fourth += float(np.square(np.einsum("ij,ij->i", centred, centred)).sum())
    scale = float(np.trace(covariance)) / rows.dim
    squares = float(np.square(covariance).sum())
    noise = (fourth / moments.count - squares) / moments.count
    spread = squares - rows.dim * scale**2
    # If all eigenvalues are equal, as with one unit, there is nothing to shrink.
    shrinkage = min(1.0, max(0.0, noise / spread)) if spread > 1e-14 * squares else 0.0
    covariance = (1 - shrinkage) * covariance
    covariance.flat[:: rows.dim + 1] += shrinkage * scale
    values, axes = np.linalg.eigh(covariance)
    kept = values > rows.dim * np.finfo(np.float64).eps * values[-1]
    whitened = axes[:, kept] / np.sqrt(values[kept])

    def distances(part: Numbers) -> Numbers:
        centred = (part - moments.mean) @ whitened
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", centred, centred)))

    return _each(space, distances, "distances"), shrinkage


def robust(rows: Rows, seed: int) -> tuple[Numbers, int]:
    """Distance `(n,)` within and from robust principal components, and their number.

    The distance is the root of the combined index of Vanden Branden and Hubert (2005),
    `½ (SD / c)² + ½ (OD / c)²`: SD is the robust distance within the components, OD the distance
    from their subspace (Hubert, Rousseeuw & Vanden Branden, Technometrics 2005), and each `c` is
    the limit that 97.5 % of ordinary rows stay below, `(median + 1.96 MAD)^{3/2}` of the distances
    to the power of 2/3.

    Components are spherical (Locantore et al., Test 1999): rows, centred by the median, enter by
    their direction only, so that no outlier can rotate the components. Within them, location and
    scale are median and MAD; where more than half of the values are equal, the mean absolute
    deviation replaces the MAD (Iglewicz & Hoaglin, 1993). There are as many components as hold 80 %
    of that variance, with at least five rows for each.

    Medians are computed from at most 2²⁴ / d rows, drawn by the seed; they are exact for fewer
    rows.

    Args:
        rows: at least two different ones.
        seed: seed of the sample.

    Raises:
        ParameterError: the sampled rows are all equal.
    """
    space = RowSpace(rows, "l2")  # it refuses values that overflow when squared
    sample = space.take(rows.sample(max(2, _SAMPLE // rows.dim), seed)).copy()
    centre = np.median(sample, axis=0)
    sample -= centre
    lengths = np.sqrt(np.einsum("ij,ij->i", sample, sample))
    if not lengths.any():
        raise ParameterError(
            f"nearly all rows of {rows.title} are equal, with all {len(sample)} of the sample: "
            "robust distances are undefined; use score='knn'",
            parameter="score",
        )
    some = lengths > 1e-9 * float(lengths.max())
    directions = sample[some] / lengths[some, None]
    values, axes = np.linalg.eigh(directions.T @ directions)
    shares = np.cumsum(values[::-1]) / values.sum()
    count = int(np.searchsorted(shares, _VARIANCE - 1e-9)) + 1
    count = max(1, min(count, len(sample) // _ROWS_PER_COMPONENT))
    axes = np.ascontiguousarray(axes[:, ::-1][:, :count])
    scores = sample @ axes
    location = np.median(scores, axis=0)
    scale = _scale(scores - location)
    kept = scale > 0
    axes, location, scale = axes[:, kept], location[kept], scale[kept]

    def distances(centred: Numbers) -> tuple[Numbers, Numbers]:
        within = centred @ axes
        squares = np.einsum("ij,ij->i", centred, centred)
        rest = squares - np.einsum("ij,ij->i", within, within)
        rest[rest < 1e-12 * squares] = 0  # rounding, where the components span the space
        within = (within - location) / scale
        return np.sqrt(np.einsum("ij,ij->i", within, within)), np.sqrt(np.maximum(rest, 0))

    limits = [_limit(part) for part in distances(sample)]

    def combined(part: Numbers) -> Numbers:
        index = np.zeros(len(part))
        for found, limit in zip(distances(part - centre), limits, strict=True):
            index += 0.5 * np.square(found / limit) if limit > 0 else 0
        return np.sqrt(index)

    return _each(space, combined, "distances"), int(kept.sum())


def _scale(centred: Numbers) -> Numbers:
    """Robust standard deviation of columns whose median is 0."""
    sizes = np.abs(centred)
    scale = _NORMAL * np.median(sizes, axis=0)
    return np.asarray(np.where(scale > 0, scale, _DEVIATION * sizes.mean(0)))


def _limit(distances: Numbers) -> float:
    """Limit that 97.5 % of ordinary distances stay below: d^(2/3) is nearly normal."""
    roots = np.cbrt(distances) ** 2
    middle = np.median(roots)
    return float((middle + _QUANTILE * _scale((roots - middle)[:, None])[0]) ** 1.5)


def _block(space: RowSpace, start: int, stop: int, origin: Numbers) -> Numbers:
    """Prepared rows from position `start` to `stop`, float32, relative to an origin."""
    ids = space.rows.ids[start:stop]
    block = np.empty((len(ids), space.rows.dim), np.float32)
    for at in range(0, len(ids), _BATCH):  # a few at a time, because they are float64 first
        block[at : at + _BATCH] = space.take(ids[at : at + _BATCH]) - origin
    return block


def _each(space: RowSpace, score: Callable[[Numbers], Numbers], what: str) -> Numbers:
    """The score of every row, batch by batch."""
    batches = space.rows.batches(what)
    return np.concatenate([score(space.prepared(values)) for _, values in batches])
