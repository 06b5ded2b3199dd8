"""Lets work fail at system calls, and kills it there; each time it must end as undisturbed work.

    python -m tests.faults.sweep FOLDER SHARE KIND …

`SHARE` is the share of the calls that are tried, from 0 to 1. For each kind of work, a line says at
how many calls it was tried, how often an error was reported, and how often a child was killed.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from tests.faults.disk_faults import faults
from tests.faults.work import WORKS, Work

from timmscope import TimmscopeError


def restart(work: Work) -> None:
    """Make everything as it is before the work, also the user's list of stores."""
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)
    work.reset()


def fails(work: Work, at: int) -> bool:
    """Let a call fail; return whether that was reported, which must be one line."""
    message = ""
    with faults(at, (errno.EIO, errno.ENOSPC)[at % 2]) as found:
        try:
            work.run()
        except TimmscopeError as error:
            message = str(error)
    assert len(message.splitlines()) <= 1, message
    assert found.count >= at - 3  # the writer and the model are not always as far
    return bool(message)


def is_killed(work: Work, at: int) -> bool:
    """Do the work in a child that is killed at a call; return whether it was."""
    pid = os.fork()
    if pid == 0:
        try:
            with faults(at, None):
                work.run()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def main(folder: Path, share: float, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    tempfile.gettempdir()  # writes a file when it is first called, which is no part of the work
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    for kind in kinds:
        (folder / kind).mkdir()
        work = WORKS[kind](folder / kind)
        reported = killed = 0
        points = work.sample(share)
        for at in points:
            try:
                restart(work)
                reported += fails(work, at)
                work.check()
                restart(work)
                killed += is_killed(work, at)
                work.check()
            except BaseException as error:
                error.add_note(f"{kind}, call {at}: {work.calls[at - 1]}")
                raise
        print(kind, len(points), reported, killed, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
