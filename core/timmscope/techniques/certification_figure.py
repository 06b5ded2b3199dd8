"""Draws certificates: the certified accuracy over the radius, and the images with their radii."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    BAD,
    GAP_IN,
    GOOD,
    INK,
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

if TYPE_CHECKING:
    from timmscope.techniques.certification import Certificates

_COLUMNS, _CELL = 5, 1.35  # all sizes are in inches
_MOST_IMAGES = 30
_WIDTH = 2 * MARGIN_IN + _COLUMNS * (_CELL + GAP_IN) - GAP_IN
_PLOT_LEFT, _PLOT_H, _PLOT_BELOW = 0.55, 1.9, 0.5


def certification_figure(result: Certificates) -> Figure:
    """Draw the certified accuracy over the radius, and the images below it with their radii."""
    count = min(len(result.images), _MOST_IMAGES)
    left_out = len(result.images) - count
    tall = min(_CELL * result.images.shape[2] / result.images.shape[3], 1.6 * _CELL)
    text = line_height(LABEL_PT) + line_height(SMALL_PT) + 0.06
    step_x, step_y = _CELL + GAP_IN, tall + text + GAP_IN
    top = _head(result) + _PLOT_H + _PLOT_BELOW
    rows = math.ceil(count / _COLUMNS)
    foot = line_height(SMALL_PT) + 0.1 if left_out else 0.0
    with theme():
        page = Canvas(_WIDTH, top + rows * step_y - GAP_IN + foot + MARGIN_IN)
        _draw_curve(page, result)
        for index in range(count):
            row, column = divmod(index, _COLUMNS)
            left, upper = MARGIN_IN + column * step_x, top + row * step_y
            page.picture(result.images[index], left, upper, _CELL, tall)
            caption, detail, colour = _caption(result, index)
            detail = ", ".join(filter(None, [detail, result.note_text(index)]))
            below = upper + tall + 0.04
            page.text(truncate(caption, _CELL), left, below)
            below += line_height(LABEL_PT)
            page.text(truncate(detail, _CELL, SMALL_PT), left, below, size=SMALL_PT, colour=colour)
        if left_out:
            note = f"{left_out} more image{'s' if left_out > 1 else ''} not shown"
            page.text(note, MARGIN_IN, page.height - foot - 0.1, size=SMALL_PT, colour=MUTED)
    return page.figure


def curve_figure(result: Certificates) -> Figure:
    """Draw the certified accuracy over the radius alone."""
    with theme():
        page = Canvas(_WIDTH, _head(result) + _PLOT_H + _PLOT_BELOW + 0.05)
        _draw_curve(page, result)
    return page.figure


def _head(result: Certificates) -> float:
    return MARGIN_IN + line_height(TITLE_PT) + line_height(SMALL_PT) + 0.14


def _draw_curve(page: Canvas, result: Certificates) -> None:
    """Draw title, facts and the curve at the top of a page."""
    inner = _WIDTH - 2 * MARGIN_IN
    title = result.provenance.technique.rpartition(":")[2]
    page.text(truncate(title, inner, TITLE_PT, bold=True), MARGIN_IN, MARGIN_IN - 0.02,
              size=TITLE_PT, bold=True)  # fmt: skip
    below = MARGIN_IN + line_height(TITLE_PT)
    page.text(truncate(_facts(result), inner, SMALL_PT), MARGIN_IN, below, size=SMALL_PT,
              colour=MUTED)  # fmt: skip
    axes = page.axes(MARGIN_IN + _PLOT_LEFT, _head(result), inner - _PLOT_LEFT, _PLOT_H)
    _draw_steps(axes, result)


def _draw_steps(axes: Axes, result: Certificates) -> None:
    radii, accuracy = (values.tolist() for values in result.curve())
    end = radii[-1] * 1.06 or 1.0
    radii, accuracy = [*radii, radii[-1], end], [*accuracy, 0.0, 0.0]
    axes.axhline(result.clean_accuracy, color=INK, linewidth=0.9, linestyle=":")
    over = result.clean_accuracy < 0.9
    axes.annotate(
        "the model itself, unchanged images",
        (1, result.clean_accuracy), xycoords=("axes fraction", "data"),
        xytext=(-3, 3 if over else -3), textcoords="offset points", ha="right",
        va="bottom" if over else "top", fontsize=SMALL_PT, color=INK,
    )  # fmt: skip
    axes.step(radii, accuracy, where="pre", color=SERIES[0])
    axes.fill_between(radii, accuracy, step="pre", color=SERIES[0], alpha=0.15, linewidth=0)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(f"radius ({_norm(result)}, pixel units)")
    axes.set_ylabel("certified accuracy")
    axes.tick_params(length=3, width=0.6)


def _facts(result: Certificates) -> str:
    """Return the line below the title: how many are certified, and how far."""
    count = len(result.images)
    facts = [
        f"{int((result.radius > 0).sum())} of {count} certified",
        f"{int((~result.correct & ~result.abstained).sum())} wrong",
        f"{int(result.abstained.sum())} abstained",
        f"mean radius {format_number(result.mean_radius)}",
        f"the model itself {format_share(result.clean_accuracy)} right",
    ]
    if result.global_bound is not None:
        facts.append(f"global bound {format_number(result.global_bound)}")
    return ", ".join(facts)


def _caption(result: Certificates, row: int) -> tuple[str, str, str]:
    """Return an image's label, its certificate, and the colour of the latter."""
    label, _, certified = result.class_names[row]
    if result.abstained[row]:
        return label, "abstains", MUTED
    if not result.correct[row]:
        return label, f"wrong: {certified}", BAD
    return label, f"{_norm(result)} {format_number(float(result.radius[row]))}", GOOD


def _norm(result: Certificates) -> str:
    return {"linf": "L∞"}.get(result.norm, result.norm.upper())
