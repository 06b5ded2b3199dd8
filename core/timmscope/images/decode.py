"""Converts any image file to 8-bit RGB, or says in one line why it cannot.

Pillow's own ``convert("RGB")`` clips 16-bit and floating-point pixels to white, drops the alpha
channel (so that the colours of transparent pixels show) and ignores the camera's rotation. Here
each mode has its own conversion:

========================  =========================================================================
mode                      treatment
========================  =========================================================================
1, L, RGB, YCbCr, HSV     converted
P, PA, RGBA, LA, tRNS     composited over white
CMYK                      converted; Adobe's inverted JPEGs as Pillow reads them
LAB                       converted with the built-in LAB profile
I;16 and variants         scaled by 1/257 (65535 is white)
I (32-bit)                scaled by 1/257 if the file is PNG or PNM or all values fit in 16 bits;
                          else the image's own range is stretched from black to white
F (float)                 [0, 1] times 255, [0, 255] unchanged, [0, 65535] by 1/257;
                          else its own range is stretched; NaN and infinity are errors
========================  =========================================================================

The first frame of an animation or multi-page file is used. EXIF rotation is applied.
"""

from __future__ import annotations

import os
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from timmscope_registry import ImageError

from .source import require_file

MAX_PIXELS = 178_956_970
"""Most pixels that are decoded: Pillow's own limit against decompression bombs (0.5 GB in RGB)."""

# Pillow warns above half its limit; here an image is either read or refused. The filter is appended
# so that filters set elsewhere take precedence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)

_ALPHA_MODES = ("PA", "RGBA", "LA", "La", "RGBa")


def open_image(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Return the image as an upright 8-bit RGB `PIL.Image`, fully decoded.

    Args:
        path: a file name, or a binary file positioned at the image's first byte.
        name: name of the image in errors; by default the file's own name.
        max_pixels: images with more pixels are refused before they are decoded.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image or too large, or its pixels
            are not finite.
    """
    label = name or (str(path) if isinstance(path, str | os.PathLike) else _file_name(path))
    try:
        if isinstance(path, str | os.PathLike):
            require_file(path, label)
        return _open(path, label, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{label}: no such file; check the path", path=label) from error
    except PermissionError as error:
        raise ImageError(f"{label}: no permission to read it", path=label) from error
    except IsADirectoryError as error:
        raise ImageError(
            f"{label}: a folder, where one image was expected; name a file in it", path=label
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(_why_unidentified(path, label), path=label) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+ pixels", str(error))
        raise _too_large(label, pixels[0] if pixels else "a bomb", MAX_PIXELS) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of error on damaged files
        text = (isinstance(error, OSError) and error.strerror) or str(error)  # without the path
        reason = " ".join(text.split()) or type(error).__name__
        raise ImageError(
            f"{label}: cannot be decoded ({reason}); replace or remove the file", path=label
        ) from error


def _open(path: str | os.PathLike[str] | BinaryIO, label: str, max_pixels: int) -> Image.Image:
    with Image.open(path) as image:
        if image.width * image.height > max_pixels:
            raise _too_large(label, f"{image.width}x{image.height} pixels", max_pixels)
        image.load()
        with suppress(Exception):  # the pixels can be intact although the EXIF block is damaged
            ImageOps.exif_transpose(image, in_place=True)  # a copy of a panorama takes 0.5 GB
        rgb = to_rgb(image, label)
        return rgb.copy() if rgb is image else rgb


def to_rgb(image: Image.Image, label: str = "image") -> Image.Image:
    """Convert a decoded image of any Pillow mode to 8-bit RGB, by the table of this module.

    Args:
        image: the image.
        label: name of the image in errors.

    Raises:
        ImageError: pixels are NaN or infinite.
    """
    mode = image.mode
    if mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float64) / 257)
    if mode == "I":
        return _grey(_scale_int32(np.asarray(image), image.format))
    if mode == "F":
        return _grey(_scale_float(np.asarray(image), label))
    if mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None only with inPlace=True
        return converted
    return image.convert("RGB")


def array_to_rgb(pixels: np.ndarray[Any, Any], label: str = "array") -> Image.Image:
    """Convert an array of pixels to 8-bit RGB.

    Args:
        pixels: `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1 or 3 channels, or `(H, W, 4)` with
            alpha; uint8, uint16 (65535 is white) or float in [0, 1].
        label: name of the image in errors.

    Raises:
        ImageError: the array has another shape or type, or floats outside [0, 1].
    """
    shape = pixels.shape
    if pixels.ndim == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not pixels.size or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    ):
        raise ImageError(
            f"{label}: shape {shape} is not an image; expected (H, W), (H, W, 3) or (3, H, W)",
            path=label,
        )
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ImageError(
                f"{label}: values from {low:g} to {high:g}; float images must lie in [0, 1]",
                path=label,
            )
        pixels = np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    elif pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ImageError(
            f"{label}: pixels of type {pixels.dtype}; expected uint8, uint16 or floats in [0, 1]",
            path=label,
        )
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), label)


def _grey(values: np.ndarray) -> Image.Image:
    pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def _stretch(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)


def _scale_int32(pixels: np.ndarray, file_format: str | None) -> np.ndarray:
    values = pixels.astype(np.float64)
    sixteen_bit = values.min() >= 0 and values.max() <= 65535
    if file_format in ("PNG", "PPM") or sixteen_bit:
        return values / 257
    return _stretch(values)


def _scale_float(pixels: np.ndarray, label: str) -> np.ndarray:
    values = pixels.astype(np.float64)
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise ImageError(
            f"{label}: {bad} of {values.size} pixels are NaN or infinite; replace or remove it",
            path=label,
        )
    low, high = float(values.min()), float(values.max())
    if low >= 0:
        if high <= 1:
            return values * 255
        if high <= 255:
            return values
        if high <= 65535:
            return values / 257
    return _stretch(values)


def _too_large(label: str, size: str, limit: int) -> ImageError:
    return ImageError(
        f"{label}: {size}, above the limit of {limit} pixels; scale it down first", path=label
    )


def _file_name(file: BinaryIO) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else "image"


def _why_unidentified(path: str | os.PathLike[str] | BinaryIO, label: str) -> str:
    if isinstance(path, str | os.PathLike) and Path(path).stat().st_size == 0:
        return f"{label}: the file is empty (0 bytes); replace or remove it"
    return f"{label}: not an image that Pillow can read; replace or remove the file"
