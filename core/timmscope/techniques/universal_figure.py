"""Draws a universal perturbation: the change, its rates beside noise, and images with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    BAD,
    GAP_IN,
    GOOD,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    format_number,
    format_share,
    theme,
    truncate,
)
from timmscope.techniques.balls import NORM_NAMES

if TYPE_CHECKING:
    from timmscope.techniques.universal_perturbation import UniversalPerturbation

_CELL, _COLUMNS, _LARGE = 1.42, 6, 2.3
_WIDTH = 2 * MARGIN_IN + _COLUMNS * (_CELL + GAP_IN) - GAP_IN
_BARS_LEFT, _BAR, _CURVE, _CURVE_LEFT = 1.35, 0.36, 1.7, 0.72


def universal_figure(result: UniversalPerturbation) -> Figure:
    """Draw the magnified perturbation, the rates, and images before and after."""
    rows, columns = result.perturbation.shape[1:]
    tall, high = (min(side * rows / columns, side * 1.6) for side in (_LARGE, _CELL))
    texts = line_height(LABEL_PT) + line_height(SMALL_PT) + 0.06
    head = MARGIN_IN + line_height(TITLE_PT) + 0.12
    below = head + max(tall, 5.5 * _BAR) + texts + 0.22
    step = high + texts + 0.12
    commonest = _commonest(result)
    foot = line_height(SMALL_PT) + 0.1 if commonest else 0.0
    with theme():
        page = Canvas(_WIDTH, below + line_height(SMALL_PT) + 2 * step + foot + MARGIN_IN)
        room = _WIDTH - 2 * MARGIN_IN
        page.text(
            truncate(_title(result), room, TITLE_PT, bold=True),
            MARGIN_IN,
            MARGIN_IN - 0.02,
            size=TITLE_PT,
            bold=True,
        )
        _perturbation(page, result, head, tall)
        left = MARGIN_IN + _LARGE + 3 * GAP_IN
        axes = page.axes(
            left + _BARS_LEFT,
            head,
            _WIDTH - MARGIN_IN - left - _BARS_LEFT - _CURVE_LEFT - _CURVE,
            5.5 * _BAR,
        )
        _rates(axes, result)
        _sizes(page.axes(_WIDTH - MARGIN_IN - _CURVE, head, _CURVE, 5.5 * _BAR), result)
        held = "images that it was not fitted on, without and with it"
        page.text(held, MARGIN_IN, below, size=SMALL_PT, colour=MUTED)
        top = below + line_height(SMALL_PT) + 0.06
        pairs = zip(result.originals, result.changed, strict=True)
        for column, (original, image) in enumerate(pairs):
            at = MARGIN_IN + column * (_CELL + GAP_IN)
            row = int(result.shown[column])
            for upper, picture, texts_of in (
                (top, original, _before(result, row)),
                (top + step, image, _after(result, row)),
            ):
                first, second, colour = texts_of
                page.picture(picture, at, upper, _CELL, high)
                page.text(truncate(first, _CELL), at, upper + high + 0.04)
                small = upper + high + 0.04 + line_height(LABEL_PT)
                shown = truncate(second, _CELL, SMALL_PT)
                page.text(shown, at, small, size=SMALL_PT, colour=colour)
        if commonest:
            text = truncate(commonest, room, SMALL_PT)
            page.text(text, MARGIN_IN, page.height - MARGIN_IN - foot + 0.06, size=SMALL_PT)
    return page.figure


def _title(result: UniversalPerturbation) -> str:
    name = result.provenance.technique.rpartition(":")[2]
    if result.objective:
        return f"{name}: {result.objective} to reach {format_number(result.value or 0.0)}"
    return f"{name}: target {result.target_name}" if result.target_name else name


def _perturbation(page: Canvas, result: UniversalPerturbation, top: float, tall: float) -> None:
    shown, factor = result.shown_perturbation()
    page.picture(shown, MARGIN_IN, top, _LARGE, tall)
    below = top + tall + 0.04
    size = result.size
    radius = f"{size * 255:.1f}/255" if result.norm == "linf" else format_number(size)
    caption = f"perturbation ×{factor:.0f}, {NORM_NAMES[result.norm]} {radius}"
    if result.mask is not None:
        caption = f"patch of {float(result.mask.mean()):.1%} of the image"
    page.text(truncate(caption, _LARGE), MARGIN_IN, below)
    note = truncate(result.note_text(0), _LARGE, SMALL_PT)
    page.text(note, MARGIN_IN, below + line_height(LABEL_PT), size=SMALL_PT, colour=MUTED)


def _rates(axes: Axes, result: UniversalPerturbation) -> None:
    """Draw the rates on fitted and held-out images as bars, with those of noise below each."""
    places, rates, colours, errors, labels = [], [], [], [], []
    for number, (held, part) in enumerate(((False, "fitted"), (True, "held out"))):
        count = int((result.held_out == held).sum())
        rate, noise = result.rate(held_out=held), result.noise_rate(held_out=held)
        low, high = result.interval(held_out=held)
        places += [2.6 * number, 2.6 * number + 0.9]
        rates += [rate, noise]
        colours += [SERIES[1], "#b9c0c9"]
        errors.append((2.6 * number, rate, max(0.0, rate - low), max(0.0, high - rate)))
        labels += [f"{part}, {count} images", "noise of this size"]
    axes.barh(places, rates, 0.78, color=colours)
    for place, rate in zip(places, rates, strict=True):
        axes.annotate(
            format_share(rate),
            (0, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_PT,
        )
    for place, rate, low, high in errors:
        axes.errorbar(rate, place, xerr=[[low], [high]], color="black", linewidth=1, capsize=3)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("images that it fools, with the 95 % interval")
    axes.grid(visible=False, axis="y")
    axes.tick_params(length=0)


def _sizes(axes: Axes, result: UniversalPerturbation) -> None:
    """Draw the rate on held-out images against the size, with that of noise below it."""
    rows = result.size_table()
    scale = 255.0 if result.norm == "linf" else 1.0
    column, label = result.norm, f"{NORM_NAMES[result.norm]} norm{' × 255' * (scale > 1)}"
    if result.mask is not None:
        column, label = "area", "share of the image"
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    sizes = [row[column] * scale for row in rows]
    for name, colour in (("fooling_rate", SERIES[1]), ("noise_rate", "#b9c0c9")):
        axes.plot(sizes, [row[name] for row in rows], "o-", color=colour, markersize=3)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(0, sizes[-1] * 1.05 or 1)
    axes.set_xticks(sizes if result.mask is None else sizes[1::2])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(f"{label}, held out")


def _before(result: UniversalPerturbation, row: int) -> tuple[str, str, str]:
    """Return the two lines below an image, and the colour of the second."""
    if result.scores_before is not None:
        return format_number(float(result.scores_before[row])), "", MUTED
    share = format_share(float(result.confidence_before[row]))
    return result.class_name(int(result.before[row])), share, MUTED


def _after(result: UniversalPerturbation, row: int) -> tuple[str, str, str]:
    fooled = bool(result.fooled[row])
    scored = result.scores_after is not None
    words = ("reached", "not reached") if scored or result.target_name else ("fooled", "not fooled")
    verdict = "there without it" if result.already[row] else words[not fooled]
    colour = MUTED if result.already[row] else BAD if fooled else GOOD
    if result.scores_after is not None:
        return format_number(float(result.scores_after[row])), verdict, colour
    share = format_share(float(result.confidence_after[row]))
    return result.class_name(int(result.after[row])), f"{share}, {verdict}", colour


def _commonest(result: UniversalPerturbation) -> str:
    """Return what most fooled images are taken for; empty if that is the goal, or unknown."""
    found = [] if result.target_name or result.objective else result.becomes()[:4]
    if not found:
        return ""
    return "Fooled images become " + ", ".join(f"{name} {share:.0%}" for name, share in found)
