"""`Rows` yields the store's rows of the chosen images in order, and refuses NaN."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import (
    HookedModel,
    ImageError,
    ParameterError,
    Rows,
    Store,
    StoreCorrupted,
    StorePictures,
    mine,
)

SIZE = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven 4×4 images of one grey value each, in two folders, and one file without an image."""
    for number in range(7):
        place = tmp_path / "images" / ("dark" if number < 4 else "light")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((SIZE, SIZE, 3), 30 * number, np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (tmp_path / "images" / "dark" / "2b.png").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.fixture
def store(folder: Path, linear_model: HookedModel, tmp_path: Path) -> Store:
    return mine(
        linear_model, folder, tmp_path / "s.scope", layers=["fc"], shard_size=3, batch_size=2
    )


def test_batches_are_the_readable_rows_in_order(store: Store) -> None:
    rows = Rows(store.layer("fc"))
    assert (len(rows), rows.dim, rows.ids.tolist()) == (7, 3, [0, 1, 2, 4, 5, 6, 7])
    ids, values = map(np.concatenate, zip(*rows.batches(size=2), strict=True))
    np.testing.assert_array_equal(ids, rows.ids)
    np.testing.assert_array_equal(values, store.layer("fc").pooled[rows.ids])
    np.testing.assert_array_equal(rows.take([5, 0]), store.layer("fc").pooled[[5, 0]])


def test_a_condition_selects_rows_labels_and_names(store: Store) -> None:
    rows = Rows(store.layer("fc"), "label == 'light'")
    assert rows.ids.tolist() == [5, 6, 7]
    assert list(rows.labels) == ["light"] * 3
    assert rows.names([6]) == ["light/5.png"]
    assert rows.short_names([6]) == ["5"]
    (ids, values), *rest = rows.batches(size=100)
    ids = np.concatenate([ids, *(more for more, _ in rest)])
    assert ids.tolist() == [5, 6, 7]
    assert len(values) + sum(len(more) for _, more in rest) == 3
    with pytest.raises(ParameterError, match="has no image that meets the condition"):
        Rows(store.layer("fc"), "label == 'grey'")
    with pytest.raises(ParameterError, match=r"clusters needs at least 5 images.* has 3 that meet"):
        rows.require(5, "clusters", "k")


def test_an_array_takes_a_mask_or_ids() -> None:
    array = np.arange(12.0).reshape(6, 2)
    rows = Rows(array, [4, 1])
    assert rows.ids.tolist() == [1, 4]
    np.testing.assert_array_equal(
        np.concatenate([part for _, part in rows.batches()]), array[[1, 4]]
    )
    assert Rows(array, array[:, 0] > 5).ids.tolist() == [3, 4, 5]
    assert rows.names([1]) == ["row 1"]
    assert not rows.has_pictures
    for wrong in ("label == 'a'", [6], [0.5], [True, False]):
        with pytest.raises(ParameterError, match=r"array|neither a mask"):
            Rows(array, wrong)
    with pytest.raises(ParameterError, match="no image that meets the condition"):
        Rows(array, [])


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3, 4)), np.zeros(3), np.array(1.0), np.zeros((4, 0))]
)
def test_an_array_of_a_wrong_shape_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ParameterError, match=r"the array has shape \(.*\), expected \(n, d\)"):
        Rows(array)


@pytest.mark.parametrize("values", [["a", "b"], [None, 1], [1j, 2]])
def test_an_array_without_real_numbers_is_refused(values: list[object]) -> None:
    with pytest.raises(ParameterError, match=r"the array holds .*, expected real"):
        Rows(np.array([values] * 3))


def test_rows_with_nan_or_infinite_values_are_counted_and_named() -> None:
    array = np.ones((9000, 2), np.float32)
    array[[3, 8000], [0, 1]] = np.nan, np.inf
    rows = Rows(array)
    with pytest.raises(ParameterError, match=r"2 of 9000 rows of the array .* row 3, row 8000"):
        list(rows.batches())
    with pytest.raises(ParameterError, match="2 of 9000"):
        rows.take([3])
    for some in (Rows(array, [2, 3, 4]), Rows(array, np.arange(9000) < 5)):
        with pytest.raises(ParameterError, match=r"1 of [35] rows of the array .* row 3; leave"):
            list(some.batches())
    assert np.isfinite(Rows(array, np.isfinite(array).all(1)).take([0, 1])).all()


def test_large_finite_numbers_are_accepted() -> None:
    array = np.full((4, 2), 3e38, np.float32)
    assert len(Rows(array).take([0, 1, 2, 3])) == 4


def test_the_seed_decides_the_sample(store: Store) -> None:
    rows = Rows(store.layer("fc"))
    drawn = rows.sample(4, seed=1)
    assert drawn.tolist() == sorted(set(drawn.tolist()) & set(rows.ids.tolist()))
    assert drawn.tolist() == rows.sample(4, seed=1).tolist()
    assert any(drawn.tolist() != rows.sample(4, seed=seed).tolist() for seed in range(2, 9))
    assert len(rows.sample(4, seed=-1)) == 4
    assert rows.sample(70, seed=0).tolist() == rows.ids.tolist()


def test_pictures_are_the_images_as_the_model_sees_them(
    store: Store, folder: Path, linear_model: HookedModel
) -> None:
    pictures = Rows(store.layer("fc")).pictures
    shown = pictures.thumbnails([7, 0, 7], size=2)
    assert shown.shape == (3, 3, 2, 2)
    np.testing.assert_allclose(shown[:, 0, 0, 0], [180 / 255, 0, 180 / 255], rtol=1e-6)
    (folder / "light" / "4.png").unlink()
    again = StorePictures(store, folder)
    parts = list(again.batches([4, 5, 6]))
    assert [ids.tolist() for ids, _ in parts] == [[4, 6]]
    seen = linear_model.images([folder / "dark" / "3.png", folder / "light" / "5.png"])
    assert torch.equal(parts[0][1], seen)
    assert again.lost == {5}
    assert again.thumbnails([5], 1).unique().tolist() == [0.5]
    with pytest.raises(ImageError, match="none of the 1 images"):
        list(again.batches([5]))


def test_the_read_ahead_thread_ends_with_the_reader_and_passes_errors_on(store: Store) -> None:
    before = set(threading.enumerate())  # others may end while this runs
    for ids, _ in Rows(store.layer("fc")).batches(size=2):
        assert ids.tolist() == [0, 1]
        break
    gc.collect()
    assert set(threading.enumerate()) <= before
    (store.path / "shards" / "00001.h5").unlink()
    with pytest.raises(StoreCorrupted, match="the file is missing"):
        list(Rows(store.layer("fc")).batches(size=2))
    assert set(threading.enumerate()) <= before
