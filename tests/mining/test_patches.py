"""Patches show the receptive fields of a unit's strongest cells, alone and on a sheet."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import (
    HookedModel,
    ParameterError,
    Store,
    StoreError,
    StoreMismatch,
    TopEntry,
    UnitPatches,
    load_model,
    mine,
    receptive_field,
    technique,
)
from timmscope.patches.field_cache import FOLDER, cached_field
from timmscope.patches.figure import SIDE, field_note, panels
from timmscope.patches.patch import Patch
from timmscope.receptive_fields import compute as find
from timmscope.receptive_fields.field import ReceptiveField, whole_image
from timmscope.testing.subjects import differing_arrays

KINDS = ("exact", "spatial", "effective")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model("random:resnet18?seed=0&img_size=96")


@pytest.fixture(scope="module")
def store(model: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(12):
        low = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        place = folder / f"class{number % 2}" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(low).resize((130, 110)).save(place)
    layers = ["layer1", "layer2", "layer4", "global_pool"]
    return mine(model, folder, folder.parent / "s.scope", layers=layers, workers=0)


def top(
    store: Store,
    model: HookedModel | None,
    layer: str,
    unit: int,
    k: int,
    *,
    where: str | None = None,
    field: str = "spatial",
) -> UnitPatches:
    cut: Any = technique("top-patches")(units=unit, k=k, field=field, view=None)
    result: UnitPatches = cut(store, layer=layer, model=model, where=where)
    return result


def images_of(model: HookedModel, store: Store, patches: UnitPatches) -> torch.Tensor:
    """The images of one unit's patches as the model sees them, `(k, 3, H, W)` in [0, 1]."""
    source = store.source(None)
    return torch.stack([model.preprocess(source.load(i)) for i in patches.image_ids[0].tolist()])


@pytest.mark.parametrize("kind", ["exact", "spatial"])
def test_patches_are_the_receptive_fields_of_the_cells_with_the_maxima(
    model: HookedModel, store: Store, kind: str
) -> None:
    patches = top(store, model, "layer1", 5, 6, field=kind)
    field = receptive_field(model, "layer1", kind)
    assert field.size == (43, 43)
    assert patches.fields == [
        {"kind": kind, "size_px": [43, 43], "stride_px": [4, 4], "unknown_operations": []}
    ]
    images = images_of(model, store, patches)
    whole = 0
    for rank, entry in enumerate(store.layer("layer1").top(5, 6)):
        assert patches.image_ids[0, rank] == entry.image_id
        assert patches.values[0, rank] == entry.value
        assert tuple(patches.positions[0, rank].tolist()) == entry.position
        row, column = entry.position
        edges = (4 * column - 21, 4 * row - 21, 4 * column + 22, 4 * row + 22)
        left, upper, right, lower = np.clip(edges, 0, 96).tolist()
        assert patches.boxes[0, rank].tolist() == [left, upper, right, lower]
        cell = [4 * column, 4 * row, 4 * column + 4, 4 * row + 4]
        assert patches.cells[0, rank].tolist() == cell
        if (right - left, lower - upper) == (43, 43):
            pixels = (images[rank, :, upper:lower, left:right] * 255).round().byte()
            cut = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            expected = np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.NEAREST))
            np.testing.assert_array_equal(patches.patches[0, rank].permute(1, 2, 0), expected)
            whole += 1
    assert whole


def test_pixels_outside_the_patch_do_not_change_the_maximum(
    model: HookedModel, store: Store
) -> None:
    patches = top(store, model, "layer1", 3, 4, field="exact")
    images = images_of(model, store, patches)
    for rank, (left, upper, right, lower) in enumerate(patches.boxes[0].tolist()):
        whole, painted = images[rank : rank + 1], torch.zeros(1, 3, 96, 96)
        inside = (..., slice(upper, lower), slice(left, right))
        painted[inside] = whole[inside]
        row, column = patches.positions[0, rank].tolist()
        with torch.no_grad(), model.record("layer1") as recording:
            model(torch.cat([whole, painted]))
        before, after = recording["layer1"][:, 3, row, column].tolist()
        assert after == pytest.approx(before, abs=1e-5)
        assert before == pytest.approx(float(patches.values[0, rank]), abs=1e-4)


def test_effective_patches_are_measured_on_the_same_images(
    model: HookedModel, store: Store
) -> None:
    patches = top(store, model, "layer2", 9, 5, field="effective")
    cells = [(row, column) for row, column in patches.positions[0].tolist()]
    images = images_of(model, store, patches)
    field = receptive_field(model, "layer2", "effective", images, unit=9, positions=cells)
    assert patches.fields[0]["size_px"] == list(field.size)
    assert field.size[0] < receptive_field(model, "layer2", "exact").size[0]
    assert patches.boxes[0].tolist() == [list(field.box(cell)) for cell in cells]


def test_fields_as_large_as_the_image_and_layers_without_a_grid_give_whole_images(
    model: HookedModel, store: Store
) -> None:
    whole = [0, 0, 96, 96]
    for kind in KINDS:
        patches = top(store, model, "global_pool", 0, 2, field=kind)
        assert patches.boxes.tolist() == patches.cells.tolist() == [[whole, whole]]
        assert patches.fields[0]["stride_px"] is None
    patches = top(store, model, "layer4", 0, 3)
    assert patches.boxes.tolist() == [[whole] * 3]
    for (row, column), cell in zip(
        patches.positions[0].tolist(), patches.cells[0].tolist(), strict=True
    ):
        assert cell == [32 * column, 32 * row, 32 * column + 32, 32 * row + 32]


def test_conditions_choose_the_images(model: HookedModel, store: Store) -> None:
    patches = top(store, model, "layer1", 2, 4, where="folder == 'class1'")
    assert len(patches.names[0]) == 4
    assert all(Path(name).parent.name == "class1" for name in patches.names[0])
    values = [entry.value for entry in store.layer("layer1").top(2, 12) if entry.image_id >= 6]
    assert patches.values[0].tolist() == values[:4]
    with pytest.raises(ParameterError, match="no image that meets the condition"):
        top(store, model, "layer1", 2, 4, where="width > 5000")


def test_nine_patches_cost_one_search_for_the_field(
    model: HookedModel, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find._cache.clear()
    store = Store.open(shutil.copytree(store.path, tmp_path / "s.scope"))
    shutil.rmtree(store.path / FOLDER, ignore_errors=True)  # of earlier looks
    found = []
    follow = find._follow
    monkeypatch.setattr(find, "_follow", lambda *a: found.append(a) or follow(*a))
    top(store, model, "layer2", 0, 9)
    top(store, model, "layer2", 1, 9)
    assert len(found) == 1


def drawn(field: ReceptiveField, cell: tuple[int, int]) -> np.ndarray:
    """The picture of a patch of a white image, `(SIDE, SIDE, 3)`."""
    height, width = field.image_size
    whole = Image.new("RGB", (width, height), "white")
    patch = Patch(0, 0, TopEntry(0, 1.5, cell), field, whole, torch.ones(3, height, width))
    return panels(patch, None, SIDE, placed=True)[0].permute(1, 2, 0).numpy()


def test_all_patches_of_a_sheet_have_one_scale(model: HookedModel) -> None:
    field = receptive_field(model, "layer1", "exact")  # 43 px
    inside, corner = drawn(field, (12, 12)), drawn(field, (0, 0))
    assert inside.shape == corner.shape == (SIDE, SIDE, 3)
    assert (inside == 255).all()
    cut = round(SIDE * 21 / 43)  # of the corner's field 21 px are outside the image
    assert (corner[: cut - 12] != 255).all()
    assert (corner[cut + 12 :, cut + 12 :] == 255).all()


def test_sheets_say_which_field_they_show(model: HookedModel) -> None:
    small = receptive_field(model, "layer1", "exact")
    assert "exact receptive field, 43x43 px, and where it is" in field_note(small, placed=True)
    large = receptive_field(model, "layer4")
    text = field_note(large, placed=True)
    assert "outlined: spatial receptive field, 435x435 px, and the cell" in text
    vector = whole_image("global_pool", "spatial", (96, 96))
    assert "no grid: the unit sees the whole image" in field_note(vector, placed=True)


@pytest.mark.parametrize("layer", ["layer2", "global_pool"])
def test_a_field_that_was_found_once_needs_no_model_again(
    model: HookedModel, store: Store, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    given = top(store, model, layer, 3, 4)
    found, kept = receptive_field(model, layer), cached_field(store, layer, "spatial")
    assert kept is not None
    for name in ("layer", "kind", "image_size", "grid", "size", "stride", "unknown"):
        assert getattr(kept, name) == getattr(found, name)
    np.testing.assert_array_equal(kept.boxes, found.boxes)
    np.testing.assert_equal(kept.unclipped, found.unclipped)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("timmscope.models.load_model", refuse)
    monkeypatch.setattr(find, "_follow", refuse)
    assert not differing_arrays(top(Store.open(store.path), None, layer, 3, 4), given)
    with pytest.raises(AssertionError, match="the model was loaded"):
        top(store, None, layer, 3, 4, field="effective")


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"null", b'{"model": 3}', None])
def test_a_kept_field_that_is_damaged_is_found_again(store: Store, damage: bytes | None) -> None:
    given = top(store, None, "layer2", 3, 4)
    file = store.path / "fields" / "layer2.spatial.json"
    good = file.read_bytes()
    one_digit = re.sub(rb'"size": \[(\d)', rb'"size": [9\1', good)
    assert one_digit != good
    file.write_bytes(one_digit if damage is None else damage)
    assert not differing_arrays(top(store, None, "layer2", 3, 4), given)
    assert file.read_bytes() == good


def test_the_field_of_another_model_is_neither_used_nor_kept(store: Store) -> None:
    top(store, None, "layer2", 3, 4)
    file = store.path / "fields" / "layer2.spatial.json"
    record = store.manifest.model.model_copy(update={"weights_sha256": "0" * 64})
    other = Store(store.path, store.manifest.model_copy(update={"model": record}))
    assert cached_field(store, "layer2", "spatial") is not None
    assert cached_field(other, "layer2", "spatial") is None
    file.unlink()
    with pytest.raises(StoreMismatch, match="other weights"):
        top(store, load_model("random:resnet18?seed=1&img_size=96"), "layer2", 3, 4)
    assert not file.exists()


def test_a_model_without_a_source_has_to_be_given(store: Store) -> None:
    record = store.manifest.model.model_copy(update={"id": "module:mine"})
    lost = Store(store.path, store.manifest.model_copy(update={"model": record}))
    with pytest.raises(StoreError, match=r"it was a module in memory.*pass it as model="):
        top(lost, None, "layer4", 0, 2, field="effective")


@pytest.mark.parametrize("per_image", [True, False])
def test_a_model_that_is_not_the_stores_is_refused(store: Store, per_image: bool) -> None:
    other = load_model("random:resnet18?seed=9&img_size=96")
    cut = technique("top-patches")(units=3, k=4, per_image=per_image)
    with pytest.raises(StoreMismatch, match="seed=9&img_size=96 has other weights"):
        cut(store, layer="layer1", model=other)  # type: ignore[operator]
