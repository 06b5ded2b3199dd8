"""A collector that no plugin registers is recorded by name, and read by passing its class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.mining.contents import contents

from timmscope import Collector, HookedModel, LayerBatch, StoreError, merge, mine, verify

SETTINGS = {"layers": ["layer2"], "shard_size": 16, "batch_size": 8, "workers": 0}


class Sum(Collector):
    """Sum of the pooled values of every unit, times a factor."""

    name = "sum"
    settings = ("factor",)
    needs = ("pooled",)

    def __init__(self, factor: int = 1) -> None:
        self.factor = factor
        self.total = np.zeros(0)

    def update(self, batch: LayerBatch) -> None:
        self._add(batch.rows["pooled"].astype(np.float64).sum(0) * self.factor)

    def merge(self, other: Sum) -> None:
        self._add(other.total)

    def state(self) -> dict[str, np.ndarray]:
        return {"total": self.total}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.total = state["total"]

    def _add(self, total: np.ndarray) -> None:
        self.total = (
            total if not len(self.total) else self.total + total if len(total) else self.total
        )


class Other(Sum):
    """A collector with another name."""

    name = "other"


def test_its_state_is_read_with_its_class_and_only_with_it(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    store = mine(small_model, pictures, tmp_path / "s", collectors=[Sum(factor=3)], **SETTINGS)  # type: ignore[arg-type]
    rows = np.asarray(store.layer("layer2").pooled)[store.images.readable]
    for given in (Sum, Sum(factor=5)):  # parameters are the store's
        found = store.collector("layer2", given)
        assert isinstance(found, Sum)
        assert found.factor == 3
        np.testing.assert_allclose(found.total, 3 * rows.sum(0, dtype=np.float64), rtol=1e-12)
    with pytest.raises(StoreError, match="collector 'sum' that no plugin registers: pass its"):
        store.collector("layer2", "sum")
    with pytest.raises(StoreError, match="has no collector 'other'"):
        store.collector("layer2", Other)
    record = json.loads((tmp_path / "s" / "manifest.json").read_text())["collectors"][-1]
    assert record == {"name": "sum", "id": None, "parameters": {"factor": 3}}


def test_a_store_with_it_is_resumed_and_repaired_with_the_same_object(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    own = Sum(factor=3)
    mine(small_model, pictures, tmp_path / "s", collectors=[own], **SETTINGS)  # type: ignore[arg-type]
    whole = contents(tmp_path / "s")
    for lost in ("reduced/merged.h5", "shards/00001.h5"):
        (tmp_path / "s" / lost).unlink()
        with pytest.raises(StoreError, match="no plugin registers"):
            verify(tmp_path / "s", repair=True)
        assert verify(tmp_path / "s", repair=True, collectors=[own]).ok
        assert contents(tmp_path / "s") == whole
    (tmp_path / "s" / "shards" / "00002.h5").unlink()
    mine(small_model, pictures, tmp_path / "s", collectors=[own], **SETTINGS)  # type: ignore[arg-type]
    assert contents(tmp_path / "s") == whole


def test_parts_with_it_are_merged_with_the_same_object(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    own, parts = Sum(), [tmp_path / "1", tmp_path / "2"]
    mine(small_model, pictures, tmp_path / "s", collectors=[own], **SETTINGS)  # type: ignore[arg-type]
    for number, part in enumerate(parts, 1):
        mine(small_model, pictures, part, collectors=[own], ranges=(number, 2), **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="no plugin registers"):
        merge(parts, tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    merge(parts, tmp_path / "m", collectors=[own])
    assert contents(tmp_path / "m") == contents(tmp_path / "s")
