"""Rows on the principal axes of a sample, in boxes: what bounds their distances.

The distance of some leading coordinates, together with the length of what they leave over, is never
larger than the distance of the rows. Every comparison allows for float32's rounding.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from timmscope import ParameterError
from timmscope_representation.clustering.voronoi_cells import Cells
from timmscope_representation.row_space import RowSpace

Numbers = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

BOX = 1024
"""Rows of a box, which is a cell or a part of one, at most."""
_SAMPLE, _SAMPLE_NUMBERS = 4096, 1 << 23
"""Rows of the sample; more for more cells, up to so many numbers in all."""
_PER_CELL, _IN_CELL, _CELLS = 16, 100, 1024
"""Rows of the sample and of all rows in a cell, and how many cells there are at most."""
_TRIED = 1024
"""Rows of the sample whose pairs tell how many coordinates to look at."""
_WIDTHS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of coordinates to choose from, besides all of them."""
_WIDE = 2048
"""Rows that are longer have too many axes to find them all."""
_FETCH_COST, _MEASURE_COST = 12_000, 200_000
"""What looking at one pair again, in more coordinates or at full length, costs in coordinates of
the first product: rows are fetched for each pair."""
_TURN_COST = 0.02
"""What one more coordinate to look at again costs, also in memory."""
_AT_ONCE = 4096
"""Pairs whose rows are fetched at a time."""
_TURN = 1e-6
"""Error of a turned row beside its length: float32's, and that of a length left over."""
_TINY = 1e-37
"""Added to thresholds, for products below float32's smallest numbers."""


class Turned:
    """Rows on the principal axes of a sample, in boxes.

    Args:
        space: rows, and their metric.
        distance: Euclidean, of rows that are close.
        seed: of the sample.

    Attributes:
        places: `(n,)`, place among all rows of each turned row.
        starts: `(boxes + 1,)`, where each box begins.
        limit: the product of a left and a right row is at least as large if they may be close.

    Raises:
        ParameterError: rows hold what is no number, have no direction, or differ too much in size.
    """

    def __init__(self, space: RowSpace, distance: float, seed: int) -> None:
        count, dim = len(space.rows), space.rows.dim
        cells = min(
            max(1, count // _IN_CELL), _CELLS, max(_SAMPLE, _SAMPLE_NUMBERS // dim) // _PER_CELL
        )
        sample = space.take(space.rows.sample(max(_SAMPLE, cells * _PER_CELL), seed))
        frame = _Frame(sample, distance)
        self._distance = frame.distance
        into = Cells(sample.astype(np.float32), cells, seed)
        table, left_over, squares, cell = _turned(space, frame, into)
        self.places = np.argsort(cell, kind="stable")
        sizes = np.bincount(cell, minlength=cells)
        self.starts = _starts(sizes)
        self._cell = cell[self.places[self.starts[:-1]]]
        self._near = into.near(self._distance * (1 + _TURN) + _TINY**0.5)
        compared = float(sizes @ self._near @ sizes) / count**2
        self._few = frame.few(compared)
        self._at = frame.widths.index(self._few)
        self._table, squares = table[self.places], squares[self.places]
        self._left_over = left_over[self.places]
        self._lengths = np.sqrt(squares)
        # What is turned, and a product of p + 3 terms, may be off by a share of the squares.
        slack = 2 * _TURN + (self._few + 9) * 2.0**-23
        self._halves = (-0.5 * (1 - slack) * squares).astype(np.float32)
        square = self._distance**2 * (1 + 4 * _TURN) + _TINY
        self.limit = np.nextafter(np.float32(-square / 2), np.float32(-np.inf))

    def near(self, box: int) -> Places:
        """Boxes from `box` on that may hold rows within the distance of its rows."""
        found: Places = box + np.flatnonzero(self._near[self._cell[box]][self._cell[box:]])
        return found

    def members(self, boxes: Places) -> Places:
        """Turned rows of some boxes, box by box."""
        spans = (np.arange(self.starts[box], self.starts[box + 1]) for box in boxes)
        return np.concatenate([*spans])

    def side(self, rows: Places, which: Literal["left", "right"]) -> Numbers:
        """Some turned rows as `(m, p + 3)`; a left with a right one gives minus half their
        distance's square, in the leading coordinates."""
        side = np.ones((len(rows), self._few + 3), np.float32)
        side[:, : self._few] = self._table[rows, : self._few]
        side[:, self._few] = self._left_over[rows, self._at]
        side[:, self._few + (1 if which == "left" else 2)] = self._halves[rows]
        return side

    def close(self, first: Numbers, second: Numbers) -> npt.NDArray[np.bool_]:
        """Which pairs of turned rows may be within the distance, by all coordinates."""
        found = np.empty(len(first), bool)
        for start in range(0, len(first), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            one, other = first[part], second[part]
            gaps = self._table[one]
            gaps -= self._table[other]
            rest = self._left_over[one, -1] - self._left_over[other, -1]
            squares = np.einsum("ij,ij->i", gaps, gaps) + rest * rest
            # How far they may seem to be apart
            reach = self._distance * (1 + _TURN) + _TINY**0.5
            reach = reach + 2 * _TURN * (self._lengths[one] + self._lengths[other])
            rounding = 1 + (gaps.shape[1] + 9) * 2.0**-23
            found[part] = squares <= reach * reach * rounding
        return found


class _Frame:
    """Origin, unit and axes that a sample gives, and how many of them are worth looking at.

    Args:
        sample: rows `(m, d)`; they become centred, in the unit.
        distance: Euclidean, of rows that are close.

    Attributes:
        distance: in the unit.
        axes: `(d, p)`, in columns.
        widths: numbers of leading coordinates to choose from, ascending to p.
    """

    def __init__(self, sample: Numbers, distance: float) -> None:
        self._mean = sample.mean(0)
        sample -= self._mean
        self._scale = 1 / (np.sqrt(np.square(sample).sum(1).max()) or 1.0)
        sample *= self._scale
        self.distance = distance * self._scale
        # Axes spread the rows that they come from more than others, so others decide their number.
        tried = np.arange(len(sample)) % max(4, len(sample) // _TRIED) == 0
        axes = _axes(sample[~tried])
        shares = _shares(sample[tried] @ axes, self.distance)
        many = min(shares, key=lambda width: _MEASURE_COST * shares[width] + _TURN_COST * width)
        self.axes = np.ascontiguousarray(axes[:, :many])
        self._shares = {width: share for width, share in shares.items() if width <= many}
        self.widths = list(self._shares)

    def centred(self, rows: Numbers) -> Numbers:
        """Rows from the origin, in the unit."""
        found: Numbers = rows - self._mean
        found *= self._scale
        return found

    def few(self, compared: float) -> int:
        """How many coordinates to compare first, if this share of all pairs is compared."""
        cost = {
            width: compared * width + _FETCH_COST * self._shares[width] for width in self.widths
        }
        return min(cost, key=lambda width: cost[width])


def _turned(
    space: RowSpace, frame: _Frame, cells: Cells
) -> tuple[Numbers, Numbers, Numbers, Places]:
    """All rows, read once.

    Returns:
        coordinates `(n, p)` float32; what the first of them leave over, `(n, widths)` float32;
        squared lengths `(n,)`; cells `(n,)`.
    """
    count = len(space.rows)
    table = np.empty((count, frame.axes.shape[1]), np.float32)
    left_over = np.empty((count, len(frame.widths)), np.float32)
    squares, cell = np.empty(count), np.empty(count, np.int64)
    at = 0
    for _, values in space.rows.batches("turning rows"):
        centred = frame.centred(space.prepared(values))
        part = slice(at, at + len(values))
        squares[part] = np.einsum("ij,ij->i", centred, centred)
        if not squares[part].max() < 1e36:
            raise ParameterError(
                f"rows of {space.rows.title} differ too much in size to be compared in "
                "float32: use metric='cosine', or scale them",
                parameter="metric",
            )
        table[part] = coordinates = centred @ frame.axes
        left_over[part] = _left_over(squares[part], coordinates, frame.widths)
        cell[part] = cells.sort(centred.astype(np.float32), np.sqrt(squares[part]))
        at += len(values)
    return table, left_over, squares, cell


def _axes(sample: Numbers) -> Numbers:
    """Principal axes of centred rows `(m, d)` in columns `(d, p)`, the first the longest.

    All `d` of rows that are not too long; of longer ones those that some rows of the sample span.
    """
    if sample.shape[1] <= _WIDE:
        return np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
    some = sample[: max(_WIDTHS)]
    spanned: Numbers = some.T @ np.linalg.eigh(some @ some.T)[1][:, ::-1]
    return np.linalg.qr(spanned)[0]


def _left_over(squares: Numbers, coordinates: Numbers, widths: list[int]) -> Numbers:
    """Lengths `(m, widths)` of what some leading coordinates of rows leave over, each number of
    them in turn."""
    begins = [0, *widths[:-1]]
    taken = np.cumsum(np.add.reduceat(np.square(coordinates), begins, axis=1), axis=1)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] - taken, 0)))


def _shares(sample: Numbers, distance: float) -> dict[int, float]:
    """Share of pairs that some numbers of leading coordinates do not rule out.

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
    return shares


def _starts(sizes: Numbers) -> Places:
    """Where each box begins, and the end, if cells of these sizes are cut into boxes."""
    boxes = [min(BOX, size - begin) for size in sizes.tolist() for begin in range(0, size, BOX)]
    return np.cumsum([0, *boxes])
