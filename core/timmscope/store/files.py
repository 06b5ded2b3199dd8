"""Writes files that are either complete or absent, so that a killed process damages nothing.

A file gets a temporary name, fsync, its final name, and an fsync of the folder. HDF5 has no
journal: when the disk is full, libhdf5 cannot even close the file, and the process dies of a
segmentation fault. This module therefore hides failed writes from HDF5, which writes through a
`GuardedFile`: it keeps in memory what does not fit on the disk and remembers the error. The miner
checks for that error after every batch and stops while all earlier shards are safe.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

from timmscope.durable import sync
from timmscope.safe_files import open_hdf5
from timmscope_registry import StoreError, TimmscopeError
from timmscope_registry.out_of_memory import is_out_of_memory

TEMPORARY = ".tmp"
"""Suffix of files being written; a killed process leaves such files behind."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LIBVER = ("v110", "v110")  # checksummed metadata, and the same bytes from every HDF5 release


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file's contents in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file in one step.

    Raises:
        StoreError: the disk is full or read-only.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[h5py.File, GuardedFile]]:
    """Write an HDF5 file that appears under its name only when it is complete and on disk.

    The same writes give the same bytes: there are no time stamps, and the format version is fixed.

    Raises:
        StoreError: the disk is full or read-only; nothing is left behind.
    """
    with replacing(path) as temporary, GuardedFile(temporary) as guarded:
        with open_hdf5(guarded, "w", libver=_LIBVER, rdcc_nbytes=16 << 20) as file:
            yield file, guarded
        guarded.check()
        guarded.sync()


def link_or_copy(source: Path, target: Path) -> bool:
    """Put a file under another name in one step: as a hard link where possible, else as a copy.

    A link is impossible across file systems, and some file systems have none.

    Returns:
        Whether it is a link; a copy takes space on the disk.

    Raises:
        StoreError: the disk is full or read-only; nothing is left behind.
    """
    if target.exists() and target.samefile(source):  # renaming a link to its twin does nothing
        return True
    with replacing(target) as temporary:
        temporary.unlink(missing_ok=True)  # left behind by a killed process
        linked = False
        with suppress(OSError):
            temporary.hardlink_to(source)
            linked = True
        if not linked:
            shutil.copyfile(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    return linked


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file that replaces `path` when the block ends without an error.

    Raises:
        StoreError: the disk is full or read-only; nothing is left behind.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise disk_error(error, path) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES", "EAGAIN", "EBUSY", "EDEADLK", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOLCK",
        "ENOTCONN", "EPERM", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip


def machine_error(error: BaseException, path: Path) -> StoreError | None:
    """Return the error for a failure of the machine; None if the file itself may be damaged."""
    if is_out_of_memory(error):
        return StoreError(
            f"{path}: there is not enough memory to read it; free some, then try again"
        )
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _MACHINE:
            return StoreError(
                f"{path}: cannot be read now ({cause.strerror}); check the disk, the permissions "
                "and the limit of open files, then try again"
            )
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def memory_as_store_error(folder: Path) -> Iterator[None]:
    """Turn every library's error for used-up memory into one line.

    Raises:
        StoreError: what is done inside the block needs more memory than there is.
    """
    try:
        yield
    except TimmscopeError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise StoreError(
            f"{folder}: there is not enough memory; free some, or take a smaller batch_size or "
            "model, and start again: what is finished is kept"
        ) from error


def disk_error(error: OSError, path: Path) -> StoreError:
    """Return an error that says in one line why a file cannot be written, and what to do."""
    if error.errno in _FULL:
        advice = "free some space and start again: what is finished is kept"
        return StoreError(f"{path}: the disk is full ({error.strerror}); {advice}")
    return StoreError(f"{path}: cannot be written ({error.strerror or error}); check the folder")


class GuardedFile:
    """A file for h5py whose writes never fail; `check` raises the error of the first failed write.

    After the first failure, what HDF5 writes is kept in memory, so that it reads back correct data
    and can close the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb+", buffering=0)
        self._position = 0
        self._size = 0
        self._spilled: list[tuple[int, bytes]] = []
        self.error: OSError | None = None

    def __enter__(self) -> GuardedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def check(self) -> None:
        """Raise the error of the first failed write, if there was one."""
        if self.error is not None:
            raise self.error

    def sync(self) -> None:
        """Wait until the contents are on disk."""
        os.fsync(self._file.fileno())

    # --- the methods that h5py calls ------------------------------------------------------------

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the offset."""
        return self._position

    def write(self, data: Any) -> int:
        """Write, or keep in memory what cannot be written."""
        view = memoryview(data).cast("B")
        written = 0
        if self.error is None:
            try:
                self._file.seek(self._position)
                while written < len(view):
                    written += self._file.write(view[written:])
            except OSError as error:
                self.error = error
        if written < len(view):
            self._spilled.append((self._position + written, bytes(view[written:])))
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Read from the disk and from memory into a buffer; return the number of bytes."""
        view = memoryview(buffer).cast("B")
        start = self._position
        self._file.seek(start)
        got = self._file.readinto(view)
        view[got:] = bytes(len(view) - got)
        for offset, data in self._spilled:
            low, high = max(offset, start), min(offset + len(data), start + len(view))
            if low < high:
                view[low - start : high - start] = data[low - offset : high - offset]
        count = max(0, min(len(view), self._size - start))
        self._position += count
        return count

    def read(self, count: int) -> bytes:
        """Read from the disk and from memory; h5py recognises a file by this method."""
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(buffer)])

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        self._size = self._position if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self.error = error
        return self._size

    def flush(self) -> None:
        """Do nothing, because nothing is buffered here."""
