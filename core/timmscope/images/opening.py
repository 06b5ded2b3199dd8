"""From what a user names (a folder, a file, ``scheme:location``) to a source of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from timmscope_registry import ImageError, get_registry
from timmscope_registry.offers import by_scheme, made

from .files import IMAGE_SUFFIXES, FileSource, FolderSource
from .source import ImageSource

Images = str | os.PathLike[str] | ImageSource | Sequence[str | os.PathLike[str]]
"""What stands for a collection of images: a location, a list of files, or a source."""


def open_images(location: Images) -> ImageSource:
    """Open a collection of images.

    Args:
        location: ``scheme:rest`` for a scheme that a plugin provides (``folder:``, ``list:``,
            ``array:``, ``webdataset:`` are built in); or a path, whose source is chosen by what it
            is: a folder, a file with a suffix that a source claims, or a single image; or a
            sequence of image files; or a source, which is returned as it is.

    Raises:
        ImageError: nothing there, or no source fits; the message lists what would.
        PluginError: several plugins offer the scheme, or the source is none.
    """
    if isinstance(location, ImageSource):
        return location
    if not isinstance(location, str | os.PathLike):
        files = [Path(path) for path in location]
        if not files:
            raise ImageError("an empty list of images; name at least one file")
        return FileSource(path.resolve() for path in files)
    text = os.fspath(location)
    entries = get_registry().image_sources()
    path = Path(text)
    if ":" in text and not path.exists() and (found := by_scheme(entries, text)):
        return made(*found, ImageSource)  # type: ignore[type-abstract]
    if path.is_dir():
        return FolderSource(path)
    bare = text.partition("?")[0]
    for entry in entries:
        if bare.lower().endswith(tuple(entry.spec.suffixes)):
            return made(entry, text, ImageSource)  # type: ignore[type-abstract]
    if path.suffix.lower() in IMAGE_SUFFIXES and path.exists():
        return FileSource([path.name], root=path.resolve().parent, location=str(path.resolve()))
    schemes = ", ".join(f"{entry.spec.scheme}:" for entry in entries)
    what = "no image source reads this file" if path.exists() else "no such file or folder"
    raise ImageError(
        f"{text}: {what}; name a folder, an image, or a location with one of {schemes}", path=text
    )
