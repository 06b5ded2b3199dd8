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

The first frame of an animation or multi-page file is used. EXIF rotation is applied. Files, arrays
and pictures that are in memory already all take this road, so that they give the same pixels.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from timmscope.safe_files import UnsafeFile, open_regular, why
from timmscope_registry import ImageError

from .formats import install_hint, register_decoder, suffix_of
from .png import without_text

MAX_PIXELS = 178_956_970
"""Most pixels that are decoded: Pillow's own limit against decompression bombs (0.5 GB in RGB)."""

# Pillow warns above half its limit; here an image is either read or refused. The filter is appended
# so that filters set elsewhere take precedence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)

_ALPHA_MODES = ("PA", "RGBA", "LA", "La", "RGBa")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""


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
    with _named(label):
        if not isinstance(path, str | os.PathLike):
            return _open(path, label, max_pixels)
        register_decoder(path)
        with open_regular(path) as file:
            return _open(file, label, max_pixels)


def _open(file: BinaryIO, label: str, max_pixels: int) -> Image.Image:
    """Decode a file; a PNG that Pillow refuses is read again without its text and profiles."""
    try:
        start = file.tell()
    except (AttributeError, OSError):  # a stream
        file, start = io.BytesIO(file.read()), 0
    try:
        return _decode(file, label, max_pixels)
    except (ImageError, MemoryError):
        raise
    except Exception:
        file.seek(start)
        bare = without_text(file)
        if bare is None:
            file.seek(start)
            if not file.read(1):
                raise ImageError(
                    f"{label}: the file is empty (0 bytes); replace or remove it", path=label
                ) from None
            raise
    return _decode(bare, label, max_pixels)


def _decode(file: BinaryIO, label: str, max_pixels: int) -> Image.Image:
    with Image.open(file) as image:
        if image.width * image.height > max_pixels:
            raise _too_large(label, f"{image.width}x{image.height} pixels", max_pixels)
        if image.format == "EPS":  # Pillow would have Ghostscript run it
            raise ImageError(
                f"{label}: PostScript, which is a program; convert it to PNG", path=label
            )
        rgb = to_rgb(image, label)
        return rgb.copy() if rgb is image else rgb


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an `ImageError` with the name of the image."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnsafeFile as error:
        raise ImageError(f"{label}: {error.reason}", path=label) from error
    except FileNotFoundError as error:
        raise ImageError(f"{label}: no such file; check the path", path=label) from error
    except PermissionError as error:
        raise ImageError(f"{label}: no permission to read it", path=label) from error
    except IsADirectoryError as error:
        raise ImageError(
            f"{label}: a folder, where one image was expected; name a file in it", path=label
        ) from error
    except UnidentifiedImageError as error:
        advice = install_hint([suffix_of(label)]) or "replace or remove the file"
        raise ImageError(
            f"{label}: not an image that Pillow can read; {advice}", path=label
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+ pixels", str(error))
        raise _too_large(label, pixels[0] if pixels else "a bomb", MAX_PIXELS) from error
    except Exception as error:  # Pillow's decoders raise many types of error on damaged files
        raise ImageError(
            f"{label}: cannot be decoded ({why(error)}); replace or remove the file", path=label
        ) from error


def to_rgb(image: Image.Image, label: str = "image") -> Image.Image:
    """Convert an image of any Pillow mode to upright 8-bit RGB, by the table of this module.

    Args:
        image: the image, which stays as it is; one that is upright RGB already is returned itself.
        label: name of the image in errors.

    Raises:
        ImageError: the image cannot be decoded or has no pixels, or pixels are NaN or infinite.
    """
    with _named(label):
        image.load()
        if not (image.width and image.height):
            raise ImageError(
                f"{label}: {image.width}x{image.height} pixels, expected at least one", path=label
            )
        turn = _turn(image)
        plain = image.mode == "RGB" and "transparency" not in image.info
        rgb = image if plain else _convert(image, label)
        if turn is not None:  # only now: two copies of a panorama would take 1 GB
            rgb = rgb.transpose(turn)
        if rgb is not image:
            rgb.info = {}  # it would have the result turned again
        return rgb


def _turn(image: Image.Image) -> Image.Transpose | None:
    with suppress(Exception):  # the pixels can be intact although the EXIF block is damaged
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _convert(image: Image.Image, label: str) -> Image.Image:
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
    elif pixels.dtype.newbyteorder("=") == np.uint16:
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
