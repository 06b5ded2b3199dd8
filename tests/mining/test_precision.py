"""The error of a pass in bfloat16 is measured on its own images and kept in the store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timmscope import HookedModel
from timmscope.images import FolderSource
from timmscope.mining import merge, mine
from timmscope.mining.precision import relative_error
from timmscope.store import Store
from timmscope_registry import ParameterError

SETTINGS: dict[str, Any] = {
    "layers": ["layer1", "layer4", "global_pool"],
    "batch_size": 8,
    "shard_size": 16,
    "workers": 0,
}


@pytest.fixture(scope="module")
def low(
    small_model: HookedModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    out = tmp_path_factory.mktemp("low") / "s.scope"
    return mine(small_model, pictures, out, precision="bf16", **SETTINGS)


def test_the_relative_error_equals_values_computed_by_hand() -> None:
    exact = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    assert relative_error(exact + np.array([[0.3, 0.4], [0, 0]]), exact) == pytest.approx(0.1)
    assert relative_error(exact, exact) == 0
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.ones(3), np.zeros(3)) is None
    assert relative_error(np.array([1.0, np.inf]), np.array([1.0, 2.0])) is None
    assert relative_error(np.array([1.1, np.nan]), np.array([1.0, np.inf])) == pytest.approx(0.1)
    assert relative_error(np.array([5.0]), np.array([np.nan])) == 0


def test_the_error_equals_that_between_the_rows_of_two_passes(
    small_model: HookedModel, pictures: Path, tmp_path: Path, low: Store
) -> None:
    full = mine(small_model, pictures, tmp_path / "full", **SETTINGS)
    error = low.manifest.precision_error
    assert error is not None
    assert full.manifest.precision_error is None
    first = [i for i in range(8) if full.images.readable[i]]
    assert error.images == len(first) == 7  # the sixth is damaged
    assert list(error.layers) == SETTINGS["layers"]
    for name, kinds in error.layers.items():
        assert list(kinds) == ["pooled", "max"]
        for kind, share in kinds.items():
            exact, got = (s.layer(name).rows(kind)[first].astype(float) for s in (full, low))
            wanted = math.sqrt(((got - exact) ** 2).sum() / (exact**2).sum())
            assert share == pytest.approx(wanted, rel=0.05)  # batches of seven and of eight images
            assert 1e-4 < wanted < 0.1


def test_a_resumed_pass_and_merged_parts_keep_the_same_error(
    small_model: HookedModel, pictures: Path, tmp_path: Path, low: Store
) -> None:
    parts = [
        mine(small_model, pictures, tmp_path / f"{i}", precision="bf16", ranges=(i, 3), **SETTINGS)
        for i in (1, 2, 3)
    ]
    assert merge(parts, tmp_path / "whole").manifest.to_bytes() == low.manifest.to_bytes()
    (tmp_path / "whole" / "shards" / "00002.h5").unlink()
    again = mine(small_model, pictures, tmp_path / "whole")
    assert again.manifest.to_bytes() == low.manifest.to_bytes()


def test_the_error_is_none_if_none_of_the_compared_images_can_be_read(
    small_model: HookedModel, own_pictures: Path, tmp_path: Path
) -> None:
    source = FolderSource(own_pictures)
    for i in range(8):
        source.file(i).write_bytes(b"no picture")
    store = mine(small_model, own_pictures, tmp_path / "s", precision="bfloat16", **SETTINGS)
    assert store.complete
    assert store.manifest.precision_error is None


def test_an_unknown_precision_is_refused(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match="'fp16'; choose one of float32, bfloat16, bf16"):
        mine(small_model, pictures, tmp_path / "s", precision="fp16", **SETTINGS)


def test_batch_norms_are_folded_only_in_float32(
    small_model: HookedModel, pictures: Path, tmp_path: Path, low: Store
) -> None:
    full = mine(small_model, pictures, tmp_path / "full", **SETTINGS)
    assert (full.manifest.folded, low.manifest.folded) == (True, False)
