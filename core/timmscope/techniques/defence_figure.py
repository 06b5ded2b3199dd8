"""Draws a defence: the original, the magnified change and what the model gets instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from timmscope.drawing.style import BAD, GOOD, MUTED, format_number, format_share
from timmscope.techniques.change_figure import Panel, change_figure, magnified

if TYPE_CHECKING:
    from timmscope.techniques import Defended


def defence_figure(defended: Defended) -> Figure:
    """Draw one row per image: original, magnified change, defended image and predictions."""
    title = defended.provenance.technique.rpartition(":")[2]
    notes = (
        f"same prediction for {format_share(defended.agreement)} of {len(defended.images)} images"
    )
    return change_figure(title, defended.images, lambda row: _panels(defended, row), notes)


def _panels(result: Defended, row: int) -> list[Panel]:
    shown, factor = magnified(result.images[row] - result.originals[row])
    before, after = result.class_names[row]
    linf, l2 = float(result.linf[row]) * 255, format_number(float(result.l2[row]))
    if result.before[row] == result.after[row]:
        verdict, colour = "same prediction", MUTED
    else:
        verdict, colour = "another prediction", BAD
    detail = "without the defence"
    if result.labels is not None:
        right = bool(result.after[row] == result.labels[row])
        verdict, colour = ("right", GOOD) if right else ("wrong", BAD)
        verdict = f"{verdict} behind the defence"
        detail = f"labelled {result.label_names[row]}"
    magnification = ", ".join(filter(None, [f"change ×{factor:.0f}", result.note_text(row)]))
    return [
        Panel(
            result.originals[row],
            f"{before} {format_share(float(result.confidence_before[row]))}",
            detail,
        ),
        Panel(shown, magnification, f"L∞ {linf:.1f}/255   L2 {l2}"),
        Panel(
            result.images[row],
            f"{after} {format_share(float(result.confidence_after[row]))}",
            verdict,
            colour,
        ),
    ]
