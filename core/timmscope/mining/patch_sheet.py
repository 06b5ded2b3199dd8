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


def patch_figure(
    patches: Sequence[Patch], title: str = "", views: Sequence[Patch] | None = None
) -> Figure:
    """Draw patches with the unit's value under each, and say below which field they show.

    Args:
        patches: of `top_patches`.
        title: of the sheet.
        views: of `patch_views`: what of each patch the unit answered to, beside it.

    Raises:
        ParameterError: no patches.
    """
    apart = bool(patches) and not _large(patches[0])
    beside: Sequence[Patch | None] = [None] * len(patches) if views is None else views
    pairs = zip(patches, beside, strict=True)
    tiles = [_tile(patch, view, apart=apart) for patch, view in pairs]
    columns = min(8, math.ceil(math.sqrt(len(patches))))
    abreast = 1 + apart + (views is not None)  # pictures in a tile
    columns = min(columns, {1: 8, 2: 4, 3: 2}[abreast])
    widest = {1: 1.6, 2: 2.7, 3: 4.0}[abreast]
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


def _tile(patch: Patch, view: Patch | None, *, apart: bool) -> Image.Image:
    whole = _of_height(patch.whole)
    if patch.field.grid is not None:
        scale = _SIDE / patch.whole.height
        if not apart:
            _outline(whole, patch.cell, scale, _CELL)
        _outline(whole, patch.box, scale, _FIELD)
    if not apart:
        return _in_a_row([whole] if view is None else [whole, _of_height(view.whole)])
    return _in_a_row([*(_enlarged(each) for each in (patch, view) if each is not None), whole])


def _of_height(picture: Image.Image) -> Image.Image:
    width = round(picture.width * _SIDE / picture.height)
    return picture.resize((width, _SIDE), Image.Resampling.BICUBIC)


def _enlarged(patch: Patch) -> Image.Image:
    """The patch in its frame, its pixels kept apart, on a white square."""
    framed = _framed(patch)
    scale = min(_SIDE / framed.height, _SIDE / framed.width)
    size = (round(framed.width * scale), round(framed.height * scale))
    cut = framed.resize(size, Image.Resampling.NEAREST)
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    square.paste(cut, ((_SIDE - cut.width) // 2, (_SIDE - cut.height) // 2))
    return square


def _in_a_row(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    row, left = Image.new("RGB", (width, _SIDE), "white"), 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + _GAP
    return row


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
