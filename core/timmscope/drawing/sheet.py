"""Draws a sheet: many pictures in a grid, each with a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.pixels import to_array
from timmscope.drawing.style import (
    GAP_IN,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SMALL_PT,
    TITLE_PT,
    text_width,
    theme,
    truncate,
)
from timmscope_registry import ParameterError

_READABLE_IN = 4.8
"""Smallest width of a page with a title or a note, so that these are not cut off."""
_KERNEL_PX = 16
"""Largest width of pictures that are drawn small, such as convolution kernels."""


def sheet_figure(
    images: Tensor | Sequence[Tensor] | Sequence[NDArray[Any]],
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    title: str = "",
    row_labels: Sequence[str] | None = None,
    row_lengths: Sequence[int] | None = None,
    note: str = "",
    cell_in: float | None = None,
    gap_in: float = GAP_IN,
) -> Figure:
    """Draw pictures in a grid, row by row.

    Args:
        images: `(N, 3, h, w)` in [0, 1], or a list of `(3, h, w)` tensors or arrays of any sizes.
        titles: a label below each picture; each line of it is wrapped to at most two.
        columns: pictures per row; by default nearly a square, at most 8.
        title: title of the sheet; at most two lines.
        row_labels: a label at the left of each row; it may have several lines.
        row_lengths: number of pictures in each row; by default all rows are full.
        note: small print below the pictures; at most six lines.
        cell_in: width of a picture in inches; by default it depends on the number of columns, and
            is half as large at most for pictures of up to 16 px.
        gap_in: gap between pictures in inches.

    Raises:
        ParameterError: there are no images, or titles, row labels or row lengths do not fit them.
    """
    pictures = list(images)
    if not pictures:
        raise ParameterError("a sheet needs at least one picture", parameter="images")
    if titles is not None and len(titles) != len(pictures):
        raise ParameterError(
            f"{len(titles)} titles for {len(pictures)} pictures: give one each", parameter="titles"
        )
    if row_lengths is None:
        columns = min(columns or min(8, math.ceil(math.sqrt(len(pictures)))), len(pictures))
        cells = [divmod(index, columns) for index in range(len(pictures))]
        rows = math.ceil(len(pictures) / columns)
    else:
        cells = [(row, col) for row, length in enumerate(row_lengths) for col in range(length)]
        columns, rows = max(row_lengths), len(row_lengths)
        if len(cells) != len(pictures):
            raise ParameterError(
                f"row lengths for {len(cells)} pictures, but there are {len(pictures)}",
                parameter="row_lengths",
            )
    if row_labels is not None and len(row_labels) != rows:
        raise ParameterError(
            f"{len(row_labels)} row labels for {rows} rows: give one each", parameter="row_labels"
        )
    widest = max(picture.shape[-1] for picture in pictures)
    cell = cell_in or max(0.35, min(1.6 if widest > _KERNEL_PX else 0.8, 8.5 / columns))
    tall = cell * max(picture.shape[-2] / picture.shape[-1] for picture in pictures)
    tall = min(tall, 1.6 * cell)
    texts = [truncate(text, cell + gap_in * 0.5, SMALL_PT, lines=2) for text in titles or []]
    text_lines = max((text.count("\n") + 1 for text in texts), default=0)
    label = line_height(SMALL_PT, text_lines) + 0.05 if texts else 0.0
    side = 0.0
    if row_labels:
        lines = [line for text in row_labels for line in text.split("\n")]
        side = 0.14 + min(1.1, max(text_width(line, LABEL_PT) for line in lines))
    step_x, step_y = cell + gap_in, tall + label + gap_in
    least = _READABLE_IN if title or note else 2.2
    width = max(2 * MARGIN_IN + side + columns * step_x - gap_in, least)
    heading = truncate(title, width - 2 * MARGIN_IN, TITLE_PT, lines=2, bold=True)
    small = truncate(note, width - 2 * MARGIN_IN, SMALL_PT, lines=6)
    head = MARGIN_IN + (_height(heading, TITLE_PT) + 0.12 if title else 0)
    foot = _height(small, SMALL_PT) + 0.1 if note else 0.0
    with theme():
        page = Canvas(width, head + rows * step_y - gap_in + foot + MARGIN_IN)
        if title:
            page.text(heading, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        corners = [
            (MARGIN_IN + side + column * step_x, head + row * step_y) for row, column in cells
        ]
        page.arrays(
            (to_array(picture), *corner, cell, tall)
            for picture, corner in zip(pictures, corners, strict=True)
        )
        for text, (left, top) in zip(texts, corners, strict=False):
            place = (left + cell / 2, top + tall + 0.04)
            page.text(text, *place, size=SMALL_PT, colour=MUTED, align="center")
        for row, text in enumerate(row_labels or []):
            shown = truncate(text, side - 0.13, LABEL_PT, lines=3)
            page.text(shown, MARGIN_IN, head + row * step_y, size=LABEL_PT)
        if note:
            page.text(small, MARGIN_IN, page.height - foot - 0.08, size=SMALL_PT, colour=MUTED)
    return page.figure


def _height(text: str, size_pt: float) -> float:
    return line_height(size_pt, text.count("\n") + 1)
