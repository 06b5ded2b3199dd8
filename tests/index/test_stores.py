"""An index of a store's layer holds the store's rows, and is refused if the rows have changed."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.store.rewriting import rewrite_manifest

from timmscope import (
    HookedModel,
    ImageError,
    LayerNotFound,
    Store,
    StoreError,
    StoreMismatch,
    VectorIndex,
    VectorIndexError,
    checked_json,
    load_model,
    mine,
    verify,
)
from timmscope.models.pooled_features import pooled_features

LAYER = "layer4"
BROKEN = 5


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model("random:resnet18?seed=0&img_size=64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 23 pictures, of which number 5 is truncated."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(23):
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        path = folder / f"{number:02d}.png"
        Image.fromarray(coarse).resize((80, 80)).save(path)
        if number == BROKEN:
            os.truncate(path, 100)
    return folder


@pytest.fixture(scope="module")
def mined(model: HookedModel, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "run.scope"
    mine(model, folder, out, layers=[LAYER, "layer1"], batch_size=4, shard_size=8, workers=0)
    return out


@pytest.fixture
def store(mined: Path, tmp_path: Path) -> Store:
    """Return a copy of the store that a test may damage."""
    return Store.open(shutil.copytree(mined, tmp_path / "run.scope"))


def test_an_index_holds_the_rows_of_all_readable_images(store: Store) -> None:
    index = VectorIndex.build(store.layer(LAYER), metric="l2")
    assert index.ids.tolist() == [i for i in range(23) if i != BROKEN]
    assert (index.record.failed, index.record.non_finite) == (1, 0)
    rows = np.asarray(store.layer(LAYER).pooled)
    for row_id in (0, 4, 6, 22):
        others = [i for i in range(23) if i not in (BROKEN, row_id)]
        distances = np.linalg.norm(rows[others].astype(float) - rows[row_id].astype(float), axis=1)
        order = np.argsort(distances, kind="stable")[:4]
        hits = index.search_row(row_id, 4)
        assert hits.ids[0].tolist() == [others[i] for i in order]
        np.testing.assert_allclose(hits.scores[0], distances[order], rtol=1e-6)


def test_an_image_of_the_store_finds_itself(store: Store, model: HookedModel, folder: Path) -> None:
    index = VectorIndex.build(store.layer(LAYER))
    hits = index.search_image(model, [folder / "03.png", folder / "20.png"], 1)
    assert hits.ids.tolist() == [[3], [20]]
    np.testing.assert_allclose(hits.scores, 1, atol=1e-6)


def test_features_of_an_image_equal_the_mined_ones(
    store: Store, model: HookedModel, folder: Path
) -> None:
    images = model.images([folder / f"{number:02d}.png" for number in (0, 9, 22)])
    for layer in (LAYER, "layer1"):
        kept = store.layer(layer).pooled[[0, 9, 22]]
        np.testing.assert_allclose(
            pooled_features(model, images, layer), kept, rtol=1e-5, atol=1e-6
        )


def test_an_index_is_saved_in_the_store_and_loads_by_folder(store: Store) -> None:
    index = VectorIndex.build(store.layer(LAYER))
    assert index.save() == store.path / "index" / "layer4.faiss"
    record = json.loads((store.path / "index" / "layer4.json").read_text())
    assert record["model"] == "random:resnet18?seed=0&img_size=64"
    assert list(record["shards"]) == ["0", "1", "2"]
    for again in (VectorIndex.load(store, LAYER), VectorIndex.load(str(store.path))):
        np.testing.assert_array_equal(again.search_row(7, 5).ids, index.search_row(7, 5).ids)
        assert again.missing_rows == 0


def test_a_model_with_other_weights_is_refused(store: Store, folder: Path) -> None:
    other = load_model("random:resnet18?seed=1&img_size=64")
    with pytest.raises(StoreMismatch, match=r"seed=1&img_size=64 has other weights"):
        VectorIndex.build(store.layer(LAYER)).search_image(other, folder / "00.png")


def test_an_unreadable_query_image_is_named(store: Store, model: HookedModel, folder: Path) -> None:
    with pytest.raises(ImageError, match=r"05\.png"):
        VectorIndex.build(store.layer(LAYER)).search_image(model, folder / "05.png")


def edit_manifest(store: Store, change: Any) -> Store:
    rewrite_manifest(store.path, change)
    return Store.open(store.path)


def unfinished(store: Store) -> Store:
    """Return the store without its last shard, of seven images."""

    def change(data: Any) -> None:
        del data["shards"]["2"]
        data["merged"] = None

    return edit_manifest(store, change)


def test_an_index_of_a_running_pass_warns_of_rows_it_lacks_and_adds_them(store: Store) -> None:
    whole = (store.path / "manifest.json").read_bytes()
    early = VectorIndex.build(unfinished(store).layer(LAYER))
    assert early.ids.tolist() == [i for i in range(16) if i != BROKEN]
    early.save()
    (store.path / "manifest.json").write_bytes(whole)
    with pytest.warns(UserWarning, match="has 7 rows of layer4 that its index lacks"):
        index = VectorIndex.load(store, LAYER)
    assert index.missing_rows == index.info()["missing_rows"] == 7
    assert early.add_missing() == index.add_missing() == 7
    assert (index.missing_rows, index.record.failed, index.add_missing()) == (0, 1, 0)
    index.save()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = VectorIndex.load(store, LAYER)
    built = VectorIndex.build(store.layer(LAYER))
    rows = np.asarray(store.layer(LAYER).pooled)[[0, 9, 22]]
    for found in (early, index, again):
        np.testing.assert_array_equal(found.search(rows, 22).ids, built.search(rows, 22).ids)


def test_a_saved_index_that_lacks_rows_is_updated(store: Store) -> None:
    whole = (store.path / "manifest.json").read_bytes()
    VectorIndex.of(unfinished(store).layer(LAYER), keep=True)
    (store.path / "manifest.json").write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(VectorIndex.of(Store.open(store.path).layer(LAYER), keep=True)) == 22
        assert VectorIndex.load(store, LAYER).missing_rows == 0


def test_a_store_without_a_finished_shard_has_nothing_to_index(store: Store) -> None:
    empty = edit_manifest(store, lambda data: data.update(shards={}, merged=None))
    with pytest.raises(VectorIndexError, match="no finished shard yet"):
        VectorIndex.build(empty.layer(LAYER))


def test_a_condition_restricts_the_images_that_are_found(store: Store) -> None:
    index = VectorIndex.build(store.layer(LAYER))
    chosen = store.images.where("id >= 10 and id < 13")
    expected = index.search_row(4, 3, where=np.flatnonzero(chosen))
    assert sorted(expected.ids[0].tolist()) == [10, 11, 12]
    for where in ("id >= 10 and id < 13", chosen):
        np.testing.assert_array_equal(index.search_row(4, 5, where=where).ids, expected.ids)
    assert index.search_row(4, 3, where="id == 4").ids.shape == (1, 0)
    assert index.search_row(4, 3, where=f"id == {BROKEN}").ids.shape == (1, 0)


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
def test_the_engines_for_large_stores_can_index_a_small_one(store: Store, backend: str) -> None:
    index = VectorIndex.build(store.layer(LAYER), backend=backend, metric="l2")
    flat = VectorIndex.build(store.layer(LAYER), metric="l2")
    index.save()
    names = sorted(path.name for path in (store.path / "index").iterdir())
    assert names == ["layer4.faiss", "layer4.json"]
    again = VectorIndex.load(store.path)
    assert again.record.backend == f"timmscope:{backend}"
    for row_id in (0, 22):
        np.testing.assert_array_equal(
            again.search_row(row_id, 21).ids, flat.search_row(row_id, 21).ids
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["model"].update(weights_sha256="0" * 64), "with other weights"),
        (lambda data: data["shards"]["1"]["rows"].update(sha256="1" * 64), r"first 1\)"),
        (
            lambda data: data.update(merged=data["shards"].pop("2") and None),
            r"1 of the shards \(first 2\)",
        ),
    ],
)
def test_an_index_of_a_store_that_was_mined_again_differently_is_refused(
    store: Store, change: Any, message: str
) -> None:
    VectorIndex.build(store.layer(LAYER)).save()
    changed = edit_manifest(store, change)
    with pytest.raises(VectorIndexError, match=message) as caught:
        VectorIndex.load(changed, LAYER)
    assert "build it again" in str(caught.value)


def test_mining_again_to_the_same_rows_keeps_the_index(
    store: Store, model: HookedModel, folder: Path
) -> None:
    VectorIndex.build(store.layer(LAYER)).save()
    (store.path / "shards" / "00001.h5").unlink()
    verify(store.path, repair=True, model=model, images=folder)
    assert VectorIndex.load(store.path, LAYER).missing_rows == 0


def test_a_saved_index_is_used_if_it_is_good_and_otherwise_built(store: Store) -> None:
    layer = store.layer(LAYER)
    assert VectorIndex.of(layer).path is None
    kept = VectorIndex.of(layer, keep=True)
    assert kept.path is not None
    assert VectorIndex.of(layer).path == kept.path
    # An index of another metric is built, but does not replace the saved one.
    assert VectorIndex.of(layer, metric="l2", keep=True).path is None
    assert VectorIndex.load(store, LAYER).metric == "cosine"
    os.truncate(kept.path, 10)
    assert VectorIndex.of(layer).path is None
    assert VectorIndex.of(layer, keep=True).path == kept.path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": "timmscope-foo:quick"}, "install timmscope-foo"),
        ({"schema_version": 99}, "made by a newer timmscope"),
    ],
)
def test_an_index_that_cannot_be_read_here_is_kept_and_rows_are_searched_exactly(
    store: Store, changes: dict[str, Any], reason: str
) -> None:
    layer = store.layer(LAYER)
    expected = VectorIndex.build(layer, metric="l2").search_row(3, 5)
    file = VectorIndex.build(layer, metric="l2", backend="ivf").save()
    record = file.with_suffix(".json")
    values = {**checked_json.load(record.read_bytes()), **changes}
    record.write_bytes(checked_json.dump(values))
    before = file.read_bytes(), record.read_bytes()
    with pytest.warns(UserWarning, match=f"{reason}.*; until then every search reads all rows"):
        index = VectorIndex.of(layer, metric="l2", keep=True)
    np.testing.assert_array_equal(index.search_row(3, 5).ids, expected.ids)
    assert (index.path, index.record.facts["exact"]) == (None, True)
    assert (file.read_bytes(), record.read_bytes()) == before


def test_an_index_with_ids_that_the_store_lacks_is_refused(store: Store) -> None:
    index = VectorIndex.build(store.layer(LAYER))
    index.add(np.ones((1, index.dim)), [23])
    index.save()
    with pytest.raises(VectorIndexError, match=r"a row of id 23, which .* has 23 images, cannot"):
        VectorIndex.load(store, LAYER)


def test_an_index_that_cannot_be_saved_is_used_with_a_warning(store: Store) -> None:
    layer = store.layer(LAYER)
    expected = VectorIndex.of(layer).search_row(3, 5)
    (store.path / "index").write_bytes(b"")  # as in a read-only store, no index can be made here
    with pytest.warns(UserWarning, match=r"cannot be written: .*; every search builds it again"):
        index = VectorIndex.of(layer, keep=True)
    assert index.path is None
    np.testing.assert_array_equal(index.search_row(3, 5).ids, expected.ids)


def test_wrong_layers_and_folders_are_one_line_errors(store: Store, tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match="has no index: build one"):
        VectorIndex.load(store)
    with pytest.raises(VectorIndexError, match=r"there is no index .*layer4\.faiss"):
        VectorIndex.load(store, LAYER)
    with pytest.raises(LayerNotFound, match="layer4"):
        VectorIndex.load(store, "layer5")
    with pytest.raises(StoreError, match="not a store"):
        VectorIndex.load(tmp_path, LAYER)
    for name in (LAYER, "layer1"):
        VectorIndex.build(store.layer(name)).save()
    with pytest.raises(VectorIndexError, match=r"2 indexes \(layer1, layer4\): name the"):
        VectorIndex.load(store)


def test_rows_that_are_not_finite_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    class Blind(torch.nn.Module):
        """Divides by zero for images whose mean is below 0.5."""

        def __init__(self) -> None:
            super().__init__()
            self.features = torch.nn.Conv2d(3, 2, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = (images.mean((1, 2, 3), keepdim=True) > 0.5).float()
            return self.features(images / bright).mean((2, 3))

    model = HookedModel(Blind(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 32, 32))
    store = mine(model, folder, tmp_path / "blind.scope", layers=["features"], workers=0)
    bright = [
        number
        for number in range(23)
        if number != BROKEN and model.images(folder / f"{number:02d}.png").mean() > 0.5
    ]
    assert 0 < len(bright) < 22
    index = VectorIndex.build(store.layer("features"))
    assert index.ids.tolist() == bright
    assert index.record.non_finite == 22 - len(bright)
    dark = next(n for n in range(23) if n not in bright and n != BROKEN)
    with pytest.raises(VectorIndexError, match="NaN or infinite features at 'features'"):
        index.search_image(model, folder / f"{dark:02d}.png")
    with pytest.raises(VectorIndexError, match=f"no row {dark}"):
        index.search_row(dark)
