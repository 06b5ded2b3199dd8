"""What a receptive field is, once it has been found: a box of pixels for each cell of a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from timmscope_registry import ParameterError, UnsupportedModel

FieldKind = Literal["exact", "spatial", "effective"]
KINDS: tuple[FieldKind, ...] = ("exact", "spatial", "effective")
Box = tuple[int, int, int, int]
"""Left, upper, right, lower edge in pixels; right and lower are the first pixel outside."""


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """The pixels that the cells of a layer see.

    Attributes:
        layer: its name.
        kind: ``exact``, ``spatial`` or ``effective``; see `receptive_field`.
        image_size: height and width of the image in pixels.
        grid: rows and columns of cells; None for a layer without a grid, which sees everything.
        size: height and width of a field in pixels, borders of the image disregarded where
            arithmetic says how it goes on; else of the largest.
        stride: pixels from a cell to the next, downwards and across; None without a grid.
        boxes: `(rows, columns, 4)` int64, clipped to the image.
        unclipped: the same without regard to the image's borders; None where the field of one cell
            is not the next one's, moved.
        unknown: operations that no rule covers; their results were taken to depend on everything
            that they were given, so the fields may be larger than need be.
    """

    layer: str
    kind: FieldKind
    image_size: tuple[int, int]
    grid: tuple[int, int] | None
    size: tuple[int, int]
    stride: tuple[float, float] | None
    boxes: NDArray[np.int64] = field(repr=False)
    unclipped: NDArray[np.int64] | None = field(repr=False)
    unknown: tuple[str, ...] = ()

    def box(self, position: tuple[int, int], *, clip: bool = True) -> Box:
        """Left, upper, right, lower edge of a cell's field in pixels.

        Args:
            position: row and column of the cell; anything for a layer without a grid.
            clip: keep to the image.

        Raises:
            ParameterError: there is no such cell.
            UnsupportedModel: the unclipped box is asked for, and arithmetic does not define it.
        """
        if not clip and self.unclipped is None:
            raise UnsupportedModel(
                f"the {self.kind} receptive field of {self.layer} has no size beyond the image: "
                "something before it joins the whole image; ask for the clipped box"
            )
        boxes = self.boxes if clip else self.unclipped
        assert boxes is not None
        row, column = (0, 0) if self.grid is None else position
        rows, columns = boxes.shape[:2]
        if not (0 <= row < rows and 0 <= column < columns):
            raise ParameterError(
                f"layer {self.layer} has {rows}x{columns} cells, there is no cell "
                f"({row}, {column})",
                parameter="position",
            )
        left, upper, right, lower = (int(edge) for edge in boxes[row, column])
        return left, upper, right, lower

    def cell(self, position: tuple[int, int]) -> Box:
        """The cell's own share of the image, one stride wide and high."""
        height, width = self.image_size
        if self.grid is None:
            return (0, 0, width, height)
        (row, column), (rows, columns) = position, self.grid
        return (
            column * width // columns,
            row * height // rows,
            -(-(column + 1) * width // columns),
            -(-(row + 1) * height // rows),
        )

    def sees_all(self, position: tuple[int, int]) -> bool:
        """Whether the cell's field is the whole image."""
        height, width = self.image_size
        return self.box(position) == (0, 0, width, height)


def whole_image(layer: str, kind: FieldKind, image_size: tuple[int, int]) -> ReceptiveField:
    """The field of a layer without a grid."""
    height, width = image_size
    boxes = np.array([[[0, 0, width, height]]], np.int64)
    return ReceptiveField(layer, kind, image_size, None, image_size, None, boxes, None)


def from_planes(
    layer: str,
    kind: FieldKind,
    image_size: tuple[int, int],
    planes: NDArray[np.int64],
    unknown: tuple[str, ...],
) -> ReceptiveField:
    """The field from `(8, rows, columns)` edges: -left, right, -upper, lower; exact, arithmetic.

    A cell that depends on no pixel, or in the spatial kind on none in particular (a global pool
    itself), gets the whole image.
    """
    height, width = image_size
    rows, columns = planes.shape[1:]
    clipped, free = _boxes(planes[:4]), _boxes(planes[4:])
    nothing = (clipped[..., 0] >= clipped[..., 2]) | (clipped[..., 1] >= clipped[..., 3])
    clipped[nothing] = (0, 0, width, height)
    steps = [_step(free[..., [1, 3]], 0), _step(free[..., [0, 2]], 1)]
    regular = not nothing.any() and all(step is not None for step in steps)
    regular = regular and _constant(free[..., [0, 2]], 0) and _constant(free[..., [1, 3]], 1)
    boxes = free if regular else clipped
    sides = boxes[..., 2:] - boxes[..., :2]
    size = (int(sides[..., 1].max()), int(sides[..., 0].max()))
    stride = (
        steps[0] if regular and steps[0] else height / rows,
        steps[1] if regular and steps[1] else width / columns,
    )
    return ReceptiveField(
        layer,
        kind,
        image_size,
        (rows, columns),
        size,
        (float(stride[0]), float(stride[1])),
        clipped,
        free if regular else None,
        unknown,
    )


def _boxes(planes: NDArray[np.int64]) -> NDArray[np.int64]:
    left, right, upper, lower = planes
    return np.stack([-left, -upper, right + 1, lower + 1], -1)


def _step(edges: NDArray[np.int64], axis: int) -> int | None:
    """By how much both edges move from a cell to the next; 0 of one cell, None if irregular."""
    steps = np.unique(np.diff(edges, axis=axis))
    if not len(steps):
        return 0
    return int(steps[0]) if len(steps) == 1 and steps[0] > 0 else None


def _constant(edges: NDArray[np.int64], axis: int) -> bool:
    return bool((np.diff(edges, axis=axis) == 0).all())
