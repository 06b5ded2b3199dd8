"""Draws patches of units: each patch enlarged, with its explanation and its place in the image.

All patches of a sheet have the same scale. A patch that the image's border clips keeps its place in
the frame of a whole patch. If the receptive field covers most of the image, the whole image is
shown instead, with the field and the cell of the maximum outlined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from timmscope.drawing import sheet_figure
from timmscope.receptive_fields import Box, ReceptiveField

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .patch import Patch

SIDE = 448
"""Height of a picture in a tile, in pixels."""
_GAP = 1 / 32
"""Gap between the pictures of a tile, relative to their height."""
_FIELD_COLOUR, _CELL_COLOUR = "#e69f00", "#56b4e9"
_OUTSIDE_COLOUR = "#e8eaee"
_MAX_SHARE = 0.5
"""Fields that cover more than this share of the image's area are outlined instead of cut out."""


def grid_figure(tiles: Sequence[Tensor], captions: Sequence[str], title: str, note: str) -> Figure:
    """Draw the tiles of one unit, `(3, H, W)` uint8, in a grid that is nearly square."""
    columns = min(8, math.ceil(math.sqrt(len(tiles))))
    pictures = round(tiles[0].shape[2] / tiles[0].shape[1])  # per tile
    columns = min(columns, {1: 6, 2: 4}.get(pictures, 2))
    widest = {1: 1.6, 2: 2.7}.get(pictures, 4.0)
    return sheet_figure(
        [tile / 255 for tile in tiles],
        captions,
        title=title,
        note=note,
        columns=columns,
        cell_in=max(min(widest, 8.5 / columns), 4.4 / columns),  # room for the note
    )


def caption(value: float, position: tuple[int, int], name: str) -> str:
    """Return the caption of a patch: its value, its cell if it has one, and the short name."""
    cell = f" at {position[0]},{position[1]}" if position[0] >= 0 else ""
    return f"{value:.4g}{cell}\n{' '.join(name.split())}"


def field_note(field: ReceptiveField, *, placed: bool) -> str:
    """Return a note on a figure's patches: the field's kind and size, outlines, and captions.

    Args:
        field: the receptive field.
        placed: whether the image with the patch's outline is shown beside the patch.
    """
    below = "its value" if field.grid is None else "the value at row,column of the cell"
    return f"{field_text(field, placed=placed)}; below: {below}"


def field_text(field: ReceptiveField, *, placed: bool) -> str:
    """Return the first part of `field_note`, without the captions."""
    if field.grid is None:
        return "no grid: the unit sees the whole image"
    height, width = field.size
    shown = f"{field.kind} receptive field, {width}x{height} px"
    if not is_cut_out(field):
        shown = f"outlined: {shown}, and the cell"
    elif placed:
        shown += ", and where it is"
    return shown


def is_cut_out(field: ReceptiveField) -> bool:
    """Whether the field is small enough relative to its image to be cut out."""
    (height, width), (image_height, image_width) = field.size, field.image_size
    area = min(height, image_height) * min(width, image_width)
    return area <= _MAX_SHARE * image_width * image_height


def panels(patch: Patch, view: Image.Image | None, side: int, *, placed: bool) -> list[Tensor]:
    """Draw a patch, its explanation and its place in the image, each `(3, side, W)` uint8.

    Args:
        patch: the patch.
        view: explanation of the whole image, if there is one.
        side: height in pixels; the width follows the image's shape.
        placed: whether to add the image with the patch outlined, unless the first picture is that.
    """
    cut_out = is_cut_out(patch.field)
    shown = [_enlarged(patch, patch.whole, side) if cut_out else _outlined(patch, side)]
    if view is not None:
        shown.append(_enlarged(patch, view, side) if cut_out else _scale_to_height(view, side))
    if cut_out and placed:
        shown.append(_outlined(patch, side))
    return [torch.from_numpy(np.asarray(each).copy()).permute(2, 0, 1) for each in shown]


def join_pictures(pictures: Sequence[Tensor], *, down: bool = False) -> Tensor:
    """Join pictures `(3, h, w)` uint8 of one size, side by side or one above the other."""
    axis = 1 if down else 2
    shape = list(pictures[0].shape)
    shape[axis] = max(1, round(_GAP * pictures[0].shape[1]))
    white = torch.full(shape, 255, dtype=torch.uint8)
    return torch.cat([part for each in pictures for part in (white, each)][1:], axis)


def _outlined(patch: Patch, side: int) -> Image.Image:
    """Return the image with the field outlined, and the cell if the field is not cut out."""
    whole = _scale_to_height(patch.whole, side)
    if patch.field.grid is not None:
        scale = side / patch.whole.height
        if not is_cut_out(patch.field):
            _outline(whole, patch.cell, scale, _CELL_COLOUR)
        _outline(whole, patch.box, scale, _FIELD_COLOUR)
    return whole


def _scale_to_height(picture: Image.Image, side: int) -> Image.Image:
    width = round(picture.width * side / picture.height)
    return picture.resize((width, side), Image.Resampling.BICUBIC)


def _enlarged(patch: Patch, image: Image.Image, side: int) -> Image.Image:
    """Return an image's patch, enlarged without interpolation, on white of the image's shape."""
    framed = _framed(patch, image)
    width = round(patch.whole.width * side / patch.whole.height)
    scale = min(side / framed.height, width / framed.width)
    size = (max(1, round(framed.width * scale)), max(1, round(framed.height * scale)))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    cut = framed.resize(size, resampling)
    background = Image.new("RGB", (width, side), "white")
    background.paste(cut, ((width - cut.width) // 2, (side - cut.height) // 2))
    return background


def _framed(patch: Patch, image: Image.Image) -> Image.Image:
    """Return an image's patch in a frame of the size of a whole field."""
    height, width = patch.field.size
    frame = Image.new("RGB", (width, height), _OUTSIDE_COLOUR)
    cut = image.crop(patch.box)
    left, upper = (width - cut.width) // 2, (height - cut.height) // 2
    if patch.field.unclipped is not None:
        free = patch.field.box(patch.entry.position, clip=False)
        left, upper = patch.box[0] - free[0], patch.box[1] - free[1]
    frame.paste(cut, (left, upper))
    return frame


def _outline(image: Image.Image, box: Box, scale: float, colour: str) -> None:
    """Draw a frame around a box, outside it if possible, so that small boxes stay visible."""
    left, upper, right, lower = (round(edge * scale) for edge in box)
    draw = ImageDraw.Draw(image)
    unit = image.height / SIDE
    for out, width, ink in ((5, 7, "black"), (4, 4, colour)):
        width = max(4 if ink == "black" else 2, round(width * unit))
        out = max(width - 2, round(out * unit))
        start = (max(0, left - out), max(0, upper - out))
        end = (min(image.width, right + out) - 1, min(image.height, lower + out) - 1)
        draw.rectangle((*start, *end), outline=ink, width=width)
