"""Thumbnails of a map: some for the figure, and all of them on JPEG sheets for the page."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from timmscope import Rows, task
from timmscope_registry import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN_PX = 96
TILES_PX = (160, 128, 96, 64, 48, 32, 24, 16)
"""Sides of thumbnails; multiples of 8, so that no JPEG block spans two of them."""
BUDGET = 24_000_000
"""Bytes for all sheets: 100,000 thumbnails get 24 pixels per side, 1,000 get 160."""
BYTES_PER_PIXEL = 0.4
_QUALITY = 80
_SHEET_PX = 2048
_BATCH = 512


def pictures_of(rows: Rows, points: npt.NDArray[Any], queries: npt.NDArray[Any]) -> dict[str, Any]:
    """The thumbnail fields of an `Embedding`; empty for an array or if images are missing.

    Args:
        rows: rows of the images.
        points: their coordinates.
        queries: coordinates of query images.
    """
    from timmscope_representation.embedding.figure_pictures import spread_out

    if not rows.has_pictures:
        return NO_PICTURES
    try:
        pictures = rows.pictures
    except ImageError as error:
        warnings.warn(f"no images are shown: {error}", stacklevel=3)
        return NO_PICTURES
    shown = spread_out(points, queries) if points.shape[1] == 2 else None
    tile = tile_px(len(rows))
    side = _SHEET_PX // tile
    columns = min(side, math.ceil(math.sqrt(len(rows))))
    high = min(side, math.ceil(len(rows) / columns))
    sheets = [_jpeg(tiles, columns, high) for tiles in _tiles(rows, tile, columns * high)]
    return {
        "shown": None if shown is None else torch.from_numpy(shown),
        "shown_images": None if shown is None else pictures.thumbnails(rows.ids[shown], SHOWN_PX),
        "sheets": torch.frombuffer(bytearray(b"".join(sheets)), dtype=torch.uint8),
        "sheet_sizes": [len(sheet) for sheet in sheets],
        "tile_px": tile,
        "sheet_columns": columns,
        "sheet_rows": high,
    }


NO_PICTURES: dict[str, Any] = {
    "shown": None,
    "shown_images": None,
    "sheets": None,
    "sheet_sizes": [],
    "tile_px": 0,
    "sheet_columns": 0,
    "sheet_rows": 0,
}


def tile_px(count: int) -> int:
    """Largest side at which `count` thumbnails fit the budget, else the smallest side."""
    fitting = (side for side in TILES_PX if count * side * side * BYTES_PER_PIXEL <= BUDGET)
    return next(fitting, TILES_PX[-1])


def _tiles(rows: Rows, tile: int, size: int) -> Iterator[Tensor]:
    """Thumbnails `(≤ size, 3, tile, tile)` uint8, one sheet at a time."""
    with task("thumbnails", total=len(rows)) as advance:
        for start in range(0, len(rows), size):
            parts = []
            for low in range(start, min(start + size, len(rows)), _BATCH):
                ids = rows.ids[low : min(low + _BATCH, start + size)]
                parts.append((rows.pictures.thumbnails(ids, tile) * 255).round().byte())
                advance(len(ids))
            yield torch.cat(parts)


def _jpeg(tiles: Tensor, columns: int, high: int) -> bytes:
    """One sheet as JPEG, row by row; the unused rest is black."""
    tile = tiles.shape[-1]
    high = min(high, math.ceil(len(tiles) / columns))
    blank = torch.zeros(columns * high - len(tiles), 3, tile, tile, dtype=torch.uint8)
    grid = torch.cat([tiles, blank]).reshape(high, columns, 3, tile, tile)
    pixels = grid.permute(0, 3, 1, 4, 2).reshape(high * tile, columns * tile, 3)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.numpy())).save(
        file, "JPEG", quality=_QUALITY, subsampling=0
    )
    return file.getvalue()
