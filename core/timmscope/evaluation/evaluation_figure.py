"""Draws an evaluation: one column per metric, with means and intervals above mean curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    format_number,
    text_width,
    theme,
    truncate,
)

if TYPE_CHECKING:
    from timmscope.evaluation import Evaluation

_PANEL_W, _CURVE_H, _GAP = 2.5, 1.7, 0.55
_ROW_H = 0.27


def evaluation_figure(evaluation: Evaluation) -> Figure:
    """Draw the values of each metric for each technique, over all images.

    Args:
        evaluation: the result of `timmscope.evaluate`.
    """
    names = evaluation.techniques
    colours = {name: SERIES[index % len(SERIES)] for index, name in enumerate(names)}
    left = MARGIN_IN + 0.15 + min(2.2, max(text_width(name, LABEL_PT) for name in names))
    head = MARGIN_IN + line_height(TITLE_PT) + 0.16
    means_top = head + line_height(LABEL_PT) + line_height(SMALL_PT) + 0.08
    means_height = _ROW_H * len(names) + 0.1
    curves_top = means_top + means_height + 0.55
    width = left + len(evaluation.metrics) * (_PANEL_W + _GAP) - _GAP + MARGIN_IN + 0.1
    height = curves_top + (_CURVE_H + 0.45 if evaluation.curves else -0.2) + MARGIN_IN
    with theme():
        page = Canvas(width, height + 0.1)
        model = evaluation.provenance.model or ""
        objective = evaluation.provenance.call.get("objective", "")
        count = len(evaluation.images) - len(evaluation.unreadable)
        images = f"{count} image{'s' if count != 1 else ''}"
        title = f"{images}, target {objective}, {model}"
        room = width - 2 * MARGIN_IN
        page.text(truncate(title, room, TITLE_PT, bold=True), MARGIN_IN, MARGIN_IN - 0.02,
                  size=TITLE_PT, bold=True)  # fmt: skip
        for column, metric in enumerate(evaluation.metrics):
            start = left + column * (_PANEL_W + _GAP)
            better = evaluation.better[column]
            page.text(metric, start, head, bold=True)
            note = f"{better} is better; mean and 95 % interval"
            page.text(note, start, head + line_height(LABEL_PT), size=SMALL_PT, colour=MUTED)
            axes = page.axes(start, means_top, _PANEL_W, means_height)
            _means(axes, evaluation, column, colours)
            if metric in evaluation.curves:
                below = page.axes(start, curves_top, _PANEL_W, _CURVE_H)
                _curves(below, evaluation.curves[metric], colours)
        for index, name in enumerate(names):
            top = means_top + 0.05 + (index + 0.5) * _ROW_H - line_height(LABEL_PT) / 2
            page.text(truncate(name, left - MARGIN_IN - 0.12), left - 0.12, top, align="right",
                      colour=colours[name], bold=False)  # fmt: skip
    return page.figure


def _means(axes: Axes, evaluation: Evaluation, column: int, colours: dict[str, str]) -> None:
    """Draw one dot per technique, with its interval and its value."""
    low_end, high_end = math.inf, -math.inf
    for row, name in enumerate(evaluation.techniques):
        mean = float(evaluation.mean[row, column])
        low, high = float(evaluation.low[row, column]), float(evaluation.high[row, column])
        if not math.isfinite(mean):
            axes.annotate("no maps", (0.5, row), xycoords=("axes fraction", "data"), ha="center",
                          va="center", fontsize=SMALL_PT, color=MUTED)  # fmt: skip
            continue
        if math.isfinite(low):
            axes.plot([low, high], [row, row], color=colours[name], linewidth=2, alpha=0.55,
                      solid_capstyle="butt")  # fmt: skip
        ends = [value for value in (low, high, mean) if math.isfinite(value)]
        low_end, high_end = min(low_end, *ends), max(high_end, *ends)
        axes.plot([mean], [row], "o", color=colours[name], markersize=5)
        axes.annotate(format_number(mean), (mean, row), xytext=(0, 4.5), textcoords="offset points",
                      ha="center", fontsize=SMALL_PT, color=MUTED)  # fmt: skip
    if low_end <= high_end:
        margin = max(0.12 * (high_end - low_end), 0.02 * max(abs(high_end), abs(low_end)), 1e-6)
        axes.set_xlim(low_end - margin, high_end + margin)
    axes.set_ylim(len(evaluation.techniques) - 0.5 + 0.1, -0.5 - 0.15)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(length=3, width=0.6)


def _curves(axes: Axes, found: dict[str, object], colours: dict[str, str]) -> None:
    """Draw the mean curve of each technique."""
    means, x = found["mean"], found["x"]
    lines = {name: "--" if index >= len(SERIES) else "-" for index, name in enumerate(colours)}
    assert isinstance(means, dict)
    assert isinstance(x, list)
    for name, curve in means.items():
        marker = "o" if len(curve) < 12 else ""
        axes.plot(x, curve, color=colours[name], marker=marker, markersize=3, linestyle=lines[name])
    axes.set_xlabel(str(found["x_label"]))
    axes.set_ylabel(str(found["y_label"]), labelpad=2)
    axes.set_xlim(0, max(x))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(length=3, width=0.6)
