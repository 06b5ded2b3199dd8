"""A unit's strongest patches as one picture: each enlarged, beside the image that it comes from.

All patches of a sheet have one scale: one that the border of its image cuts short stands where it
would in a whole one. Where the receptive field is most of the image, the images alone are shown,
with the field and the cell of the maximum drawn in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from timmscope.figures import sheet_figure
from timmscope.mining.patches import Patch
from timmscope.receptive_fields import Box

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 448
"""Height of a tile in pixels."""
_GAP = 14
_FIELD, _CELL = "#e69f00", "#56b4e9"
_OUTSIDE = "#e8eaee"
_MOST = 0.5
"""Of the image's area: a field as large as this is not cut out on the sheet."""


def patch_figure(patches: Sequence[Patch], title: str = "") -> Figure:
    """Draw patches with the unit's value under each, and say below which field they show.

    Raises:
        ParameterError: no patches.
    """
    apart = bool(patches) and not _large(patches[0])
    tiles = [_tile(patch, apart=apart) for patch in patches]
    columns = min(8, math.ceil(math.sqrt(len(patches))))
    if apart:
        columns = min(4, columns)
    widest = 2.7 if apart else 1.6
    return sheet_figure(
        [torch.from_numpy(np.asarray(tile).copy()).permute(2, 0, 1) / 255 for tile in tiles],
        [f"{patch.entry.value:.4g}" for patch in patches],
        title=title,
        note=_note(patches[0], apart=apart) if patches else "",
        columns=columns or None,
        cell_in=max(min(widest, 8.5 / max(columns, 1)), 4.4 / max(columns, 1)),  # room for the note
    )


def _large(patch: Patch) -> bool:
    height, width = patch.field.size
    whole = patch.whole.width * patch.whole.height
    return min(height, patch.whole.height) * min(width, patch.whole.width) > _MOST * whole


def _note(patch: Patch, *, apart: bool) -> str:
    field = patch.field
    if field.grid is None:
        return "no grid: the unit sees the whole image; below: its value"
    height, width = field.size
    named = f"{field.kind} receptive field, {width}x{height} px"
    if apart:
        return f"{named}, and where it is; below: the maximum"
    return f"outlined: {named}, and the cell; below: its value"


def _tile(patch: Patch, *, apart: bool) -> Image.Image:
    scale = _SIDE / patch.whole.height
    whole = patch.whole.resize((round(patch.whole.width * scale), _SIDE), Image.Resampling.BICUBIC)
    if patch.field.grid is not None:
        if not apart:
            _outline(whole, patch.cell, scale, _CELL)
        _outline(whole, patch.box, scale, _FIELD)
    if not apart:
        return whole
    framed = _framed(patch)
    enlarged = min(_SIDE / framed.height, _SIDE / framed.width)
    size = (round(framed.width * enlarged), round(framed.height * enlarged))
    cut = framed.resize(size, Image.Resampling.NEAREST)
    tile = Image.new("RGB", (_SIDE + _GAP + whole.width, _SIDE), "white")
    tile.paste(cut, ((_SIDE - cut.width) // 2, (_SIDE - cut.height) // 2))
    tile.paste(whole, (_SIDE + _GAP, 0))
    return tile


def _framed(patch: Patch) -> Image.Image:
    """The patch in a frame of the size of a whole field."""
    height, width = patch.field.size
    frame = Image.new("RGB", (width, height), _OUTSIDE)
    left, upper = (width - patch.image.width) // 2, (height - patch.image.height) // 2
    if patch.field.unclipped is not None:
        free = patch.field.box(patch.entry.position, clip=False)
        left, upper = patch.box[0] - free[0], patch.box[1] - free[1]
    frame.paste(patch.image, (left, upper))
    return frame


def _outline(image: Image.Image, box: Box, scale: float, colour: str) -> None:
    """A frame outside a box where there is room, so that what is in small ones stays visible."""
    left, upper, right, lower = (round(edge * scale) for edge in box)
    draw = ImageDraw.Draw(image)
    for out, width, ink in ((5, 7, "black"), (4, 4, colour)):
        start = (max(0, left - out), max(0, upper - out))
        end = (min(image.width, right + out) - 1, min(image.height, lower + out) - 1)
        draw.rectangle((*start, *end), outline=ink, width=width)
