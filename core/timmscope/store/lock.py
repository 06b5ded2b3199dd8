"""`StoreLock` lets one process at a time write to a store."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import filelock

from timmscope_registry import StoreError

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class StoreLock:
    """Holds a store for writing inside a ``with`` block.

    The operating system releases the lock when the process ends, however it ends, so a killed
    process blocks nobody. The file stays; only the lock on it counts. A forked worker does not
    inherit the lock (filelock closes its descriptor there).

    Args:
        folder: the store, or the folder of an evaluation.
        what: the word for the folder in messages.

    Raises:
        StoreError: another process is writing to the folder; the message has its number. Or the
            folder cannot be written to.
    """

    def __init__(self, folder: Path, what: str = "store") -> None:
        self._path = folder / NAME
        self._what = what
        self._lock = filelock.FileLock(
            self._path,
            timeout=0,
            mode=0o644,
            thread_local=False,
            preserve_lock_file=True,
            on_acquired=_write_owner,
        )

    def __enter__(self) -> StoreLock:
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            owner = ""
            with suppress(OSError):
                owner = self._path.read_bytes()[:20].decode("ascii", "replace").strip()
            raise StoreError(
                f"{self._path.parent}: process {owner or 'unknown'} is writing to this "
                f"{self._what}; wait until it has finished, or choose another folder"
            ) from error
        except (OSError, NotImplementedError) as error:
            if not isinstance(error, OSError) or error.errno in _NO_LOCKS:
                raise StoreError(
                    f"{self._path.parent}: this file system cannot lock files, so two processes "
                    f"could write to one {self._what}; choose a folder on a local disk"
                ) from error
            raise StoreError(
                f"{self._path.parent}: cannot write to this folder ({error.strerror}); "
                f"choose another one for the {self._what}"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def _write_owner(file: int) -> None:
    """Write the process's number, for the message of another process that finds the lock taken."""
    with suppress(OSError):  # a full disk must not stop a pass because of a message
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, str(os.getpid()).encode())
