"""Groups of rows within a distance of each other, exactly, without measuring all pairs in full.

Rows are sorted into cells, and only cells that are near enough are compared. Rows are also rotated
to the principal axes of a sample: the distance in some leading coordinates, together with the
length of the remaining ones, is never larger than the distance of the rows. So a product of a few
coordinates rules out most pairs, more coordinates rule out nearly all others, and only the rest is
measured at full length, in float64. The number of coordinates is chosen on the sample. Every
comparison allows for the rounding of float32, so no pair is lost.

In memory are those coordinates and about 100 bytes per row, never the pairs: pairs that are close
enough are joined to groups as they are found, and pairs within one group are skipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope import task
from timmscope_representation.clustering.disjoint_sets import DisjointSets
from timmscope_representation.clustering.pca_bounds import BOX, RotatedRows
from timmscope_representation.row_space import RowSpace

Numbers = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]

_PRODUCTS = BOX * BOX
"""Pairs compared at a time: their products fit in a processor's cache."""
_FETCHED = 1 << 25
"""Values fetched at a time to measure pairs."""
_AT_ONCE = 4096
"""Pairs measured at a time."""


def radius_groups(space: RowSpace, distance: float, seed: int) -> Positions:
    """Groups of rows `(n,)` in which each row is within a distance of another one.

    Args:
        space: at least two rows, and their metric.
        distance: the largest distance, inclusive, in the metric's units: 1 - cos, or Euclidean.
        seed: seed of the sample; the groups do not depend on it.

    Returns:
        For each row the position of the first row of its group.

    Raises:
        ParameterError: rows hold NaN, are all zero (`cosine`), or differ too much in size.
    """
    euclidean = float(np.sqrt(2 * distance)) if space.metric == "cosine" else distance
    rotated = RotatedRows(space, euclidean, seed)
    groups = _Groups(space, distance, rotated)
    boxes = len(rotated.starts) - 1
    products, hits = np.empty(_PRODUCTS, np.float32), np.empty(_PRODUCTS, bool)
    with task("comparing rows", total=boxes * (boxes + 1) // 2) as advance:
        for box in range(boxes):
            first = rotated.members(np.array([box]))
            left = rotated.side(first, "left")
            others = rotated.near(box)
            while len(others := others[~groups.same(box, others)]):
                ends = np.cumsum(rotated.starts[others + 1] - rotated.starts[others])
                some = max(1, int(np.searchsorted(ends, _PRODUCTS // len(first), "right")))
                second = rotated.members(others[:some])
                others = others[some:]
                part = slice(len(first) * len(second))
                bounds = products[part].reshape(len(first), len(second))
                np.matmul(left, rotated.side(second, "right").T, out=bounds)
                np.greater_equal(products[part], rotated.limit, out=hits[part])
                found = np.flatnonzero(hits[part])
                pairs = first[found // len(second)], second[found % len(second)]
                once = pairs[0] < pairs[1]  # each pair within the box once
                groups.consider(pairs[0][once], pairs[1][once])
            advance(boxes - box)
    return groups.found()


class _Groups:
    """Groups that grow with every pair that is measured and close."""

    def __init__(self, space: RowSpace, distance: float, rotated: RotatedRows) -> None:
        self._space, self._distance, self._rotated = space, distance, rotated
        self._sets = DisjointSets(len(rotated.positions))
        self._batch = max(_AT_ONCE, _FETCHED // (2 * space.rows.dim))
        self._queue: list[tuple[Numbers, Numbers]] = []
        self._count = 0
        self._group_of_box = np.full(len(rotated.starts) - 1, -1, np.int64)

    def same(self, box: int, others: Positions) -> npt.NDArray[np.bool_]:
        """Whether all rows of a box and of each of the others are known to be in one group."""
        found: npt.NDArray[np.bool_] = (self._group_of_box[others] == self._group_of_box[box]) & (
            self._group_of_box[box] >= 0
        )
        return found

    def consider(self, first: Numbers, second: Numbers) -> None:
        """Queue the pairs of rotated rows that may be close."""
        possible = self._rotated.close(first, second)
        self._queue.append((first[possible], second[possible]))
        self._count += int(possible.sum())
        if self._count >= self._batch:
            self._measure()

    def found(self) -> npt.NDArray[np.int64]:
        """For each row the position of the first row of its group."""
        self._measure()
        roots, positions = self._sets.roots(), self._rotated.positions
        first = np.full(len(roots), len(roots))
        np.minimum.at(first, roots, positions)
        groups = np.empty(len(roots), np.int64)
        groups[positions] = first[roots]
        return groups

    def _measure(self) -> None:
        """Measure the queued pairs, and join those that are close."""
        if not self._count:
            return
        first, second = (np.concatenate(side) for side in zip(*self._queue, strict=True))
        self._queue, self._count = [], 0
        while len(first):
            apart = self._sets.roots(first) != self._sets.roots(second)
            first, second = first[apart], second[apart]
            self._join(first[: self._batch], second[: self._batch])
            first, second = first[self._batch :], second[self._batch :]
        roots = self._sets.roots()
        low = np.minimum.reduceat(roots, self._rotated.starts[:-1])
        high = np.maximum.reduceat(roots, self._rotated.starts[:-1])
        self._group_of_box = np.where(low == high, low, -1)

    def _join(self, first: Numbers, second: Numbers) -> None:
        positions = self._rotated.positions[np.stack([first, second])]
        wanted, at = np.unique(positions, return_inverse=True)
        values = self._space.take(self._space.rows.ids[wanted])
        at = at.reshape(positions.shape)
        for start in range(0, len(first), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            distances = self._space.distances(*(values[side[some]] for side in at))
            close = distances <= self._distance
            self._sets.join(first[some][close], second[some][close])
