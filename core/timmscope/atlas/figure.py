"""Draws an atlas: sheets of cards, one for each unit, and all synthesised images together.

On a card the synthesised image stands beside a block of its size with the patches, all of one
size, the best at the upper left.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from timmscope.drawing import (
    Canvas,
    format_number,
    line_height,
    sheet_figure,
    theme,
    truncate,
)
from timmscope.drawing.style import LABEL_PT, MARGIN_IN, MUTED, SMALL_PT, TITLE_PT

from .result import grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import Atlas

_SIDE = 1.56
"""Side of a synthesised image, and of the block of patches, in inches."""
_INNER, _PATCH_GAP = 0.07, 0.035
_GAP_X, _GAP_Y = 0.32, 0.2
_HEAD = line_height(LABEL_PT) + 0.05
_WIDTH = 10.8
_MOST_SHOWN = 4
"""Largest number of synthesised images of a unit that a card shows."""
_EMPTY = 0xF1
_MOST_SMALL = 1200
"""Largest number of images that are shown together."""

Place = tuple[Any, float, float, float, float]


def page_figure(atlas: Atlas, number: int) -> Figure:
    """Draw a sheet of cards."""
    first = number * atlas.per_page
    units = atlas.units[first : first + atlas.per_page].tolist()
    blocks = min(max(1, atlas.scores.shape[1]), _MOST_SHOWN)
    card = (blocks + atlas.has_patches) * (_SIDE + _INNER) - _INNER
    columns = max(1, int((_WIDTH - 2 * MARGIN_IN + _GAP_X) / (card + _GAP_X)))
    columns = min(columns, len(atlas.units))
    rows = -(-len(units) // columns)
    width = max(2 * MARGIN_IN + columns * (card + _GAP_X) - _GAP_X, 4.8)
    room = width - 2 * MARGIN_IN
    title = truncate(f"{atlas.layer} of {atlas.provenance.model}", room, TITLE_PT, bold=True)
    note = truncate(_note(atlas), room, SMALL_PT, lines=4)
    head = MARGIN_IN + line_height(TITLE_PT) + line_height(SMALL_PT) + 0.14
    body = rows * (_HEAD + _SIDE + _GAP_Y) - _GAP_Y
    foot = line_height(SMALL_PT, note.count("\n") + 1)
    with theme():
        page = Canvas(width, head + body + 0.16 + foot + MARGIN_IN)
        page.text(title, MARGIN_IN, MARGIN_IN - 0.02, size=TITLE_PT, bold=True)
        below = MARGIN_IN + line_height(TITLE_PT)
        page.text(_counts(atlas, number, units), MARGIN_IN, below, size=SMALL_PT, colour=MUTED)
        places: list[Place] = []
        for place, unit in enumerate(units):
            row, column = divmod(place, columns)
            left = MARGIN_IN + column * (card + _GAP_X)
            top = head + row * (_HEAD + _SIDE + _GAP_Y)
            places += _card(page, atlas, unit, left, top, blocks)
        page.arrays(places)
        page.text(note, MARGIN_IN, page.height - MARGIN_IN - foot, size=SMALL_PT, colour=MUTED)
    return page.figure


def _card(
    page: Canvas, atlas: Atlas, unit: int, left: float, top: float, blocks: int
) -> Iterator[Place]:
    """Write the texts of a card, and yield its pictures with their places."""
    place, upper = atlas.place(unit), top + _HEAD
    scores = atlas.scores[place].tolist()
    page.text(str(unit), left, top, bold=True)
    for number, image in enumerate(atlas.images(unit)[:_MOST_SHOWN]):
        at = left + number * (_SIDE + _INNER)
        yield np.asarray(image), at, upper, _SIDE, _SIDE
        _write_right(page, format_number(scores[number]), at + _SIDE, top)
    if (reason := atlas.refused.get(str(unit))) is not None:
        yield np.full((8, 8, 3), _EMPTY, np.uint8), left, upper, _SIDE, _SIDE
        _write_refusal(page, reason, left, upper)
    if not atlas.has_patches:
        return
    beside = left + blocks * (_SIDE + _INNER)
    _, columns = grid(atlas.image_ids.shape[1])
    side = (_SIDE - (columns - 1) * _PATCH_GAP) / columns
    patches = atlas.patches(unit)
    for rank, patch in enumerate(patches):
        row, column = divmod(rank, columns)
        step = side + _PATCH_GAP
        yield np.asarray(patch), beside + column * step, upper + row * step, side, side
    if patches:
        values = atlas.values[place, [0, len(patches) - 1]].tolist()
        text = " to ".join(dict.fromkeys(map(format_number, values)))
        _write_right(page, text, beside + _SIDE, top)


def _write_right(page: Canvas, text: str, right: float, top: float) -> None:
    lower = top + (LABEL_PT - SMALL_PT) / 72  # on one baseline with the unit's number
    page.text(text, right, lower, size=SMALL_PT, colour=MUTED, align="right")


def _write_refusal(page: Canvas, reason: str, left: float, top: float) -> None:
    text = truncate(reason, _SIDE - 0.2, SMALL_PT, lines=7)
    height = line_height(LABEL_PT) + line_height(SMALL_PT, text.count("\n") + 1)
    start = top + (_SIDE - height) / 2
    page.text("no image", left + _SIDE / 2, start, align="center", colour=MUTED, bold=True)
    page.text(text, left + _SIDE / 2, start + line_height(LABEL_PT), size=SMALL_PT, colour=MUTED,
              align="center")  # fmt: skip


def _counts(atlas: Atlas, number: int, units: list[int]) -> str:
    parts = [f"units {units[0]} to {units[-1]}" if len(units) > 1 else f"unit {units[0]}"]
    if atlas.pages > 1:
        parts.append(f"page {number} of 0 to {atlas.pages - 1}")
    return ", ".join([*parts, f"{len(atlas.units):,} units in the atlas"])


def _note(atlas: Atlas) -> str:
    text = f"left: {atlas.technique} of the unit, with its mean over the positions"
    if not atlas.has_patches:
        return text.removeprefix("left: ")
    fields = list(dict.fromkeys(filter(None, atlas.fields)))
    field = fields[0] if len(fields) == 1 else "effective receptive field of each unit"
    text += (
        f"; right: the images of the {atlas.image_ids.shape[1]} highest maxima of the unit, the "
        f"highest at the upper left, with the highest and the lowest of them; {field}"
    )
    if atlas.lost:
        text += f"; grey: {len(atlas.lost)} images that can no longer be read"
    return text


def overview_figure(atlas: Atlas) -> Figure:
    """Draw all synthesised images in a grid; a grey field stands for a unit without one."""
    units = atlas.units.tolist()[:_MOST_SMALL]
    few = len(units) <= 48
    cell = 0.9 if few else 0.62 if len(units) <= 240 else 0.4
    rows = -(-len(units) // int((_WIDTH - 1) / (cell + 0.05)))
    columns = -(-len(units) // rows)
    side = 128 if few else 96 if len(units) <= 240 else 64
    note = f"{atlas.technique}; grey: no image" if atlas.refused else atlas.technique
    if left_out := len(atlas.units) - len(units):
        note += f"; {left_out:,} more units are on the sheets"
    return sheet_figure(
        [_small(atlas, unit, side) for unit in units],
        [str(unit) for unit in units] if few else None,
        columns=columns,
        title=f"{atlas.layer} of {atlas.provenance.model}: {len(atlas.units):,} units",
        row_labels=None if few else [str(unit) for unit in units[::columns]],
        note=note,
        cell_in=cell,
        gap_in=0.05,
    )


def _small(atlas: Atlas, unit: int, side: int) -> np.ndarray:
    """Return a unit's first image, `(3, side, W)` in [0, 1]."""
    for image in atlas.images(unit)[:1]:
        size = (max(1, round(image.width * side / image.height)), side)
        small = image.resize(size, Image.Resampling.BOX, reducing_gap=None)
        return np.asarray(small, np.float32).transpose(2, 0, 1) / 255
    return np.full((3, side, side), _EMPTY / 255, np.float32)
