"""Draws decision slices: regions of classes with a legend, and contours of the label's margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from timmscope.drawing import (
    GAP_IN,
    INK,
    LABEL_PT,
    MARGIN_IN,
    MAX_ROWS,
    MUTED,
    PAPER,
    SMALL_PT,
    TITLE_PT,
    Canvas,
    Group,
    format_number,
    group_by_class,
    line_height,
    short_names,
    theme,
    truncate,
    truncate_middle,
)

if TYPE_CHECKING:
    from timmscope_attack.decision_slice import DecisionPlanes

_SIDE, _PICTURE, _LEGEND = 2.5, 1.1, 1.75  # all sizes are in inches
_LEFT, _BELOW = 0.6, 0.42
_LEVELS = 4
"""Number of contour lines of the margin on each side of the boundary."""
_PALEST, _DARKEST = 0.25, 0.8
"""Strength of a region's colour at the boundary of the label, and far from it."""


def decision_slice_figure(result: DecisionPlanes) -> Figure:
    """Draw one row per image: the image, the changed one, the plane of each model, the classes."""
    count = min(len(result.images), MAX_ROWS)
    models = len(result.models)
    head = MARGIN_IN + line_height(TITLE_PT) + line_height(SMALL_PT) + 0.1
    caption = line_height(LABEL_PT) + 0.05
    step_x, step_y = _LEFT + _SIDE + GAP_IN, caption + _SIDE + _BELOW + 0.2
    first = MARGIN_IN + _PICTURE + GAP_IN
    width = first + models * step_x + _LEGEND + MARGIN_IN
    left_out = len(result.images) - count
    with theme():
        page = Canvas(width, head + count * step_y + 0.05 + bool(left_out) * line_height(SMALL_PT))
        title = result.provenance.technique.rpartition(":")[2]
        page.text(title, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        page.text(
            "lines: margin of the image's class, thick where it is 0; the paler, the nearer to 0",
            MARGIN_IN, MARGIN_IN + line_height(TITLE_PT), size=SMALL_PT, colour=MUTED,
        )  # fmt: skip
        names = [truncate_middle(name, _SIDE) for name in short_names(result.models)]
        for row in range(count):
            top = head + row * step_y
            _draw_pictures(page, result, row, top + caption)
            groups = _groups(result, row)
            for place, name in enumerate(names):
                left = first + place * step_x + _LEFT
                page.text(name, left, top, bold=True)
                axes = page.axes(left, top + caption, _SIDE, _SIDE)
                _draw_plane(axes, result, row, place, groups)
            _draw_legend(page, groups, first + models * step_x, top + caption)
        if left_out:
            note = f"{left_out} more image{'s' * (left_out > 1)} not shown"
            page.text(note, MARGIN_IN, head + count * step_y, size=SMALL_PT, colour=MUTED)
    return page.figure


def _groups(result: DecisionPlanes, row: int) -> list[Group]:
    """Return names and colours of the classes on the planes of an image, the label first."""
    found = result.classes[row]
    label = int(result.labels[row])
    order = [label, *(index for index in found.unique().tolist() if index != label)]
    where = {index: place for place, index in enumerate(order)}
    names = []
    for index in order:
        models = (found == index).flatten(1).any(1).nonzero().flatten().tolist()
        names.append(result.name(models[0] if models else 0, index))
    codes = np.array([where[index] for index in found.flatten().tolist()])
    return group_by_class(names, codes)


def _draw_pictures(page: Canvas, result: DecisionPlanes, row: int, top: float) -> None:
    """Draw the image and the changed one below each other."""
    middle = result.places.shape[1] // 2
    tall = min(_PICTURE, (_SIDE - 0.2) / 2 - line_height(SMALL_PT))
    step = tall + line_height(SMALL_PT) + 0.08
    at_centre = result.name(0, int(result.classes[row, 0, middle, middle]))
    for number, (picture, mark, text) in enumerate(
        [
            (result.images[row], "●", at_centre),
            (result.adversarial[row], "×", f"{_amount(result, float(result.sizes[row]))}"),
        ]
    ):
        upper = top + number * step
        page.picture(picture, MARGIN_IN, upper, _PICTURE, tall)
        text = truncate(f"{mark} {text}", _PICTURE, SMALL_PT)
        page.text(text, MARGIN_IN, upper + tall + 0.03, size=SMALL_PT, colour=MUTED)


def _draw_plane(
    axes: Axes, result: DecisionPlanes, row: int, place: int, groups: list[Group]
) -> None:
    """Draw the regions of the classes, the contours of the margin and the two images."""
    scale = 255 if result.norm == "linf" else 1
    places = (result.places[row] * scale).numpy()
    margins = result.margins[row, place].double().numpy()
    points = len(places)
    colours = np.ones((points * points * len(result.models), 3))
    for group in groups:
        colours[group.members] = to_rgb(group.colour)
    colours = colours.reshape(len(result.models), points, points, 3)[place]
    finite = np.abs(margins[np.isfinite(margins)])
    far = float(np.quantile(finite, 0.9)) if finite.size else 1.0
    strength = _PALEST + (_DARKEST - _PALEST) * np.clip(np.abs(margins) / max(far, 1e-30), 0, 1)
    paper = np.array(to_rgb(PAPER))
    picture = paper + (colours - paper) * np.nan_to_num(strength)[..., None]
    half = (places[1] - places[0]) / 2
    edges = (places[0] - half, places[-1] + half)
    axes.imshow(picture, origin="lower", extent=(*edges, *edges), interpolation="nearest")
    low, high = float(margins.min()), float(margins.max())
    levels = [level for level in MaxNLocator(2 * _LEVELS).tick_values(low, high) if level]
    axes.contour(places, places, margins, levels=levels, colors=INK, linewidths=0.4, alpha=0.55,
                 linestyles="solid")  # fmt: skip
    if low < 0 < high:
        axes.contour(places, places, margins, levels=[0], colors=INK, linewidths=1.6)
    size = float(result.sizes[row]) * scale
    axes.plot([0, size], [0, 0], color=PAPER, linewidth=2.6)
    axes.plot([0, size], [0, 0], color=INK, linewidth=0.9)
    for at, marker in ((0.0, "o"), (size, "X")):
        axes.plot([at], [0], marker=marker, color=INK, markeredgecolor=PAPER, markersize=7,
                  linestyle="none")  # fmt: skip
    unit = "L∞, /255" if result.norm == "linf" else result.norm.upper()
    axes.set_xlabel(f"along the attack ({unit})")
    axes.set_ylabel(f"random direction ({unit})", labelpad=1)
    axes.set_xlim(*edges)
    axes.set_ylim(*edges)
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.tick_params(length=3, width=0.6)


def _draw_legend(page: Canvas, groups: list[Group], left: float, top: float) -> None:
    """Draw a patch of colour and a name for each class."""
    side, step = 0.11, line_height(SMALL_PT) * 1.3
    axes = page.axes(0, 0, page.width, page.height)
    axes.set(xlim=(0, page.width), ylim=(page.height, 0))
    axes.set_axis_off()
    for number, group in enumerate(groups):
        upper = top + number * step
        patch = Rectangle((left, upper + 0.01), side, side, facecolor=group.colour, alpha=_DARKEST)
        axes.add_patch(patch)
        name = truncate(group.name, _LEGEND - side - 0.08, SMALL_PT)
        page.text(name, left + side + 0.07, upper, size=SMALL_PT)


def _amount(result: DecisionPlanes, size: float) -> str:
    """Return the size of a change in its norm."""
    if result.norm == "linf":
        return f"L∞ {format_number(size * 255)}/255"
    return f"{result.norm.upper()} {format_number(size)}"
