"""Images of a store as a result shows them: small pictures and names, where there are any."""

from __future__ import annotations

import warnings
from pathlib import PurePath
from typing import Any

import numpy.typing as npt
from torch import Tensor

from timmscope import ImageError, Rows

_THUMBNAIL_PX = 128


def thumbnails(rows: Rows, ids: npt.ArrayLike) -> Tensor | None:
    """Pictures `(n, 3, t, t)`; None, and a warning, where the images are gone, and for an array."""
    if not rows.has_pictures:
        return None
    try:
        return rows.pictures.thumbnails(ids, _THUMBNAIL_PX)
    except ImageError as error:
        warnings.warn(f"no images are shown: {error}", stacklevel=2)
        return None


def names(rows: Rows, ids: npt.ArrayLike) -> list[str]:
    """What to call some images, with `\\ufffd` for what is no UTF-8 in a file's name."""
    return [
        name
        if name.isascii()
        else name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name in rows.names(ids)
    ]


def labels(rows: Rows, places: npt.NDArray[Any]) -> list[str | None]:
    """Labels of some rows, by place among the rows."""
    return list(rows.labels.take(places)) if rows.layer is not None else [None] * len(places)


def short(name: str) -> str:
    """A name without folder and ending, as a caption."""
    return PurePath(name).stem or name
