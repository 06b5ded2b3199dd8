"""Files that an engine writes beside its index file, such as a graph that its library keeps apart.

Their names are the name of the index file, a dot and a suffix. The record of the index lists them
with their digests. They are replaced together with the index: new ones wait under another name
until the index file itself is replaced, and whoever finds them waiting after a crash puts them in
place.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from timmscope.durable import sync
from timmscope.safe_files import open_regular, require_regular
from timmscope.store.manifest import Count, Digest
from timmscope_registry import PluginError, VectorIndexError, get_registry
from timmscope_registry.plugin_faults import fault

ALWAYS_HASHED_BYTES = 64 << 20
"""Files up to this size are compared with their SHA-256 at every load."""
MOST_FILES = 64
"""Largest number of files of one engine."""
_SUFFIX = re.compile(r"(?!(faiss|json|next|tmp)$)[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def _valid(suffix: str) -> str:
    if not _SUFFIX.fullmatch(suffix):
        raise ValueError(f"{suffix!r} is no suffix of a file of an engine")
    return suffix


Suffix = Annotated[str, AfterValidator(_valid)]
"""Letters, digits, ``-`` and ``_``, so that no record leads out of the folder."""


class OwnFile(BaseModel):
    """Size in bytes and SHA-256 of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Count
    sha256: Digest


def own_path(path: Path, suffix: str) -> Path:
    """Return the path of an engine's file beside its index file."""
    return path.with_name(f"{path.name}.{suffix}")


def digest_of(path: Path) -> tuple[int, str]:
    """Return the size and the SHA-256 of a regular file."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def written_with(draft: Path, backend: str) -> dict[str, OwnFile]:
    """Return the files that an engine wrote beside the draft of its index, synced to the disk.

    Raises:
        PluginError: one is no regular file, or has a name that it cannot have.
        OSError: one cannot be read.
    """
    files = {}
    for file in beside(draft):
        suffix = file.name.removeprefix(f"{draft.name}.")
        if file.is_symlink() or not file.is_file() or not _SUFFIX.fullmatch(suffix):
            raise PluginError(
                fault(
                    get_registry().index_backend(backend),
                    f"wrote {suffix!r} beside its index",
                    expected="files whose suffix is of up to 32 letters, digits, - and _, and not "
                    "faiss, json, next or tmp",
                )
            )
        size, digest = digest_of(file)
        files[suffix] = OwnFile(size=size, sha256=digest)
        sync(file)
    return files


def beside(draft: Path) -> list[Path]:
    """Return what an engine wrote beside a draft."""
    return sorted(draft.parent.glob(f"{escape(draft.name)}.*"))


def discard(file: Path) -> None:
    """Remove a file, or a folder that an engine wrote in its place."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file, ignore_errors=True)
    else:
        file.unlink(missing_ok=True)


def lay_ready(draft: Path, path: Path, suffixes: Iterable[str]) -> None:
    """Name the files of a draft as those that follow when the index file is replaced."""
    for suffix in suffixes:
        own_path(draft, suffix).replace(_next(path, suffix))


def put_in_place(path: Path, files: Iterable[str]) -> None:
    """Replace an engine's files by those that are ready; files already in place are kept."""
    for suffix in files:
        with suppress(FileNotFoundError):  # another process has done it
            _next(path, suffix).replace(own_path(path, suffix))


def remove(path: Path, suffixes: Iterable[str]) -> None:
    """Remove files of an index that has been replaced."""
    for suffix in suffixes:
        own_path(path, suffix).unlink(missing_ok=True)


def remove_ready(path: Path) -> None:
    """Remove files that are ready for an index file that a killed writer has not replaced."""
    for file in path.parent.glob(f"{escape(path.name)}.*.next"):
        if _SUFFIX.fullmatch(file.name.removeprefix(f"{path.name}.").removesuffix(".next")):
            file.unlink(missing_ok=True)


def _next(path: Path, suffix: str) -> Path:
    return own_path(path, f"{suffix}.next")


def check(path: Path, files: Mapping[str, OwnFile], *, verify: bool | None) -> None:
    """Compare an engine's files with the record of its index; `verify` as for `read_record`.

    Raises:
        VectorIndexError: one is missing, truncated or altered.
        OSError, UnsafeFile: one cannot be read.
    """
    for suffix, expected in files.items():
        file = own_path(path, suffix)
        try:
            size, digest = require_regular(file).st_size, expected.sha256
            if verify or (verify is None and size <= ALWAYS_HASHED_BYTES):
                size, digest = digest_of(file)
        except FileNotFoundError as error:
            raise VectorIndexError(
                f"the index {path} lacks its file {file.name}: build it again"
            ) from error
        if size != expected.size:
            what = f"has {size} bytes, {expected.size} were written"
        elif digest != expected.sha256:
            what = "was altered: its SHA-256 differs from the recorded one"
        else:
            continue
        raise VectorIndexError(f"{file}, a file of the index {path}, {what}: build it again")
