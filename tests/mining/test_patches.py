"""Patches show the receptive fields of a unit's strongest cells, alone and on a sheet."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import (
    HookedModel,
    ParameterError,
    Patch,
    Store,
    StoreError,
    TopEntry,
    load_model,
    mine,
    receptive_field,
    top_patches,
)
from timmscope.patches import field_cache
from timmscope.patches.field_cache import cached_field
from timmscope.patches.figure import patch_figure
from timmscope.receptive_fields import compute as find
from timmscope.receptive_fields.field import ReceptiveField, whole_image

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


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["exact", "spatial"])
def test_patches_are_the_receptive_fields_of_the_cells_with_the_maxima(
    model: HookedModel, store: Store, kind: str
) -> None:
    patches = top_patches(store, model, "layer1", 5, 6, field=kind)
    field = receptive_field(model, "layer1", kind)
    assert field.size == (43, 43)
    source = store.source(None)
    for patch, entry in zip(patches, store.layer("layer1").top(5, 6), strict=True):
        assert patch.entry == entry
        row, column = entry.position
        edges = (4 * column - 21, 4 * row - 21, 4 * column + 22, 4 * row + 22)
        assert patch.box == tuple(np.clip(edges, 0, 96))
        assert patch.cell == (4 * column, 4 * row, 4 * column + 4, 4 * row + 4)
        assert patch.field.kind == kind
        image = (model.preprocess(source.load(entry.image_id)) * 255).round().byte()
        whole = image.permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels_of(patch.whole), whole)
        left, upper, right, lower = patch.box
        np.testing.assert_array_equal(pixels_of(patch.image), whole[upper:lower, left:right])


def test_pixels_outside_the_patch_do_not_change_the_maximum(
    model: HookedModel, store: Store
) -> None:
    for patch in top_patches(store, model, "layer1", 3, 4, field="exact"):
        left, upper, right, lower = patch.box
        painted = torch.zeros(1, 3, 96, 96)
        whole = torch.from_numpy(pixels_of(patch.whole).copy()).permute(2, 0, 1)[None] / 255
        inside = (..., slice(upper, lower), slice(left, right))
        painted[inside] = whole[inside]
        row, column = patch.entry.position
        with torch.no_grad(), model.record("layer1") as recording:
            model(torch.cat([whole, painted]))
        before, after = recording["layer1"][:, 3, row, column].tolist()
        assert after == pytest.approx(before, abs=1e-5)
        assert before == pytest.approx(patch.entry.value, abs=2e-2)  # pixels have 8 bits


def test_effective_patches_are_measured_on_the_same_images(
    model: HookedModel, store: Store
) -> None:
    patches = top_patches(store, model, "layer2", 9, 5, field="effective")
    images = torch.stack([model.preprocess(store.source(None).load(p.entry.image_id))
                          for p in patches])  # fmt: skip
    cells = [patch.entry.position for patch in patches]
    field = receptive_field(model, "layer2", "effective", images, unit=9, positions=cells)
    assert {patch.field.size for patch in patches} == {field.size}
    assert field.size[0] < receptive_field(model, "layer2", "exact").size[0]
    assert [patch.box for patch in patches] == [field.box(cell) for cell in cells]


def test_fields_as_large_as_the_image_and_layers_without_a_grid_give_whole_images(
    model: HookedModel, store: Store
) -> None:
    for kind in KINDS:
        for patch in top_patches(store, model, "global_pool", 0, 2, field=kind):
            assert patch.box == patch.cell == (0, 0, 96, 96)
            assert patch.field.grid is None
    for patch in top_patches(store, model, "layer4", 0, 3):
        assert patch.box == (0, 0, 96, 96)
        row, column = patch.entry.position
        assert patch.cell == (32 * column, 32 * row, 32 * column + 32, 32 * row + 32)
        np.testing.assert_array_equal(pixels_of(patch.image), pixels_of(patch.whole))


def test_patches_may_be_restricted_by_a_condition(model: HookedModel, store: Store) -> None:
    patches = top_patches(store, model, "layer1", 2, 4, where="folder == 'class1'")
    assert len(patches) == 4
    assert all(Path(patch.path).parent.name == "class1" for patch in patches)
    values = [entry.value for entry in store.layer("layer1").top(2, 12) if entry.image_id >= 6]
    assert [patch.entry.value for patch in patches] == values[:4]
    assert top_patches(store, model, "layer1", 2, 4, where="width > 5000") == []


def test_nine_patches_compute_the_receptive_field_once(
    model: HookedModel, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find._found.clear()
    store = Store.open(shutil.copytree(store.path, tmp_path / "s.scope"))
    shutil.rmtree(store.path / field_cache.FOLDER, ignore_errors=True)  # of earlier tests
    found = []
    follow = find._follow
    monkeypatch.setattr(find, "_follow", lambda *a: found.append(a) or follow(*a))
    top_patches(store, model, "layer2", 0, 9)
    top_patches(store, model, "layer2", 1, 9)
    assert len(found) == 1


def made_up(field: ReceptiveField, positions: list[tuple[int, int]]) -> list[Patch]:
    """Return patches of a white image at some cells."""
    height, width = field.image_size
    whole = Image.new("RGB", (width, height), "white")
    return [
        Patch(
            whole.crop(field.box(cell)),
            whole,
            field.box(cell),
            field.cell(cell),
            field,
            TopEntry(0, 1.5, cell),
            "a.png",
        )
        for cell in positions
    ]


def tiles(figure) -> list[np.ndarray]:
    return [image.get_array() for image in figure.axes[0].get_images()]


def test_all_patches_of_a_sheet_have_one_scale(model: HookedModel) -> None:
    field = receptive_field(model, "layer1", "exact")  # 43 px
    inside, corner = tiles(patch_figure(made_up(field, [(12, 12), (0, 0)])))
    assert inside.shape == corner.shape
    side = 448
    assert (inside[:, :side] == 255).all()
    cut = round(side * 21 / 43)  # 21 px of the corner's field are outside the image
    assert (corner[: cut - 12, :side] != 255).all()
    assert (corner[cut + 12 :, cut + 12 : side] == 255).all()


def test_sheets_name_the_receptive_field_that_they_show(model: HookedModel) -> None:
    def texts(field: ReceptiveField) -> str:
        figure = patch_figure(made_up(field, [(0, 0)] * 3), "layer[0]")
        return " | ".join(text.get_text() for text in figure.texts)

    small = receptive_field(model, "layer1", "exact")
    assert "exact receptive field, 43x43 px, and where it is" in texts(small)
    large = receptive_field(model, "layer4")
    assert "outlined: spatial receptive field, 435x435 px, and the cell" in texts(large)
    assert "1.5" in texts(large)
    vector = whole_image("global_pool", "spatial", (96, 96))
    assert "no grid: the unit sees the whole image" in texts(vector)


def test_a_sheet_without_patches_is_refused() -> None:
    with pytest.raises(ParameterError, match="at least one picture"):
        patch_figure([])


def same(first: list[Patch], second: list[Patch]) -> None:
    """Check that two lists of patches are equal."""
    for one, other in zip(first, second, strict=True):
        for name in ("entry", "box", "cell", "path"):
            assert getattr(one, name) == getattr(other, name)
        np.testing.assert_array_equal(pixels_of(one.image), pixels_of(other.image))
        for name in ("layer", "kind", "image_size", "grid", "size", "stride", "unknown"):
            assert getattr(one.field, name) == getattr(other.field, name)
        np.testing.assert_array_equal(one.field.boxes, other.field.boxes)
        np.testing.assert_equal(one.field.unclipped, other.field.unclipped)


@pytest.mark.parametrize("layer", ["layer2", "global_pool"])
def test_a_cached_field_needs_no_model(
    model: HookedModel, store: Store, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    given = top_patches(store, model, layer, 3, 4)

    def refuse(*arguments: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("timmscope.models.load_model", refuse)
    monkeypatch.setattr(find, "_follow", refuse)
    same(top_patches(Store.open(store.path), None, layer, 3, 4), given)
    with pytest.raises(AssertionError, match="the model was loaded"):
        top_patches(store, None, layer, 3, 4, field="effective")


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"null", b'{"model": 3}', None])
def test_a_damaged_cached_field_is_computed_again(store: Store, damage: bytes | None) -> None:
    given = top_patches(store, None, "layer2", 3, 4)
    file = store.path / "fields" / "layer2.spatial.json"
    good = file.read_bytes()
    one_digit = re.sub(rb'"size": \[(\d)', rb'"size": [9\1', good)
    assert one_digit != good
    file.write_bytes(one_digit if damage is None else damage)
    same(top_patches(store, None, "layer2", 3, 4), given)
    assert file.read_bytes() == good


def test_the_field_of_another_model_is_neither_used_nor_kept(store: Store) -> None:
    given = top_patches(store, None, "layer2", 3, 4)
    file = store.path / "fields" / "layer2.spatial.json"
    record = store.manifest.model.model_copy(update={"weights_sha256": "0" * 64})
    other = Store(store.path, store.manifest.model_copy(update={"model": record}))
    assert cached_field(store, "layer2", "spatial") is not None
    assert cached_field(other, "layer2", "spatial") is None
    file.unlink()
    twin = load_model("random:resnet18?seed=1&img_size=96")
    same(top_patches(store, twin, "layer2", 3, 4), given)
    assert not file.exists()


def test_a_model_that_cannot_be_loaded_has_to_be_passed(store: Store) -> None:
    record = store.manifest.model.model_copy(update={"id": "module:mine"})
    lost = Store(store.path, store.manifest.model_copy(update={"model": record}))
    with pytest.raises(StoreError, match="no source to load it from; pass it as model="):
        top_patches(lost, None, "layer4", 0, 2, field="effective")
