"""Trains in forked children and kills them; `test_resume.py` runs this script in a new process.

Forking imports torch only once. It is safe, because the parent runs one thread and no model.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tests.training.conftest import Plain, small

PLACES = ("write", "fsync", "rename", "unlink")
"""Where a child can be killed: before it writes a temporary file, syncs it, renames it; after
that, before it removes the checkpoint."""


def run(photos: str, out: Path) -> None:
    Plain(epochs=2)(small(), photos, output=out, checkpoint_every=3)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(place: str, count: int) -> None:
    """Kill this process at the `count`-th call of a function of the file system."""
    owner = {"write": Path, "fsync": os, "rename": Path, "unlink": Path}[place]
    name = {"write": "open", "rename": "replace"}.get(place, place)
    real: Callable[..., object] = getattr(owner, name)
    left = count

    def counted(*given: object, **named: object) -> object:
        nonlocal left
        if place != "write" or "wb" in given:
            left -= 1
            if left == 0:
                die()
        return real(*given, **named)

    setattr(owner, name, counted)


def child(photos: str, out: Path, place: str = "", count: int = 0) -> int:
    """Start a training and return the child's process id."""
    pid = os.fork()
    if pid == 0:
        try:
            if place:
                kill_at(place, count)
            run(photos, out)
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def main(photos: str, folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    small()  # imports before the first fork
    random.seed(seed)
    began = time.monotonic()
    ended(child(photos, folder / "whole"))
    duration = time.monotonic() - began
    outcomes: list[tuple[str, bool]] = []
    same, left = True, []
    for pair in range(kills // 2):
        # A new folder, so that the call at which the first child dies is still to come.
        out = folder / f"killed-{pair}"
        place = PLACES[pair % len(PLACES)]
        outcomes.append((place, ended(child(photos, out, place, 1 + pair % 3))))
        pid = child(photos, out)
        time.sleep(random.uniform(0.0, 0.9) * duration)
        os.kill(pid, signal.SIGKILL)
        outcomes.append(("at any moment", ended(pid)))
        ended(child(photos, out))
        same &= equal(folder / "whole", out)
        left.append(sorted(entry.name for entry in out.iterdir()))
    print(json.dumps({"same": same, "left": left, "outcomes": outcomes}))


def ended(pid: int) -> bool:
    """Wait for a child and return whether it was killed."""
    status = os.waitpid(pid, 0)[1]
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "a child failed"
    return os.WIFSIGNALED(status)


def equal(one: Path, other: Path) -> bool:
    names = ("weights.safetensors", "card.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
