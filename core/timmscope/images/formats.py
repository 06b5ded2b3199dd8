"""Which files are images by their suffix, and which of them need a decoder that Pillow lacks."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from types import ModuleType

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".jp2", ".j2k",
    ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".ico",
))
"""Suffixes, in lower case, of the image files that Pillow reads."""
_DECODERS = {
    ".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".jxl": "pillow_jxl",
}
"""Suffixes of image files that Pillow reads once a package is installed, and its module."""
_PACKAGES = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
_RAW = frozenset((
    ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".exr", ".hdr",
))
"""Suffixes of pictures that must be converted first: raw data of cameras, high dynamic range."""
# fmt: on


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, as in ``".jpg"``."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million times)


def is_image(suffix: str) -> bool:
    """Whether files of that suffix can be read here; imports a decoder if they need one."""
    return suffix in IMAGE_SUFFIXES or (suffix in _DECODERS and _registered(_DECODERS[suffix]))


def is_picture(suffix: str) -> bool:
    """Whether files of that suffix hold pictures, readable here or not."""
    return suffix in IMAGE_SUFFIXES or suffix in _DECODERS or suffix in _RAW


def register_decoder(path: str | os.PathLike[str]) -> None:
    """Have Pillow read a file that needs a further package, if that is installed."""
    is_image(suffix_of(os.fspath(path)))


def install_hint(suffixes: Collection[str]) -> str:
    """What to do about files with these suffixes that cannot be read; empty where nothing helps."""
    needed = {
        _PACKAGES[_DECODERS[suffix]]
        for suffix in _DECODERS.keys() & suffixes
        if not _registered(_DECODERS[suffix])
    }
    advice = [f"python -m pip install {' '.join(sorted(needed))}"] if needed else []
    if raw := sorted(_RAW.intersection(suffixes)):
        advice.append(f"convert {', '.join(raw)} to TIFF or PNG")
    return "; ".join(advice)


def passed_over(counts: Counter[str]) -> str:
    """Say how many pictures of which suffixes are not read, and what to do about it.

    Args:
        counts: number of pictures by suffix; at least one.
    """
    total = sum(counts.values())
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return (
        f"{total} picture{'s' * (total > 1)} passed over, which Pillow cannot read ({kinds}): "
        f"{install_hint(counts)}"
    )


@cache
def _registered(module: str) -> bool:
    """Import a module that teaches Pillow a format; False where it is absent or broken."""
    if find_spec(module) is None:
        return False
    try:
        imported: ModuleType = importlib.import_module(module)
        if module == "pillow_heif":
            imported.register_heif_opener()
    except Exception:
        return False
    return True
