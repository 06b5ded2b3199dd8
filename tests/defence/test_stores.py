"""A store belongs to the model with its defences, and so do its index and its queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.defence.conftest import Negative

from timmscope import (
    HookedModel,
    ObjectiveError,
    Store,
    StoreMismatch,
    VectorIndex,
    VectorIndexError,
    load_model,
    mine,
    pooled_features,
    search,
    technique,
)

SPEC = "random:test_resnet?seed=0&img_size=32"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("images") / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    np.savez(file, images=pixels)
    return file


def run(model: HookedModel, pictures: Path, out: Path, **settings) -> Store:
    return mine(model, pictures, out, layers=["layer2"], shard_size=3, workers=0, **settings)


@pytest.fixture(scope="module")
def store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "a.scope"
    model = load_model(SPEC, defences="jpeg quality=50")
    VectorIndex.build(run(model, pictures, folder).layer("layer2")).save()
    return folder


def test_rows_are_those_of_the_defended_model(store, pictures):
    model = load_model(SPEC, defences="jpeg quality=50")
    images = model.images(list(np.load(pictures)["images"]))
    rows = Store.open(store).layer("layer2").pooled
    np.testing.assert_allclose(rows, pooled_features(model, images, "layer2"), rtol=1e-4, atol=1e-6)
    bare = pooled_features(model.defended([]), images, "layer2")
    assert np.abs(rows - bare).max() > 1e-3


@pytest.mark.parametrize("defences", [[], ["jpeg quality=51"], ["jpeg quality=50"] * 2])
def test_other_defences_are_refused_with_the_difference(defences, store, pictures):
    other = load_model(SPEC, defences=defences)
    with pytest.raises(StoreMismatch) as caught:
        run(other, pictures, store)
    assert [line.split(":")[0] for line in caught.value.differences] == ["defences", "model"]
    for use in (
        lambda: search(Store.open(store), torch.rand(1, 3, 32, 32), layer="layer2", model=other),
        lambda: VectorIndex.load(Store.open(store), "layer2").search_image(
            other, torch.rand(1, 3, 32, 32)
        ),
    ):
        with pytest.raises(
            StoreMismatch, match=r"has .*, and .* has timmscope:jpeg quality=50: use"
        ):
            use()


def test_a_killed_pass_resumes_with_the_same_defence_alone(pictures, tmp_path):
    model = load_model(SPEC, defences="jpeg quality=50")
    whole = run(model, pictures, tmp_path / "whole")
    part = run(model, pictures, tmp_path / "part")
    (part.path / "shards" / "00001.h5").unlink()
    with pytest.raises(StoreMismatch, match="defences: the store has"):
        run(model.defended([]), pictures, tmp_path / "part")
    again = run(load_model(SPEC, defences=["jpeg quality=50"]), pictures, tmp_path / "part")
    for file in ("manifest.json", "shards/00001.h5"):
        assert (again.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_a_store_loads_its_model_with_the_defences(store):
    from timmscope.store.model import store_model

    model = store_model(Store.open(store))
    assert model.id == f"{SPEC} + timmscope:jpeg quality=50"
    assert [defence.text() for defence in model.defences] == ["timmscope:jpeg quality=50"]


def test_an_index_of_rows_behind_another_defence_is_refused(store, pictures, tmp_path):
    import shutil

    other = run(load_model(SPEC, defences="jpeg quality=60"), pictures, tmp_path / "b.scope")
    shutil.copytree(store / "index", other.path / "index", dirs_exist_ok=True)
    with pytest.raises(VectorIndexError, match="mined with other defences"):
        VectorIndex.load(other, "layer2")


def test_data_sets_behind_different_defences_are_not_compared(store, pictures, tmp_path):
    other = run(load_model(SPEC), pictures, tmp_path / "bare.scope")
    with pytest.raises(StoreMismatch, match="defences"):
        technique("compare-datasets")()([Store.open(store), other], layer="layer2")


def test_a_row_of_the_store_is_matched_by_the_defended_model_alone(store):
    goal = Store.open(store).layer("layer2").match(3)
    images = torch.rand(2, 3, 32, 32)
    model = load_model(SPEC, defences="jpeg quality=50")
    assert torch.isfinite(model.score(images, goal)).all()
    with pytest.raises(ObjectiveError, match="has other weights or defences"):
        model.defended([]).score(images, goal)


def test_a_matched_image_is_computed_anew_behind_another_defence():
    from timmscope import match

    model = load_model(SPEC, defences=Negative())
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    goal = match("layer2", images=image)
    for each in (model, model.defended([])):
        goal = goal.bind(each, image)
        assert each.score(image, goal).item() == pytest.approx(0, abs=1e-6)


def test_receptive_fields_are_those_of_the_network(store):
    from timmscope import receptive_field

    model = load_model(SPEC, defences=[Negative(), "jpeg"])
    one, other = (receptive_field(m, "layer1") for m in (model, model.defended([])))
    assert (one.boxes == other.boxes).all()
