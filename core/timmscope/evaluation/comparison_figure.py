"""Draws a comparison of attributions, with one row per image and one column per technique."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.heat import HeatScale, colourise, overlay
from timmscope.drawing.style import (
    GAP_IN,
    LABEL_PT,
    MARGIN_IN,
    MAX_ROWS,
    MUTED,
    SMALL_PT,
    format_number,
    theme,
    truncate,
)

_SIDE_IN = 1.75
_BAR_IN = 0.07


def comparison_figure(
    images: Tensor,
    maps: Tensor,
    names: Sequence[str],
    labels: Sequence[str],
    signed: Sequence[bool],
    *,
    columns: int = 6,
) -> Figure:
    """Draw several maps of each image, each above a colour bar with its range.

    Maps are drawn over the image, except grainy maps, as those of gradients, which would hardly be
    visible there.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        maps: `(T, B, H, W)`, any scale.
        names: names of the `T` maps.
        labels: what each image's maps explain.
        signed: for each of the `T` maps, whether zero is the middle of the colour scale.
        columns: largest number of pictures per line; further maps of an image follow below.
    """
    count = min(len(images), max(1, MAX_ROWS // (1 + len(names) // columns)))
    lines = -(-(len(names) + 1) // columns)
    columns = -(-(len(names) + 1) // lines)  # lines of equal length
    height = _SIDE_IN * images.shape[2] / images.shape[3]
    heads = [truncate(name.replace(" at ", "\n"), _SIDE_IN, lines=2) for name in names]
    head = line_height(LABEL_PT, max(text.count("\n") + 1 for text in heads)) + 0.04
    cell = head + height + 0.05 + _BAR_IN + line_height(SMALL_PT) + 0.12
    block = line_height(LABEL_PT) + 0.08 + lines * cell + 0.1
    left_out = len(images) - count
    foot = line_height(SMALL_PT) + 0.1 if left_out else 0.0
    with theme():
        page = Canvas(
            2 * MARGIN_IN + columns * (_SIDE_IN + GAP_IN) - GAP_IN,
            2 * MARGIN_IN + count * block - 0.2 + foot,
        )
        room = page.width - 2 * MARGIN_IN
        for row in range(count):
            top = MARGIN_IN + row * block
            page.text(truncate(labels[row], room), MARGIN_IN, top, bold=True)
            top += line_height(LABEL_PT) + 0.08
            page.picture(images[row], MARGIN_IN, top + head, _SIDE_IN, height)
            for index, text in enumerate(heads):
                line, column = divmod(index + 1, columns)
                left, upper = MARGIN_IN + column * (_SIDE_IN + GAP_IN), top + line * cell
                _cell(page, images[row], maps[index, row], text, signed[index], left, upper, head)
        if left_out:
            text = f"{left_out} more image{'s' if left_out > 1 else ''} not shown"
            page.text(text, MARGIN_IN, page.height - foot - 0.1, size=SMALL_PT, colour=MUTED)
    return page.figure


def _grainy(heat: Tensor, scale: HeatScale) -> bool:
    """Return whether neighbouring pixels differ by more than a fifth of the mean value."""
    strength = scale.strength(heat)
    steps = (strength[:, 1:] - strength[:, :-1]).abs().mean()
    return float(steps) > 0.2 * float(strength.mean())


def _cell(
    page: Canvas,
    image: Tensor,
    heat: Tensor,
    name: str,
    signed: bool,
    left: float,
    top: float,
    head: float,
) -> None:
    height = _SIDE_IN * image.shape[1] / image.shape[2]
    scale = HeatScale.of(heat, signed=signed)
    page.text(name, left, top + head - 0.04 - line_height(LABEL_PT, name.count("\n") + 1))
    shown = colourise(heat, scale) if _grainy(heat, scale) else overlay(image, heat, signed=signed)
    page.picture(shown, left, top + head, _SIDE_IN, height)
    upper = top + head + height + 0.05
    strip = scale.colours(np.linspace(0, 1, 256))[None, :, :3]
    axes = page.axes(left, upper, _SIDE_IN, _BAR_IN)
    axes.imshow(strip, aspect="auto")
    axes.set_axis_off()
    below = upper + _BAR_IN + 0.02
    beyond = " ≥" if scale.clipped else ""
    high = f"{beyond} {format_number(scale.high)}".strip()
    low = ("≤ " if scale.clipped and signed else "") + format_number(scale.low)
    page.text(low, left, below, size=SMALL_PT, colour=MUTED)
    if signed:
        page.text("0", left + _SIDE_IN / 2, below, size=SMALL_PT, colour=MUTED, align="center")
    page.text(high, left + _SIDE_IN, below, size=SMALL_PT, colour=MUTED, align="right")
