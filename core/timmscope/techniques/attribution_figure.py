"""Draws attributions: the image, the map with its colour bar, and the overlay."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from timmscope.drawing import (
    BY_COLOUR,
    GAP_IN,
    LABEL_PT,
    MARGIN_IN,
    MAX_ROWS,
    MUTED,
    SMALL_PT,
    TITLE_PT,
    Canvas,
    HeatScale,
    around_grey,
    colour_bar,
    colourise,
    line_height,
    overlay,
    theme,
    truncate,
)


def attribution_figure(
    images: Tensor,
    maps: Tensor,
    labels: Sequence[str],
    *,
    title: str = "",
    signed: bool | None = None,
    pixels: Tensor | None = None,
) -> Figure:
    """Draw one row per image: the image, the map with its colour bar, and the overlay.

    Args:
        images: `(B, 3, H, W)` in [0, 1].
        maps: `(B, H, W)` on any scale; each has its own colour bar.
        labels: name of what each map explains.
        title: title of the figure, usually the technique's name.
        signed: whether zero is in the middle; by default for maps with values below zero.
        pixels: `(B, 3, H, W)` signed values per colour channel, drawn around grey at the end of the
            row.
    """
    count = min(len(images), MAX_ROWS)
    height_px, width_px = images.shape[2:]
    side = 2.3
    height = side * height_px / width_px
    bar, bar_text = 0.09, 0.52
    head = MARGIN_IN + (line_height(TITLE_PT) + 0.1 if title else 0)
    row_height = height + line_height(LABEL_PT) + 0.22
    lefts = [MARGIN_IN, MARGIN_IN + side + GAP_IN]
    lefts.append(lefts[1] + side + 0.07 + bar + bar_text)
    if pixels is not None:
        lefts.append(lefts[2] + side + GAP_IN)
    left_out = len(images) - count
    foot = line_height(SMALL_PT) + 0.1 if left_out else 0.0
    with theme():
        page = Canvas(
            lefts[-1] + side + MARGIN_IN,
            head + count * row_height + MARGIN_IN - 0.15 + foot,
        )
        if title:
            page.text(title, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        for row in range(count):
            top = head + row * row_height
            page.text(truncate(labels[row], lefts[2] + side - MARGIN_IN), MARGIN_IN, top)
            if pixels is not None:
                page.text(BY_COLOUR, lefts[3], top, colour=MUTED)
            top += line_height(LABEL_PT) + 0.04
            scale = HeatScale.of(maps[row], signed=signed)
            page.picture(images[row], lefts[0], top, side, height)
            page.picture(colourise(maps[row], scale), lefts[1], top, side, height)
            colour_bar(page, scale, lefts[1] + side + 0.07, top, bar, height)
            over = overlay(images[row], maps[row], signed=signed)
            page.picture(over, lefts[2], top, side, height)
            if pixels is not None:
                page.picture(around_grey(pixels[row]), lefts[3], top, side, height)
        if left_out:
            text = f"{left_out} more image{'s' if left_out > 1 else ''} not shown"
            page.text(text, MARGIN_IN, page.height - foot - 0.1, size=SMALL_PT, colour=MUTED)
    return page.figure
