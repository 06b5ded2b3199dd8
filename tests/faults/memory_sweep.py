"""Lets allocations of work fail; each time it must report one line, and then end as undisturbed.

    LD_PRELOAD=failing_malloc.so python -m tests.faults.memory_sweep FOLDER SHARE KIND …

`SHARE` is the share of the allocations that are tried, from 0 to 1. For each kind of work, a line
says how many there are, how many were tried, and how often an error was reported.

Blocks below 96 KiB never fail, because NumPy and HDF5 crash without their small ones. HDF5 also
crashes without its tables of half a megabyte; once memory is used up, only larger blocks fail.
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from tests.faults.work import READS, WORKS, Work

from timmscope.cli.main import explain

MODES = ((0, 96 << 10), (1, 640 << 10))
"""Whether later allocations fail too, and the smallest block that fails, in bytes."""

NO_ERROR, REPORTED, WRONG = range(3)

library = ctypes.CDLL(None)
library.failing_malloc.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_size_t]


def allocations(work: Work, least: int) -> int:
    """Return the number of blocks of at least `least` bytes that the work asks for."""
    work.reset()
    library.failing_malloc(0, 0, least)
    work.run()
    count = int(library.failing_malloc_count())
    library.failing_malloc(0, 0, 0)
    return count


def outcome(work: Work, at: int, later: int, least: int) -> int:
    """Do the work in a child in which an allocation fails; return what it reported."""
    pid = os.fork()
    if pid == 0:
        found = WRONG
        try:
            library.failing_malloc(at, later, least)
            work.run()
            found = NO_ERROR
        except BaseException as error:
            library.failing_malloc(0, 0, 0)
            status, line = explain(error)
            if (status, len(line.splitlines())) == (2, 1) and "memory" in line:
                found = REPORTED
            else:
                traceback.print_exc()
        finally:
            os._exit(found)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, share: float, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    for kind in kinds:
        (folder / kind).mkdir()
        work = (WORKS | READS)[kind](folder / kind, large=True)
        counts = [0, 0, 0]
        for later, least in MODES:
            count = allocations(work, least)
            points = np.linspace(1, count, max(2, round(share * count)))
            for at in sorted(set(points.astype(int).tolist())):
                work.reset()
                found = outcome(work, at, later, least)
                assert found in (NO_ERROR, REPORTED), f"{kind}, {(at, later, least)}: {found}"
                work.check()
                counts[1] += 1
                counts[2] += found == REPORTED
            counts[0] += count
        print(kind, *counts, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
