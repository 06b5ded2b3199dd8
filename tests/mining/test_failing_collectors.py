"""A failing collector ends the pass with one line; once it is fixed, the pass resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mining.contents import contents
from torch import Tensor

from timmscope import HookedModel
from timmscope.collectors import Collector, Column, LayerBatch, RowCollector
from timmscope.mining import mine
from timmscope.store import Store
from timmscope_registry import PluginError

SETTINGS: dict[str, Any] = {
    "layers": ["layer1", "global_pool"],
    "maps": ["layer1", "global_pool"],
    "batch_size": 4,
    "shard_size": 12,
    "top_k": 5,
    "workers": 0,
}
broken = {"at": ""}


def fail(at: str) -> None:
    if broken["at"] == at:
        raise ZeroDivisionError("a plugin's\nmistake")


class Fragile(Collector):
    """Sums pooled rows, and fails in the method that `broken` names."""

    name = "fragile"
    needs = ("pooled",)

    def __init__(self) -> None:
        self.total = np.zeros(())

    def update(self, batch: LayerBatch) -> None:
        if 17 in batch.ids:
            fail("update")
        self.total = self.total + batch.rows["pooled"].sum(0, dtype=np.float64)

    def merge(self, other: Collector) -> None:
        assert isinstance(other, Fragile)
        fail("merge")
        self.total = self.total + other.total

    def state(self) -> dict[str, np.ndarray]:
        fail("state")
        return {"total": np.asarray(self.total)}

    def load(self, state: dict[str, np.ndarray]) -> None:
        fail("load")
        self.total = state["total"]


class FragileStream(Fragile):
    """Reads maps too, which are written to disk batch by batch."""

    name = "fragile-stream"
    needs = ("pooled", "maps")


class FragileRows(RowCollector):
    """Keeps one number per image, and fails if `broken` names `reduce`."""

    name = "fragile-rows"

    def columns(self, layer: Any) -> dict[str, Column]:
        return {"first": Column(shape=(), dtype="float32", fill=-1)}

    def reduce(self, layer: Any, activation: Tensor) -> dict[str, Tensor]:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 6:  # two layers per batch: the third batch
            fail("reduce")
        return {"first": activation.flatten(1)[:, 0]}


@pytest.mark.parametrize(
    ("kind", "at", "line", "kept"),
    [
        (Fragile, "update", "fragile failed in layer layer1, images 12 to 23", [0]),
        (FragileStream, "update", "fragile-stream failed in layer layer1, images 16 to 19", [0]),
        (Fragile, "state", "fragile failed in layer layer1, images 0 to 11", []),
        (Fragile, "load", "fragile failed in layer layer1, images 0 to 11", [0, 1, 2, 3]),
        (Fragile, "merge", "fragile failed in layer layer1, images 12 to 23", [0, 1, 2, 3]),
        (FragileRows, "reduce", "fragile-rows failed in layer global_pool, images 8 to 11", []),
    ],
)
def test_a_failing_collector_is_named_and_loses_no_shard_and_the_pass_resumes_once_it_is_fixed(
    small_model: HookedModel,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Collector],
    at: str,
    line: str,
    kept: list[int],
) -> None:
    def run(name: str) -> Store:
        monkeypatch.setattr("timmscope.mining.shard_writer._MAX_BUFFERED_ROW", 1 << 12)
        return mine(small_model, pictures, tmp_path / name, collectors=[kind()], **SETTINGS)

    run("whole")
    monkeypatch.setitem(broken, "at", at)
    with pytest.raises(PluginError, match=line) as caught:
        run("broken")
    assert "(ZeroDivisionError: a plugin's mistake); fix it" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert list(Store.open(tmp_path / "broken").manifest.shards) == kept
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setitem(broken, "at", "")
    assert run("broken").complete
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
