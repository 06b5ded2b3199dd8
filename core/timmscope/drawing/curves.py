"""Draws the images of an optimisation beside curves of scores or losses over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    GAP_IN,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    text_width,
    theme,
    truncate,
)

_PLOT_W, _PLOT_H = 3.6, 2.3  # all sizes are in inches
_AXIS_LEFT, _AXIS_BOTTOM = 0.55, 0.42
_LEGEND_LEFT = 0.45  # width of the line sample before a name


def curves_figure(
    pictures: Sequence[Tensor],
    captions: Sequence[tuple[str, str]],
    curves: Mapping[str, Tensor],
    value: str,
    *,
    log: bool = False,
) -> Figure:
    """Draw pictures beside curves over the steps of an optimisation.

    Args:
        pictures: each `(3, H, W)` in [0, 1].
        captions: two lines for each picture; the second may be empty.
        curves: `(steps,)` each, by name; one curve may have the name "". Without curves, only the
            pictures are drawn.
        value: what the curves show; the label of the vertical axis.
        log: make the vertical axis logarithmic if every curve has a positive value.
    """
    columns = min(len(pictures), 4)
    rows = math.ceil(len(pictures) / columns)
    cell = 2.3 if columns < 3 else 2.0
    tall = min(cell * max(item.shape[-2] / item.shape[-1] for item in pictures), cell * 1.6)
    detail = any(second for _, second in captions)
    label = line_height(LABEL_PT) + (line_height(SMALL_PT) if detail else 0) + 0.05
    pitch_x, pitch_y = cell + GAP_IN, tall + label + GAP_IN
    plot_left = MARGIN_IN + columns * pitch_x + _AXIS_LEFT + 0.1
    plot_height = max(tall, _PLOT_H) - _AXIS_BOTTOM
    names = [name for name in curves if name]
    legend = _LEGEND_LEFT + max(
        (text_width(name, SMALL_PT) for name in names), default=-_LEGEND_LEFT
    )
    width = plot_left + _PLOT_W + legend + MARGIN_IN
    height = 2 * MARGIN_IN + max(rows * pitch_y - GAP_IN, plot_height + _AXIS_BOTTOM + label)
    if not curves:
        width, height = (
            2 * MARGIN_IN + count * pitch - GAP_IN
            for count, pitch in ((columns, pitch_x), (rows, pitch_y))
        )
    with theme():
        page = Canvas(width, height)
        for index, (picture, (first, second)) in enumerate(zip(pictures, captions, strict=True)):
            row, column = divmod(index, columns)
            left, top = MARGIN_IN + column * pitch_x, MARGIN_IN + row * pitch_y
            page.picture(picture, left, top, cell, tall)
            page.text(truncate(first, cell), left, top + tall + 0.04)
            small = top + tall + 0.04 + line_height(LABEL_PT)
            page.text(truncate(second, cell, SMALL_PT), left, small, size=SMALL_PT, colour=MUTED)
        if curves:
            axes = page.axes(plot_left, MARGIN_IN + 0.02, _PLOT_W, plot_height)
            _draw_curves(axes, curves, value, log=log)
    return page.figure


def _draw_curves(axes: Axes, curves: Mapping[str, Tensor], value: str, *, log: bool) -> None:
    """Draw the curves with labels and a legend; a logarithmic axis leaves out values up to zero."""
    curves = {name: values.detach().double().cpu() for name, values in curves.items()}
    log = log and all(bool((values > 0).any()) for values in curves.values())
    for index, (name, values) in enumerate(curves.items()):
        steps = torch.arange(1, len(values) + 1)
        shown = values.where(values > 0, torch.nan) if log else values
        colour = SERIES[index % len(SERIES)]
        line = (0, (4, 2)) if index >= len(SERIES) else "-"
        axes.plot(steps.numpy(), shown.numpy(), color=colour, linestyle=line, label=name)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(value)
    axes.set_xlim(1, max(2, *(len(values) for values in curves.values())))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(length=3, width=0.6)
    if any(curves):
        # The legend is beside the axes, because inside them it would cover the curves.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, handlelength=1.4)
