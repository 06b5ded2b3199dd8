"""Runs a technique over images in forked children and kills them; see `test_kills.py`."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from timmscope import load_model, technique


def run(pictures: str, out: Path, workers: int) -> None:
    model = load_model("random:resnet18?seed=0&img_size=32")
    attack = technique("pgd")(steps=2, epsilon=0.05)
    attack.over(model, pictures, out, batch_size=3, workers=workers, seed=4)


def child(pictures: str, out: Path, workers: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            run(pictures, out, workers)
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def main(pictures: str, folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    load_model("random:resnet18?seed=0&img_size=32")  # import timm before the first fork
    technique("pgd")
    random.seed(seed)
    began = time.monotonic()
    assert os.waitpid(child(pictures, folder / "whole", 0), 0)[1] == 0
    duration = time.monotonic() - began
    killed = finished = 0
    while killed < kills:
        out = folder / f"killed-{finished}"
        how = (signal.SIGKILL, signal.SIGINT)[killed % 4 == 3]
        pid = child(pictures, out, workers=killed % 3)
        time.sleep(random.uniform(0.05, 0.8) * duration)
        os.kill(pid, how)
        status = os.waitpid(pid, 0)[1]
        failed = os.WIFEXITED(status) and os.WEXITSTATUS(status)
        assert not failed or how == signal.SIGINT, "a resumed run failed"
        killed += 1
        finished += os.WIFEXITED(status) and not failed
    out = folder / f"killed-{finished}"
    assert os.waitpid(child(pictures, out, 0), 0)[1] == 0
    whole = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    for done in sorted(folder.glob("killed-*")):
        for name, data in whole.items():
            if name != ".lock":
                assert (done / name).read_bytes() == data, f"{done.name}/{name} differs"
        assert {path.name for path in done.iterdir()} == set(whole), sorted(done.iterdir())
    print(f"{killed} kills, {finished + 1} runs")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
