"""Draws square similarity matrices side by side with a common scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from timmscope.drawing import (
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    PAPER,
    SEQUENTIAL,
    SMALL_PT,
    TITLE_PT,
    Canvas,
    line_height,
    text_width,
    theme,
    truncate,
    truncate_middle,
)

_NUMBERED = 12
"""Largest number of rows for which each cell shows its number."""
_CELL, _NARROW = 0.42, 0.135
"""Side of a cell in inches: with a number in it, and without."""
_LARGEST = 7.2
_LABEL = 2.0
_GAP, _BAR, _BAR_LABEL = 0.35, 0.14, 0.5


def matrix_figure(
    matrices: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    title: str = "",
    subtitle: str = "",
    notes: Sequence[str] = (),
) -> Figure:
    """Draw matrices `(L, L)` of numbers up to 1; the scale starts at 0 or the lowest number.

    Args:
        matrices: the matrices by name.
        labels: labels of the L rows and columns.
        groups: group of each row; several groups get letters, a key, and white lines between them.
        title: title of the figure.
        subtitle: text below the title.
        notes: small print below the matrices.
    """
    count = len(labels)
    letters = _letters(groups or [])
    if len(letters) > 1 and groups is not None:
        labels = [f"{letters[group]} {label}" for group, label in zip(groups, labels, strict=True)]
        key = [f"{letter} {group}" for group, letter in letters.items()]
    else:
        key = []
    labels = [truncate_middle(label, _LABEL, SMALL_PT) for label in labels]
    side = _side(count)
    room = max(text_width(label, SMALL_PT) for label in labels) + 0.12
    across = 2 * side + _GAP + room < 12.5
    columns = len(matrices) if across else 1
    panel = line_height(LABEL_PT) + 0.08 + side + room
    width = 2 * MARGIN_IN + room + columns * (side + _GAP) - _GAP + 0.2 + _BAR + _BAR_LABEL
    width = max(width, 5.5)
    text = width - 2 * MARGIN_IN
    heading = truncate(title, text, TITLE_PT, lines=2, bold=True)
    below = "\n".join(truncate(line, text) for line in [*filter(None, [subtitle]), *key])
    small = "\n".join(truncate(note, text, SMALL_PT, lines=3) for note in notes)
    head = MARGIN_IN + (line_height(TITLE_PT, heading.count("\n") + 1) if heading else 0)
    top = head + (line_height(LABEL_PT, below.count("\n") + 1) if below else 0) + 0.15
    foot = line_height(SMALL_PT, small.count("\n") + 1) + 0.1 if small else 0
    lowest = min(0.0, *(float(matrix.min()) for matrix in matrices.values()))
    lowest = math.floor(lowest * 10) / 10
    with theme():
        page = Canvas(width, top + len(matrices) // columns * (panel + 0.1) + foot + MARGIN_IN)
        page.text(heading, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        page.text(below, MARGIN_IN, head + 0.02, colour=MUTED)
        for place, (name, matrix) in enumerate(matrices.items()):
            row, column = divmod(place, columns)
            left = MARGIN_IN + room + column * (side + _GAP)
            upper = top + row * (panel + 0.1)
            page.text(name, left, upper, bold=True)
            axes = page.axes(left, upper + line_height(LABEL_PT) + 0.08, side, side)
            _matrix(axes, matrix.double().numpy(), lowest, side)
            _labels(axes, labels, side, beside=column == 0)
            _lines(axes, groups or [])
        left = MARGIN_IN + room + columns * (side + _GAP) - _GAP + 0.2
        _bar(page, left, top + line_height(LABEL_PT) + 0.08, min(side, 3.0), lowest)
        if small:
            notes_top = page.height - MARGIN_IN - foot + 0.1
            page.text(small, MARGIN_IN, notes_top, size=SMALL_PT, colour=MUTED)
    return page.figure


def _side(count: int) -> float:
    """Side of a matrix in inches."""
    if count <= _NUMBERED:
        return count * (_CELL if count > 3 else 0.6)
    return min(max(_NUMBERED * _CELL, count * _NARROW), _LARGEST)


def _letters(groups: Sequence[str]) -> dict[str, str]:
    """A letter for each group; after the alphabet a number."""
    distinct = list(dict.fromkeys(groups))
    signs = [
        chr(ord("A") + place) if place < 26 else f"{place + 1}" for place in range(len(distinct))
    ]
    return dict(zip(distinct, signs, strict=True))


def _matrix(axes: Axes, matrix: np.ndarray, lowest: float, side: float) -> None:
    """Draw the colours, and the numbers if there is room for them."""
    axes.imshow(
        matrix, cmap=SEQUENTIAL, vmin=lowest, vmax=1, aspect="auto", interpolation="nearest"
    )
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(matrix) > _NUMBERED:
        return
    colours = matplotlib.colormaps[SEQUENTIAL]((matrix - lowest) / (1 - lowest))
    light = colours[..., :3] @ (0.299, 0.587, 0.114) > 0.55
    for row, column in np.ndindex(*matrix.shape):
        axes.text(
            column,
            row,
            f"{matrix[row, column]:.2f}",
            ha="center",
            va="center_baseline",
            fontsize=SMALL_PT,
            color=INK if light[row, column] else PAPER,
        )


def _labels(axes: Axes, labels: Sequence[str], side: float, *, beside: bool) -> None:
    """Write names below and at the left of the first matrix; every n-th if there are many."""
    step = math.ceil(line_height(SMALL_PT) * len(labels) / side - 1e-6)
    shown = range(0, len(labels), step)
    axes.set_xticks(shown, [labels[place] for place in shown], rotation=90)
    axes.set_yticks(shown, [labels[place] for place in shown] if beside else [""] * len(shown))
    axes.tick_params(length=0, pad=3)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)


def _lines(axes: Axes, groups: Sequence[str]) -> None:
    """Draw white lines between groups."""
    for place in range(1, len(groups)):
        if groups[place] != groups[place - 1]:
            axes.axhline(place - 0.5, color=PAPER, linewidth=2)
            axes.axvline(place - 0.5, color=PAPER, linewidth=2)


def _bar(page: Canvas, left: float, top: float, height: float, lowest: float) -> None:
    """Draw the colour bar."""
    axes = page.axes(left, top, _BAR, height)
    strip = np.linspace(1, lowest, 256)[:, None]
    axes.imshow(strip, cmap=SEQUENTIAL, aspect="auto", extent=(0, 1, lowest, 1))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.grid(visible=False)
    axes.tick_params(length=3, width=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
