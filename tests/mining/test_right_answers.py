"""Top-k and statistics of a pass equal brute force over its rows, for any kind of activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from timmscope import HookedModel
from timmscope.collectors import RELATIVE_ERROR
from timmscope.mining import merge, mine
from timmscope.store import Store

COUNT, K = 29, 9
Change = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 29 images: many are equal, some are constant, two are unreadable."""
    made = tmp_path_factory.mktemp("right")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        low = np.random.default_rng(number % 5 if number % 3 else number).integers(
            0, 256, (6, 8, 3)
        )
        grey = Image.new("RGB", (50, 40), (128, 128, 128))
        image = Image.fromarray(low.astype(np.uint8)).resize((50, int(rng.integers(5, 60))))
        (grey if number % 7 == 3 else image).save(made / f"{number}.png")
    for number in (4, 28):
        (made / f"{number}.png").write_bytes(b"")
    return made


def check_top(store: Store, name: str) -> None:
    layer, good = store.layer(name), np.flatnonzero(store.images.readable)
    values, cells, maps = layer.maximum[:], layer.argmax[:], layer.maps[:][good]
    flat = maps.reshape(*maps.shape[:2], -1)
    first = np.where(np.isnan(flat).any(2), -1, flat.argmax(2))  # NumPy's first maximum
    np.testing.assert_array_equal(cells[good], first)
    np.testing.assert_array_equal(values[good], flat.max(2))
    for unit in range(values.shape[1]):
        finite = [i for i in good if np.isfinite(values[i, unit])]
        best = sorted(finite, key=lambda i: (-values[i, unit], i))[:K]
        assert [(e.image_id, e.value, e.position) for e in layer.top(unit, K)] == [
            (i, values[i, unit], divmod(int(cells[i, unit]), maps.shape[3])) for i in best
        ]


def check_statistics(store: Store, name: str) -> None:
    layer, good = store.layer(name), store.images.readable
    for kind in ("pooled", "max"):
        found = layer.statistics(kind)
        quantiles = {q: found.quantile(q) for q in (0.0, 0.1, 0.5, 0.9, 1.0)}
        for unit, column in enumerate(layer.rows(kind)[:][good].astype(np.float64).T):
            values = np.sort(column[np.isfinite(column)])
            assert found.count[unit] == len(values)
            assert found.nonfinite[unit] == len(column) - len(values)
            if not len(values):
                continue
            assert (found.minimum[unit], found.maximum[unit]) == (values[0], values[-1])
            assert found.zeros[unit] == pytest.approx((values == 0).mean())
            np.testing.assert_allclose(found.mean[unit], values.mean(), rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(found.variance[unit], values.var(), rtol=1e-6, atol=1e-24)
            for q, quantile in quantiles.items():
                exact = values[int(np.floor(q * (len(values) - 1)))]
                assert abs(quantile[unit] - exact) <= RELATIVE_ERROR * abs(exact)


CHANGES: dict[str, Change] = {
    "halves": lambda t: (t * 2).round() / 2,
    "a few integers": lambda t: (t - 2).relu().round(),
    "zeros of both signs": lambda t: torch.where(t > 1, -0.0 * t, 0 * t),
    "a large mean and a tiny variance": lambda t: t * 1e-2 + 1e4,
    "NaN and infinities": lambda t: torch.where(
        t > 2, torch.nan, torch.where(t > 1.8, torch.inf, torch.where(t < -1, -torch.inf, t))
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("batch", "shard", "precision"), [(4, 6, "float32"), (16, 7, "bfloat16")])
def test_passes_and_merged_parts_equal_brute_force(
    small_model: HookedModel,
    folder: Path,
    tmp_path: Path,
    change: Change,
    batch: int,
    shard: int,
    precision: str,
) -> None:
    options: dict[str, Any] = {
        "layers": ["layer2"],
        "maps": ["layer2"],
        "batch_size": batch,
        "shard_size": shard,
        "top_k": K,
        "precision": precision,
        "workers": 0,
    }
    with small_model.edit({"layer2": change}):
        whole = mine(small_model, folder, tmp_path / "whole", **options)
        parts = [
            mine(small_model, folder, tmp_path / f"p{i}", ranges=(i, 4), **options)
            for i in (1, 2, 3, 4)
        ]
    check_top(whole, "layer2")
    check_statistics(whole, "layer2")
    joined = merge(reversed(parts), tmp_path / "joined")
    for file in whole.path.rglob("*.h5"):
        assert (joined.path / file.relative_to(whole.path)).read_bytes() == file.read_bytes()
