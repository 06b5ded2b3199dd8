"""`BatchRows` is what one forward of a pass leaves to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class BatchRows:
    """One batch to be written.

    Attributes:
        start: id of the first image.
        layers: rows by layer and kind, (B, …).
        paths: the images' names.
        labels: their labels, "" where there is none.
        sizes: width and height in pixels, (B, 2).
        reasons: why an image could not be read; "" for images that could.
    """

    start: int
    layers: Mapping[str, Mapping[str, np.ndarray]]
    paths: list[str]
    labels: list[str]
    sizes: list[tuple[int, int]]
    reasons: list[str]
