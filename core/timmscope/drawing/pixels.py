"""Converts image tensors to 8-bit pixels and PNG files, so that rounding is the same everywhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from timmscope_registry import ImageError

MOST_CHANNELS = 16
"""Largest number of channels of a tensor that is taken for an image."""


def to_array(image: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """Convert an image `(3, H, W)`, `(1, H, W)` or `(H, W)` in [0, 1] to `(H, W, 3)` uint8.

    Values are clipped to [0, 1] and rounded to the nearest of 256 levels. An image tensor of
    another number of channels, up to 16, is shown as the grey mean of its channels.

    Raises:
        ImageError: the image has another shape, or NaN.
    """
    values = (
        as_picture(image).detach().float().cpu().numpy() if isinstance(image, Tensor) else image
    )
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ImageError(f"expected an image of shape (3, H, W) or (H, W), not {values.shape}")
    if np.isnan(values).any():
        raise ImageError("the image contains NaN: expected values in [0, 1]")
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    pixels = levels.transpose(1, 2, 0)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def as_picture(image: Tensor) -> Tensor:
    """Return an image `(3, H, W)` or `(1, H, W)` as it is, and others as their channels' mean."""
    several = image.ndim == 3 and image.shape[0] in range(2, MOST_CHANNELS + 1)
    return image.mean(0, keepdim=True) if several and image.shape[0] != 3 else image


def write_png(image: Tensor | NDArray[Any], path: str | Path) -> Path:
    """Write an image `(3, H, W)` in [0, 1] as a PNG file; returns the path.

    Raises:
        ImageError: the image has another shape, or NaN.
        OSError: the file cannot be written.
    """
    path = Path(path)
    Image.fromarray(to_array(image)).save(path, format="PNG")
    return path


def png_bytes(image: Tensor | NDArray[Any]) -> bytes:
    """Return the PNG file of an image `(3, H, W)` in [0, 1] as bytes.

    Raises:
        ImageError: the image has another shape, or NaN.
    """
    buffer = io.BytesIO()
    Image.fromarray(to_array(image)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
