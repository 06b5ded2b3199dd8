"""The memory of a pass and of a reader does not grow with the number of images."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from timmscope import HookedModel, judge_units, strongest
from timmscope.mining import mine
from timmscope.store import Store

from .synthetic import LAYER, write_synthetic

FEW, MANY = 300, 1200
"""Numbers of images of two passes."""
ROWS = (20_000, 80_000)
"""Numbers of images of two stores that are read."""


def peak(work: Callable[[], object]) -> int:
    """Return the largest number of bytes that Python and NumPy hold at once during some work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_pass_needs_the_same_memory_for_any_number_of_images(
    small_model: HookedModel, tmp_path: Path
) -> None:
    def images(count: int) -> Path:
        file = tmp_path / f"{count}.npy"
        rng = np.random.default_rng(0)
        np.save(file, rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        return file

    def run(file: Path) -> None:
        store = mine(
            small_model,
            file,
            file.with_suffix(".scope"),
            layers=["layer1"],
            shard_size=100,
            top_k=10,
            workers=0,
        )
        assert store.complete

    run(images(100))  # imports and traces happen once
    files = [images(count) for count in (FEW, MANY)]
    few, many = (peak(lambda file=file: run(file)) for file in files)
    assert few > 100 * 3 * 4 * 32, "the rows of a shard are counted"
    waiting = 4 * 32 * 3 * 4 * 32  # a few batches may wait for the writer
    assert many < 1.05 * few + waiting + 64 * (MANY - FEW)  # names and labels


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    folder = tmp_path_factory.mktemp("rows")
    return [
        write_synthetic(folder / f"{n}.scope", n, width=16, reductions=True, shard_size=2000)
        for n in ROWS
    ]


@pytest.mark.parametrize(
    ("work", "bytes_per_image"),
    [
        (lambda store: store.layer(LAYER).top(3, 50), 0.1),
        (lambda store: store.layer(LAYER).top(3, 150), 0.1),
        (lambda store: store.layer(LAYER).top(3, 10, where="width == 210"), 2),
        (lambda store: store.images.where("label == 'cluster 3' and width > 400"), 2),
        (lambda store: store.layer(LAYER).statistics().quantile(0.5), 2),
        (lambda store: strongest(store, f"{LAYER}[3] - {LAYER}[4]", 10), 0.1),
        (lambda store: judge_units(store.layer(LAYER)), 24),
        (lambda store: store.images.paths[5], 64),
    ],
    ids=["top", "long top", "top where", "where", "statistics", "strongest", "units", "paths"],
)
def test_a_reader_needs_at_most_a_few_bytes_per_image(
    stores: list[Store], work: Callable[[Store], object], bytes_per_image: float
) -> None:
    for store in stores:  # imports happen once, and caches fill
        work(Store.open(store.path))
    few, many = (peak(lambda store=store: work(Store.open(store.path))) for store in stores)
    manifest = 4000 * (ROWS[1] - ROWS[0]) / 2000  # the table of shards: about 2,900 bytes each
    assert many - few < bytes_per_image * (ROWS[1] - ROWS[0]) + manifest
