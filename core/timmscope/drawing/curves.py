"""Figures of optimisations: the images, beside curves of scores or losses over the steps."""

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
    MAX_ROWS,
    MUTED,
    SERIES,
    SMALL_PT,
    fit,
    number,
    text_width,
    theme,
)

_PLOT_W, _PLOT_H = 3.6, 2.3
_AXIS_LEFT, _AXIS_BOTTOM = 0.55, 0.42
_LEGEND_LEFT = 0.45  # width of the line sample before a name


def synthesis_figure(
    images: Tensor, scores: Tensor, final_scores: Tensor, labels: Sequence[str]
) -> Figure:
    """Draw synthesised images beside the objective over the steps.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        scores: `(steps, B)` objective at each step.
        final_scores: `(B,)` objective of the returned images.
        labels: name of each image's objective.
    """
    count = min(len(images), MAX_ROWS)
    captions = [
        (str(labels[row]), f"objective {number(float(final_scores[row]))}") for row in range(count)
    ]
    names = [f"{index + 1}" for index in range(count)] if count > 1 else [""]
    if count > 1:  # the legend names each image by its number
        captions = [
            (f"{name}  {first}", second)
            for name, (first, second) in zip(names, captions, strict=True)
        ]
    curves = {name: scores[:, row] for row, name in enumerate(names)}
    return _beside(list(images[:count]), captions, curves, "objective", log=False)


def style_figure(
    content: Tensor | None, styles: Tensor, images: Tensor, losses: Mapping[str, Tensor]
) -> Figure:
    """Draw content, styles and result beside the losses over the steps.

    Args:
        content: `(1, 3, H, W)` in [0, 1], or None for a texture.
        styles: `(S, 3, h, w)` in [0, 1].
        images: the result, `(1, 3, H, W)` in [0, 1].
        losses: losses `(steps,)` by name.
    """
    pictures = [] if content is None else [content[0]]
    captions = [] if content is None else [("content", "")]
    for index, style in enumerate(styles):
        pictures.append(style)
        captions.append((f"style {index + 1}" if len(styles) > 1 else "style", ""))
    for image in images:
        pictures.append(image)
        captions.append(("result" if content is not None else "texture", ""))
    return _beside(pictures, captions, dict(losses), "loss", log=True)


def _beside(
    pictures: list[Tensor],
    captions: list[tuple[str, str]],
    curves: Mapping[str, Tensor],
    value: str,
    *,
    log: bool,
) -> Figure:
    columns = min(len(pictures), 4)
    rows = math.ceil(len(pictures) / columns)
    cell = 2.3 if columns < 3 else 2.0
    tall = min(cell * max(item.shape[-2] / item.shape[-1] for item in pictures), cell * 1.6)
    detail = any(second for _, second in captions)
    label = line_height(LABEL_PT) + (line_height(SMALL_PT) if detail else 0) + 0.05
    step_x, step_y = cell + GAP_IN, tall + label + GAP_IN
    plot_left = MARGIN_IN + columns * step_x + _AXIS_LEFT + 0.1
    plot_height = max(tall, _PLOT_H) - _AXIS_BOTTOM
    names = [name for name in curves if name]
    legend = _LEGEND_LEFT + max(
        (text_width(name, SMALL_PT) for name in names), default=-_LEGEND_LEFT
    )
    with theme():
        page = Canvas(
            plot_left + _PLOT_W + legend + MARGIN_IN,
            2 * MARGIN_IN + max(rows * step_y - GAP_IN, plot_height + _AXIS_BOTTOM + label),
        )
        for index, (picture, (first, second)) in enumerate(zip(pictures, captions, strict=True)):
            row, column = divmod(index, columns)
            left, top = MARGIN_IN + column * step_x, MARGIN_IN + row * step_y
            page.picture(picture, left, top, cell, tall)
            page.text(fit(first, cell), left, top + tall + 0.04)
            small = top + tall + 0.04 + line_height(LABEL_PT)
            page.text(fit(second, cell, SMALL_PT), left, small, size=SMALL_PT, colour=MUTED)
        axes = page.axes(plot_left, MARGIN_IN + 0.02, _PLOT_W, plot_height)
        _draw(axes, curves, value, log=log)
    return page.figure


def _draw(axes: Axes, curves: Mapping[str, Tensor], value: str, *, log: bool) -> None:
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
        # Beside the axes, because inside it would cover the curves.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, handlelength=1.4)
