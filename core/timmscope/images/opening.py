"""Opens the images that a user names by a folder, a file or ``scheme:location``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from timmscope_registry import Entry, ImageError, ImageSourceSpec, PluginError, get_registry
from timmscope_registry.contributions import by_scheme, instantiate
from timmscope_registry.plugin_faults import fault

from .files import FileSource, FolderSource
from .formats import install_hint, is_image, suffix_of
from .source import ImageSource
from .webdataset import COMPRESSED

Images = str | os.PathLike[str] | ImageSource | Sequence[str | os.PathLike[str]]
"""A collection of images: a location, a list of files, or a source."""

RUN = "over.json"
"""File by which the folder of a run over an image set is known."""
_CHECKED = 100
"""Number of names and labels whose type is checked."""


def open_images(location: Images) -> ImageSource:
    """Open a collection of images.

    Args:
        location: one of
            ``scheme:rest``, with a scheme that a plugin provides (``folder:``, ``list:``,
            ``array:`` and ``webdataset:`` are built in);
            a path of a folder, of the folder of a run over an image set, of a file with a suffix
            that a source reads, or of one image;
            a sequence of image files;
            a source, which is returned unchanged.

    Raises:
        ImageError: there is no such file or folder, no source reads it (the message lists the
            schemes), or a source passed in lacks a number of images or unique names.
        PluginError: several plugins offer the scheme, or the plugin's source is not an
            `ImageSource` or lacks a number of images or unique names.
    """
    if isinstance(location, ImageSource):
        if wrong := _fault(location):
            raise ImageError(fault(type(location).__name__, wrong))
        return location
    if not isinstance(location, str | os.PathLike):
        files = [Path(path) for path in location]
        if not files:
            raise ImageError("an empty list of images; name at least one file")
        return FileSource(path.resolve() for path in files)
    text = os.fspath(location)
    if not text.strip():
        raise ImageError("an empty name of images: name a folder (`.` is this one) or a file")
    entries = get_registry().image_sources()
    path = Path(text)
    if ":" in text and not path.exists() and (match := by_scheme(entries, text)):
        return _plugin_source(*match)
    if path.is_dir():
        if (path / RUN).is_file() and (match := by_scheme(entries, f"over:{text}")):
            return _plugin_source(*match)
        return FolderSource(path)
    lower = text.lower()
    names = (lower, lower.partition("?")[0])  # `?` begins a choice, or is a wildcard
    for entry in entries:
        if any(name.endswith(tuple(entry.spec.suffixes)) for name in names):
            return _plugin_source(entry, text)
    if is_image(suffix_of(text)) and path.exists():
        return FileSource([path.name], root=path.resolve().parent, location=str(path.resolve()))
    schemes = ", ".join(f"{entry.spec.scheme}:" for entry in entries)
    reason = "no image source reads this file" if path.exists() else "no such file or folder"
    if path.exists() and (advice := install_hint([suffix_of(text)])):
        reason = f"Pillow cannot read this file: {advice}"
    if lower.endswith(COMPRESSED):
        reason = "a compressed archive, whose images cannot be read one by one; unpack it to a .tar"
    raise ImageError(
        f"{text}: {reason}; name a folder, an image, or a location with one of {schemes}", path=text
    )


def _fault(source: ImageSource) -> str:
    """Say what is wrong with a source's number, names or labels; empty if nothing is.

    No image is read.
    """
    try:
        count = len(source)
    except (TypeError, ValueError, OverflowError) as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # raised inside the source's own code
        return f"has no valid number of images: {error}"
    columns: dict[str, Sequence[object]] = {"paths": source.paths}
    if source.labels is not None:
        columns["labels"] = source.labels
    for column, values in columns.items():
        if not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
            return f"has {column} of type {type(values).__name__}; expected a list"
        if len(values) != count:
            return f"has {len(values)} {column}; expected one for every image, {count}"
        for value in (values[row] for row in range(min(count, _CHECKED))):
            if not isinstance(value, str) and (value is not None or column == "paths"):
                return f"has {column} of type {type(value).__name__}; expected text"
    if isinstance(source, FileSource):  # a list may name the same file twice
        return ""
    # A set of a million names takes five times the memory of an array of their hashes.
    hashes = np.fromiter((hash(name) for name in source.paths), np.int64, count)
    if len(np.unique(hashes)) == count:
        return ""
    seen: dict[str, int] = {}
    for row, name in enumerate(source.paths):
        if (first := seen.setdefault(name, row)) != row:
            return f"gives images {first} and {row} the same name, {name!r}; expected unique names"
    return ""


def _plugin_source(entry: Entry[ImageSourceSpec], location: str) -> ImageSource:
    source = instantiate(entry, location, ImageSource)  # type: ignore[type-abstract]
    if wrong := _fault(source):
        raise PluginError(fault(entry, wrong))
    return source
