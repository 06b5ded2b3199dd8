"""`ReceptiveField` holds a box of pixels for each cell of a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from timmscope_registry import ParameterError, UnsupportedModel

FieldKind = Literal["exact", "spatial", "effective"]
KINDS: tuple[FieldKind, ...] = ("exact", "spatial", "effective")
Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels; right and lower are the first pixels outside."""


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """The pixels that the cells of a layer see.

    Attributes:
        layer: name of the layer.
        kind: ``exact``, ``spatial`` or ``effective``; see `receptive_field`.
        image_size: height and width of the image in pixels.
        grid: rows and columns of cells; None for a layer without a grid, which sees the whole
            image.
        size: height and width in pixels of one cell's field, continued beyond the image's borders
            if `unclipped` is known; else of the largest field.
        stride: pixels from one cell to the next, (vertical, horizontal); None without a grid.
        boxes: `(rows, columns, 4)` int64, clipped to the image.
        unclipped: the same, continued beyond the image's borders; None if the fields of
            neighbouring cells are not shifted copies of each other.
        unknown: operations without a rule; their results are assumed to depend on all their inputs,
            so the fields may be too large.
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
        """Left, upper, right and lower edge of a cell's field in pixels.

        Args:
            position: row and column of the cell; ignored for a layer without a grid.
            clip: clip the box to the image.

        Raises:
            ParameterError: there is no such cell.
            UnsupportedModel: `clip` is False, and the layer has no unclipped boxes.
        """
        if not clip and self.unclipped is None:
            raise UnsupportedModel(
                f"the {self.kind} receptive field of {self.layer} has no size beyond the image: "
                "something before it combines the whole image; ask for the clipped box"
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
        """The cell's part of the image, one stride wide and high."""
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
    """Build the field from the planes `(8, rows, columns)` of `DependencyBoxes`.

    A cell that depends on no pixel, or in the spatial kind on no common one (such as the output of
    global pooling), gets the whole image.
    """
    height, width = image_size
    rows, columns = planes.shape[1:]
    clipped, unclipped = _boxes(planes[:4]), _boxes(planes[4:])
    empty = (clipped[..., 0] >= clipped[..., 2]) | (clipped[..., 1] >= clipped[..., 3])
    clipped[empty] = (0, 0, width, height)
    steps = [_step(unclipped[..., [1, 3]], 0), _step(unclipped[..., [0, 2]], 1)]
    regular = (
        not empty.any()
        and all(step is not None for step in steps)
        and _constant(unclipped[..., [0, 2]], 0)
        and _constant(unclipped[..., [1, 3]], 1)
    )
    boxes = unclipped if regular else clipped
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
        unclipped if regular else None,
        unknown,
    )


def _boxes(planes: NDArray[np.int64]) -> NDArray[np.int64]:
    left, right, upper, lower = planes
    return np.stack([-left, -upper, right + 1, lower + 1], -1)


def _step(edges: NDArray[np.int64], axis: int) -> int | None:
    """The step of both edges from one cell to the next; 0 for a single cell, None if irregular."""
    steps = np.unique(np.diff(edges, axis=axis))
    if not len(steps):
        return 0
    return int(steps[0]) if len(steps) == 1 and steps[0] > 0 else None


def _constant(edges: NDArray[np.int64], axis: int) -> bool:
    return bool((np.diff(edges, axis=axis) == 0).all())
