"""Draws a map of images as one HTML page to explore, with its points and small pictures.

It draws into a canvas pixel by pixel, without WebGL: 100,000 points take a few milliseconds, also
on machines without a graphics card, where plotly's three-dimensional scatter plot of as many needs
seconds to say what is under the pointer.
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

from timmscope.drawing.map_colours import CONTINUOUS, groups_of
from timmscope.drawing.pixels import png_bytes

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 64


@dataclass(frozen=True, kw_only=True)
class PointMap:
    """What a page needs of a map.

    Attributes:
        points: `(n, 2)` or `(n, 3)`, the images' places.
        names: what each image is called.
        title: what is shown, in a line.
        note: how the map was made.
        colourings: dictionaries with `title`, and `classes`, the names that `values` count, or None
            where the values are numbers.
        values: `(colourings, n)`.
        query_points: `(q, 2)` or `(q, 3)`, places of query images.
        query_names: what each query image is called.
        query_images: `(q, 3, t, t)` in [0, 1], or None.
        sheets: JPEG files with the small pictures of the images, in their order.
        tile_px: side of a small picture in pixels.
        sheet_columns: small pictures per row of a sheet.
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


def map_page(found: PointMap) -> str:
    """The page as HTML; every text is escaped, and a policy forbids it to load anything."""
    sheets = [base64.b64encode(sheet).decode("ascii") for sheet in found.sheets]
    head = {
        "names": [*found.names, *found.query_names],
        "count": len(found.points),
        "dimensions": found.points.shape[1],
        "colourings": [
            _colouring(colouring, values)
            for colouring, values in zip(found.colourings, found.values.numpy(), strict=True)
        ],
        "ramp": [to_hex(colormaps[CONTINUOUS](step / (_STEPS - 1))) for step in range(_STEPS)],
        "tile": found.tile_px,
        "columns": found.sheet_columns,
        "rows": found.sheet_rows,
        "points": _encoded(np.concatenate([found.points.numpy(), found.query_points.numpy()])),
        "queries": []
        if found.query_images is None
        else [_data_uri(image) for image in found.query_images],
    }
    page: str = _template().render(
        turns=found.points.shape[1] == 3,
        title=_valid(found.title),
        note=_valid(found.note),
        head=_script_json(head),
        sheets=sheets,
        script=_asset("html_map.js"),
        style=_asset("html_map.css"),
    )
    return page


def _colouring(colouring: dict[str, Any], values: Any) -> dict[str, Any]:
    """What the page needs to paint points by a colouring and to say what a point has."""
    if colouring["classes"] is None:
        low, high = float(values.min()), float(values.max())
        return {
            "title": colouring["title"],
            "values": _encoded(values),
            "low": low,
            "high": high,
        }
    groups = groups_of(colouring["classes"], values)
    member = np.zeros(len(values), np.int32)
    for number, group in enumerate(groups):
        member[group.members] = number
    return {
        "title": colouring["title"],
        "classes": colouring["classes"],
        "codes": _encoded(values.astype(np.int32)),
        "member": _encoded(member),
        "groups": [
            {
                "name": group.name,
                "colour": group.colour,
                "shape": group.shape,
                "count": len(group.members),
                "named": group.named,
            }
            for group in groups
        ],
    }


def _encoded(values: Any) -> str:
    """Little-endian float32, or int32 of whole numbers, as base64."""
    kind = "<i4" if values.dtype.kind == "i" else "<f4"
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")


def _data_uri(image: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever names it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _valid(text: str) -> str:
    """Text in UTF-8, with a mark for bytes of file names that are none."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@cache
def _asset(name: str) -> str:
    return files("timmscope.drawing").joinpath(name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_asset("html_map.html.j2"))
