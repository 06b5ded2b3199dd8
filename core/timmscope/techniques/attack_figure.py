"""Draws an attack: the original, the magnified change and the adversarial image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from timmscope.drawing.style import BAD, GOOD, MUTED, format_number, format_share
from timmscope.techniques.change_figure import Panel, change_figure, magnified

if TYPE_CHECKING:
    from timmscope.techniques import Adversarial


def attack_figure(adversarial: Adversarial) -> Figure:
    """Draw one row per image: original, magnified change, adversarial image and predictions."""
    title = adversarial.provenance.technique.rpartition(":")[2]
    return change_figure(title, adversarial.images, lambda row: _panels(adversarial, row))


def _panels(result: Adversarial, row: int) -> list[Panel]:
    shown, factor = magnified(result.images[row] - result.originals[row])
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
    return [
        Panel(
            result.originals[row],
            f"{before} {format_share(float(result.confidence_before[row]))}",
            f"labelled {label}",
        ),
        Panel(shown, f"change ×{factor:.0f}", f"L∞ {linf:.1f}/255   L2 {l2}"),
        Panel(
            result.images[row],
            f"{after} {format_share(float(result.confidence_after[row]))}",
            verdict,
            colour,
        ),
    ]
