"""Reads images from tar archives in WebDataset's layout: ``key.jpg`` beside ``key.cls``."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
from natsort import natsorted
from PIL import Image

from timmscope_registry import ImageError

from .decode import open_image
from .files import IMAGE_SUFFIXES
from .presence import Presence, track_if_slow
from .source import ImageSource, digest_file, require_file
from .tables import LabelTable, StringTable, encode

_SAMPLES = 1024
_LABEL_SUFFIXES = (".cls", ".label")


class WebDatasetSource(ImageSource):
    """The images in one tar, in a folder of tars, or in those of a pattern (``data/train-*.tar``).

    Archives are in natural order, images in the order of their archive. An image's label is the
    text of the ``.cls`` (or ``.label``) member with the same key (the name up to the first dot).
    The archives are indexed once, and images are then read at their offsets; the archives must
    therefore not be compressed.

    Args:
        location: the archive, folder or pattern.

    Raises:
        ImageError: there is no such archive, it cannot be read, or it contains no image.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self._tars = _tars(os.fspath(location))
        names: list[str] = []
        labels: list[str | None] = []
        where: list[tuple[int, int, int]] = []
        tar_names = _distinct_names(self._tars)
        for number, tar in enumerate(track_if_slow(self._tars, "listing archives")):
            self._index(number, tar, tar_names[number], names, labels, where)
        if not names:
            raise ImageError(f"{location}: no image in {len(self._tars)} archive(s)")
        self._paths = StringTable(names)
        table = LabelTable(labels)
        self._labels = table if table.names else None
        self._where = np.asarray(where, dtype=np.int64)  # (N, 3): archive, offset, bytes
        self._presence = Presence(len(self._tars), lambda number: str(self._tars[number]))
        pattern = Path(os.fspath(location)).absolute()
        self.location = f"webdataset:{pattern}"

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def paths(self) -> StringTable:
        """Names made of the archive's and the member's name, as in ``train-0.tar/000.jpg``.

        If archives in different folders have the same name, the folders come before it.
        """
        return self._paths

    @property
    def labels(self) -> LabelTable | None:
        """The text of the ``.cls`` member beside each image."""
        return self._labels

    def load(self, index: int) -> Image.Image:
        """Return one image as upright 8-bit RGB; raises `ImageError` if it cannot be read."""
        archive, offset, size = (int(value) for value in self._where[index])
        name = self._paths[index]
        try:
            with self._tars[archive].open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error.strerror})", path=name) from error
        if len(data) < size:
            raise ImageError(f"{name}: the archive ends inside this image", path=name)
        if not data:
            raise ImageError(f"{name}: the file is empty (0 bytes)", path=name)
        return open_image(io.BytesIO(data), name=name)

    def unreachable(self) -> str:
        """Say why none of up to 16 archives can be reached any more; empty while one can."""
        return self._presence.unreachable()

    def fingerprint(self) -> str:
        """Digest of the members' names, labels, sizes and of 1,024 samples of each archive."""
        digest = hashlib.sha256(self._where.tobytes())
        for index, path in enumerate(self._paths):
            label = "" if self._labels is None else self._labels[index] or ""
            digest.update(encode(path) + b"\0" + encode(label) + b"\0")
        for tar in self._tars:
            digest.update(digest_file(tar, _SAMPLES))
        return digest.hexdigest()

    @staticmethod
    def _index(
        number: int,
        tar: Path,
        tar_name: str,
        names: list[str],
        labels: list[str | None],
        where: list[tuple[int, int, int]],
    ) -> None:
        """Append the images of one archive to the lists of names, labels and positions."""
        keys: list[str] = []
        classes: dict[str, str] = {}
        files: dict[str, tarfile.TarInfo] = {}
        require_file(tar)
        try:
            with tarfile.open(tar, "r:") as archive:  # "r:" refuses compression
                for member in archive:
                    folder, _, base = member.name.rpartition("/")
                    # A hard link refers to an earlier member with the same content.
                    content_at = files.get(member.linkname) if member.islnk() else member
                    if content_at is None or not content_at.isfile():
                        continue
                    files[member.name] = content_at
                    if base.startswith("."):
                        continue
                    stem, _, suffix = base.partition(".")
                    key = f"{folder}/{stem}"
                    if f".{suffix.rpartition('.')[2]}".lower() in IMAGE_SUFFIXES:
                        keys.append(key)
                        names.append(f"{tar_name}/{member.name}")
                        where.append((number, content_at.offset_data, content_at.size))
                    elif f".{suffix}" in _LABEL_SUFFIXES:
                        content = archive.extractfile(member)
                        assert content is not None  # a regular file has content
                        classes[key] = content.read().decode("utf-8", "replace").strip()
                _require_end(archive, tar)
        except (tarfile.TarError, OSError) as error:
            raise ImageError(
                f"{tar}: cannot read this archive ({error}); expected a whole, uncompressed tar",
                path=tar,
            ) from error
        labels.extend(classes.get(key) for key in keys)


def _require_end(archive: tarfile.TarFile, tar: Path) -> None:
    """Check that the archive has an end mark, because `tarfile` stops at a damaged header.

    Raises:
        ImageError: there is no end mark after the last member.
    """
    with tar.open("rb") as file:
        file.seek(archive.offset)
        block = file.read(tarfile.BLOCKSIZE)
    if block != tarfile.NUL * tarfile.BLOCKSIZE:
        what = "damaged" if len(block) == tarfile.BLOCKSIZE else "cut short"
        last = archive.getmembers()[-1].name
        raise ImageError(
            f"{tar}: the archive is {what} after its member {last} (byte {archive.offset}); "
            "download or create it again, or leave it out",
            path=tar,
        )


def _distinct_names(tars: list[Path]) -> list[str]:
    """Return the file names of the archives, with folders if the names alone are not unique."""
    names = [tar.name for tar in tars]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath(tars)
    return [tar.relative_to(common).as_posix() for tar in tars]


def _tars(location: str) -> list[Path]:
    """List the archives at a location, in natural order."""
    path = Path(location)
    if path.is_dir():
        tars = [entry for entry in path.iterdir() if entry.suffix == ".tar"]
    elif path.exists():
        tars = [path]
    else:
        tars = [Path(name) for name in glob.glob(location)]  # noqa: PTH207 (absolute patterns)
    if not tars:
        raise ImageError(f"{location}: no such archive; name a .tar, a folder or a pattern")
    return [path.absolute() for path in natsorted(sorted(tars), key=str)]
