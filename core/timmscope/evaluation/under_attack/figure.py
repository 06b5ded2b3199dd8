"""Draws robustness: accuracy over the radius for each model, transfer, and the checks."""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    BAD,
    GOOD,
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    format_share,
    text_width,
    theme,
    truncate,
    truncate_middle,
)
from timmscope.evaluation.under_attack.lines import MARKS, Line, headline, lines, shown_name
from timmscope.evaluation.under_attack.radii import radius_text
from timmscope.evaluation.under_attack.result import WORST, Robustness
from timmscope.techniques.balls import NORM_NAMES

_PANEL_W, _PANEL_H = 2.9, 2.0  # all sizes are in inches
_LEFT, _GAP, _BELOW = 0.5, 0.35, 0.62
_ACROSS = 3
_MOST_TICKS = 5
_ROW_H = 0.19
_MARK_W = 0.55
_CELL = 0.52
WORST_COLOUR = "#c9cdd3"
_COLOURS = {"pass": GOOD, "fail": BAD, "not applicable": MUTED}
_STYLES = {"oblivious": (0, (4, 2))}


def robustness_figure(result: Robustness) -> Figure:
    """Draw the curves of all models, the transfer between them, and their checks."""
    panels = [
        (place, norm, found)
        for place in range(len(result.models))
        for norm in result.norms
        if (found := lines(result, place, norm))
    ]
    across = min(_ACROSS, max(len(panels), 2))
    step_x = _LEFT + _PANEL_W + _GAP
    width = 2 * MARGIN_IN + across * step_x - _GAP + 0.1
    names = _attacks(result)
    inner = width - 2 * MARGIN_IN
    legend = _legend_rows(result, names, inner)
    head = MARGIN_IN + line_height(TITLE_PT) + line_height(SMALL_PT) * len(result.models) + 0.12
    top = head + len(legend) * line_height(SMALL_PT) * 1.25 + 0.12
    step_y = line_height(LABEL_PT) + 0.05 + _PANEL_H + _BELOW
    rows = math.ceil(len(panels) / across)
    matrices = _matrices(result)
    below = top + rows * step_y
    matrix_h = _matrix_height(result, matrices)
    checks = sorted({check["number"] for check in result.checks})
    checks_h = (len(checks) + 2) * _ROW_H + 0.35 if checks else 0.0
    with theme():
        page = Canvas(width, below + matrix_h + checks_h + 0.05)
        _head(page, result, inner)
        _draw_legend(page, legend, head)
        for number, (place, norm, found) in enumerate(panels):
            row, column = divmod(number, across)
            left, upper = MARGIN_IN + column * step_x, top + row * step_y
            title = shown_name(result, place)
            title += f", {NORM_NAMES[norm]}" if len(result.norms) > 1 else ""
            page.text(truncate_middle(title, step_x - 0.1, LABEL_PT, bold=True), left, upper,
                      bold=True)  # fmt: skip
            upper += line_height(LABEL_PT) + 0.05
            axes = page.axes(left + _LEFT, upper, _PANEL_W, _PANEL_H)
            _draw_curves(axes, result, place, norm, found, names)
        _draw_matrices(page, result, matrices, below)
        if checks:
            _draw_checks(page, result, below + matrix_h, inner)
    return page.figure


def _head(page: Canvas, result: Robustness, inner: float) -> None:
    count = len(result.images) - len(result.unreadable)
    title = f"Robustness on {count:,} images, judged against {result.labels_from}"
    page.text(truncate(title, inner, TITLE_PT, bold=True), MARGIN_IN, MARGIN_IN - 0.02,
              size=TITLE_PT, bold=True)  # fmt: skip
    for place in range(len(result.models)):
        below = MARGIN_IN + line_height(TITLE_PT) + place * line_height(SMALL_PT) + 0.02
        page.text(truncate(headline(result, place), inner, SMALL_PT), MARGIN_IN, below,
                  size=SMALL_PT, colour=MUTED)  # fmt: skip


def _attacks(result: Robustness) -> dict[str, str]:
    """Return a colour for each attack."""
    names = list(dict.fromkeys(row["attack"] for row in result.rows))
    return {name: SERIES[number % (len(SERIES) - 1)] for number, name in enumerate(names)}


Entry = tuple[str, str, object, float]
"""Name, colour, line style and width of a line in the legend."""


def _legend_rows(result: Robustness, names: dict[str, str], width: float) -> list[list[Entry]]:
    entries: list[Entry] = [(name, colour, "-", 1.4) for name, colour in names.items()]
    entries.append((f"{WORST}, with 95 % intervals", WORST_COLOUR, "-", 6.0))
    if "defended" in result.roles:
        entries.append(("dashed: oblivious, around the defence", MUTED, _STYLES["oblivious"], 1.2))
    if "other" in result.roles:
        entries.append(("dotted: from another model", MUTED, ":", 1.2))
    rows: list[list[Entry]] = [[]]
    used = 0.0
    for entry in entries:
        own = 0.32 + text_width(entry[0], SMALL_PT) + 0.22
        if rows[-1] and used + own > width:
            rows.append([])
            used = 0.0
        rows[-1].append(entry)
        used += own
    return rows


def _draw_legend(page: Canvas, rows: list[list[Entry]], top: float) -> None:
    for number, row in enumerate(rows):
        left, upper = MARGIN_IN, top + number * line_height(SMALL_PT) * 1.25
        for name, colour, style, thick in row:
            y = 1 - (upper + line_height(SMALL_PT) / 2) / page.height
            ends = [left / page.width, (left + 0.26) / page.width]
            page.figure.add_artist(
                Line2D(ends, [y, y], color=colour, linestyle=style, linewidth=thick)  # type: ignore[arg-type]
            )
            page.text(name, left + 0.32, upper, size=SMALL_PT, colour=INK)
            left += 0.32 + text_width(name, SMALL_PT) + 0.22


def _draw_curves(
    axes: Axes, result: Robustness, place: int, norm: str, found: list[Line], names: dict[str, str]
) -> None:
    radii, clean = result.epsilons[norm], result.clean(place)
    end = radii[-1] * 1.04
    for line in found[:-1]:
        style = _STYLES.get(line.how, ":" if line.how.startswith("from ") else "-")
        options = {"color": names[line.attack], "linestyle": style, "linewidth": 1.4}
        if result.rows[line.rows[0]]["epsilon"] is None:
            known = result.radius[line.rows[0]]
            axes.step(*_steps(known[~known.isnan()], end), where="post", **options)  # type: ignore[arg-type]
            continue
        points = [
            (radius, share.value)
            for radius, share in zip(radii, line.shares, strict=True)
            if share is not None
        ]
        start = [(0.0, clean.value)] if clean.count else []
        axes.plot(*zip(*start, *points, strict=True), marker="o", markersize=3, **options)  # type: ignore[arg-type]
    worst = [share for share in found[-1].shares if share is not None]
    values = [clean.value, *(share.value for share in worst)]
    ends = [clean.interval, *(share.interval for share in worst)]
    errors = [
        [max(value - low, 0) for value, (low, _) in zip(values, ends, strict=True)],
        [max(high - value, 0) for value, (_, high) in zip(values, ends, strict=True)],
    ]
    band = {"color": WORST_COLOUR, "linewidth": 6, "zorder": 1.8, "solid_capstyle": "round"}
    if any(result.rows[row]["epsilon"] is None for line in found for row in line.rows):
        known = result.worst_radius(norm, place)
        axes.step(*_steps(known[~known.isnan()], end), where="post", **band)  # type: ignore[arg-type]
    else:
        axes.plot([0.0, *radii], values, **band)  # type: ignore[arg-type]
    axes.errorbar([0.0, *radii], values, yerr=errors, fmt="none", ecolor=INK, elinewidth=0.8,
                  capsize=2.5, zorder=1.9)  # fmt: skip
    axes.set_xlim(-0.02 * end, end)
    axes.set_ylim(-0.02, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    shown = radii if len(radii) <= _MOST_TICKS else radii[:: math.ceil(len(radii) / _MOST_TICKS)]
    shown = _apart(shown, end)
    axes.set_xticks([0.0, *shown], ["0", *(radius_text(radius, norm) for radius in shown)])
    axes.set_xlabel(f"radius ({NORM_NAMES[norm]}, pixel units)")
    axes.set_ylabel("accuracy", labelpad=2)
    axes.tick_params(length=3, width=0.6)


def _apart(radii: list[float], end: float) -> list[float]:
    """Leave out radii whose labels would overlap, keeping the largest."""
    kept: list[float] = []
    for radius in reversed(radii):
        before = kept[-1] if kept else math.inf
        if before - radius > 0.13 * end and radius > 0.1 * end:
            kept.append(radius)
    return kept[::-1]


def _steps(radii: torch.Tensor, end: float) -> tuple[list[float], list[float]]:
    """Return radii and the accuracy from each on, up to the end of the axis."""
    inside = sorted({0.0, *radii[radii <= end].tolist()})
    shares = [float((radii > radius).double().mean()) for radius in inside]
    return [*inside, end], [*shares, shares[-1]]


# Transfer


def _matrices(result: Robustness) -> list[tuple[str, str, float, torch.Tensor]]:
    """Return attack, norm, radius and rates of each transfer matrix: at the largest radius."""
    if "other" not in result.roles:
        return []
    found = []
    for name in dict.fromkeys(row["attack"] for row in result.rows):
        rows = [row for row in result.rows if row["attack"] == name]
        norm = rows[0]["norm"]
        radius = max((row["epsilon"] for row in rows if row["epsilon"] is not None),
                     default=result.epsilons[norm][-1])  # fmt: skip
        found.append((name, norm, radius, result.transfer(name, radius)))
    return found


def _undefended(result: Robustness) -> list[str]:
    return [
        name for name, role in zip(result.models, result.roles, strict=True) if role != "defended"
    ]


def _matrix_height(
    result: Robustness, matrices: list[object] | list[tuple[str, str, float, torch.Tensor]]
) -> float:
    if not matrices:
        return 0.0
    return 2 * line_height(LABEL_PT) + 0.2 + len(_undefended(result)) * _CELL * 0.6 + 0.35


def _draw_matrices(
    page: Canvas,
    result: Robustness,
    matrices: list[tuple[str, str, float, torch.Tensor]],
    top: float,
) -> None:
    names = _undefended(result)
    label = min(1.9, max((text_width(name, SMALL_PT) for name in names), default=0)) + 0.1
    step = label + len(names) * _CELL + 0.5
    for number, (attack, norm, radius, rates) in enumerate(matrices):
        left = MARGIN_IN + number * step
        if left + step - 0.5 > page.width - MARGIN_IN:
            break
        title = f"{attack} at {NORM_NAMES[norm]} {radius_text(radius, norm)}: broken images"
        page.text(truncate(title, step - 0.15, LABEL_PT, bold=True), left, top, bold=True)
        page.text(
            truncate("made on the model at the left, judged on that of the column", step - 0.15,
                     SMALL_PT), left, top + line_height(LABEL_PT), size=SMALL_PT, colour=MUTED,
        )  # fmt: skip
        upper = top + 2 * line_height(LABEL_PT) + 0.18
        axes = page.axes(left + label, upper, len(names) * _CELL, len(names) * _CELL * 0.6)
        axes.imshow(rates.numpy(), cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        axes.grid(visible=False)
        axes.set_xticks(range(len(names)), [str(each + 1) for each in range(len(names))])
        axes.xaxis.tick_top()
        axes.set_yticks([])
        axes.tick_params(length=0)
        for row, name in enumerate(names):
            middle = upper + (row + 0.5) * _CELL * 0.6 - line_height(SMALL_PT) / 2
            page.text(truncate_middle(f"{row + 1} {name}", label - 0.05, SMALL_PT), left, middle,
                      size=SMALL_PT)  # fmt: skip
            for column, rate in enumerate(rates[row].tolist()):
                text = "–" if math.isnan(rate) else format_share(rate)
                axes.text(column, row, text, ha="center", va="center", fontsize=SMALL_PT,
                          color="white" if rate > 0.6 else INK)  # fmt: skip


# Checks


def _draw_checks(page: Canvas, result: Robustness, top: float, inner: float) -> None:
    """Draw a line per check: a mark for each model, and the evidence of the first that fails."""
    places = list(dict.fromkeys(check["model"] for check in result.checks))
    names = [shown_name(result, place) for place in places]
    page.text("Do gradients mislead the attacks?", MARGIN_IN, top, bold=True)
    note = "✓ no sign of it   ✗ a sign of it   – cannot be checked here"
    page.text(note, MARGIN_IN + 2.6, top + 0.015, size=SMALL_PT, colour=MUTED)
    top += _ROW_H * 1.35
    width = [max(_MARK_W, min(1.6, text_width(name, SMALL_PT) + 0.15)) for name in names]
    label = 3.2
    left = MARGIN_IN + label
    for name, wide in zip(names, width, strict=True):
        page.text(truncate_middle(name, wide - 0.1, SMALL_PT), left, top, size=SMALL_PT,
                  colour=MUTED)  # fmt: skip
        left += wide
    page.rule(MARGIN_IN, top + _ROW_H * 0.95, inner)
    for number in sorted({check["number"] for check in result.checks}):
        top += _ROW_H
        own = {check["model"]: check for check in result.checks if check["number"] == number}
        name = next(iter(own.values()))["check"]
        page.text(str(number), MARGIN_IN + 0.16, top, size=SMALL_PT, colour=MUTED, align="right")
        page.text(truncate(name, label - 0.35, SMALL_PT), MARGIN_IN + 0.25, top, size=SMALL_PT)
        left = MARGIN_IN + label
        for place, wide in zip(places, width, strict=True):
            status = own[place]["status"]
            page.text(MARKS[status], left, top, size=LABEL_PT, colour=_COLOURS[status],
                      bold=status == "fail")  # fmt: skip
            left += wide
        failed = next((check for check in own.values() if check["status"] == "fail"), None)
        if failed is not None and (room := page.width - MARGIN_IN - left - 0.1) > 1:
            page.text(truncate(failed["evidence"], room, SMALL_PT), left + 0.1, top,
                      size=SMALL_PT, colour=MUTED)  # fmt: skip
