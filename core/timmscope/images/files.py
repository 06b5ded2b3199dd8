"""Images that are files: a folder of them, or a text file that names them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from natsort import natsorted
from PIL import Image

from timmscope_registry import ImageError

from .decode import open_image
from .presence import Presence, tracked, unless_quick
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
        names = (os.fspath(path) for path in paths)
        self._paths = paths if isinstance(paths, StringTable) else StringTable(names)
        table = None if labels is None else LabelTable(labels)
        self._labels = table if table is not None and table.names else None
        self._presence = Presence(len(self._paths), self._name)
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
        return Path(self._name(index))

    def _name(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])  # noqa: PTH118 (a million times)

    def load(self, index: int) -> Image.Image:
        """Return one image as upright 8-bit RGB; `ImageError` when it cannot be read."""
        return open_image(self.file(index))

    def lost(self) -> str:
        """Say why none of up to 16 files that were there at first can be reached, or nothing."""
        return self._presence.lost()

    def fingerprint(self) -> str:
        """Digest of names, sizes and sampled contents."""
        digest = hashlib.sha256()
        stride = max(1, -(-len(self) // SAMPLED_FILES))
        for index, path in enumerate(tracked(self._paths, "checking images")):
            file = os.path.join(self._root, path)  # noqa: PTH118
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
        with unless_quick("listing images") as step:
            paths = StringTable(_walk(os.fspath(root), "", (), step))
        if not len(paths):
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
            text = decode(file.read_bytes()).removeprefix("\ufeff")  # what Windows puts first
        except OSError as error:
            raise ImageError(
                f"{file}: cannot read this list of images ({error.strerror})", path=file
            ) from error
        if "\0" in text:
            raise ImageError(
                f"{file}: not a list of images (a NUL byte in it); write one path a line, in UTF-8",
                path=file,
            )
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


def _walk(
    root: str, below: str, above: tuple[tuple[int, int], ...], step: Callable[[], None]
) -> Iterator[str]:
    """Yield relative paths; `above` holds the folders that contain this one, against loops."""
    folder = os.path.join(root, below)  # noqa: PTH118 (a million times: strings, not Path)
    wanted: dict[str, bool] = {}  # name to whether it is a folder
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:  # knows most types without asking for each
            for entry in entries:
                step()
                name = entry.name
                if name.startswith("."):
                    continue
                if _is_folder(entry):
                    if name != OUTPUT_FOLDER and not name.endswith(STORE_SUFFIX):
                        wanted[name] = True
                elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and (  # noqa: PTH122
                    entry.is_symlink() or entry.is_file()
                ):
                    wanted[name] = False  # a broken link fails to load, and is reported
    except OSError as error:
        raise ImageError(f"{folder}: cannot read this folder ({error.strerror})") from error
    # sorted() first: names that natural order deems equal must not depend on the file system
    for name in natsorted(sorted(wanted)):
        path = f"{below}/{name}" if below else name
        if wanted[name]:
            yield from _walk(root, path, (*above, here), step)
        else:
            yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in circles
        return False


def _label(labels: Sequence[str | None] | None, index: int) -> str:
    return "" if labels is None else labels[index] or ""


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size  # noqa: PTH116
    except OSError:
        return -1
