"""Image files in a folder, or named by a text file."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from natsort import natsorted
from PIL import Image

from timmscope.safe_files import UnsafeFile, open_regular, why
from timmscope_registry import ImageError

from .decode import open_image
from .formats import IMAGE_SUFFIXES, is_image, is_picture, passed_over, suffix_of
from .presence import Presence, progress_if_slow, track_if_slow
from .source import ImageSource, digest_file
from .tables import LabelTable, StringTable, decode, encode

OUTPUT_FOLDER = "timmscope-out"
"""Folder to which commands write pictures by default; never part of a data set."""
STORE_SUFFIX = ".scope"
"""Suffix that stores have by convention; folders with it are not searched for images."""

SAMPLED_FILES = 4096
"""Largest number of files whose contents enter a fingerprint."""


class FileSource(ImageSource):
    """Image files below a root folder.

    The fingerprint covers every file's name and size, and the first and last 4 KiB of up to 4,096
    files spread evenly over the list. It leaves out time stamps, so that a copy of the data set has
    the same fingerprint.

    Args:
        paths: the files, relative to `root`.
        labels: a label for each file, None for files without one.
        root: the folder.
        location: text from which `open_images` makes the same source again.
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
        """Path of the image file."""
        return Path(self._name(index))

    def _name(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])  # noqa: PTH118 (a million times)

    def load(self, index: int) -> Image.Image:
        """Return one image as upright 8-bit RGB; raises `ImageError` if it cannot be read."""
        return open_image(self.file(index))

    def unreachable(self) -> str:
        """Say why none of up to 16 sampled files can be reached any more; empty while one can."""
        return self._presence.unreachable()

    def fingerprint(self) -> str:
        """Digest of names, sizes and sampled contents."""
        digest = hashlib.sha256()
        stride = max(1, -(-len(self) // SAMPLED_FILES))
        for index, path in enumerate(track_if_slow(self._paths, "checking images")):
            file = os.path.join(self._root, path)  # noqa: PTH118
            digest.update(encode(path) + b"\0" + encode(_label(self._labels, index)) + b"\0")
            if index % stride == 0:
                digest.update(digest_file(file, 2))
            else:
                digest.update(f"{_size(file)}\0".encode())
        return digest.hexdigest()


class FolderSource(FileSource):
    """Every image below a folder, in natural order (``2.jpg`` before ``10.jpg``).

    Hidden files and folders, files without an image suffix and folders that timmscope writes
    (``timmscope-out``, ``*.scope``) are skipped. Pictures that Pillow cannot read (``.heic``,
    ``.jxl``, raw files of cameras) are skipped with a warning that counts them and says what to
    install; pillow-heif and pillow-jxl-plugin are used where they are installed. Symbolic links are
    followed, except into a folder that contains them. An image's label is the name of the folder
    that contains it (``folder/label/image``), None for images at the top.

    Args:
        location: the folder.

    Raises:
        ImageError: it is not a folder, cannot be read, or contains no image.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        root = Path(location)
        if not root.is_dir():
            what = "not a folder" if root.exists() else "no such folder"
            raise ImageError(f"{root}: {what}; name a folder of images", path=root)
        skipped: Counter[str] = Counter()
        with progress_if_slow("listing images") as step:
            paths = StringTable(_walk(os.fspath(root), "", (), step, skipped))
        if not len(paths):
            looked = f"looked for {', '.join(sorted(IMAGE_SUFFIXES)[:6])} …"
            raise ImageError(
                f"{root}: no images in this folder or below it "
                f"({passed_over(skipped) if skipped else looked})",
                path=root,
            )
        if skipped:
            warnings.warn(f"{root}: {passed_over(skipped)}", stacklevel=2)
        super().__init__(
            paths,
            labels=(path.rsplit("/", 2)[-2] if "/" in path else None for path in paths),
            root=root,
            location=f"folder:{root.resolve()}",
        )


class ListSource(FileSource):
    """Images named by a text file with one path per line, optionally with a tab and a label.

    Paths are relative to the text file; empty lines are ignored. A missing image file still counts
    and has an id; loading it raises `ImageError`.

    Args:
        location: the text file, in UTF-8.

    Raises:
        ImageError: it cannot be read, is not text in UTF-8, or names no image.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        file = Path(location)
        try:
            with open_regular(file) as opened:
                text = decode(opened.read()).removeprefix("\ufeff")  # byte order mark of Windows
        except (OSError, UnsafeFile) as error:
            raise ImageError(
                f"{file}: cannot read this list of images ({why(error)})", path=file
            ) from error
        if "\0" in text:
            raise ImageError(
                f"{file}: not a list of images (it has a NUL byte); write one path per line in "
                "UTF-8",
                path=file,
            )
        rows = [line.removesuffix("\r").partition("\t") for line in text.split("\n")]
        rows = [row for row in rows if row[0].strip()]
        if not rows:
            raise ImageError(f"{file}: names no image; write one path per line", path=file)
        super().__init__(
            (path for path, _, _ in rows),
            labels=(label.strip() or None for _, _, label in rows),
            root=file.resolve().parent,
            location=f"list:{file.resolve()}",
        )


def _walk(
    root: str,
    below: str,
    above: tuple[tuple[int, int], ...],
    step: Callable[[], None],
    skipped: Counter[str],
) -> Iterator[str]:
    """Yield the relative paths of the images in and below a folder, in natural order.

    Args:
        root: the data set's folder.
        below: the folder to search, relative to `root`.
        above: device and inode of the folders that contain this one, to detect loops of links.
        step: called for every entry.
        skipped: counts, by suffix, the pictures that cannot be read.
    """
    folder = os.path.join(root, below)  # noqa: PTH118 (a million times: strings, not Path)
    wanted: dict[str, bool] = {}  # by name, whether the entry is a folder
    try:
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:  # gives most types without a call for each
            for entry in entries:
                step()
                name = entry.name
                if name.startswith("."):
                    continue
                if _is_folder(entry):
                    if name != OUTPUT_FOLDER and not name.endswith(STORE_SUFFIX):
                        wanted[name] = True
                    continue
                suffix = suffix_of(name)
                if is_picture(suffix) and (entry.is_symlink() or entry.is_file()):
                    if is_image(suffix):
                        wanted[name] = False  # also a broken link, so that loading it is reported
                    else:
                        skipped[suffix] += 1
    except OSError as error:
        raise ImageError(f"{folder}: cannot read this folder ({error.strerror})") from error
    # sorted() first: the order of names that are equal in natural order must not depend on the disk
    for name in natsorted(sorted(wanted)):
        path = f"{below}/{name}" if below else name
        if wanted[name]:
            yield from _walk(root, path, (*above, here), step, skipped)
        else:
            yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _label(labels: Sequence[str | None] | None, index: int) -> str:
    return "" if labels is None else labels[index] or ""


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size  # noqa: PTH116
    except OSError:
        return -1
