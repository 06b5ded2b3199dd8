"""Which rows lie within a distance of each other, exactly, without comparing all of them in full.

Rows are sorted into cells, and only cells that come near enough are compared. Rows are also turned
onto the principal axes of a sample: the distance of some leading coordinates, together with the
length of what they leave over, is never larger than the distance of the rows. So a product of a few
coordinates rules most pairs out, more coordinates nearly all others, and only what is left is
measured at full length, in float64. How many coordinates is decided on the sample. Every comparison
allows for float32's rounding, so no pair is lost.

In memory are those coordinates and some 100 bytes for each row, and never the pairs: those that are
close enough are joined to groups as they are found, and pairs within one group are skipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from timmscope import task
from timmscope_representation.clustering.disjoint_sets import DisjointSets
from timmscope_representation.clustering.pca_bounds import BOX, Turned
from timmscope_representation.row_space import RowSpace

Numbers = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

_PRODUCTS = BOX * BOX
"""Pairs that are compared at a time: their products fit a processor's cache."""
_FETCHED = 1 << 25
"""Numbers that are fetched at a time to measure pairs."""
_AT_ONCE = 4096
"""Pairs that are measured at a time."""


def close_groups(space: RowSpace, distance: float, seed: int) -> Places:
    """Groups of rows in which each is within a distance of another one: `(n,)`.

    Args:
        space: at least two rows, and their metric.
        distance: the largest, included, in the metric's units: 1 - cos, or Euclidean.
        seed: of the sample; the groups do not depend on it.

    Returns:
        For each row the place among all rows of the first row of its group.

    Raises:
        ParameterError: rows hold what is no number, have no direction, or differ too much in size.
    """
    euclidean = float(np.sqrt(2 * distance)) if space.metric == "cosine" else distance
    turned = Turned(space, euclidean, seed)
    groups = _Groups(space, distance, turned)
    boxes = len(turned.starts) - 1
    products, hits = np.empty(_PRODUCTS, np.float32), np.empty(_PRODUCTS, bool)
    with task("comparing rows", total=boxes * (boxes + 1) // 2) as advance:
        for box in range(boxes):
            first = turned.members(np.array([box]))
            left = turned.side(first, "left")
            waiting = turned.near(box)
            while len(waiting := waiting[~groups.same(box, waiting)]):
                ends = np.cumsum(turned.starts[waiting + 1] - turned.starts[waiting])
                some = max(1, int(np.searchsorted(ends, _PRODUCTS // len(first), "right")))
                second = turned.members(waiting[:some])
                waiting = waiting[some:]
                part = slice(len(first) * len(second))
                bounds = products[part].reshape(len(first), len(second))
                np.matmul(left, turned.side(second, "right").T, out=bounds)
                np.greater_equal(products[part], turned.limit, out=hits[part])
                found = np.flatnonzero(hits[part])
                pairs = first[found // len(second)], second[found % len(second)]
                once = pairs[0] < pairs[1]  # all but those within the box
                groups.consider(pairs[0][once], pairs[1][once])
            advance(boxes - box)
    return groups.found()


class _Groups:
    """Groups that grow with every pair that is measured and found close."""

    def __init__(self, space: RowSpace, distance: float, turned: Turned) -> None:
        self._space, self._distance, self._turned = space, distance, turned
        self._sets = DisjointSets(len(turned.places))
        self._most = max(_AT_ONCE, _FETCHED // (2 * space.rows.dim))
        self._waiting: list[tuple[Numbers, Numbers]] = []
        self._count = 0
        self._one = np.full(len(turned.starts) - 1, -1, np.int64)

    def same(self, box: int, others: Places) -> npt.NDArray[np.bool_]:
        """Whether all rows of a box and of each other one are known to be of one group."""
        found: npt.NDArray[np.bool_] = (self._one[others] == self._one[box]) & (self._one[box] >= 0)
        return found

    def consider(self, first: Numbers, second: Numbers) -> None:
        """Take up pairs of turned rows that may be close."""
        may = self._turned.close(first, second)
        self._waiting.append((first[may], second[may]))
        self._count += int(may.sum())
        if self._count >= self._most:
            self._measure()

    def found(self) -> npt.NDArray[np.int64]:
        """The first row of each row's group, by place among all rows."""
        self._measure()
        roots, places = self._sets.roots(), self._turned.places
        first = np.full(len(roots), len(roots))
        np.minimum.at(first, roots, places)
        groups = np.empty(len(roots), np.int64)
        groups[places] = first[roots]
        return groups

    def _measure(self) -> None:
        """Measure the pairs that wait, and join those that are close."""
        if not self._count:
            return
        first, second = (np.concatenate(side) for side in zip(*self._waiting, strict=True))
        self._waiting, self._count = [], 0
        while len(first):
            apart = self._sets.roots(first) != self._sets.roots(second)
            first, second = first[apart], second[apart]
            self._join(first[: self._most], second[: self._most])
            first, second = first[self._most :], second[self._most :]
        roots = self._sets.roots()
        low = np.minimum.reduceat(roots, self._turned.starts[:-1])
        high = np.maximum.reduceat(roots, self._turned.starts[:-1])
        self._one = np.where(low == high, low, -1)

    def _join(self, first: Numbers, second: Numbers) -> None:
        places = self._turned.places[np.stack([first, second])]
        wanted, at = np.unique(places, return_inverse=True)
        values = self._space.take(self._space.rows.ids[wanted])
        at = at.reshape(places.shape)
        for start in range(0, len(first), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            distances = self._space.distances(*(values[side[some]] for side in at))
            close = distances <= self._distance
            self._sets.join(first[some][close], second[some][close])
