"""Merges in forked children and kills them; `test_nothing_lost.py` runs it in a new process.

Every second merge has no hard links, so that kills hit copies too.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from timmscope.mining import merge


def no_links(self: Path, target: object) -> None:
    raise OSError(18, "Invalid cross-device link")


def child(parts: list[Path], out: Path, copy: bool) -> int:
    """Start a merge and return the child's process id."""
    pid = os.fork()
    if pid == 0:
        if copy:
            Path.hardlink_to = no_links  # type: ignore[method-assign]
        try:
            merge(parts, out)
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> bool:
    """Return whether a child has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main(folder: Path, parts: list[Path], kills: int) -> None:
    random.seed(kills)
    durations = []
    for copy in (False, True):
        began = time.monotonic()
        assert os.waitpid(child(parts, folder / f"warm-{copy}", copy), 0)[1] == 0
        durations.append(time.monotonic() - began)
    hits, finished = 0, 0
    for kill in range(kills):
        out, copy = folder / f"killed-{finished}", bool(kill % 2)
        pid = child(parts, out, copy)
        if kill % 3:
            time.sleep(random.uniform(0.0, 1.1) * durations[copy])
        else:  # on a machine of any speed, some kills fall between the first shard and the end
            while not any(out.glob("shards/*.h5")) and not ended(pid):
                time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "a resumed merge failed"
        merged = (out / "reduced/merged.h5").exists()
        hits += os.WIFSIGNALED(status) and not merged and any(out.glob("shards/*.h5"))
        if merged or kill % 3 == 2:
            assert os.waitpid(child(parts, out, copy), 0)[1] == 0
            finished += 1
    assert os.waitpid(child(parts, folder / f"killed-{finished}", False), 0)[1] == 0
    print(hits)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(part) for part in sys.argv[3:]], int(sys.argv[2]))
