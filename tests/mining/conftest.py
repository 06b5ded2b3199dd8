"""Provides a small model and a folder of small images, of which two are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import HookedModel, load_model
from timmscope.images import FolderSource

COUNT = 40
BAD = (5, 33)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread, because small convolutions on shared CPUs are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_model() -> HookedModel:
    return load_model("random:test_resnet?seed=0&img_size=32")


def fill(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = folder / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(low).resize((56, 44)).save(path)
    empty, short = (FolderSource(folder).file(i) for i in BAD)
    empty.write_bytes(b"")
    short.write_bytes(short.read_bytes()[:300])
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 40 images, of which 2 cannot be read. Do not change it."""
    return fill(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def own_pictures(tmp_path: Path) -> Path:
    """Return a copy of `pictures` that the test may change."""
    return fill(tmp_path / "own")
