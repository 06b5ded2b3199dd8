"""A pass keeps the model's activations; settings that must not matter do not change them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.mining.contents import contents
from torch import Tensor

from timmscope import HookedModel, load_model, reporting
from timmscope.collectors import Collector, Column, LayerBatch, RowCollector
from timmscope.images import FolderSource
from timmscope.mining import Plan, bytes_per_image, default_layers, mine
from timmscope.mining.plan import make_plan
from timmscope.patches import UnitPatches
from timmscope.store import Store
from timmscope.techniques import technique
from timmscope_registry import (
    ImageError,
    LayerNotFound,
    ParameterError,
    StoreError,
    StoreMismatch,
    TimmscopeError,
)

COUNT = 40


@pytest.fixture(scope="module")
def mined(
    small_model: HookedModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    out = tmp_path_factory.mktemp("stores") / "a.scope"
    return run(small_model, pictures, out)


def run(model: HookedModel, pictures: Any, out: Path, **options: Any) -> Store:
    settings: dict[str, Any] = {
        "layers": ["layer1", "layer3", "global_pool"],
        "batch_size": 6,
        "shard_size": 16,
        "top_k": 7,
        "workers": 0,
    }
    return mine(model, pictures, out, **{**settings, **options})


def activations(model: HookedModel, pictures: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Return what plain forward hooks see, one image at a time; NaN for unreadable images."""
    source = FolderSource(pictures)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    caught: dict[str, Tensor] = {}
    handles = [
        model.module.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: caught.__setitem__(name, output)
        )
        for name in names
    ]
    mean = torch.tensor(model.mean)[:, None, None]
    std = torch.tensor(model.std)[:, None, None]
    for i in range(len(source)):
        try:
            pixels = model.preprocess(source.load(i))
        except ImageError:
            pixels = torch.full(model.input_size, torch.nan)
        with torch.no_grad():
            model.module.eval()(((pixels - mean) / std)[None])
        for name in names:
            found[name].append(caught[name][0].numpy())
    for handle in handles:
        handle.remove()
    return {name: np.stack(rows) for name, rows in found.items()}


def test_rows_equal_what_plain_hooks_see(
    small_model: HookedModel, pictures: Path, mined: Store
) -> None:
    seen = activations(small_model, pictures, ["layer1", "layer3", "global_pool"])
    good = mined.images.readable
    assert good.sum() == COUNT - 2
    for name in ("layer1", "layer3", "global_pool"):
        cells = seen[name][good].reshape(int(good.sum()), seen[name].shape[1], -1)
        layer = mined.layer(name)
        np.testing.assert_allclose(layer.pooled[good], cells.mean(2), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.maximum[good], cells.max(2), rtol=1e-4, atol=1e-5)
        at = np.take_along_axis(cells, layer.argmax[good][:, :, None].astype(int), axis=2)[:, :, 0]
        np.testing.assert_allclose(at, cells.max(2), rtol=1e-4, atol=1e-5)


def test_the_forward_stops_after_the_last_layer_that_is_needed(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    assert small_model.layers  # tracing runs a whole forward
    calls = []
    handle = small_model.module.layer4.register_forward_hook(lambda *a: calls.append(1))
    run(small_model, pictures, tmp_path / "s", layers=["layer1"])
    handle.remove()
    assert calls == []


def test_a_pass_does_not_change_the_model(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    from timmscope_registry.hooks import fingerprint

    before = fingerprint(small_model.module)
    run(small_model, pictures, tmp_path / "s")
    assert fingerprint(small_model.module).difference(before) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_result_does_not_depend_on_the_number_of_workers(
    small_model: HookedModel, pictures: Path, mined: Store, tmp_path: Path, workers: int
) -> None:
    again = run(small_model, pictures, tmp_path / "a.scope", workers=workers)
    assert contents(again.path) == contents(mined.path)


def test_shard_size_changes_neither_rows_nor_reductions(
    small_model: HookedModel, pictures: Path, mined: Store, tmp_path: Path
) -> None:
    other = run(small_model, pictures, tmp_path / "s", shard_size=36)
    for name in mined.layers:
        one, two = mined.layer(name), other.layer(name)
        np.testing.assert_allclose(one.pooled[:], two.pooled[:], rtol=1e-5, atol=1e-6)
        for unit in (0, 13, 31):
            assert [e.image_id for e in one.top(unit, 7)] == [e.image_id for e in two.top(unit, 7)]


def test_tokens_are_pooled_without_prefix_and_placed_on_the_grid(
    pictures: Path, tmp_path: Path
) -> None:
    model = load_model("random:vit_tiny_patch16_224?seed=0&img_size=64")
    layer = run(model, pictures, tmp_path / "s", layers=["blocks.2"]).layer("blocks.2")
    source = FolderSource(pictures)
    pixels = torch.stack([model.preprocess(source.load(i)) for i in (0, 1)])
    with torch.inference_mode(), model.record("blocks.2") as recording:
        model(pixels)
    cells = recording["blocks.2"][:, 1:].numpy()  # (2, 16, 192) without the class token
    np.testing.assert_allclose(layer.pooled[:2], cells.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.maximum[:2], cells.max(1), rtol=1e-4, atol=1e-5)
    best = int(np.argmax(layer.maximum[:2, 9]))
    (entry,) = (e for e in layer.top(9, COUNT) if e.image_id == best)
    assert entry.position == divmod(int(cells[best, :, 9].argmax()), 4)


def test_maps_of_the_requested_layers_equal_the_activations(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    store = run(small_model, pictures, tmp_path / "s", layers=["global_pool"], maps=["layer2"])
    good = store.images.readable
    seen = activations(small_model, pictures, ["layer2"])["layer2"]
    maps = store.layer("layer2").maps
    np.testing.assert_allclose(maps[good], seen[good], rtol=1e-4, atol=1e-5)
    assert np.isnan(maps[5]).all()
    with pytest.raises(StoreError, match="keeps no 'maps' of global_pool"):
        _ = store.layer("global_pool").maps


def test_unreadable_images_are_counted_and_named_and_keep_their_ids(mined: Store) -> None:
    assert [(i, path) for i, path, _ in mined.images.unreadable()] == [
        (5, mined.images.paths[5]),
        (33, mined.images.paths[33]),
    ]
    reasons = [reason for _, _, reason in mined.images.unreadable()]
    assert "0 bytes" in reasons[0]
    assert "cannot be decoded" in reasons[1]
    assert sum(shard.unreadable for shard in mined.manifest.shards.values()) == 2
    assert np.isnan(mined.layer("layer1").pooled[[5, 33]]).all()
    for unit in range(32):
        assert not {5, 33} & {e.image_id for e in mined.layer("layer1").top(unit, 7)}
    assert mined.images.labels[0] == "class0"
    assert mined.images.sizes[0].tolist() == [56, 44]


def test_unreadable_images_do_not_change_the_rows_of_other_images(
    small_model: HookedModel, own_pictures: Path, mined: Store, tmp_path: Path
) -> None:
    source = FolderSource(own_pictures)
    Image.new("RGB", (50, 50), (200, 10, 10)).save(source.file(5))
    healed = run(small_model, own_pictures, tmp_path / "s").layer("global_pool").pooled
    others = [i for i in range(COUNT) if i not in (5, 33)]
    np.testing.assert_array_equal(healed[others], mined.layer("global_pool").pooled[others])
    assert np.isfinite(healed[5]).all()


def test_no_image_and_no_readable_image_are_errors(
    small_model: HookedModel, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    with pytest.raises(ImageError, match="no images in this folder"):
        run(small_model, folder, tmp_path / "s")
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"none of the 3 images can be read.*0\.png"):
        run(small_model, folder, tmp_path / "s")


def test_one_image_is_enough(small_model: HookedModel, tmp_path: Path) -> None:
    Image.new("RGB", (3000, 40), (10, 200, 30)).save(tmp_path / "a.png")
    store = run(small_model, [tmp_path / "a.png"], tmp_path / "s")
    assert [e.image_id for e in store.layer("layer1").top(0, 5)] == [0]
    assert np.isfinite(store.layer("layer1").pooled[0]).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_counted_and_left_out_of_statistics(
    small_model: HookedModel, pictures: Path, tmp_path: Path, poison: float
) -> None:
    def spoil(t: Tensor) -> Tensor:
        t = t.clone()
        t[0, 2, 1, 1] = poison  # unit 2 of the first image of every batch
        return t

    with small_model.edit({"layer1": spoil}):
        store = run(small_model, pictures, tmp_path / "s", layers=["layer1"])
    with small_model.edit({"layer1": torch.clone}):  # an open context: batch norms stay here too
        other = run(small_model, pictures, tmp_path / "clean", layers=["layer1"])
    firsts = [0, 6, 12, 16, 22, 28, 32, 38]
    layer, clean = store.layer("layer1"), other.layer("layer1")
    for kind in ("max", "pooled"):
        statistics = layer.statistics(kind)
        assert statistics.nonfinite[2] == len(firsts)
        assert np.delete(statistics.nonfinite, 2).sum() == 0
        assert statistics.count[2] == COUNT - 2 - len(firsts)
        values = np.delete(clean.rows(kind)[:, 2], [*firsts, 5, 33]).astype(np.float64)
        np.testing.assert_allclose(statistics.mean[2], values.mean(), rtol=1e-6)
        np.testing.assert_allclose(statistics.variance[2], values.var(), rtol=1e-6)
    assert not set(firsts) & {entry.image_id for entry in layer.top(2, 7)}
    assert not np.isfinite(layer.maximum[firsts, 2]).any()  # rows are not changed
    assert layer.top(3, 7) == clean.top(3, 7)


def test_bfloat16_is_close_to_float32_but_needs_another_store(
    small_model: HookedModel, pictures: Path, mined: Store, tmp_path: Path
) -> None:
    half = run(small_model, pictures, tmp_path / "s", precision="bfloat16").layer("global_pool")
    full = mined.layer("global_pool").pooled[:]
    good = mined.images.readable
    error = np.abs(half.pooled[good] - full[good]).max() / np.abs(full[good]).max()
    assert 0 < error < 0.05
    with pytest.raises(StoreMismatch, match="precision: the store has bfloat16"):
        run(small_model, pictures, tmp_path / "s", precision="float32")


class Sum(Collector):
    """A third party's collector that reduces rows."""

    name = "sum"
    settings = ("scale",)
    needs = ("pooled",)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.total: Any = 0.0

    def update(self, batch: LayerBatch) -> None:
        self.total = self.total + self.scale * batch.rows["pooled"].astype(np.float64).sum(0)

    def merge(self, other: Collector) -> None:
        assert isinstance(other, Sum)
        self.total = self.total + other.total

    def state(self) -> dict[str, np.ndarray]:
        return {"total": np.asarray(self.total)}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.total = state["total"]


class Energy(RowCollector):
    """A third party's row collector."""

    name = "energy"

    def columns(self, layer: Any) -> dict[str, Column]:
        return {"energy": Column(shape=(), dtype="float32", fill=-1)}

    def reduce(self, layer: Any, activation: Tensor) -> dict[str, Tensor]:
        return {"energy": activation.float().square().flatten(1).sum(1)}


def test_third_party_collectors_run_beside_the_built_in_ones(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    collectors = [Sum(scale=2.0), Energy()]
    store = run(small_model, pictures, tmp_path / "s", layers=["layer1"], collectors=collectors)
    good = store.images.readable
    part = Sum()
    with store.files.open("reduced/merged.h5", store.manifest.merged) as file:
        part.load({"total": file.read("sum/layers/layer1/total")})
    expected = 2 * store.layer("layer1").pooled[good].astype(np.float64).sum(0)
    np.testing.assert_allclose(part.total, expected, rtol=1e-9)
    seen = activations(small_model, pictures, ["layer1"])["layer1"][good]
    energy = store.layer("layer1").rows("energy")
    np.testing.assert_allclose(energy[good], (seen**2).sum((1, 2, 3)), rtol=1e-4)
    assert energy[5] == -1


def test_a_collector_may_be_given_by_its_registered_name(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    store = run(small_model, pictures, tmp_path / "s", layers=["global_pool"], collectors=["maps"])
    pooled = store.layer("global_pool").pooled[:]
    np.testing.assert_array_equal(store.layer("global_pool").maps[:, :, 0, 0], pooled)
    with pytest.raises(TimmscopeError, match="mapz"):
        run(small_model, pictures, tmp_path / "t", collectors=["mapz"])


def test_default_layers_are_the_deepest_grid_and_the_features() -> None:
    for name, expected in {
        "resnet18": ["layer4", "global_pool"],
        "vit_tiny_patch16_224": ["norm", "head_drop"],
        "efficientnet_b0": ["bn2", "global_pool"],
        "regnetx_002?img_size=64": ["final_conv", "head.drop"],  # the head ends in logits
        "levit_128s": ["stages", "head.drop"],  # it has two heads with a classifier each
    }.items():
        assert default_layers(load_model(f"random:{name}")) == expected


def test_wrong_names_and_settings_are_refused_before_anything_is_written(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    for error, options in (
        (LayerNotFound, {"layers": ["layer9"]}),
        (ParameterError, {"layers": []}),
        (ParameterError, {"batch_size": 0}),
        (ParameterError, {"top_k": 0}),
        (ParameterError, {"precision": "float8"}),
        (ParameterError, {"workers": -1}),
        (ParameterError, {"collectors": [Sum(), Sum()]}),
    ):
        with pytest.raises(error):
            run(small_model, pictures, out, **options)
        assert not (out / "manifest.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(StoreError, match="not a store, and not empty"):
        run(small_model, pictures, tmp_path / "mine")


def test_a_disk_that_is_too_small_is_refused_at_once(
    small_model: HookedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"needs about .* for 40 images and the disk has 1 KB"):
        run(small_model, pictures, tmp_path / "s")


def test_the_estimated_size_is_the_size_on_disk(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    store = run(small_model, pictures, tmp_path / "s", maps=["layer1"], shard_size=40)
    plan: Plan = make_plan(
        small_model,
        store.manifest,
        layers=None,
        maps=(),
        top_k=None,
        collectors=(),
        batch_size=None,
        shard_size=None,
        threads=None,
        precision=None,
        count=40,
    )
    actual = sum(p.stat().st_size for p in store.path.glob("*/0*.h5")) / COUNT
    assert bytes_per_image(plan) == pytest.approx(actual, rel=0.25)


def test_progress_counts_every_image(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    seen: dict[str, list[Any]] = {"total": [], "steps": []}

    class Recorder:
        @contextmanager
        def open(self, description: str, total: int | None) -> Iterator[Any]:
            seen["total"].append((description, total))
            yield seen["steps"].append

    with reporting(Recorder()):
        run(small_model, pictures, tmp_path / "s", layers=["layer1"])
    assert seen["total"] == [("mining images", COUNT), ("merging", 3)]
    assert sum(seen["steps"]) == COUNT + 3


def test_batch_norms_are_folded_unless_the_model_is_edited_and_the_store_records_it(
    small_model: HookedModel, pictures: Path, mined: Store, tmp_path: Path
) -> None:
    assert mined.manifest.folded
    assert mined.manifest.memory_format == "channels_last"
    with small_model.edit({"layer1": torch.clone}):
        plain = run(small_model, pictures, tmp_path / "s")
    assert not plain.manifest.folded
    good = mined.images.readable
    for name in mined.layers:
        for kind in ("pooled", "max"):
            one, two = mined.layer(name).rows(kind)[good], plain.layer(name).rows(kind)[good]
            assert np.abs(one - two).max() <= 1e-5 * np.abs(two).max()
    again = run(small_model, pictures, tmp_path / "s")  # the setting is taken from the store
    assert not again.manifest.folded


def top_patches(model: HookedModel, store: Store, unit: int, k: int, **call: Any) -> UnitPatches:
    cut: Any = technique("top-patches")(units=unit, k=k, view=None)
    result: UnitPatches = cut(store, layer="layer3", model=model, **call)
    return result


def test_patches_are_of_the_strongest_images(small_model: HookedModel, mined: Store) -> None:
    patches = top_patches(small_model, mined, 7, 4)
    entries = mined.layer("layer3").top(7, 4)
    assert patches.image_ids[0].tolist() == [entry.image_id for entry in entries]
    assert patches.positions[0].tolist() == [list(entry.position) for entry in entries]
    assert patches.values[0].tolist() == [entry.value for entry in entries]
    assert patches.names[0] == [mined.images.paths[entry.image_id] for entry in entries]


def test_images_that_moved_are_named_in_the_error_and_read_from_images(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(pictures, here)
    store = run(small_model, here, tmp_path / "s", layers=["layer3"])
    here.rename(tmp_path / "there")
    with pytest.raises(
        ImageError, match=r"no such folder.*have moved.*images= .*location=.*--images"
    ):
        top_patches(small_model, store, 0, 2)
    there = top_patches(small_model, store, 0, 2, location=tmp_path / "there")
    assert len(there.names[0]) == 2


def test_other_layers_are_refused_with_only_their_names(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    run(small_model, pictures, tmp_path / "s", layers=["layer1"])
    with pytest.raises(StoreMismatch) as caught:
        run(small_model, pictures, tmp_path / "s", layers=["layer2"])
    assert caught.value.differences == ("layers: the store has ['layer1'], this run ['layer2']",)


def test_ids_stay_the_same_when_other_images_are_added_or_removed(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(pictures, here)
    store = run(small_model, here, tmp_path / "s", layers=["layer3"])
    before = top_patches(small_model, store, 5, 4)
    Image.new("RGB", (40, 40)).save(here / "!first of all.png")
    after = top_patches(small_model, store, 5, 4)
    assert after.names == before.names
    assert torch.equal(after.patches, before.patches)
    (here / before.names[0][0]).unlink()
    with pytest.raises(ImageError, match="none of the 1 images of the store can be read any more"):
        top_patches(small_model, store, 5, 1)
    with pytest.warns(UserWarning, match=f"can no longer be read .*: {before.names[0][0]}"):
        left = top_patches(small_model, store, 5, 4)
    assert left.names == before.names
    assert (left.patches[0, 0] == 128).all()
    assert torch.equal(left.patches[0, 1:], before.patches[0, 1:])
