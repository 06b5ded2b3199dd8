"""Replaces several files of a folder together, so that a killed process leaves all old or all new.

The new files are written into a folder of their own inside the folder. When all of them are on the
disk, it is renamed to ``.saved``: from then on the new files count. They are then moved to their
places. A process that is killed before that leaves some of them in ``.saved``, where `open_newest`
finds them; the next save moves them.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from timmscope.durable import make_folder, sync
from timmscope.safe_files import open_regular

SAVED = ".saved"
_SAVING = ".saving-"
_LEFT_BEHIND_S = 3600
"""Age of an unfinished folder that is taken for that of a killed process, in seconds."""


@contextmanager
def replaced_together(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; the files written into it become files of `folder`, all or none.

    Args:
        folder: created if it does not exist. Its other files stay.

    Raises:
        OSError: a file cannot be written; nothing has changed.
    """
    make_folder(folder)
    for left in folder.glob(f"{_SAVING}*"):
        with suppress(FileNotFoundError):  # of another process, which has finished
            if left.stat().st_mtime < time.time() - _LEFT_BEHIND_S:
                shutil.rmtree(left, ignore_errors=True)
    new = folder / f"{_SAVING}{secrets.token_hex(8)}"
    new.mkdir()
    try:
        yield new
        for file in new.iterdir():
            sync(file)
        sync(new)
        _rename(new, folder / SAVED)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    sync(folder)
    _move_to_places(folder)
    sync(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left of a save; no other process may be saving there."""
    for left in folder.glob(f"{_SAVING}*"):
        shutil.rmtree(left, ignore_errors=True)


def open_newest(folder: Path, name: str, limit: int) -> BinaryIO:
    """Open the newest saved file of a name, of at most `limit` bytes, for reading.

    Raises:
        UnsafeFile: it is no regular file, or is larger.
        OSError: it cannot be opened.
    """
    with suppress(FileNotFoundError):
        return open_regular(folder / SAVED / name, limit)
    return open_regular(folder / name, limit)


def _rename(new: Path, saved: Path) -> None:
    while True:
        _move_to_places(new.parent)  # what a killed process has left
        try:
            new.rename(saved)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise  # otherwise another process has saved in between


def _move_to_places(folder: Path) -> None:
    saved = folder / SAVED
    if saved.is_symlink():  # the files behind it are not ours
        saved.unlink()
    with suppress(FileNotFoundError):  # two processes may move the same files
        for file in saved.iterdir():
            with suppress(FileNotFoundError):
                file.replace(folder / file.name)
    with suppress(OSError):
        saved.rmdir()
