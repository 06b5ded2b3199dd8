"""A layer's units at a glance: how often they fire, how they spread, repeat and tell classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from timmscope.figures.canvas import Canvas, line_height
from timmscope.figures.theme import (
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    fit,
    theme,
)

if TYPE_CHECKING:
    from timmscope.units import UnitReport

_W, _H = 3.5, 2.2
_LEFT, _BELOW, _HEAD = 0.5, 0.45, 0.3
_COLOURS = {
    "dead": SERIES[6],
    "saturated": SERIES[4],
    "sparse": SERIES[5],
    "redundant": SERIES[1],
    "selective": SERIES[2],
}
_NAMED = 6
"""Units that are named in a panel."""


def units_figure(report: UnitReport) -> Figure:
    """Four panels: firing, size and spread, redundancy, selectivity (where images have labels)."""
    panels = [_firing, _spread, _redundancy]
    if not np.isnan(report.auroc).all():
        panels.append(_selectivity)
    step_x, step_y = _LEFT + _W + 0.35, _HEAD + _H + _BELOW + 0.12
    rows = -(-len(panels) // 2)
    title, _, rest = report.summary().partition(": ")
    counts, _, found = rest.partition(": ")
    with theme():
        head = MARGIN_IN + line_height(TITLE_PT) + line_height(LABEL_PT) + 0.15
        page = Canvas(2 * MARGIN_IN + 2 * step_x - 0.35, head + rows * step_y + 0.1)
        room = page.width - 2 * MARGIN_IN
        heading = fit(f"{title}: {counts}", room, TITLE_PT, bold=True)
        page.text(heading, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        below = MARGIN_IN + line_height(TITLE_PT) + 0.02
        page.text(fit(found, room), MARGIN_IN, below, colour=MUTED)
        for number, panel in enumerate(panels):
            row, column = divmod(number, 2)
            left, top = MARGIN_IN + column * step_x, head + row * step_y
            axes = page.axes(left + _LEFT, top + _HEAD, _W, _H)
            caption = panel(report, axes)
            page.text(fit(caption, _LEFT + _W, bold=True), left, top, bold=True)
    return page.figure


def _firing(report: UnitReport, axes: Axes) -> str:
    """Share of images that each unit fires on, in falling order."""
    shares = np.nan_to_num(report.maxima.positive)
    order = np.argsort(-shares, kind="stable")
    _bars(report, axes, shares[order], order, ("dead", "saturated", "sparse"))
    axes.set_ylabel("share of images")
    axes.set_xlabel("units, most active first")
    what = "fires" if report.rectified else "is above zero"
    return f"On how many images a unit {what}"


def _spread(report: UnitReport, axes: Axes) -> str:
    """Median, middle half and largest of the maxima of every unit."""
    median = report.maxima.quantile(0.5)
    order = np.argsort(-np.nan_to_num(median), kind="stable")
    low, high = report.maxima.quantile(0.25)[order], report.maxima.quantile(0.75)[order]
    place = np.arange(len(order))
    axes.fill_between(place, low, high, step="mid", color=SERIES[5], alpha=0.5, linewidth=0)
    axes.step(place, median[order], where="mid", color=SERIES[0], linewidth=1.2)
    axes.plot(place, report.maxima.maximum[order], ".", color=MUTED, markersize=2)
    axes.set_xlim(-0.5, max(len(order) - 0.5, 0.5))
    axes.set_ylabel("spatial maximum")
    axes.set_xlabel("units, by median")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.15 * (top - bottom))  # room for what the marks are
    _corner(axes, "line: median   band: middle half   dots: largest", 0.97, colour=MUTED)
    return "How high, over the images"


def _redundancy(report: UnitReport, axes: Axes) -> str:
    """Highest correlation of each unit with another, in falling order."""
    size = np.nan_to_num(np.abs(report.correlation))
    order = np.argsort(-size, kind="stable")
    _bars(report, axes, size[order], order, ("redundant",))
    axes.axhline(report.thresholds.redundant, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylabel("highest |correlation|")
    axes.set_xlabel("units, most alike first")
    pairs: dict[frozenset[int], str] = {}
    for unit in order.tolist():
        partner = int(report.partner[unit])
        if partner >= 0:
            text = f"{unit}, {partner}: {report.correlation[unit]:+.2f}"
            pairs.setdefault(frozenset((unit, partner)), text)
    _names(axes, list(pairs.values())[:_NAMED], 0.88)
    return "How alike another unit"


def _selectivity(report: UnitReport, axes: Axes) -> str:
    """Selectivity index against area under the curve."""
    colours = [_colour(report, unit, ("selective", "dead")) for unit in range(len(report))]
    axes.scatter(report.selectivity, report.auroc, s=9, c=colours, linewidths=0, alpha=0.8)
    axes.axhline(report.thresholds.selective, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylabel("area under the ROC curve")
    axes.set_xlabel("selectivity index")
    low = float(np.nanmin(report.auroc))
    axes.set_ylim(min(0.45, low - 0.02), 1.02)
    axes.set_xlim(-0.02, 1.02)
    best = [u for u in report.ranked("auroc")[:_NAMED] if not np.isnan(report.auroc[u])]
    _names(axes, [f"{u}: {report.best_class[u]}, {report.auroc[u]:.3f}" for u in best], 0.4)
    return "How well it tells its best class from the rest"


def _bars(
    report: UnitReport, axes: Axes, heights: np.ndarray, order: np.ndarray, flags: tuple[str, ...]
) -> None:
    """Shares as bars, coloured by flag, with the names of the flags that occur."""
    colours = [_colour(report, unit, flags) for unit in order.tolist()]
    axes.bar(np.arange(len(order)), heights, width=1.0, color=colours, linewidth=0)
    axes.set_xlim(-0.5, max(len(order) - 0.5, 0.5))
    axes.set_ylim(0, 1.02)
    for place, name in enumerate(name for name in flags if getattr(report, name).any()):
        _corner(axes, name, 0.88 - 0.1 * place, colour=_COLOURS[name], left=True)


def _colour(report: UnitReport, unit: int, flags: tuple[str, ...]) -> str:
    found = next((name for name in flags if getattr(report, name)[unit]), None)
    return _COLOURS[found] if found else SERIES[0]


def _names(axes: Axes, lines: list[str], top: float, *, left: bool = False) -> None:
    _corner(axes, "\n".join(fit(line, 1.6, SMALL_PT) for line in lines), top, left=left)


def _corner(axes: Axes, text: str, top: float, *, colour: str = INK, left: bool = False) -> None:
    """Small print at the edge of a panel; `top` in its heights."""
    axes.text(
        0.02 if left else 0.98, top, text, transform=axes.transAxes, color=colour, va="top",
        ha="left" if left else "right", fontsize=SMALL_PT, parse_math=False, bbox=_PAPER,
    )  # fmt: skip


_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
