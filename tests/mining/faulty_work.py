"""The work that `test_faults.py` lets fail at one system call; as a script it kills its children.

    python -m tests.mining.faulty_work FOLDER KIND SHARE

Each child is killed at another call; then the work is done again and must end in the same bytes.
`SHARE` is the share of the calls that are tried, from 0 to 1. The number of kills is printed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tests.mining.contents import contents
from tests.mining.faults import faults

from timmscope import HookedModel, Store, VectorIndex, merge, mine, verify
from timmscope.testing import tiny_model

LAYERS = ["act2"]
KINDS = ("pass", "merge", "repair", "index")


class Work:
    """One kind of work on a store, from a given state of its folder.

    Args:
        folder: an empty folder for images and stores.
        kind: one of `KINDS`.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.model: HookedModel = tiny_model()
        size = self.model.input_size[1:]
        pixels = np.random.default_rng(0).integers(0, 256, (10, *size, 3), dtype=np.uint8)
        self.images = folder / "images.npy"
        np.save(self.images, pixels)
        self._start = folder / "start"
        self._start.mkdir()
        self.parts = []
        if kind == "merge":
            self.parts = [self._mine(folder / f"part{i}", ranges=(i, 2)).path for i in (1, 2)]
        elif kind != "pass":
            self._mine(self._start / "s.scope")
        if kind == "repair":
            for name in ("shards/00001.h5", "reduced/00002.h5"):
                path = self._start / "s.scope" / name
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
        self.expected: dict[str, bytes] = {}
        whole = folder / "expected"
        self.reset(whole)
        with faults() as counted:
            self.run(whole)
        self.calls = counted.names
        self.expected = contents(whole)

    def _mine(self, out: Path, **options: object) -> Store:
        return mine(
            self.model, self.images, out,
            layers=LAYERS, batch_size=2, shard_size=4, top_k=3, workers=0, **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def reset(self, folder: Path) -> None:
        """Make a folder as it is before the work."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._start, folder)

    def run(self, folder: Path) -> None:
        """Do the work, or what is left of it."""
        out = folder / "s.scope"
        if self.kind == "pass":
            self._mine(out)
        elif self.kind == "merge":
            merge(self.parts, out)
        elif self.kind == "repair":
            assert verify(out, repair=True, model=self.model, images=self.images).ok
        else:
            VectorIndex.build(Store.open(out).layer(LAYERS[0])).save()

    def check(self, folder: Path) -> None:
        """Do what is left of the work, and compare the result with that of undisturbed work."""
        if self.kind != "pass" and (folder / "s.scope/manifest.json").exists():
            Store.open(folder / "s.scope")
        self.run(folder)
        assert contents(folder) == self.expected

    def sample(self, share: float) -> list[int]:
        """Return numbers of calls, spread over all."""
        count = max(2, round(share * len(self.calls)))
        return sorted({int(n) for n in np.linspace(1, len(self.calls), count)})


def kill(work: Work, folder: Path, at: int) -> bool:
    """Do the work in a child that is killed at a call; return whether it was."""
    pid = os.fork()
    if pid == 0:
        try:
            with faults(at, None):
                work.run(folder)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def main(folder: Path, kind: str, share: float) -> None:
    torch.set_num_threads(1)
    work = Work(folder, kind)
    killed = 0
    for at in work.sample(share):
        work.reset(folder / "killed")
        killed += kill(work, folder / "killed", at)
        work.check(folder / "killed")
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
