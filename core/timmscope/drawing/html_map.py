"""Draws a map of images as one interactive HTML page with points and thumbnails.

The page draws into a canvas pixel by pixel, without WebGL: 100,000 points take a few milliseconds
even on a machine without a graphics card. There plotly's three-dimensional scatter plot takes
seconds to find the point under the pointer.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import to_hex

from timmscope.drawing.map_colours import (
    CONTINUOUS,
    Group,
    group_by_class,
    group_by_number,
    number_range,
    range_texts,
)
from timmscope.drawing.pixels import png_bytes

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 64
"""Number of colours for numbers."""


@dataclass(frozen=True, kw_only=True)
class PointMap:
    """A map of images and what its page shows.

    Attributes:
        points: positions of the images, `(n, 2)` or `(n, 3)`.
        names: name of each image.
        title: title of the page, one line.
        note: how the map was made.
        colourings: dictionaries with `title` and `classes`: the names of the classes if `values`
            are their indices, or None if `values` are numbers.
        values: values of each colouring, `(colourings, n)`; -1 for an image without a class, NaN
            for one without a number.
        query_points: positions of the query images, `(q, 2)` or `(q, 3)`.
        query_names: name of each query image.
        query_images: thumbnails of the query images, `(q, 3, t, t)` in [0, 1], or None.
        sheets: JPEG files with the images' thumbnails, in the order of the images.
        tile_px: side of a thumbnail in pixels.
        sheet_columns: thumbnails per row of a sheet.
        sheet_rows: rows per sheet.
    """

    points: Tensor
    names: Sequence[str]
    title: str
    note: str
    colourings: Sequence[dict[str, Any]]
    values: Tensor
    query_points: Tensor
    query_names: Sequence[str] = ()
    query_images: Tensor | None = None
    sheets: Sequence[bytes] = ()
    tile_px: int = 0
    sheet_columns: int = 0
    sheet_rows: int = 0


def map_page(point_map: PointMap) -> str:
    """Return the page as HTML; every text is escaped, and a policy forbids it to load anything."""
    sheets = [base64.b64encode(sheet).decode("ascii") for sheet in point_map.sheets]
    points = np.concatenate([point_map.points.numpy(), point_map.query_points.numpy()])
    pairs = zip(point_map.colourings, point_map.values.numpy(), strict=True)
    images = () if point_map.query_images is None else point_map.query_images
    data = {
        "names": [*point_map.names, *point_map.query_names],
        "count": len(point_map.points),
        "dimensions": points.shape[1],
        "colourings": [_colouring(colouring, values) for colouring, values in pairs],
        "ramp": [to_hex(colormaps[CONTINUOUS](step / (_STEPS - 1))) for step in range(_STEPS)],
        "tile": point_map.tile_px,
        "columns": point_map.sheet_columns,
        "rows": point_map.sheet_rows,
        "points": _encoded(points),
        "queries": [_data_uri(image) for image in images],
    }
    page: str = _template().render(
        turns=points.shape[1] == 3,
        title=_valid(point_map.title),
        note=_valid(point_map.note),
        data=_script_json(data),
        sheets=sheets,
        script=_asset("html_map.js"),
        style=_asset("html_map.css"),
    )
    return page


def _colouring(colouring: dict[str, Any], values: Any) -> dict[str, Any]:
    """Return what the page needs to colour the points and to show the value of each."""
    if colouring["classes"] is None:
        low, high = number_range(values)
        return {
            "title": colouring["title"],
            "values": _encoded(values, "<f8"),
            "low": low,
            "high": high,
            "ends": range_texts(low, high),
            "groups": [_group(group) for group in group_by_number(values) if group.shape != "disc"],
        }
    groups = group_by_class(colouring["classes"], values)
    member = np.zeros(len(values), np.int32)
    for number, group in enumerate(groups):
        member[group.members] = number
    return {
        "title": colouring["title"],
        "classes": colouring["classes"],
        "codes": _encoded(values, "<i4"),
        "member": _encoded(member, "<i4"),
        "groups": [_group(group) for group in groups],
    }


def _group(group: Group) -> dict[str, Any]:
    """Return what the page needs of a group: its entry in the legend."""
    return {
        "name": group.name,
        "colour": group.colour,
        "shape": group.shape,
        "count": len(group.members),
        "named": group.named,
    }


def _encoded(values: Any, kind: str = "<f4") -> str:
    """Encode numbers as base64 of a NumPy type."""
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")


def _data_uri(image: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def _script_json(value: Any) -> str:
    """Encode as JSON in which no name can end the script element around it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _valid(text: str) -> str:
    """Replace bytes of file names that are not valid UTF-8 by a replacement character."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@cache
def _asset(name: str) -> str:
    return files("timmscope.drawing").joinpath(name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_asset("html_map.html.j2"))
