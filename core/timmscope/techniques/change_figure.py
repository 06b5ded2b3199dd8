"""Draws changes of images: for each the original, the magnified change and the changed image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    GAP_IN,
    LABEL_PT,
    MARGIN_IN,
    MAX_ROWS,
    MUTED,
    SMALL_PT,
    TITLE_PT,
    theme,
    truncate,
)


class Panel(NamedTuple):
    """A picture `(3, H, W)` with a caption, and a line below it in a colour."""

    picture: Tensor
    caption: str
    detail: str
    colour: str = MUTED


def magnified(change: Tensor) -> tuple[Tensor, float]:
    """Return a change `(3, H, W)` as colours around mid-grey, and its magnification.

    The factor brings all but the largest 0.5 % of the values into the range, because a few extreme
    values, as of an L2 attack, would leave the rest grey. It is 1 if nothing changed, and at most
    255, where one 8-bit level fills the range.
    """
    sizes = change.detach().float().abs().flatten()
    largest = float(sizes.max())
    edge = float(sizes.quantile(0.995, interpolation="higher"))
    edge = edge if edge > largest / 20 else largest
    factor = min(0.5 / edge, 255.0) if largest > 0 else 1.0
    return (0.5 + change.float() * factor).clamp(0, 1), factor


def change_figure(
    title: str, images: Tensor, panels: Callable[[int], Sequence[Panel]], notes: str = ""
) -> Figure:
    """Draw one row of three panels per image.

    Args:
        title: name of the technique.
        images: `(B, 3, H, W)`, of which number and shape matter.
        panels: returns the panels of a row.
        notes: text beside the title.
    """
    count = min(len(images), MAX_ROWS)
    left_out = len(images) - count
    side = 2.3
    height = side * images.shape[2] / images.shape[3]
    text_height = line_height(LABEL_PT) + line_height(SMALL_PT) + 0.05
    row_height = height + text_height + 0.2
    head = MARGIN_IN + line_height(TITLE_PT) + 0.12
    foot = line_height(SMALL_PT) + 0.1 if left_out else 0.0
    lefts = [MARGIN_IN + column * (side + GAP_IN) for column in range(3)]
    width = 2 * MARGIN_IN + 3 * side + 2 * GAP_IN
    with theme():
        page = Canvas(width, head + count * row_height - 0.2 + MARGIN_IN + foot)
        page.text(title, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        if notes:
            page.text(notes, lefts[1], MARGIN_IN + 0.03, size=SMALL_PT, colour=MUTED)
        for row in range(count):
            top = head + row * row_height
            below = top + height + 0.04
            for left, panel in zip(lefts, panels(row), strict=True):
                page.picture(panel.picture, left, top, side, height)
                page.text(truncate(panel.caption, side), left, below)
                detail = truncate(panel.detail, side, SMALL_PT)
                line = below + line_height(LABEL_PT)
                page.text(detail, left, line, size=SMALL_PT, colour=panel.colour)
        if left_out:
            text = f"{left_out} more image{'s' if left_out > 1 else ''} not shown"
            page.text(text, MARGIN_IN, page.height - foot - 0.1, size=SMALL_PT, colour=MUTED)
    return page.figure
