"""From what a user names (a folder, a file, ``scheme:location``) to a source of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from timmscope_registry import Entry, ImageError, ImageSourceSpec, PluginError, get_registry
from timmscope_registry.contributions import by_scheme, described, instantiate

from .files import IMAGE_SUFFIXES, FileSource, FolderSource
from .source import ImageSource

Images = str | os.PathLike[str] | ImageSource | Sequence[str | os.PathLike[str]]
"""What stands for a collection of images: a location, a list of files, or a source."""

_LOOKED_AT = 100
"""Names and labels whose type is looked at."""


def open_images(location: Images) -> ImageSource:
    """Open a collection of images.

    Args:
        location: ``scheme:rest`` for a scheme that a plugin provides (``folder:``, ``list:``,
            ``array:``, ``webdataset:`` are built in); or a path, whose source is chosen by what it
            is: a folder, a file with a suffix that a source claims, or a single image; or a
            sequence of image files; or a source, which is returned as it is.

    Raises:
        ImageError: nothing there, or no source fits; the message lists what would. Or a source that
            was given does not number and name its images.
        PluginError: several plugins offer the scheme, or the source is none, or does not say how
            many images it has and calls each by a name of its own.
    """
    if isinstance(location, ImageSource):
        if wrong := _fault(location):
            raise ImageError(f"{type(location).__name__} {wrong}")
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
        return _made(*found)
    if path.is_dir():
        return FolderSource(path)
    bare = text.partition("?")[0]
    for entry in entries:
        if bare.lower().endswith(tuple(entry.spec.suffixes)):
            return _made(entry, text)
    if path.suffix.lower() in IMAGE_SUFFIXES and path.exists():
        return FileSource([path.name], root=path.resolve().parent, location=str(path.resolve()))
    schemes = ", ".join(f"{entry.spec.scheme}:" for entry in entries)
    what = "no image source reads this file" if path.exists() else "no such file or folder"
    raise ImageError(
        f"{text}: {what}; name a folder, an image, or a location with one of {schemes}", path=text
    )


def _fault(source: ImageSource) -> str:
    """What is wrong with how a source describes its images, or nothing; no image is read."""
    try:
        count = len(source)
    except (TypeError, ValueError, OverflowError) as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # in its own code
        return f"has no number of images: {error}"
    columns: dict[str, Sequence[object]] = {"paths": source.paths}
    if source.labels is not None:
        columns["labels"] = source.labels
    for what, values in columns.items():
        if not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
            return f"has {what} of type {type(values).__name__}; expected a list"
        if len(values) != count:
            return f"has {len(values)} {what}; expected one for every image, {count}"
        for value in (values[row] for row in range(min(count, _LOOKED_AT))):
            if not isinstance(value, str) and (value is not None or what == "paths"):
                return f"has {what} of type {type(value).__name__}; expected text"
    if isinstance(source, FileSource):  # a file that a list names twice is the same image
        return ""
    # Of a million names a set takes five times the memory of their hashes.
    marks = np.fromiter((hash(name) for name in source.paths), np.int64, count)
    if len(np.unique(marks)) == count:
        return ""
    seen: dict[str, int] = {}
    for row, name in enumerate(source.paths):
        if (first := seen.setdefault(name, row)) != row:
            return f"has one name for images {first} and {row}, {name!r}; expected one for each"
    return ""


def _made(entry: Entry[ImageSourceSpec], location: str) -> ImageSource:
    source = instantiate(entry, location, ImageSource)  # type: ignore[type-abstract]
    if wrong := _fault(source):
        raise PluginError(f"{described(entry)} {wrong}; tell its authors")
    return source
