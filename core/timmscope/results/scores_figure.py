"""Draws a histogram of one score per image, with the images of the highest scores below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from timmscope.drawing import (
    GAP_IN,
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    Canvas,
    format_number,
    line_height,
    theme,
    to_array,
    truncate,
)

_COLUMNS, _LISTED = 8, 3
_CELL = 8.5 / _COLUMNS
_WIDTH = 2 * MARGIN_IN + _COLUMNS * (_CELL + GAP_IN) - GAP_IN
_PLOT_LEFT, _PLOT_H, _PLOT_BELOW = 0.55, 1.5, 0.5
_BINS = 60
_DECADES = 20
"""Largest count from which the axis has ticks only at powers of ten."""


def scores_figure(
    scores: Any,
    best: Sequence[float],
    titles: Sequence[str],
    images: Tensor | None,
    *,
    score_name: str,
    title: str,
    note: str,
) -> Figure:
    """Draw a histogram of all scores with the highest marked, and the images of those below it.

    Args:
        scores: `(n,)` scores of all images.
        best: scores of the images to show, highest first.
        titles: a caption of two lines for each of these images.
        images: these images, `(len(best), 3, h, w)` in [0, 1]; None lists only the captions.
        score_name: label of the axis.
        title: title of the figure.
        note: small text below the images.
    """
    inner = _WIDTH - 2 * MARGIN_IN
    heading = truncate(title, inner, TITLE_PT, lines=2, bold=True)
    small = truncate(note, inner, SMALL_PT, lines=3)
    head = MARGIN_IN + line_height(TITLE_PT, heading.count("\n") + 1) + 0.15
    top = head + _PLOT_H + _PLOT_BELOW
    columns = _LISTED if images is None else _COLUMNS
    rows = math.ceil(len(best) / columns)
    step_x = (inner + GAP_IN) / columns
    step_y = line_height(SMALL_PT, 2) + 0.08 + (0.0 if images is None else _CELL + GAP_IN)
    foot = line_height(SMALL_PT, small.count("\n") + 1) + 0.1 if note else 0.0
    with theme():
        page = Canvas(_WIDTH, top + rows * step_y - GAP_IN + foot + MARGIN_IN)
        page.text(heading, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        axes = page.axes(MARGIN_IN + _PLOT_LEFT, head, inner - _PLOT_LEFT, _PLOT_H)
        _histogram(axes, np.asarray(scores, np.float64), np.asarray(best), score_name)
        corners = [
            (MARGIN_IN + column * step_x, top + row * step_y)
            for row, column in (divmod(at, columns) for at in range(len(best)))
        ]
        if images is None:
            for text, (left, upper) in zip(titles, corners, strict=True):
                page.text(truncate(text, step_x - GAP_IN, SMALL_PT), left, upper, size=SMALL_PT)
        else:
            page.arrays(
                (to_array(image), *corner, _CELL, _CELL)
                for image, corner in zip(images, corners, strict=True)
            )
            for text, (left, upper) in zip(titles, corners, strict=True):
                place = (left + _CELL / 2, upper + _CELL + 0.04)
                shown = truncate(text, _CELL + GAP_IN / 2, SMALL_PT)
                page.text(shown, *place, size=SMALL_PT, colour=MUTED, align="center")
        if note:
            page.text(small, MARGIN_IN, page.height - foot - 0.08, size=SMALL_PT, colour=MUTED)
    return page.figure


def _histogram(axes: Axes, scores: Any, best: Any, name: str) -> None:
    low, high = float(scores.min()), float(scores.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # equal except for rounding
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    counts, edges = np.histogram(scores, _BINS, (low, high))
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=SERIES[5], linewidth=0)
    axes.set_yscale("log", nonpositive="clip")
    most = int(max(counts.max(), 2))
    steps = (1, 2, 5) if most < _DECADES else (1,)
    ticks = [step * 10**power for power in range(len(str(most))) for step in steps]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0.5, most * 2)
    axes.set_xlim(edges[0], edges[-1] + 0.01 * (edges[-1] - edges[0]))
    axes.plot(best, np.full(len(best), 0.7), "|", color=SERIES[1], markersize=9)
    lowest = float(best.min())
    axes.axvline(lowest, color=INK, linewidth=0.8, linestyle=":")
    right = lowest < (edges[0] + edges[-1]) / 2
    axes.annotate(
        f"{len(best)} shown, from {format_number(lowest)}",
        (lowest, 0.96), xycoords=("data", "axes fraction"), xytext=(4 if right else -4, 0),
        textcoords="offset points", ha="left" if right else "right", va="top",
        fontsize=LABEL_PT, color=INK,
    )  # fmt: skip
    axes.set_ylabel("images (log scale)")
    axes.set_xlabel(name)
    axes.tick_params(length=3, width=0.6)
