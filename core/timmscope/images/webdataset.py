"""Reads images from tar archives in WebDataset's layout: ``key.jpg`` beside ``key.cls``."""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import math
import os
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from natsort import natsorted
from PIL import Image

from timmscope.safe_files import UnsafeFile, open_regular, why
from timmscope_registry import ImageError

from .decode import open_image
from .formats import is_image, is_picture, passed_over, suffix_of
from .presence import Presence, track_if_slow
from .source import ImageSource, digest_file
from .tables import LabelTable, StringTable, encode

_SAMPLES = 1024
_LABEL_SUFFIXES = (".cls", ".label")
_LONGEST_LABEL = 1 << 16
_MOST_ARCHIVES = 1_000_000
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""Suffixes of archives whose images cannot be read at their offsets."""
_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class WebDatasetSource(ImageSource):
    """The images in one tar, in a folder of tars, or in those of a pattern.

    A pattern has wildcards (``data/train-*.tar``) or WebDataset's own braces
    (``data/train-{000..127}.tar``, ``{train,val}.tar``); every archive that braces name must exist.

    Archives are in natural order, images in the order of their archive. An image's label is the
    text of the ``.cls`` (or ``.label``) member with the same key (the name up to the first dot).
    If an archive holds a member twice, the last one counts, as when it is unpacked. Pictures that
    Pillow cannot read are passed over with a warning, as in `FolderSource`. The archives are
    indexed once, and images are then read at their offsets; the archives must therefore not be
    compressed.

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
        skipped: Counter[str] = Counter()
        tar_names = _distinct_names(self._tars)
        for number, tar in enumerate(track_if_slow(self._tars, "listing archives")):
            for name, label, offset, size in _index(tar, skipped):
                names.append(f"{tar_names[number]}/{name}")
                labels.append(label)
                where.append((number, offset, size))
        if not names:
            hint = f"; {passed_over(skipped)}" if skipped else ""
            raise ImageError(f"{location}: no image in {len(self._tars)} archive(s){hint}")
        if skipped:
            warnings.warn(f"{location}: {passed_over(skipped)}", stacklevel=2)
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
            with open_regular(self._tars[archive]) as file:
                file.seek(offset)
                data = file.read(size)
        except (OSError, UnsafeFile) as error:
            raise ImageError(f"{name}: cannot be read ({why(error)})", path=name) from error
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


class _Clamped(io.BufferedReader):
    """A file that is asked for no more bytes than it has, whatever the header of a member says."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


def _index(tar: Path, skipped: Counter[str]) -> list[tuple[str, str | None, int, int]]:
    """Return name, label, offset and size in bytes of every image in an archive.

    Args:
        tar: the archive.
        skipped: counts, by suffix, the pictures that cannot be read.
    """
    try:
        with _Clamped(open_regular(tar).detach()) as file:
            if file.read(6).startswith(_COMPRESSED_STARTS):
                raise _unreadable(tar, "it is compressed; unpack it to an uncompressed tar")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                found = list(_members(archive, tar, skipped))
                _require_end(archive, file, tar)
                return found
    except (ImageError, MemoryError):
        raise
    except UnsafeFile as error:
        raise _unreadable(tar, error.reason) from error
    except Exception as error:  # tarfile raises many types of error on damaged headers
        raise _unreadable(tar, f"{why(error)}; expected a whole, uncompressed tar") from error


def _members(
    archive: tarfile.TarFile, tar: Path, skipped: Counter[str]
) -> Iterator[tuple[str, str | None, int, int]]:
    size, begin = os.fstat(cast("_Clamped", archive.fileobj).fileno()).st_size, -1
    images: dict[str, tuple[str, tarfile.TarInfo]] = {}  # of several members of one name the last
    classes: dict[str, str] = {}
    files: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        if archive.offset <= begin or member.size < 0 or member.offset_data + member.size > size:
            raise _unreadable(
                tar,
                f"its member {member.name} claims {member.size} bytes at byte "
                f"{member.offset_data}, of {size} in all; download or create it again",
            )
        begin = archive.offset
        folder, _, base = member.name.rpartition("/")
        # A hard link refers to an earlier member with the same content.
        content_at = files.get(member.linkname) if member.islnk() else member
        if content_at is None or not content_at.isfile():
            continue
        files[member.name] = content_at
        if base.startswith("."):
            continue
        stem, _, suffix = base.partition(".")
        key, kind = f"{folder}/{stem}", suffix_of(base)
        if is_image(kind):
            if content_at.issparse():
                raise _unreadable(
                    tar, f"its member {member.name} is stored sparsely; create it without --sparse"
                )
            images[member.name] = key, content_at
        elif is_picture(kind):
            skipped[kind] += 1
        elif f".{suffix}" in _LABEL_SUFFIXES:
            content = archive.extractfile(member)
            assert content is not None  # a regular file has content
            text = content.read(_LONGEST_LABEL + 1)
            if len(text) > _LONGEST_LABEL:
                raise _unreadable(
                    tar, f"the label {member.name} is longer than {_LONGEST_LABEL} bytes"
                )
            classes[key] = text.decode("utf-8", "replace").strip()
    for name, (key, content_at) in images.items():
        yield name, classes.get(key), content_at.offset_data, content_at.size


def _require_end(archive: tarfile.TarFile, file: io.BufferedReader, tar: Path) -> None:
    """Check that the archive has an end mark, because `tarfile` stops at a damaged header.

    Raises:
        ImageError: there is no end mark after the last member.
    """
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


def _unreadable(tar: Path, reason: str) -> ImageError:
    return ImageError(f"{tar}: cannot read this archive ({reason})", path=tar)


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
        tars = []
        for name in expand_braces(location):
            found = [Path(name)]
            if not found[0].exists():
                found = [Path(match) for match in glob.glob(name)]  # noqa: PTH207 (absolute paths)
            if not found:
                raise ImageError(
                    f"{name}: no such archive; name a .tar, a folder or a pattern", path=name
                )
            tars += found
    if not tars:
        raise ImageError(f"{location}: no such archive; name a .tar, a folder or a pattern")
    return [path.absolute() for path in natsorted(sorted(set(tars)), key=str)]


def expand_braces(pattern: str) -> list[str]:
    """Expand WebDataset's notation: ``{000..002}`` counts and ``{a,b}`` lists alternatives.

    Raises:
        ImageError: a range runs backwards, or the pattern stands for too many names.
    """
    parts = [_alternatives(part, pattern) for part in re.split(r"(\{[^{}]*\})", pattern)]
    if math.prod(map(len, parts)) > _MOST_ARCHIVES:
        raise ImageError(f"{pattern}: stands for more than {_MOST_ARCHIVES} archives")
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def _alternatives(part: str, pattern: str) -> Sequence[str]:
    if span := re.fullmatch(r"\{(\d{1,18})\.\.(\d{1,18})\}", part, re.ASCII):
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise ImageError(f"{pattern}: the range {part} runs backwards")
        if last - first >= _MOST_ARCHIVES:
            raise ImageError(f"{pattern}: stands for more than {_MOST_ARCHIVES} archives")
        padded = any(len(end) > 1 and end.startswith("0") for end in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        return [f"{number:0{width}}" for number in range(first, last + 1)]
    return part[1:-1].split(",") if part.startswith("{") and "," in part else [part]
