"""Which rows lie within a distance of each other, exactly, without comparing all of them in full.

Rows are turned onto the principal axes of a sample. The distance of some leading coordinates,
together with the length of what they leave over, is never larger than the distance of the rows. So
a product of a few coordinates rules most pairs out, more coordinates nearly all others, and only
what is left is measured at full length, in float64. How many coordinates is decided on the sample.

Rows are sorted into boxes (a k-d tree's leaves), and two boxes are compared only if they come near
enough. Every comparison allows for float32's rounding, so no pair is lost.

In memory are those coordinates and some 50 bytes for each row, and never the pairs: those that are
close enough are joined to groups as they are found, and pairs within one group are skipped.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from timmscope import ParameterError, task
from timmscope_representation.disjoint_sets import DisjointSets
from timmscope_representation.row_space import RowSpace

Numbers = npt.NDArray[Any]

_SAMPLE = 4096
_WIDTHS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of coordinates to choose from, besides all of them."""
_FETCH_COST, _MEASURE_COST = 12_000, 200_000
"""What looking at one pair again, in more coordinates or at full length, costs in coordinates of
the first product: rows are fetched for each pair."""
_TURN_COST = 0.02
"""What one more coordinate to look at again costs, also in memory."""
_SPLIT = 16
"""Leading coordinates by which rows are sorted into boxes."""
_BOX = 1024
"""Rows of a box at most: the product of two boxes fits a processor's cache."""
_FETCHED = 1 << 25
"""Numbers that are fetched at a time to measure pairs."""
_AT_ONCE = 4096
"""Pairs that are measured at a time."""
_TURN = 1e-6
"""Error of a turned row beside its length: float32's, and that of a length left over."""
_TINY = 1e-37
"""Added to thresholds, for products below float32's smallest numbers."""


def close_groups(space: RowSpace, distance: float, seed: int) -> npt.NDArray[np.int64]:
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
    buffer = np.empty((_BOX, _BOX), np.float32)
    with task("comparing rows", total=boxes * (boxes + 1) // 2) as advance:
        for a in range(boxes):
            left = turned.side(a, "left")
            for b in turned.near(a).tolist():
                if groups.same(a, b):
                    continue
                right = turned.side(b, "right")
                bounds = np.matmul(left, right.T, out=buffer[: len(left), : len(right)])
                some = np.flatnonzero(bounds.max(1) >= turned.limit)
                if len(some):
                    found = np.flatnonzero(bounds[some] >= turned.limit)
                    rows, columns = some[found // len(right)], found % len(right)
                    if a == b:
                        rows, columns = rows[rows < columns], columns[rows < columns]
                    groups.consider(rows + turned.starts[a], columns + turned.starts[b])
            advance(boxes - a)
    return groups.found()


class Turned:
    """Rows on the principal axes of a sample, in boxes.

    Attributes:
        places: `(n,)`, place among all rows of each turned row.
        starts: `(boxes + 1,)`, where each box begins.
        limit: the product of a left and a right row is at least as large if they may be close.
    """

    def __init__(self, space: RowSpace, distance: float, seed: int) -> None:
        count = len(space.rows)
        sample = space.take(space.rows.sample(_SAMPLE, seed))
        mean = sample.mean(0)
        sample -= mean
        # Axes spread the rows that they come from more than others, so others decide their number.
        apart = np.arange(len(sample)) % 4 == 0
        axes = np.linalg.eigh(sample[~apart].T @ sample[~apart])[1][:, ::-1]
        few, many = _widths(sample[apart] @ axes, distance)
        axes = np.ascontiguousarray(axes[:, :many])
        scale = 1 / (np.sqrt(np.square(sample).sum(1).max()) or 1.0)
        table = np.empty((count, many + 1), np.float32)
        left_over, squares = np.empty(count, np.float32), np.empty(count)
        at = 0
        for _, values in space.rows.batches("turning rows"):
            centred = space.prepared(values) - mean
            centred *= scale
            part = slice(at, at + len(values))
            squares[part] = np.einsum("ij,ij->i", centred, centred)
            coordinates = centred @ axes
            with np.errstate(over="ignore"):  # what is too large is refused below
                table[part, :-1] = coordinates
                table[part, -1] = _left_over(squares[part], coordinates)
                left_over[part] = _left_over(squares[part], coordinates[:, :few])
            at += len(values)
        if not float(squares.max()) < 1e36:
            raise ParameterError(
                f"rows of {space.rows.title} differ too much in size to be compared in float32: "
                "use metric='cosine', or scale them",
                parameter="metric",
            )
        self.places, self.starts = _boxes(table)
        self._table, squares = table[self.places], squares[self.places]
        self._few, self._left_over = few, left_over[self.places]
        self._lengths = np.sqrt(squares)
        # What is turned, and a product of p + 3 terms, may be off by a share of the squares.
        slack = 2 * _TURN + (few + 9) * 2.0**-23
        self._halves = (-0.5 * (1 - slack) * squares).astype(np.float32)
        self._distance = distance * scale
        square = self._distance**2 * (1 + 4 * _TURN) + _TINY
        self.limit = np.nextafter(np.float32(-square / 2), np.float32(-np.inf))
        first = self.starts[:-1]
        self._low = np.minimum.reduceat(self._table, first, axis=0).astype(np.float64)
        self._high = np.maximum.reduceat(self._table, first, axis=0).astype(np.float64)
        self._longest = np.maximum.reduceat(self._lengths, first)

    def near(self, box: int) -> npt.NDArray[np.int64]:
        """Boxes from `box` on that may hold rows within the distance of its rows."""
        gaps = self._low[box:] - self._high[box]
        np.maximum(gaps, self._low[box] - self._high[box:], out=gaps)
        np.maximum(gaps, 0, out=gaps)
        reach = self._reach(self._longest[box:] + self._longest[box])
        found: npt.NDArray[np.int64] = box + np.flatnonzero(
            np.einsum("ij,ij->i", gaps, gaps) <= reach * reach
        )
        return found

    def side(self, box: int, which: Literal["left", "right"]) -> Numbers:
        """Rows of a box `(m, p + 3)`; a left with a right one gives minus half their distance's
        square, in the leading coordinates."""
        span = slice(self.starts[box], self.starts[box + 1])
        halves, ones = self._halves[span], np.ones(span.stop - span.start, np.float32)
        ends = (halves, ones) if which == "left" else (ones, halves)
        return np.column_stack([self._table[span, : self._few], self._left_over[span], *ends])

    def close(self, first: Numbers, second: Numbers) -> npt.NDArray[np.bool_]:
        """Which pairs of turned rows may be within the distance, by all coordinates."""
        found = np.empty(len(first), bool)
        for start in range(0, len(first), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            one, other = first[part], second[part]
            gaps = self._table[one]
            gaps -= self._table[other]
            reach = self._reach(self._lengths[one] + self._lengths[other])
            rounding = 1 + (gaps.shape[1] + 8) * 2.0**-23
            found[part] = np.einsum("ij,ij->i", gaps, gaps) <= reach * reach * rounding
        return found

    def _reach(self, lengths: Numbers) -> Numbers:
        """How far turned rows may be apart, whose lengths add up to these."""
        return np.asarray(self._distance * (1 + _TURN) + 2 * _TURN * lengths + _TINY**0.5)


def _left_over(squares: Numbers, coordinates: Numbers) -> Numbers:
    """Length of what some coordinates of rows leave over."""
    rest = squares - np.einsum("ij,ij->i", coordinates, coordinates)
    return np.asarray(np.sqrt(np.maximum(rest, 0)))


def _widths(sample: Numbers, distance: float) -> tuple[int, int]:
    """How many coordinates to begin with, and how many to look at again, to be done soonest.

    Args:
        sample: turned rows `(m, d)`.
        distance: Euclidean.
    """
    dim = sample.shape[1]
    pairs = np.triu_indices(len(sample), 1)
    rest = np.square(sample).sum(1)
    bounds = np.zeros((len(sample), len(sample)))
    done, shares = 0, {}
    for width in (*(width for width in _WIDTHS if width < dim), dim):
        part = sample[:, done:width]
        squares = np.square(part).sum(1)
        bounds += squares[:, None] + squares - 2 * part @ part.T
        rest = np.maximum(rest - squares, 0)
        lengths = np.sqrt(rest)
        bound = bounds[pairs] + np.square(lengths[pairs[0]] - lengths[pairs[1]])
        shares[width] = float((bound <= distance * distance).mean()) if len(bound) else 0.0
        done = width
    close = shares[dim]  # these are measured in any case
    return min(
        ((few, many) for few in shares for many in shares if few <= many),
        key=lambda pair: (
            pair[0]
            + _FETCH_COST * (shares[pair[0]] - close)
            + _MEASURE_COST * (shares[pair[1]] - close)
            + _TURN_COST * pair[1]
        ),
    )


def _boxes(table: Numbers) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows in an order in which near ones are near: their places, and where each box begins."""
    done: list[npt.NDArray[np.int64]] = []
    waiting = [np.arange(len(table))]
    leading = np.ascontiguousarray(table[:, :_SPLIT])
    while waiting:
        places = waiting.pop()
        if len(places) <= _BOX:
            done.append(np.sort(places))
            continue
        values = leading[places]
        widest = int(np.argmax(values.max(0) - values.min(0)))
        half = -(-len(places) // _BOX) // 2 * _BOX
        order = np.argpartition(values[:, widest], half)
        waiting += [places[order[half:]], places[order[:half]]]
    return np.concatenate(done), np.cumsum([0, *(len(places) for places in done)])


class _Groups:
    """Groups that grow with every pair that is measured and found close."""

    def __init__(self, space: RowSpace, distance: float, turned: Turned) -> None:
        self._space, self._distance, self._turned = space, distance, turned
        self._sets = DisjointSets(len(turned.places))
        self._most = max(_AT_ONCE, _FETCHED // (2 * space.rows.dim))
        self._waiting: list[tuple[Numbers, Numbers]] = []
        self._count = 0
        self._one = np.full(len(turned.starts) - 1, -1, np.int64)

    def same(self, a: int, b: int) -> bool:
        """Whether all rows of two boxes are known to be of one group."""
        return bool(self._one[a] >= 0 and self._one[a] == self._one[b])

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
