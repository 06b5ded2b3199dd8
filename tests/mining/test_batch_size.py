"""An automatic batch size follows from the free memory, is logged, and is kept by the store."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from timmscope import HookedModel, load_model
from timmscope.free_memory import free_memory
from timmscope.mining import batch_size as chooser
from timmscope.mining import mine
from timmscope.mining.batch_size import LiveBytes, choose_batch_size, forward_bytes
from timmscope.mining.plan import Plan, make_plan
from timmscope_registry import ParameterError

LAYERS = ["layer1", "global_pool"]


def plan_for(model: HookedModel, **settings: Any) -> Plan:
    """Return a plan of two layers."""
    every: dict[str, Any] = {
        "layers": LAYERS,
        "maps": (),
        "top_k": 5,
        "collectors": (),
        "batch_size": None,
        "shard_size": None,
        "threads": None,
        "precision": None,
        "count": 1024,
    }
    return make_plan(model, None, **{**every, **settings})


def test_live_bytes_are_counted_and_freed_bytes_subtracted() -> None:
    weight = torch.ones(500)
    with LiveBytes([weight]) as alive:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first + 1  # 8,000
        assert alive.now == 8000
        second += 1  # in place
        view = second[:500]
        view.mul_(2)
        weight.mul_(2)
        assert alive.now == 8000
        del first
        third = second * weight.repeat(2)  # its copy makes 8,000, the product 12,000
        assert alive.now == 8000
        del second, third
        assert alive.now == 4000  # the view keeps its whole storage alive
        del view
    assert (alive.now, alive.peak) == (0, 12000)


def test_a_forward_grows_in_proportion_to_its_images() -> None:
    model = load_model("random:resnet18?seed=0&img_size=32")
    plan = plan_for(model)
    two, eight = forward_bytes(model, plan, 2), forward_bytes(model, plan, 8)
    assert eight == pytest.approx(4 * two, rel=0.01)
    image, convolved, pooled = 3 * 32 * 32, 64 * 16 * 16, 64 * 8 * 8
    # at the first pooling: the image channels-last and normalised, the input and the output
    assert two == 2 * 4 * (2 * image + convolved + pooled)


@pytest.mark.parametrize(
    ("free_images", "expected"),
    [(1000, 64), (4 * 64, 64), (4 * 63, 32), (4 * 9, 8), (4 * 1, 1), (1, 1), (0, 1)],
)
def test_the_largest_power_of_two_within_a_quarter_of_the_free_memory(
    small_model: HookedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free_images: int,
    expected: int,
) -> None:
    plan = plan_for(small_model)
    each = forward_bytes(small_model, plan, 2) // 2
    monkeypatch.setattr(chooser, "free_memory", lambda: free_images * (each + 1))
    with caplog.at_level(logging.INFO, "timmscope.mining"):
        assert choose_batch_size(small_model, plan) == expected
    assert caplog.messages[0].startswith(f"batch size {expected}: a forward takes ")


def test_a_batch_is_no_larger_than_a_shard(
    small_model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chooser, "free_memory", lambda: 1 << 40)
    assert choose_batch_size(small_model, plan_for(small_model, shard_size=20)) == 16
    assert choose_batch_size(small_model, plan_for(small_model, shard_size=1)) == 1


@pytest.mark.parametrize(("room", "expected"), [(256, 256), (255, 128), (5, 4), (0, 1)])
def test_an_accelerator_halves_the_batch_until_it_fits(
    monkeypatch: pytest.MonkeyPatch, room: int, expected: int
) -> None:
    tried: list[int] = []

    def forward(model: Any, plan: Any, images: torch.Tensor) -> None:
        tried.append(len(images))
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(chooser, "reduce_batch", forward)
    model: Any = SimpleNamespace(device=torch.device("cuda", 0), input_size=(3, 4, 4))
    plan: Any = SimpleNamespace(folded=None, shard_size=1024)
    assert choose_batch_size(model, plan) == expected
    assert tried == [size for size in (256, 128, 64, 32, 16, 8, 4, 2) if size >= expected]


def test_another_error_on_an_accelerator_is_not_taken_for_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(model: Any, plan: Any, images: torch.Tensor) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(chooser, "reduce_batch", forward)
    model: Any = SimpleNamespace(device=torch.device("cuda", 0), input_size=(3, 4, 4))
    plan: Any = SimpleNamespace(folded=None, shard_size=1024)
    with pytest.raises(RuntimeError, match="no kernel image"):
        choose_batch_size(model, plan)


def test_free_memory_is_read_from_the_system() -> None:
    assert 1 << 20 < free_memory() < 1 << 50


def test_the_batch_size_belongs_to_the_store_and_a_resumed_pass_keeps_it(
    small_model: HookedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"layers": LAYERS, "shard_size": 16, "workers": 0}
    each = forward_bytes(small_model, plan_for(small_model), 2) // 2
    monkeypatch.setattr(chooser, "free_memory", lambda: 4 * 9 * each)
    store = mine(small_model, pictures, tmp_path / "s", batch_size="auto", **settings)
    assert store.manifest.batch_size == 8
    rows = store.layer("layer1").pooled[:]
    (tmp_path / "s" / "shards" / "00001.h5").unlink()
    monkeypatch.setattr(chooser, "free_memory", lambda: 1 << 40)
    again = mine(small_model, pictures, tmp_path / "s", batch_size="auto", **settings)
    assert again.manifest.to_bytes() == store.manifest.to_bytes()
    np.testing.assert_array_equal(again.layer("layer1").pooled[:], rows)
    given = mine(small_model, pictures, tmp_path / "g", batch_size=8, **settings)
    assert given.manifest.to_bytes() == store.manifest.to_bytes()


def test_a_batch_size_that_is_neither_a_number_nor_auto_is_refused(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    bad: Any = "auto "
    with pytest.raises(ParameterError, match="'auto ': expected a number of images, or auto"):
        mine(small_model, pictures, tmp_path / "s", batch_size=bad)
    with pytest.raises(ParameterError, match="between the parts; give all parts one number"):
        mine(small_model, pictures, tmp_path / "s", batch_size="auto", ranges=(1, 2))
    assert not (tmp_path / "s").exists()
