"""Draws a run over an image set: a few images, shares with intervals, histograms of numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from timmscope.drawing import (
    Canvas,
    HeatScale,
    colourise,
    line_height,
    short_names,
    text_width,
    theme,
    truncate,
    truncate_middle,
)
from timmscope.drawing.style import (
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    format_number,
    format_share,
)
from timmscope.techniques.over.columns import share_interval

if TYPE_CHECKING:
    from timmscope.techniques.over.result import ImageSetRun

_ACROSS, _GAP = 8, 0.12
_ROW_H = 0.27
_PANEL_W, _PANEL_H, _BETWEEN = 2.1, 1.15, 0.4
_PANELS = 4
_MOST_BINS = 40


def run_figure(run: ImageSetRun) -> Figure:
    """Draw what a technique has done to an image set."""
    shares = [name for name, is_share in zip(run.columns, run.shares, strict=True) if is_share]
    numbers = [
        name
        for name, is_share in zip(run.columns, run.shares, strict=True)
        if not is_share and _varies(run.column(name))
    ]
    numbers = sorted(numbers, key=lambda name: not name.startswith("radius"))[:_PANELS]
    rows = [run.shown_from] if run.shown_from is not None else []
    rows += [_pictures(run.shown)] if run.shown is not None else []
    width = 2 * MARGIN_IN + _PANELS * (_PANEL_W + _BETWEEN) - _BETWEEN
    cell = (width - 2 * MARGIN_IN + _GAP) / _ACROSS - _GAP
    head = MARGIN_IN + line_height(TITLE_PT) + line_height(SMALL_PT) + 0.18
    below = head + len(rows) * (cell + _GAP)
    below += line_height(SMALL_PT) + 0.12 if rows else 0
    shares_h = len(shares) * _ROW_H + (0.25 if shares else 0)
    numbers_top = below + shares_h + (0.1 if shares else 0)
    height = numbers_top + (line_height(LABEL_PT) + _PANEL_H + 0.5 if numbers else 0) + MARGIN_IN
    with theme():
        page = Canvas(width, height)
        name = run.provenance.technique.rpartition(":")[2]
        room = width - 2 * MARGIN_IN
        title = f"{name} over {run.count:,} images, {run.provenance.model or 'no model'}"
        page.text(truncate(title, room, TITLE_PT, bold=True), MARGIN_IN, MARGIN_IN - 0.02,
                  size=TITLE_PT, bold=True)  # fmt: skip
        page.text(_counts(run), MARGIN_IN, MARGIN_IN + line_height(TITLE_PT) + 0.02,
                  size=SMALL_PT, colour=MUTED)  # fmt: skip
        for row, images in enumerate(rows):
            top = head + row * (cell + _GAP)
            page.arrays(
                (image.permute(1, 2, 0).clamp(0, 1).numpy().repeat(3 // len(image), 2),
                 MARGIN_IN + place * (cell + _GAP), top, cell, cell)
                for place, image in enumerate(images)
            )  # fmt: skip
        for place, shown in enumerate(short_names(run.shown_names) if rows else []):
            left = MARGIN_IN + place * (cell + _GAP) + cell / 2
            page.text(truncate_middle(shown, cell, SMALL_PT), left,
                      head + len(rows) * (cell + _GAP) - 0.06,
                      size=SMALL_PT, colour=MUTED, align="center")  # fmt: skip
        _draw_shares(page, run, shares, below)
        for place, each in enumerate(numbers):
            left = MARGIN_IN + place * (_PANEL_W + _BETWEEN)
            _draw_numbers(page, run, each, left, numbers_top)
    return page.figure


def _pictures(made: Tensor) -> Tensor:
    """Return images `(n, C, H, W)`, or maps `(n, H, W)` in colours."""
    if made.ndim == 4:
        return made
    signed = bool((made < 0).any())
    coloured = [colourise(each, HeatScale.of(each, signed=signed)) for each in made]
    return torch.stack(coloured)


def _counts(run: ImageSetRun) -> str:
    parts = [f"{run.made:,} of {run.count:,} images"]
    for found, what in ((run.unreadable, "unreadable"), (run.refused, "refused")):
        parts += [f"{len(found):,} {what}"] if found else []
    return f"{', '.join(parts)}; 95 % intervals"


def _varies(column: Tensor) -> bool:
    """Return whether finite values differ by more than rounding, so that a histogram shows them."""
    known = column[column.isfinite()]
    if len(known) < 2:
        return False
    return bool(known.max() - known.min() > 1e-4 * known.abs().max())


def _draw_shares(page: Canvas, run: ImageSetRun, names: list[str], top: float) -> None:
    """Draw a bar for each share, with its interval and its value."""
    if not names:
        return
    left = MARGIN_IN + 0.12 + max(text_width(name.replace("_", " "), LABEL_PT) for name in names)
    axes = page.axes(left, top, page.width - left - MARGIN_IN - 1.5, len(names) * _ROW_H)
    for row, name in enumerate(names):
        column = run.column(name)
        known = column[~column.isnan()]
        hits, count = int(known.sum()), len(known)
        share, (low, high) = hits / max(count, 1), share_interval(hits, count)
        axes.barh(row, share, height=0.55, color=SERIES[0], alpha=0.8)
        if not math.isnan(low):
            axes.plot([low, high], [row, row], color="black", linewidth=1.2)
        middle = top + (row + 0.5) * _ROW_H - line_height(LABEL_PT) / 2
        page.text(name.replace("_", " "), left - 0.1, middle, align="right")
        text = f"{format_share(share)}  ({hits:,} of {count:,})"
        page.text(text, page.width - MARGIN_IN - 1.4, middle, colour=MUTED, size=SMALL_PT)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), yticks=[])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(length=3, width=0.6)


def _draw_numbers(page: Canvas, run: ImageSetRun, name: str, left: float, top: float) -> None:
    """Draw a histogram of the finite values; a note says how many are infinite."""
    column = run.column(name)
    known = column[~column.isnan()].numpy()
    finite = known[np.isfinite(known)]
    page.text(truncate(name.replace("_", " "), _PANEL_W, LABEL_PT, bold=True), left, top, bold=True)
    axes: Axes = page.axes(left, top + line_height(LABEL_PT) + 0.24, _PANEL_W, _PANEL_H)
    axes.hist(
        finite,
        bins=min(_MOST_BINS, max(6, math.ceil(2 * len(finite) ** 0.5))),
        color=SERIES[0],
        alpha=0.8,
    )
    median = float(np.median(known))
    note = f"median {format_number(median) if math.isfinite(median) else 'infinite'}"
    if len(finite) < len(known):
        note += f", {len(known) - len(finite):,} infinite"
    if math.isfinite(median):
        axes.axvline(median, color="black", linewidth=1)
    page.text(note, left, top + line_height(LABEL_PT) + 0.02, size=SMALL_PT, colour=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.tick_params(length=3, width=0.6)
