"""One writer per store: an advisory lock that dies with the process that holds it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from timmscope_registry import StoreError

try:
    import fcntl
except ImportError:  # Windows has no flock; there, two writers are not told apart
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_held: set[int] = set()


class StoreLock:
    """Holds a store for writing inside a ``with`` block.

    The operating system drops the lock when the process ends, however it ends, so a killed run
    blocks nobody. The file stays; only the lock on it counts. An evaluation is held likewise:
    `what` is the word for the folder in messages.

    Raises:
        StoreError: another process is writing to the store; the message has its number.
    """

    def __init__(self, folder: Path, what: str = "store") -> None:
        self._path = folder / NAME
        self._what = what

    def __enter__(self) -> StoreLock:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"{self._path.parent}: cannot write to this folder ({error.strerror}); "
                f"choose another one for the {self._what}"
            ) from error
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.read(self._file, 20).decode("ascii", "replace").strip()
                os.close(self._file)
                raise StoreError(
                    f"{self._path.parent}: process {owner or 'unknown'} is writing to this "
                    f"{self._what}; wait until it has finished, or choose another folder"
                ) from error
        _held.add(self._file)
        with suppress(OSError):  # a full disk must not hide behind a courtesy
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)
        return self

    def __exit__(self, *exception: object) -> None:
        _held.discard(self._file)
        os.close(self._file)


def _let_go() -> None:
    """A forked worker shares the lock and would hold it after its parent's death."""
    for file in _held:
        with suppress(OSError):
            os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
