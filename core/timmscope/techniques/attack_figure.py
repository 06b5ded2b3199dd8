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
    magnification = ", ".join(filter(None, [f"change ×{factor:.0f}", result.note_text(row)]))
    return [
        Panel(result.originals[row], *_before(result, row)),
        Panel(shown, magnification, _sizes(result, row)),
        Panel(result.images[row], _after(result, row), *_verdict(result, row)),
    ]


def _sizes(result: Adversarial, row: int) -> str:
    """Return the size of a change in L∞ and L2, or in the norm of the attack and L2."""
    l2 = f"L2 {format_number(float(result.l2[row]))}"
    if result.norm == "l0":
        count = int(result.l0[row])
        return f"{count} pixel{'s' * (count != 1)}   {l2}"
    if result.norm == "l1":
        return f"L1 {format_number(float(result.l1[row]))}   {l2}"
    return f"L∞ {float(result.linf[row]) * 255:.1f}/255   {l2}"


def _verdict(result: Adversarial, row: int) -> tuple[str, str]:
    """Return what became of an image, and the colour of that text."""
    scored = bool(result.objective)
    if result.already_wrong[row]:
        why = "there from the start" if scored else "misclassified from the start"
        return f"{why}, not attacked", MUTED
    if result.stuck[row]:
        return f"{'not reached' if scored else 'not fooled'}: the gradient was zero", MUTED
    if result.success[row]:
        done = "reached" if scored else "fooled"
        return (done if result.success_8bit[row] else f"{done}, but not after 8-bit rounding"), BAD
    if result.target_names:
        return f"target {result.target_names[row]} not reached", GOOD
    return ("not reached" if scored else "not fooled"), GOOD


def _before(result: Adversarial, row: int) -> tuple[str, str]:
    """Return the two lines below an original."""
    if result.scores_before is not None:
        value = format_number(float(result.scores_before[row]))
        return f"{value}", f"{result.objective} to reach {format_number(result.value or 0.0)}"
    label, before, _ = result.class_names[row]
    return f"{before} {format_share(float(result.confidence_before[row]))}", f"labelled {label}"


def _after(result: Adversarial, row: int) -> str:
    """Return the first line below an adversarial image."""
    if result.scores_after is not None:
        return format_number(float(result.scores_after[row]))
    after = result.class_names[row][2]
    return f"{after} {format_share(float(result.confidence_after[row]))}"
