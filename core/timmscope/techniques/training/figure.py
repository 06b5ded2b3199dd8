"""Draws a training: curves of the loss, the learning rate, held-out figures and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from timmscope.drawing.canvas import Canvas, line_height
from timmscope.drawing.style import (
    GAP_IN,
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    format_number,
    theme,
    truncate,
)

if TYPE_CHECKING:
    from timmscope.techniques.training.result import Training

_WIDTH, _LOSS, _RATE = 4.6, 2.3, 0.75  # all sizes are in inches
_LEFT, _BELOW = 0.62, 0.45
_FACTS, _SIDE = 2.9, 1.0


def training_figure(training: Training) -> Figure:
    """Draw curves beside figures of held-out images, and rows of pictures below."""
    title = training.provenance.technique.rpartition(":")[2]
    head = MARGIN_IN + line_height(TITLE_PT) + line_height(SMALL_PT) + 0.14
    facts = _facts(training)
    spacing = line_height(LABEL_PT) * 1.12
    height = sum(len(lines) * spacing + 0.3 for lines in facts.values())
    upper = max(_LOSS + 0.16 + _RATE + _BELOW, height)
    facts_left = MARGIN_IN + _LEFT + _WIDTH + 0.4
    width = facts_left + _FACTS + MARGIN_IN
    rows = [] if training.previews is None else list(training.previews)
    columns = len(rows[0]) if rows else 1
    side = min(_SIDE, (width - 2 * MARGIN_IN + GAP_IN) / columns - GAP_IN)
    tall = side * rows[0].shape[-2] / rows[0].shape[-1] if rows else 0.0
    pitch = tall + line_height(SMALL_PT) + 0.12
    with theme():
        page = Canvas(width, head + upper + len(rows) * pitch + MARGIN_IN)
        page.text(title, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        about = truncate(_about(training), width - 2 * MARGIN_IN, SMALL_PT)
        below = MARGIN_IN + line_height(TITLE_PT) + 0.02
        page.text(about, MARGIN_IN, below, size=SMALL_PT, colour=MUTED)
        _curves(page, training, MARGIN_IN + _LEFT, head)
        top = head
        for heading, lines in facts.items():
            page.text(heading, facts_left, top, size=SMALL_PT, colour=MUTED)
            top += line_height(SMALL_PT) + 0.03
            for name, value in lines:
                page.text(truncate(name, _FACTS - 0.7), facts_left, top)
                page.text(value, facts_left + _FACTS, top, align="right")
                top += spacing
            top += 0.1
        for number, (name, row) in enumerate(zip(training.preview_names, rows, strict=True)):
            top = head + upper + number * pitch
            page.text(f"held out: {name}", MARGIN_IN, top, size=SMALL_PT, colour=MUTED)
            top += line_height(SMALL_PT) + 0.02
            for column, picture in enumerate(row):
                page.picture(picture, MARGIN_IN + column * (side + GAP_IN), top, side, tall)
    return page.figure


def _curves(page: Canvas, training: Training, left: float, top: float) -> None:
    steps = training.steps.numpy()
    axes = page.axes(left, top, _WIDTH, _LOSS)
    losses = training.losses.double().numpy()
    for place, name in enumerate(training.terms):
        line = "-" if place < len(SERIES) else (0, (4, 2))
        colour = SERIES[place % len(SERIES)]
        label = "loss" if name == "total" else name
        axes.plot(steps, losses[:, place], color=colour, linestyle=line, label=label)
    if bool((losses > 0).all()):
        axes.set_yscale("log")
    axes.set_ylabel("mean in training")
    axes.tick_params(labelbottom=False)
    if len(training.terms) > 1:
        axes.legend(loc="best", frameon=False, fontsize=SMALL_PT)
    rates = page.axes(left, top + _LOSS + 0.16, _WIDTH, _RATE)
    rates.plot(steps, training.rates.double().numpy(), color=INK, linewidth=1)
    rates.set_ylim(0, float(training.rates.max()) * 1.15)
    rates.yaxis.set_major_locator(MaxNLocator(2))
    rates.set_ylabel("rate")
    rates.set_xlabel("step")
    for each in (axes, rates):
        each.set_xlim(0, max(2, int(steps[-1])))


def _facts(training: Training) -> dict[str, list[tuple[str, str]]]:
    """Return names and values of the lines at the right, by their headings."""
    data, cost = training.card["data"], training.card["cost"]
    return {
        "mean over held-out images": [
            (name, format_number(value)) for name, value in training.held_out.items()
        ],
        "training": [
            ("images", f"{data['images']:,}"),
            ("held-out images", f"{data['held_out_images']:,}"),
            ("cost beside standard training", f"{cost['times_standard']:.3g} ×"),
        ],
    }


def _about(training: Training) -> str:
    model = training.provenance.model or ""
    stopped = training.card["stopped"]
    return f"{model}, {int(training.steps[-1]):,} steps" + (f"; {stopped}" if stopped else "")
