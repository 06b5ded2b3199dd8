"""Draws a `UnitReport`: how often units fire, their ranges, redundancy and selectivity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    theme,
    truncate,
)

from .unit_rows import LABEL

if TYPE_CHECKING:
    from .unit_report import UnitReport

_W, _H = 3.5, 2.2
_LEFT, _BELOW, _HEAD = 0.5, 0.45, 0.3
_COLOURS = {
    "dead": SERIES[6],
    "saturated": SERIES[4],
    "sparse": SERIES[5],
    "redundant": SERIES[1],
    "selective": SERIES[2],
}
_MAX_LABELS = 6
"""Largest number of units that are labelled in a panel."""
_MAX_PRUNABLE = 12
"""Largest number of units that are listed per reason to prune them."""
_FLAG_LABELS = {"saturated": "saturated (always on)"}


def units_figure(report: UnitReport) -> Figure:
    """Draw panels of firing, range, redundancy, and selectivity or correlation with a column."""
    panels = [_firing, _spread, _redundancy]
    if not np.isnan(report.auroc).all():
        panels.append(_selectivity)
    elif not np.isnan(report.context_correlation).all():
        panels.append(_context)
    step_x, step_y = _LEFT + _W + 0.35, _HEAD + _H + _BELOW + 0.12
    lines = -(-len(panels) // 2)
    title, _, rest = report.sentence.partition(": ")
    counts, _, found = rest.partition(": ")
    with theme():
        width = 2 * MARGIN_IN + 2 * step_x - 0.35
        room = width - 2 * MARGIN_IN
        below = truncate("\n".join(filter(None, [found, _prunable(report)])), room, lines=2)
        small = line_height(LABEL_PT, below.count("\n") + 1)
        head = MARGIN_IN + line_height(TITLE_PT) + small + 0.15
        page = Canvas(width, head + lines * step_y + 0.1)
        top = truncate(f"{title}: {counts}", room, TITLE_PT, bold=True)
        page.text(top, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        page.text(below, MARGIN_IN, MARGIN_IN + line_height(TITLE_PT) + 0.02, colour=MUTED)
        for number, panel in enumerate(panels):
            row, column = divmod(number, 2)
            left, upper = MARGIN_IN + column * step_x, head + row * step_y
            axes = page.axes(left + _LEFT, upper + _HEAD, _W, _H)
            caption = panel(report, axes)
            page.text(truncate(caption, _LEFT + _W, bold=True), left, upper, bold=True)
    return page.figure


def _prunable(report: UnitReport) -> str:
    """Return a text that lists the prunable units by reason, the clearest reason first."""
    reasons: dict[str, list[int]] = {name: [] for name in ("dead", "saturated", "redundant")}
    for unit in np.flatnonzero(report.prunable).tolist():
        reasons[next(name for name in reasons if getattr(report, name)[unit])].append(unit)
    parts = []
    for name, found in reasons.items():
        if found:
            shown = ", ".join(map(str, found[:_MAX_PRUNABLE]))
            left_out = len(found) - _MAX_PRUNABLE
            parts.append(f"{name} {shown}" + (f" and {left_out} more" if left_out > 0 else ""))
    return f"to prune: {'; '.join(parts)}" if parts else ""


def _firing(report: UnitReport, axes: Axes) -> str:
    """Draw the share of images on which each unit fires, in descending order."""
    shares = np.nan_to_num(report.fires)
    order = np.argsort(-shares, kind="stable")
    _bars(report, axes, shares[order], order, ("dead", "saturated", "sparse"))
    axes.set_ylabel("share of images")
    axes.set_xlabel("units, most active first")
    fires = "fires" if report.rectified else "is above zero"
    return f"Share of images on which a unit {fires}"


def _spread(report: UnitReport, axes: Axes) -> str:
    """Draw the median, the middle half and the largest of every unit's maxima."""
    median = report.column("max_q50")
    order = np.argsort(-np.nan_to_num(median), kind="stable")
    low, high = report.column("max_q25")[order], report.column("max_q75")[order]
    place = np.arange(len(order))
    axes.fill_between(place, low, high, step="mid", color=SERIES[5], alpha=0.5, linewidth=0)
    axes.step(place, median[order], where="mid", color=SERIES[0], linewidth=1.2)
    axes.plot(place, report.column("max_max")[order], ".", color=MUTED, markersize=2)
    axes.set_xlim(-0.5, max(len(order) - 0.5, 0.5))
    axes.set_ylabel("spatial maximum")
    axes.set_xlabel("units, by median")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.15 * (top - bottom))  # room for the legend
    _corner_text(axes, "line: median   band: middle half   dots: largest", 0.97, colour=MUTED)
    return "Range of a unit's maxima over the images"


def _redundancy(report: UnitReport, axes: Axes) -> str:
    """Draw the highest correlation of each unit with another, in descending order."""
    correlation = report.correlation
    magnitude = np.nan_to_num(np.abs(correlation))
    order = np.argsort(-magnitude, kind="stable")
    _bars(report, axes, magnitude[order], order, ("redundant",))
    axes.axhline(report.thresholds["redundant"], color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylabel("highest |correlation|")
    axes.set_xlabel("units, most redundant first")
    pairs: dict[frozenset[int], str] = {}
    for unit in order.tolist():
        partner = int(report.partner[unit])
        if partner >= 0:
            text = f"{unit}, {partner}: {correlation[unit]:+.2f}"
            pairs.setdefault(frozenset((unit, partner)), text)
    _label_units(axes, list(pairs.values())[:_MAX_LABELS], 0.88)
    return "Highest correlation with another unit"


def _selectivity(report: UnitReport, axes: Axes) -> str:
    """Draw the area under the ROC curve over the selectivity index."""
    area = report.auroc
    colours = [_colour(report, unit, ("selective", "dead")) for unit in range(len(report))]
    axes.scatter(report.selectivity, area, s=9, c=colours, linewidths=0, alpha=0.8)
    axes.axhline(report.thresholds["selective"], color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylabel("area under the ROC curve")
    axes.set_xlabel("selectivity index")
    low = float(np.nanmin(area))
    axes.set_ylim(min(0.45, low - 0.02), 1.02)
    axes.set_xlim(-0.02, 1.02)
    best = [
        u for u in np.argsort(-np.nan_to_num(area), kind="stable").tolist() if area[u] == area[u]
    ]
    lines = [f"{u}: {area[u]:.3f} {report.best_class[u]}" for u in best[:_MAX_LABELS]]
    _label_units(axes, lines, 0.4)
    return f"Selectivity for a unit's best {'class' if report.by == LABEL else report.by}"


def _context(report: UnitReport, axes: Axes) -> str:
    """Draw the correlation of each unit with a column of numbers, in descending order."""
    correlation = report.context_correlation
    order = np.argsort(-np.nan_to_num(correlation), kind="stable")
    axes.bar(np.arange(len(order)), np.nan_to_num(correlation[order]), width=1.0, color=SERIES[0])
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-0.5, max(len(order) - 0.5, 0.5))
    axes.set_ylim(-1.02, 1.02)
    axes.set_ylabel("correlation")
    axes.set_xlabel("units, most positive first")
    known = [unit for unit in order.tolist() if correlation[unit] == correlation[unit]]
    known.sort(key=lambda unit: -abs(correlation[unit]))
    _label_units(axes, [f"{unit}: {correlation[unit]:+.2f}" for unit in known[:_MAX_LABELS]], 0.97)
    return f"Correlation of each unit with {report.by}"


def _bars(
    report: UnitReport, axes: Axes, heights: np.ndarray, order: np.ndarray, flags: tuple[str, ...]
) -> None:
    """Draw bars, coloured by flag, and a legend of the flags that occur."""
    colours = [_colour(report, unit, flags) for unit in order.tolist()]
    axes.bar(np.arange(len(order)), heights, width=1.0, color=colours, linewidth=0)
    axes.set_xlim(-0.5, max(len(order) - 0.5, 0.5))
    axes.set_ylim(0, 1.02)
    counts = report.counts
    found = [name for name in flags if counts[name]]
    if found:
        axes.legend(
            [Patch(color=_COLOURS[name]) for name in found],
            [f"{_FLAG_LABELS.get(name, name)}: {counts[name]}" for name in found],
            loc="upper left", bbox_to_anchor=(0, 0.94), frameon=True, framealpha=0.85,
            edgecolor="none", borderaxespad=0.3, handlelength=1,
        )  # fmt: skip


def _colour(report: UnitReport, unit: int, flags: tuple[str, ...]) -> str:
    found = next((name for name in flags if getattr(report, name)[unit]), None)
    return _COLOURS[found] if found else SERIES[0]


def _label_units(axes: Axes, lines: list[str], top: float) -> None:
    _corner_text(axes, "\n".join(truncate(line, 1.6, SMALL_PT) for line in lines), top)


def _corner_text(axes: Axes, text: str, top: float, *, colour: str = INK) -> None:
    """Write small text at the right edge of a panel; `top` is relative to its height."""
    axes.text(
        0.98, top, text, transform=axes.transAxes, color=colour, va="top", ha="right",
        fontsize=SMALL_PT, parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )  # fmt: skip
