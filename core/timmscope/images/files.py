"""Images that are files: a folder of them, or a text file that names them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from natsort import natsorted
from PIL import Image

from timmscope_registry import ImageError

from .decode import open_image
from .source import ImageSource, digest_file
from .tables import LabelTable, StringTable, decode, encode

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".jp2", ".j2k",
    ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".ico",
))
# fmt: on
"""Suffixes (lower case) that a folder's images have; other files in it are ignored."""

OUTPUT_FOLDER = "timmscope-out"
"""Where commands write pictures unless told otherwise; never part of a data set."""
STORE_SUFFIX = ".scope"
"""What stores are called by custom; they hold no images."""

SAMPLED_FILES = 4096
"""How many files' contents enter a fingerprint."""


class FileSource(ImageSource):
    """Image files below a root.

    The fingerprint covers every file's name and size, and the first and last 4 KiB of up to 4,096
    files spread evenly over the list (all of them, when there are no more). Time stamps are left
    out, so a copy of the data set has the same fingerprint.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        labels: Iterable[str | None] | None = None,
        root: str | os.PathLike[str] = "",
        location: str = "",
    ) -> None:
        self._root = os.fspath(root)
        self._paths = StringTable(os.fspath(path) for path in paths)
        table = None if labels is None else LabelTable(labels)
        self._labels = table if table is not None and table.names else None
        self.location = location

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def paths(self) -> StringTable:
        """Paths relative to the root, with forward slashes."""
        return self._paths

    @property
    def labels(self) -> LabelTable | None:
        """Label of every image."""
        return self._labels

    def file(self, index: int) -> Path:
        """Where the image lies on disk."""
        return Path(self._root, self._paths[index])

    def load(self, index: int) -> Image.Image:
        """Return one image as upright 8-bit RGB; `ImageError` when it cannot be read."""
        return open_image(self.file(index))

    def fingerprint(self) -> str:
        """Digest of names, sizes and sampled contents."""
        digest = hashlib.sha256()
        stride = max(1, -(-len(self) // SAMPLED_FILES))
        for index, path in enumerate(self._paths):
            file = self.file(index)
            digest.update(encode(path) + b"\0" + encode(_label(self._labels, index)) + b"\0")
            if index % stride == 0:
                digest.update(digest_file(file, 2))
            else:
                digest.update(f"{_size(file)}\0".encode())
        return digest.hexdigest()


class FolderSource(FileSource):
    """Every image below a folder, in natural order (``2.jpg`` before ``10.jpg``).

    Hidden files and folders, files without an image suffix, and below the folder what timmscope
    writes (``timmscope-out``, ``*.scope``) are skipped; symbolic links are followed, except back
    into a folder that contains them. An image's label is the name of the
    folder it lies in (``folder/label/image``), None for images at the top.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        root = Path(location)
        if not root.is_dir():
            what = "not a folder" if root.exists() else "no such folder"
            raise ImageError(f"{root}: {what}; name a folder of images", path=root)
        paths = list(_walk(os.fspath(root), "", ()))
        if not paths:
            raise ImageError(
                f"{root}: no images in this folder or below it (looked for "
                f"{', '.join(sorted(IMAGE_SUFFIXES)[:6])} …)",
                path=root,
            )
        super().__init__(
            paths,
            labels=(path.rsplit("/", 2)[-2] if "/" in path else None for path in paths),
            root=root,
            location=f"folder:{root.resolve()}",
        )


class ListSource(FileSource):
    """Images named by a text file: one path a line, optionally a tab and a label.

    Paths are relative to the text file; empty lines are ignored. A file that is missing keeps its
    place, and its id, and fails when it is loaded.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        file = Path(location)
        try:
            text = decode(file.read_bytes())
        except OSError as error:
            raise ImageError(
                f"{file}: cannot read this list of images ({error.strerror})", path=file
            ) from error
        rows = [line.removesuffix("\r").partition("\t") for line in text.split("\n")]
        rows = [row for row in rows if row[0].strip()]
        if not rows:
            raise ImageError(f"{file}: names no image; write one path a line", path=file)
        super().__init__(
            (path for path, _, _ in rows),
            labels=(label.strip() or None for _, _, label in rows),
            root=file.resolve().parent,
            location=f"list:{file.resolve()}",
        )


def _walk(root: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield relative paths; `above` holds the folders that contain this one, against loops."""
    folder = os.path.join(root, below)  # noqa: PTH118 (a million times: strings, not Path)
    try:
        status = os.stat(folder)  # noqa: PTH116
        names = os.listdir(folder)  # noqa: PTH208
    except OSError as error:
        raise ImageError(f"{folder}: cannot read this folder ({error.strerror})") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    # sorted() first: names that natural order deems equal must not depend on the file system
    for name in natsorted(sorted(name for name in names if not name.startswith("."))):
        path = f"{below}/{name}" if below else name
        full = os.path.join(folder, name)  # noqa: PTH118
        if os.path.isdir(full):  # noqa: PTH112
            if name == OUTPUT_FOLDER or name.endswith(STORE_SUFFIX):
                continue
            yield from _walk(root, path, (*above, here))
        elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and (  # noqa: PTH122
            os.path.isfile(full) or os.path.islink(full)  # noqa: PTH113, PTH114
        ):
            yield path  # a broken link is an image that fails to load, and is reported


def _label(labels: Sequence[str | None] | None, index: int) -> str:
    return "" if labels is None else labels[index] or ""


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
