"""Draws an attack: the original, the magnified change and the adversarial image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    BAD,
    GAP_IN,
    GOOD,
    LABEL_PT,
    MARGIN_IN,
    MAX_ROWS,
    MUTED,
    SMALL_PT,
    TITLE_PT,
    format_number,
    format_share,
    theme,
    truncate,
)

if TYPE_CHECKING:
    from timmscope.techniques import Adversarial


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


def attack_figure(adversarial: Adversarial) -> Figure:
    """Draw one row per image: original, magnified change, adversarial image and predictions."""
    count = min(len(adversarial.images), MAX_ROWS)
    left_out = len(adversarial.images) - count
    side = 2.3
    height = side * adversarial.images.shape[2] / adversarial.images.shape[3]
    text_height = line_height(LABEL_PT) + line_height(SMALL_PT) + 0.05
    row_height = height + text_height + 0.2
    head = MARGIN_IN + line_height(TITLE_PT) + 0.12
    foot = line_height(SMALL_PT) + 0.1 if left_out else 0.0
    title = adversarial.provenance.technique.rpartition(":")[2]
    lefts = [MARGIN_IN + column * (side + GAP_IN) for column in range(3)]
    with theme():
        page = Canvas(
            2 * MARGIN_IN + 3 * side + 2 * GAP_IN,
            head + count * row_height - 0.2 + MARGIN_IN + foot,
        )
        page.text(title, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        for row in range(count):
            top = head + row * row_height
            _row(page, adversarial, row, lefts, top, side, height)
        if left_out:
            text = f"{left_out} more image{'s' if left_out > 1 else ''} not shown"
            page.text(text, MARGIN_IN, page.height - foot - 0.1, size=SMALL_PT, colour=MUTED)
    return page.figure


def _row(
    page: Canvas,
    result: Adversarial,
    row: int,
    lefts: list[float],
    top: float,
    side: float,
    height: float,
) -> None:
    change = result.images[row] - result.originals[row]
    shown, factor = magnified(torch.as_tensor(change))
    label, before, after = result.class_names[row]
    if result.already_wrong[row]:
        verdict, colour = "misclassified from the start, not attacked", MUTED
    elif result.stuck[row]:
        verdict, colour = "not fooled: the gradient was zero", MUTED
    elif result.target_names and not result.success[row]:
        verdict, colour = f"target {result.target_names[row]} not reached", GOOD
    elif result.success[row]:
        also_8bit = bool(result.success_8bit[row])
        verdict, colour = (
            ("fooled" if also_8bit else "fooled, but not after rounding to 8 bits"),
            BAD,
        )
    else:
        verdict, colour = "not fooled", GOOD
    linf, l2 = float(result.linf[row]) * 255, format_number(float(result.l2[row]))
    columns = [
        (
            result.originals[row],
            f"{before} {format_share(float(result.confidence_before[row]))}",
            f"labelled {label}",
            MUTED,
        ),
        (
            shown,
            f"change ×{factor:.0f}",
            f"L∞ {linf:.1f}/255   L2 {l2}",
            MUTED,
        ),
        (
            result.images[row],
            f"{after} {format_share(float(result.confidence_after[row]))}",
            verdict,
            colour,
        ),
    ]
    below = top + height + 0.04
    for left, (picture, caption, detail, colour) in zip(lefts, columns, strict=True):
        page.picture(picture, left, top, side, height)
        page.text(truncate(caption, side), left, below)
        detail = truncate(detail, side, SMALL_PT)
        page.text(detail, left, below + line_height(LABEL_PT), size=SMALL_PT, colour=colour)
