"""What every collection of images offers, wherever its images lie.

A source is read by worker processes: it must pickle small and open its files lazily, in the
process that reads (`PerProcess`), because HDF5 and tar handles do not survive a fork.
"""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from timmscope_registry import ImageError

BLOCK = 4096
"""Bytes of one sample of a file in a fingerprint."""


class ImageSource(ABC):
    """An ordered, indexable collection of images. Ids are positions: 0 … ``len(source) - 1``.

    Attributes:
        location: text from which `timmscope.open_images` makes the same source again, or "" for
            a source that exists only in memory.
    """

    location: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images, readable or not."""

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Return one image as upright 8-bit RGB.

        Raises:
            ImageError: it cannot be read; the source itself remains usable.
        """

    @property
    @abstractmethod
    def paths(self) -> Sequence[str]:
        """A name for every image, unique within the source and stable between runs.

        Only a list of files may name a file twice: whichever of the two is meant, it is the same.
        """

    @property
    def labels(self) -> Sequence[str | None] | None:
        """The label of every image (None where one has none), or None without any labels."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest that changes when the names, their order or the images change."""

    def lost(self) -> str:
        """Say why no image can be reached any more, or nothing while some can.

        A pass asks after an image that it could not read: a disk that goes away ends it, instead
        of being recorded as a million unreadable images.
        """
        return ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.location!r}, {len(self)} images>"


class ByName(ImageSource):
    """Images of another source under the ids of a list of names.

    For reading a folder again in which images have come and gone: an id keeps meaning the image
    of that name, and one that has gone is an error of its own.
    """

    def __init__(self, source: ImageSource, names: Sequence[str]) -> None:
        self.location = source.location
        self._source = source
        self._names = names
        self._places = {name: place for place, name in enumerate(source.paths)}

    def __len__(self) -> int:
        return len(self._names)

    def load(self, index: int) -> Image.Image:
        """Return the image that has the name of that id."""
        name = self._names[index]
        if name not in self._places:
            raise ImageError(f"{name}: no longer among the images at {self.location}", path=name)
        return self._source.load(self._places[name])

    @property
    def paths(self) -> Sequence[str]:
        """The names."""
        return self._names

    def lost(self) -> str:
        """What the other source says."""
        return self._source.lost()

    def fingerprint(self) -> str:
        """Digest of the other source and the names."""
        names = hashlib.sha256("\0".join(self._names).encode("utf-8", "surrogateescape"))
        return f"{self._source.fingerprint()}-{names.hexdigest()}"


T = TypeVar("T")


class PerProcess(Generic[T]):
    """A handle opened at first use in each process, and never pickled or inherited."""

    def __init__(self, opener: Callable[[], T]) -> None:
        self._opener = opener
        self._owner = -1
        self._value: T | None = None

    def get(self) -> T:
        """The handle of this process."""
        if self._value is None or self._owner != os.getpid():
            self._value, self._owner = self._opener(), os.getpid()
        return self._value

    def __getstate__(self) -> dict[str, object]:
        return {"_opener": self._opener, "_owner": -1, "_value": None}


def require_file(path: str | os.PathLike[str], name: str = "") -> None:
    """Refuse what is there and no file: opening a pipe waits until somebody writes to it.

    Args:
        path: what would be opened; nothing is said where it is missing, or a folder.
        name: what to call it in the error; by default the path.

    Raises:
        ImageError: a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (a million times)
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        label = name or os.fspath(path)
        raise ImageError(f"{label}: no file, but a pipe or a device; leave it out", path=label)


def digest_file(path: str | Path, blocks: int) -> bytes:
    """Digest a file's size and up to `blocks` evenly spread samples of 4 KiB, ends included.

    Reading a terabyte to see whether it changed is out of the question; an edit between the
    samples that keeps the size goes unseen.
    A file that cannot be read has the digest of its absence.
    """
    digest = hashlib.sha256()
    try:
        require_file(path)
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{size}:".encode())
            last = max(size - BLOCK, 0)
            for offset in sorted({last * step // max(blocks - 1, 1) for step in range(blocks)}):
                file.seek(offset)
                digest.update(file.read(BLOCK))
    except (OSError, ImageError):
        digest.update(b"unreadable")
    return digest.digest()
