"""Lower bounds of distances from the principal coordinates of rows, sorted into boxes.

The distance in some leading coordinates, together with the length of the remaining ones, is never
larger than the distance of the rows. Every comparison allows for the rounding of float32.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from timmscope import ParameterError
from timmscope_representation.clustering.voronoi_cells import VoronoiCells
from timmscope_representation.row_space import RowSpace

Numbers = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]

BOX = 1024
"""Largest number of rows in a box, which is a cell or a part of one."""
_SAMPLE, _SAMPLE_NUMBERS = 4096, 1 << 23
"""Rows of the sample, and the largest number of values in it when many cells need more rows."""
_PER_CELL, _IN_CELL, _CELLS = 16, 100, 1024
"""Rows of the sample per cell, of all rows per cell, and the largest number of cells."""
_HELD_OUT = 1024
"""Rows of the sample whose pairs decide the number of coordinates to compare."""
_WIDTHS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of coordinates to choose from, besides all."""
_WIDE = 2048
"""Longest rows of which all axes are computed."""
_FETCH_COST, _MEASURE_COST = 12_000, 200_000
"""Cost of comparing one pair again, in more coordinates or at full length, in units of one
coordinate of the first product: rows are fetched for each pair."""
_COORDINATE_COST = 0.02
"""Cost of one more coordinate to compare, including memory."""
_AT_ONCE = 4096
"""Pairs whose rows are fetched at a time."""
_ROTATION_ERROR = 1e-6
"""Relative error of a rotated row: of float32, and of the length of its remaining coordinates."""
_TINY = 1e-37
"""Added to thresholds, for products that underflow in float32."""


class RotatedRows:
    """Rows rotated to the principal axes of a sample, in boxes.

    Args:
        space: rows, and their metric.
        distance: largest Euclidean distance of rows that are close.
        seed: seed of the sample.

    Attributes:
        positions: `(n,)`, position among all rows of each rotated row.
        starts: `(boxes + 1,)`, start of each box, and the end of the last.
        limit: the product of a left and a right row is at least this if they may be close.

    Raises:
        ParameterError: rows hold NaN, are all zero (`cosine`), or differ too much in size.
    """

    def __init__(self, space: RowSpace, distance: float, seed: int) -> None:
        count, dim = len(space.rows), space.rows.dim
        cells = min(
            max(1, count // _IN_CELL), _CELLS, max(_SAMPLE, _SAMPLE_NUMBERS // dim) // _PER_CELL
        )
        sample = space.take(space.rows.sample(max(_SAMPLE, cells * _PER_CELL), seed))
        frame = _Frame(sample, distance)
        self._distance = frame.distance
        voronoi = VoronoiCells(sample.astype(np.float32), cells, seed)
        table, remaining, squares, cell = _rotate(space, frame, voronoi)
        self.positions = np.argsort(cell, kind="stable")
        sizes = np.bincount(cell, minlength=cells)
        self.starts = _starts(sizes)
        self._cell = cell[self.positions[self.starts[:-1]]]
        self._near = voronoi.near(self._distance * (1 + _ROTATION_ERROR) + _TINY**0.5)
        compared = float(sizes @ self._near @ sizes) / count**2
        self._width = frame.first_width(compared)
        self._width_index = frame.widths.index(self._width)
        self._table, squares = table[self.positions], squares[self.positions]
        self._remaining = remaining[self.positions]
        self._lengths = np.sqrt(squares)
        # Rotation and a product of p + 3 terms have an error relative to the squared lengths.
        slack = 2 * _ROTATION_ERROR + (self._width + 9) * 2.0**-23
        self._halves = (-0.5 * (1 - slack) * squares).astype(np.float32)
        square = self._distance**2 * (1 + 4 * _ROTATION_ERROR) + _TINY
        self.limit = np.nextafter(np.float32(-square / 2), np.float32(-np.inf))

    def near(self, box: int) -> Positions:
        """Boxes, from `box` on, that may hold rows within the distance of its rows."""
        found: Positions = box + np.flatnonzero(self._near[self._cell[box]][self._cell[box:]])
        return found

    def members(self, boxes: Positions) -> Positions:
        """Rotated rows of some boxes, box by box."""
        spans = (np.arange(self.starts[box], self.starts[box + 1]) for box in boxes)
        return np.concatenate([*spans])

    def side(self, rows: Positions, which: Literal["left", "right"]) -> Numbers:
        """Some rotated rows as `(m, p + 3)`; the product of a left and a right row is minus half
        the squared lower bound of their distance."""
        side = np.ones((len(rows), self._width + 3), np.float32)
        side[:, : self._width] = self._table[rows, : self._width]
        side[:, self._width] = self._remaining[rows, self._width_index]
        side[:, self._width + (1 if which == "left" else 2)] = self._halves[rows]
        return side

    def close(self, first: Numbers, second: Numbers) -> npt.NDArray[np.bool_]:
        """Which pairs of rotated rows may be within the distance, by all coordinates."""
        found = np.empty(len(first), bool)
        for start in range(0, len(first), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            one, other = first[part], second[part]
            gaps = self._table[one]
            gaps -= self._table[other]
            rest = self._remaining[one, -1] - self._remaining[other, -1]
            squares = np.einsum("ij,ij->i", gaps, gaps) + rest * rest
            # The largest distance that rounding may show for close rows.
            reach = self._distance * (1 + _ROTATION_ERROR) + _TINY**0.5
            reach = reach + 2 * _ROTATION_ERROR * (self._lengths[one] + self._lengths[other])
            rounding = 1 + (gaps.shape[1] + 9) * 2.0**-23
            found[part] = squares <= reach * reach * rounding
        return found


class _Frame:
    """Origin, unit and axes from a sample, and the number of coordinates worth comparing.

    Args:
        sample: rows `(m, d)`; they are centred and scaled to the unit in place.
        distance: largest Euclidean distance of rows that are close.

    Attributes:
        distance: the distance in the unit.
        axes: `(d, p)`, in columns.
        widths: numbers of leading coordinates to choose from, ascending to p.
    """

    def __init__(self, sample: Numbers, distance: float) -> None:
        self._mean = sample.mean(0)
        sample -= self._mean
        self._scale = 1 / (np.sqrt(np.square(sample).sum(1).max()) or 1.0)
        sample *= self._scale
        self.distance = distance * self._scale
        # Axes separate their own rows better than others, so held-out rows decide the number.
        held_out = np.arange(len(sample)) % max(4, len(sample) // _HELD_OUT) == 0
        axes = _axes(sample[~held_out])
        shares = _shares(sample[held_out] @ axes, self.distance)
        best = min(
            shares, key=lambda width: _MEASURE_COST * shares[width] + _COORDINATE_COST * width
        )
        self.axes = np.ascontiguousarray(axes[:, :best])
        self._shares = {width: share for width, share in shares.items() if width <= best}
        self.widths = list(self._shares)

    def centred(self, rows: Numbers) -> Numbers:
        """Rows relative to the origin, in the unit."""
        found: Numbers = rows - self._mean
        found *= self._scale
        return found

    def first_width(self, compared: float) -> int:
        """Number of coordinates to compare first, if this share of all pairs is compared."""
        cost = {
            width: compared * width + _FETCH_COST * self._shares[width] for width in self.widths
        }
        return min(cost, key=lambda width: cost[width])


def _rotate(
    space: RowSpace, frame: _Frame, cells: VoronoiCells
) -> tuple[Numbers, Numbers, Numbers, Positions]:
    """Rotate all rows in one pass.

    Returns:
        coordinates `(n, p)` float32; lengths of the remaining coordinates for each width
        `(n, widths)` float32; squared lengths `(n,)`; cells `(n,)`.
    """
    count = len(space.rows)
    table = np.empty((count, frame.axes.shape[1]), np.float32)
    remaining = np.empty((count, len(frame.widths)), np.float32)
    squares, cell = np.empty(count), np.empty(count, np.int64)
    at = 0
    for _, values in space.rows.batches("rotating rows"):
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
        remaining[part] = _remaining(squares[part], coordinates, frame.widths)
        cell[part] = cells.sort(centred.astype(np.float32), np.sqrt(squares[part]))
        at += len(values)
    return table, remaining, squares, cell


def _axes(sample: Numbers) -> Numbers:
    """Principal axes of centred rows `(m, d)` in columns `(d, p)`, of the largest variance first.

    All `d` axes if the rows are not too long, else those that some rows of the sample span.
    """
    if sample.shape[1] <= _WIDE:
        return np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
    some = sample[: max(_WIDTHS)]
    spanned: Numbers = some.T @ np.linalg.eigh(some @ some.T)[1][:, ::-1]
    return np.linalg.qr(spanned)[0]


def _remaining(squares: Numbers, coordinates: Numbers, widths: list[int]) -> Numbers:
    """Lengths `(m, widths)` of the coordinates that remain after each number of leading ones."""
    begins = [0, *widths[:-1]]
    taken = np.cumsum(np.add.reduceat(np.square(coordinates), begins, axis=1), axis=1)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] - taken, 0)))


def _shares(sample: Numbers, distance: float) -> dict[int, float]:
    """Share of pairs that each number of leading coordinates does not rule out.

    Args:
        sample: rotated rows `(m, d)`.
        distance: largest Euclidean distance of rows that are close.
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


def _starts(sizes: Numbers) -> Positions:
    """Start of each box, and the end of the last, when cells of these sizes are cut into boxes."""
    boxes = [min(BOX, size - begin) for size in sizes.tolist() for begin in range(0, size, BOX)]
    return np.cumsum([0, *boxes])
