"""Runs over images that are killed at random places end with the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.processes import run_code


@pytest.mark.parametrize(
    "seed",
    [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.soak)],
)
def test_runs_killed_at_random_places_end_with_the_same_bytes(tmp_path: Path, seed: int) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    (pictures / "7.png").write_bytes(b"no image")
    done = run_code("tests.over.killing", pictures, tmp_path, 16, seed)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "16 kills" in done.stdout
