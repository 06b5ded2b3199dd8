"""A map of images to explore: one HTML file that holds its points and small pictures.

It draws into a canvas pixel by pixel, without WebGL: 100,000 points take a few milliseconds, also
on machines without a graphics card, where plotly's three-dimensional scatter plot of as many needs
seconds to say what is under the pointer.
"""

from __future__ import annotations

import base64
import json
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
    from timmscope_representation.embedding.embedding import Embedding

_STEPS = 64


def embedding_page(found: Embedding) -> str:
    """The page as HTML; every text is escaped, and a policy forbids it to load anything."""
    sheets = [base64.b64encode(sheet).decode("ascii") for sheet in found.sheet_files()]
    head = {
        "names": [*found.names, *found.query_names],
        "count": len(found),
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
        script=_asset("embedding_page.js"),
        style=_asset("embedding_page.css"),
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
    return environment.from_string(_asset("embedding_page.html.j2"))
