"""Neighbours by pixels are those of the definition; neighbours by features share the subject."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import (
    HookedModel,
    ImageError,
    LayerNotFound,
    ParameterError,
    Store,
    StoreError,
    StoreMismatch,
    VectorIndex,
    load_model,
    load_result,
    mine,
    reporting,
    technique,
)

NearestNeighbours: Any = technique("nearest-neighbours")
LAYER = "global_pool"
SUBJECTS = ("chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def crops(photo_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight random square crops of each of three photographs, as files."""
    folder = tmp_path_factory.mktemp("crops")
    generator = np.random.default_rng(0)
    for subject in SUBJECTS:
        picture = Image.open(photo_paths[subject]).convert("RGB")
        for number in range(8):
            side = int(min(picture.size) * generator.uniform(0.55, 0.95))
            left = int(generator.integers(0, picture.width - side + 1))
            upper = int(generator.integers(0, picture.height - side + 1))
            crop = picture.crop((left, upper, left + side, upper + side))
            crop.resize((256, 256)).save(folder / f"{subject}-{number}.png")
    return folder


@pytest.fixture(scope="module")
def mined(lite0: HookedModel, crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return mine(
        lite0, crops, tmp_path_factory.mktemp("store") / "run.scope", layers=[LAYER], workers=0
    )


@pytest.fixture
def store(mined: Store, tmp_path: Path) -> Store:
    return Store.open(shutil.copytree(mined.path, tmp_path / "run.scope"))


def small(lite0: HookedModel, path: Path, size: int) -> Any:
    """A picture at `size` pixels a side, each the plain mean of its block; float64, flat."""
    image = lite0.images(path)[0].double().numpy()
    block = image.shape[1] // size
    return image.reshape(3, size, block, size, block).mean((2, 4)).ravel()


def test_neighbours_by_pixels_equal_brute_force(
    lite0: HookedModel, mined: Store, crops: Path
) -> None:
    names = list(mined.images.paths)
    query = crops / "coffee-2.png"
    found = NearestNeighbours(k=6, pixel_size=16)(mined, query, model=lite0)
    pictures = np.stack([small(lite0, crops / name, 16) for name in names])
    distances = np.linalg.norm(pictures - small(lite0, query, 16), axis=1)
    expected = [i for i in np.argsort(distances, kind="stable") if names[i] != query.name][:6]
    assert found.pixel_ids[0].tolist() == expected
    np.testing.assert_allclose(found.pixel_distances[0], distances[expected], rtol=1e-5)
    assert found.pixel_names[0] == [names[i] for i in expected]


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_neighbours_by_features_equal_brute_force(
    lite0: HookedModel, mined: Store, crops: Path, metric: str
) -> None:
    rows = np.asarray(mined.layer(LAYER).pooled).astype(float)
    names = list(mined.images.paths)
    found = NearestNeighbours(k=5, metric=metric)(mined, crops / "rocket-1.png", model=lite0)
    me = names.index("rocket-1.png")
    scores = {
        "cosine": rows @ rows[me] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[me]),
        "l2": -np.linalg.norm(rows - rows[me], axis=1),
        "ip": rows @ rows[me],
    }[metric]
    expected = [i for i in np.argsort(-scores, kind="stable") if i != me][:5]
    assert found.feature_ids[0].tolist() == expected
    np.testing.assert_allclose(
        found.feature_scores[0], np.abs(scores[expected]), rtol=1e-4, atol=1e-4
    )


def test_features_find_the_subject_where_pixels_do_not_always(
    lite0: HookedModel, mined: Store, crops: Path
) -> None:
    queries = [crops / f"{subject}-{number}.png" for subject in SUBJECTS for number in range(4)]
    found = NearestNeighbours(k=5)(mined, queries, model=lite0)

    def agreeing(names: list[list[str]]) -> list[float]:
        return [
            np.mean([name.split("-")[0] == query.name.split("-")[0] for name in row])
            for query, row in zip(queries, names, strict=True)
        ]

    by_features, by_pixels = agreeing(found.feature_names), agreeing(found.pixel_names)
    assert by_features == [1.0] * 12  # a crop of the cat has crops of the cat
    assert np.mean(by_pixels) < 0.9


def test_the_query_itself_is_left_out_or_comes_first_as_asked(
    lite0: HookedModel, mined: Store, crops: Path
) -> None:
    query = lite0.images(crops / "chelsea-3.png")
    me = list(mined.images.paths).index("chelsea-3.png")
    without = NearestNeighbours(k=3)(mined, query, model=lite0)
    assert me not in without.pixel_ids
    assert me not in without.feature_ids
    with_it = NearestNeighbours(k=3, exclude_identical=False)(mined, query, model=lite0)
    assert (int(with_it.pixel_ids[0, 0]), int(with_it.feature_ids[0, 0])) == (me, me)
    assert float(with_it.pixel_distances[0, 0]) == 0
    assert float(with_it.feature_scores[0, 0]) == pytest.approx(1, abs=1e-5)
    assert with_it.pixel_ids[0, 1:].tolist() == without.pixel_ids[0, :2].tolist()
    assert with_it.query_names == ["query 0"]


def test_more_neighbours_than_images_gives_all_others(
    lite0: HookedModel, mined: Store, crops: Path
) -> None:
    queries = [crops / "chelsea-3.png", crops / "coffee-0.png"]
    found = NearestNeighbours(k=99)(mined, queries, model=lite0)
    assert found.pixel_ids.shape == found.feature_ids.shape == (2, 23)
    assert found.summary()[0]["in_both"] == 23


def test_the_model_is_found_by_the_stores_folder_alone(
    mined: Store, lite0: HookedModel, crops: Path
) -> None:
    by_folder = NearestNeighbours(k=2)(str(mined.path), str(crops / "coffee-0.png"))
    by_layer = NearestNeighbours(k=2)(mined.layer(LAYER), crops / "coffee-0.png", model=lite0)
    assert torch.equal(by_folder.feature_ids, by_layer.feature_ids)
    assert by_folder.provenance.weights_sha256 == lite0.weights_sha256
    assert by_folder.provenance.call["layer"] == LAYER


def test_the_saved_index_is_used(
    lite0: HookedModel, store: Store, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = NearestNeighbours(k=4)(store, crops / "coffee-0.png", model=lite0)
    VectorIndex.build(store.layer(LAYER)).save()

    def refuse(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("built again")

    monkeypatch.setattr(VectorIndex, "build", refuse)
    found = NearestNeighbours(k=4)(store, crops / "coffee-0.png", model=lite0)
    assert torch.equal(found.feature_ids, expected.feature_ids)


def test_a_result_survives_saving_and_shows_its_images(
    lite0: HookedModel, mined: Store, crops: Path, tmp_path: Path
) -> None:
    found = NearestNeighbours(k=3)(mined, crops / "coffee-0.png", model=lite0)
    again = load_result(found.save(tmp_path / "out"))
    assert again.feature_names == found.feature_names
    assert torch.equal(again.pixel_images, found.pixel_images)
    side = found.feature_images.shape[-1]
    nearest = lite0.images(crops / found.feature_names[0][0])
    expected = torch.nn.functional.adaptive_avg_pool2d(nearest, side)[0]
    torch.testing.assert_close(found.feature_images[0, 0], expected)
    texts = [text.get_text() for text in found.figure().texts]
    assert {"pixels", "features", "coffee-0"} <= set(texts)
    assert f"{float(found.feature_scores[0, 0]):.3g}" in texts


def test_progress_counts_every_readable_image(
    lite0: HookedModel, mined: Store, crops: Path
) -> None:
    from collections.abc import Iterator
    from contextlib import contextmanager

    seen: dict[str, list[int]] = {}

    class Reporter:
        @contextmanager
        def open(self, description: str, total: int | None) -> Iterator[Any]:
            seen[description] = [total or 0, 0]

            def advance(steps: int) -> None:
                seen[description][1] += steps

            yield advance

    with reporting(Reporter()):
        NearestNeighbours(k=1)(mined, crops / "coffee-0.png", model=lite0)
    assert seen["comparing pixels"] == [24, 24]
    assert seen["indexing"] == [24, 24]


def test_images_that_have_gone_are_counted_and_their_places_known_elsewhere(
    lite0: HookedModel, mined: Store, crops: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(crops, tmp_path / "moved"))
    query = moved / "coffee-0.png"
    expected = NearestNeighbours(k=3)(mined, query, model=lite0)
    found = NearestNeighbours(k=3)(mined, query, model=lite0, location=str(moved))
    assert torch.equal(found.pixel_ids, expected.pixel_ids)
    os.truncate(moved / expected.pixel_names[0][0], 50)
    os.truncate(moved / expected.feature_names[0][0], 50)
    with pytest.warns(UserWarning, match="images of .* can no longer be read"):
        found = NearestNeighbours(k=2)(mined, query, model=lite0, location=str(moved))
    gone = len({expected.pixel_names[0][0], expected.feature_names[0][0]})
    assert found.unreadable == gone
    assert expected.pixel_names[0][0] not in found.pixel_names[0]
    assert found.feature_names[0][0] == expected.feature_names[0][0]
    assert found.feature_images[0, 0].unique().tolist() == [0.5]
    for path in moved.iterdir():
        if path != query:
            os.truncate(path, 50)
    (moved / "extra.png").write_bytes(query.read_bytes())  # not one of the store's
    with pytest.raises(ParameterError, match="no image other than the query"):
        NearestNeighbours()(mined, query, model=lite0, location=str(moved))
    query.replace(moved / "renamed.png")
    with pytest.raises(ImageError, match="none of the 24 images of the store can be read"):
        NearestNeighbours()(mined, moved / "renamed.png", model=lite0, location=str(moved))


def test_wrong_calls_are_one_clear_line(
    lite0: HookedModel, mined: Store, crops: Path, tmp_path: Path
) -> None:
    query = crops / "coffee-0.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(query.read_bytes()[:500])
    other = load_model("random:resnet18?seed=0&img_size=64")
    neighbours = NearestNeighbours()
    calls: list[tuple[type[Exception], str, Any]] = [
        (ParameterError, "'k'.*0", lambda: NearestNeighbours(k=0)),
        (ParameterError, "needs query images", lambda: neighbours(mined, model=lite0)),
        (ParameterError, "array is not enough", lambda: neighbours(np.ones((3, 2)), query)),
        (ParameterError, "reads a store.*HookedModel", lambda: neighbours(lite0, query)),
        (StoreError, "not a store", lambda: neighbours(tmp_path, query)),
        (LayerNotFound, LAYER, lambda: neighbours(mined, query, layer="globalpool")),
        (ImageError, r"bad\.png", lambda: neighbours(mined, bad, model=lite0)),
        (StoreMismatch, "other weights", lambda: neighbours(mined, query, model=other)),
    ]
    for kind, message, call in calls:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_store_of_several_layers_asks_which(crops: Path, tmp_path: Path) -> None:
    model = load_model("random:resnet18?seed=0&img_size=64")
    two = mine(model, crops, tmp_path / "two.scope", layers=["layer1", "layer2"], workers=0)
    with pytest.raises(ParameterError, match="2 layers: choose one of layer1, layer2"):
        NearestNeighbours()(two, crops / "coffee-0.png", model=model)
