"""The figure of a data-set comparison: measures, both sets in a plane, and far images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from timmscope.drawing import (
    GAP_IN,
    INK,
    LABEL_PT,
    MARGIN_IN,
    MUTED,
    SERIES,
    SMALL_PT,
    TITLE_PT,
    Canvas,
    format_number,
    format_with_error,
    line_height,
    short_names,
    text_width,
    theme,
    to_array,
    truncate,
    truncate_middle,
)

if TYPE_CHECKING:
    from timmscope_representation.distances.dataset_comparison import DatasetComparison

_PAGE = 10.2
_SIDE = 1.05
"""Width of the row labels at the left."""
_PLOT_W, _PLOT_H = 3.6, 2.5
_AXIS_LEFT, _AXIS_BELOW = 0.5, 0.4
_STEP = line_height(LABEL_PT) + 0.12
_NAME = 0.8
"""Width of a set's name in the meaning of a measure."""
_COLUMNS = 8
_CELL = (_PAGE - 2 * MARGIN_IN - _SIDE - (_COLUMNS - 1) * GAP_IN) / _COLUMNS
_CAPTIONS = (line_height(SMALL_PT, 2) + 0.12, line_height(SMALL_PT) + 0.3)
"""Heights below far images (name and distance) and nearest ones (name, then space)."""
_LISTED = 8
_LINE = line_height(LABEL_PT) + 0.04


def dataset_figure(result: DatasetComparison) -> Figure:
    """Measures and points above, below them the images of each set that the other lacks."""
    room = _PAGE - 2 * MARGIN_IN
    first, second = result.titles
    heading = truncate(f"{second} compared with {first}", room, TITLE_PT, lines=2, bold=True)
    top = MARGIN_IN + line_height(TITLE_PT, heading.count("\n") + 1)
    head = top + line_height(LABEL_PT) + 0.12
    width = room - _PLOT_W - _AXIS_LEFT - 0.35
    lines, notes = _lines_of(result), _notes(result, width)
    table = len(lines) * _STEP + line_height(SMALL_PT, notes.count("\n") + 1)
    upper = max(table, line_height(LABEL_PT) + 0.06 + _PLOT_H + _AXIS_BELOW) + 0.15
    heights = [_height(result, which) for which in (0, 1)]
    with theme():
        page = Canvas(_PAGE, head + upper + sum(heights) + MARGIN_IN)
        page.text(heading, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        page.text(truncate(result.features, room), MARGIN_IN, top, colour=MUTED)
        _measures(page, lines, notes, head, width)
        _points(page, result, _PAGE - MARGIN_IN - _PLOT_W, head, line_height(LABEL_PT) + 0.06)
        place = head + upper
        for which, height in enumerate(heights):
            (_listed if result.pictures_of is None else _pictured)(page, result, which, place)
            place += height
    return page.figure


def _lines_of(result: DatasetComparison) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each measure."""
    first, second = (truncate_middle(title, _NAME, SMALL_PT) for title in result.titles)
    return [
        ("FID", format_number(result.fid), "distance of Gaussians; 0 if equal"),
        (
            "KID",
            format_with_error(result.kid, result.kid_error),
            "discrepancy, unbiased; near 0 if equal",
        ),
        ("precision", f"{result.precision:.3f}", f"share of {second} that is like {first}"),
        ("recall", f"{result.recall:.3f}", f"share of {first} that is like {second}"),
        ("density", f"{result.density:.3f}", f"{first} around {second}; near 1 if equal"),
        ("coverage", f"{result.coverage:.3f}", f"share of {first} with {second} near it"),
    ]


def _notes(result: DatasetComparison, width: float) -> str:
    counts = [
        f"{count:,} {title}" for count, title in zip(result.images, result.titles, strict=True)
    ]
    notes = [f"Images: {', '.join(counts)}; {result.k} neighbours.", *result.remarks]
    wrapped = (truncate(note, width - 0.12, SMALL_PT, lines=3) for note in notes)
    return "\n".join("• " + note.replace("\n", "\n   ") for note in wrapped)


def _measures(
    page: Canvas, lines: list[tuple[str, str, str]], notes: str, top: float, width: float
) -> None:
    """One line per measure, and the notes below them."""
    names = max(text_width(name, LABEL_PT) for name, _, _ in lines) + 0.2
    right = MARGIN_IN + names + max(text_width(value, LABEL_PT, bold=True) for _, value, _ in lines)
    for row, (name, value, meaning) in enumerate(lines):
        at = top + row * _STEP
        page.text(name, MARGIN_IN, at)
        page.text(value, right, at, align="right", bold=True)
        text = truncate(meaning, MARGIN_IN + width - right - 0.2, SMALL_PT)
        page.text(text, right + 0.2, at + 0.015, size=SMALL_PT, colour=MUTED)
        page.rule(MARGIN_IN, at + _STEP - 0.07, width, "#e8eaee")
    page.text(notes, MARGIN_IN, top + len(lines) * _STEP + 0.03, size=SMALL_PT, colour=MUTED)


def _points(page: Canvas, result: DatasetComparison, left: float, top: float, head: float) -> None:
    """Both sets in the plane of the largest variance, with different colours and marks."""
    axes = page.axes(left, top + head, _PLOT_W, _PLOT_H)
    points = result.points.numpy()
    sets = np.split(points, [result.shown[0]])
    size = float(np.clip(2500 / max(map(len, sets)), 6, 22))
    for place, (found, mark) in enumerate(zip(sets, "o^", strict=True)):
        axes.scatter(
            found[:, 0],
            found[:, 1],
            s=size,
            marker=mark,
            facecolors=SERIES[0] if place == 0 else "none",
            edgecolors="none" if place == 0 else SERIES[1],
            linewidths=0.7,
            alpha=0.55 if place == 0 else 0.8,
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.05)
    axes.tick_params(length=3, width=0.6)
    for label, share, axis in zip("12", result.explained, (axes.xaxis, axes.yaxis), strict=True):
        axis.set_label_text(f"principal component {label} ({share:.0%})")
    half = _PLOT_W / 2
    for place, title in enumerate(result.titles):
        at = left + place * half
        _mark(page, at + 0.06, top + line_height(LABEL_PT) / 2, place)
        page.text(truncate_middle(title, half - 0.25), at + 0.17, top)


def _mark(page: Canvas, left: float, top: float, place: int) -> None:
    """The mark of a set, for a legend."""
    from matplotlib.lines import Line2D

    page.figure.add_artist(
        Line2D(
            [left / page.width],
            [1 - top / page.height],
            marker="o^"[place],
            markersize=5,
            linestyle="",
            markerfacecolor=SERIES[0] if place == 0 else "none",
            markeredgecolor=SERIES[place],
        )
    )


def _heading(page: Canvas, result: DatasetComparison, which: int, top: float) -> None:
    room = (page.width - 2 * MARGIN_IN - 3.6) / 2  # next to the other words
    titles = [truncate_middle(title, room, bold=True) for title in result.titles]
    own, other = titles[which], titles[1 - which]
    text = f"What {other} lacks: images of {own} farthest from it"
    if not result.far_names[which]:
        text = f"{other} lacks nothing: it holds an equal of each image of {own}"
    _mark(page, MARGIN_IN + 0.05, top + line_height(LABEL_PT) / 2, which)
    text = truncate(text, page.width - 2 * MARGIN_IN - 0.2, bold=True)
    page.text(text, MARGIN_IN + 0.17, top, bold=True)


def _height(result: DatasetComparison, which: int) -> float:
    """Height of the far images of one set."""
    count = len(result.far_names[which])
    head = line_height(LABEL_PT) + 0.1
    if not count:
        return head + 0.1
    if result.pictures_of is None:
        return head + min(count, _LISTED) * _LINE + 0.1
    return head + 2 * _CELL + sum(_CAPTIONS)


def _pictured(page: Canvas, result: DatasetComparison, which: int, top: float) -> None:
    """The far images above the nearest of the other set."""
    assert result.pictures_of is not None
    _heading(page, result, which, top)
    top += line_height(LABEL_PT) + 0.1
    names = short_names(result.far_names[which][:_COLUMNS])
    nearest = short_names(result.nearest_names[which])
    gaps = [f"{format_number(gap)} away" for gap in result.far_distances[which]]
    places = [MARGIN_IN + _SIDE + column * (_CELL + GAP_IN) for column in range(len(names))]
    rows = (
        (f"farthest of\n{result.titles[which]}", INK, names, gaps),
        (f"nearest of\n{result.titles[1 - which]}", MUTED, nearest, None),
    )
    for row, (label, colour, captions, below) in enumerate(rows if names else ()):
        head, _, title = label.partition("\n")
        label = f"{head}\n{truncate_middle(title, _SIDE - 0.1, SMALL_PT)}"
        page.text(label, MARGIN_IN, top, size=SMALL_PT, colour=colour)
        page.arrays(
            (to_array(result.pictures_of[which, row, column]), place, top, _CELL, _CELL)
            for column, place in enumerate(places)
        )
        for column, place in enumerate(places):
            text = truncate_middle(captions[column], _CELL + GAP_IN / 2, SMALL_PT)
            text += f"\n{below[column]}" if below else ""
            at = (place + _CELL / 2, top + _CELL + 0.04)
            page.text(text, *at, size=SMALL_PT, colour=MUTED, align="center")
        top += _CELL + _CAPTIONS[row]


def _listed(page: Canvas, result: DatasetComparison, which: int, top: float) -> None:
    """The names of the far images, where there are no thumbnails."""
    _heading(page, result, which, top)
    names = [truncate_middle(name, 4.0) for name in result.far_names[which][:_LISTED]]
    right = MARGIN_IN + 1.0 + max((text_width(name, LABEL_PT) for name in names), default=0.0)
    for row, name in enumerate(names):
        at = top + line_height(LABEL_PT) + 0.1 + row * _LINE
        page.text(name, MARGIN_IN + 0.17, at)
        gap = f"{format_number(result.far_distances[which][row])} from"
        page.text(gap, right, at, align="right", colour=MUTED)
        nearest = truncate_middle(result.nearest_names[which][row], 4.0)
        page.text(nearest, right + 0.1, at, colour=MUTED)
