"""`ImageSource` is the base of every collection of images.

Worker processes read a source. Its pickle must therefore be small, and it must open its files in
the process that reads them (`PerProcess`), because HDF5 and tar handles do not survive a fork.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from timmscope.safe_files import UnsafeFile, open_regular
from timmscope_registry import ImageError

BLOCK = 4096
"""Size in bytes of one sample of a file in a fingerprint."""


class ImageSource(ABC):
    """An ordered collection of images; an image's id is its position, 0 … ``len(source) - 1``.

    Attributes:
        location: text from which `timmscope.open_images` makes the same source again, or "" for
            a source that exists only in memory.
    """

    location: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images, including unreadable ones."""

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Return one image as upright 8-bit RGB.

        Raises:
            ImageError: the image cannot be read; the others still can.
        """

    def pixels(self, index: int) -> np.ndarray | None:
        """Return one image as a model got or made it, if the source holds such images.

        Models of that input size take it as it is, neither resized nor rounded to 8 bits.

        Returns:
            `(C, H, W)` float32 in [0, 1]; None, the default, if models prepare what `load` returns.

        Raises:
            ImageError: the image cannot be read; the others still can.
        """
        return None

    @property
    @abstractmethod
    def paths(self) -> Sequence[str]:
        """A name for every image, unique within the source and stable between runs.

        Only a list of files may name the same file twice.
        """

    @property
    def labels(self) -> Sequence[str | None] | None:
        """A label for every image, None for images without one; or None if there are no labels."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest that changes when the names, their order or the images change."""

    def unreachable(self) -> str:
        """Say why no image can be reached any more; empty while some can.

        A pass over a data set calls this when it cannot read an image, and stops if the whole
        source is unreachable, instead of recording a million unreadable images.
        """
        return ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.location!r}, {len(self)} images>"


class SourceByName(ImageSource):
    """The images of another source in the order of a list of names.

    It reads a folder to which images were added or from which some were removed: an id still means
    the image of the same name, and only loading a removed image raises `ImageError`.

    Args:
        source: where the images are read.
        names: the name of each image, by id.
    """

    def __init__(self, source: ImageSource, names: Sequence[str]) -> None:
        self.location = source.location
        self._source = source
        self._names = names
        self._ids = {name: number for number, name in enumerate(source.paths)}

    def __len__(self) -> int:
        return len(self._names)

    def load(self, index: int) -> Image.Image:
        """Return the image whose name has that id."""
        return self._source.load(self._id(index))

    def pixels(self, index: int) -> np.ndarray | None:
        """Return the pixels of the image whose name has that id."""
        return self._source.pixels(self._id(index))

    def _id(self, index: int) -> int:
        name = self._names[index]
        if name not in self._ids:
            raise ImageError(f"{name}: no longer among the images at {self.location}", path=name)
        return self._ids[name]

    @property
    def paths(self) -> Sequence[str]:
        """The names."""
        return self._names

    def unreachable(self) -> str:
        """As the other source."""
        return self._source.unreachable()

    def fingerprint(self) -> str:
        """Digest of the other source and of the names."""
        names = hashlib.sha256("\0".join(self._names).encode("utf-8", "surrogateescape"))
        return f"{self._source.fingerprint()}-{names.hexdigest()}"


T = TypeVar("T")


class PerProcess(Generic[T]):
    """A handle that each process opens at its first use; it is neither pickled nor inherited."""

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


def digest_file(path: str | Path, blocks: int) -> bytes:
    """Digest a file's size and up to `blocks` evenly spread samples of 4 KiB, ends included.

    Reading a terabyte to see whether it changed would take too long; an edit between the samples
    that keeps the size is therefore not detected. All unreadable files have the same digest.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{size}:".encode())
            last = max(size - BLOCK, 0)
            for offset in sorted({last * step // max(blocks - 1, 1) for step in range(blocks)}):
                file.seek(offset)
                digest.update(file.read(BLOCK))
    except (OSError, UnsafeFile):
        digest.update(b"unreadable")
    return digest.digest()
