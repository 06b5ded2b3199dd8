"""Thumbnails, names and labels of a store's images, as results show them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy.typing as npt
from torch import Tensor

from timmscope import ImageError, Rows

_THUMBNAIL_PX = 128


def thumbnails(rows: Rows, ids: npt.ArrayLike) -> Tensor | None:
    """Thumbnails `(n, 3, t, t)`; None for an array, and with a warning where images are missing."""
    if not rows.has_pictures:
        return None
    try:
        return rows.pictures.thumbnails(ids, _THUMBNAIL_PX)
    except ImageError as error:
        warnings.warn(f"no images are shown: {error}", stacklevel=2)
        return None


def names(rows: Rows, ids: npt.ArrayLike) -> list[str]:
    """Names of some images, with `\\ufffd` for bytes of a file name that are not UTF-8."""
    return [
        name
        if name.isascii()
        else name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        for name in rows.names(ids)
    ]


def labels(rows: Rows, positions: npt.NDArray[Any]) -> list[str | None]:
    """Labels of some rows, by position."""
    return list(rows.labels.take(positions)) if rows.layer is not None else [None] * len(positions)
