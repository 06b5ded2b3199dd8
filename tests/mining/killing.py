"""Mines in forked children and kills them; `test_resume.py` runs this script in a new process.

Forking imports torch only once. It is safe, because the parent runs one thread and no model.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from timmscope import load_model
from timmscope.mining import mine

SETTINGS = {"layers": ["layer1", "global_pool"], "batch_size": 4, "shard_size": 6, "top_k": 5}


def run(pictures: str, out: Path, workers: int) -> None:
    model = load_model("random:test_resnet?seed=0&img_size=32")
    mine(model, pictures, out, maps=["layer2"], workers=workers, **SETTINGS)


def child(pictures: str, out: Path, workers: int, crash_at: str = "") -> int:
    """Start a pass and return the child's process id."""
    pid = os.fork()
    if pid == 0:
        os.environ["TIMMSCOPE_CRASH_AT"] = crash_at
        try:
            run(pictures, out, workers)
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def count(out: Path) -> int:
    return len(list((out / "shards").glob("*.h5"))) if out.exists() else 0


def ended(pid: int) -> bool:
    """Return whether a child has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_for(out: Path, more: int, pid: int) -> None:
    """Wait until `more` further shards exist, or the child has ended."""
    wanted = count(out) + more
    while count(out) < wanted and not ended(pid):
        time.sleep(0.001)


def main(pictures: str, folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    load_model("random:test_resnet?seed=0&img_size=32")  # import timm before the first fork
    random.seed(seed)
    began = time.monotonic()
    whole = child(pictures, folder / "whole", 0)
    assert os.waitpid(whole, 0)[1] == 0
    duration = time.monotonic() - began
    report: dict[str, object] = {"duration": duration}

    out, shards, killed, finished = folder / "killed", [], 0, 0
    while killed < kills:
        pid = child(pictures, out, workers=killed % 3)
        if killed % 2:
            time.sleep(random.uniform(0.0, 0.6) * duration)
        else:  # while it writes, shortly after a shard has appeared
            wait_for(out, random.randrange(3), pid)
            time.sleep(random.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "a resumed run failed"
        killed += os.WIFSIGNALED(status)
        shards.append(count(out))
        if (out / "reduced/merged.h5").exists():  # nearly finished: continue with a new store
            assert os.waitpid(child(pictures, out, 0), 0)[1] == 0
            finished += 1
            out.rename(folder / f"killed-{finished}")
    assert os.waitpid(child(pictures, out, 2), 0)[1] == 0
    report["shards"] = shards

    for point in ("begun:2", "reduced:1", "rows:0", "rows:3", "listed:2", "batch:12", "batch:16"):
        out = folder / f"crash-{point.replace(':', '-')}"
        status = os.waitpid(child(pictures, out, 0, point), 0)[1]
        assert os.WIFSIGNALED(status), point
        assert os.waitpid(child(pictures, out, 1), 0)[1] == 0
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
