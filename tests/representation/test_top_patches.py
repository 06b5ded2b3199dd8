"""Top patches: global ranks by brute force, several units at once, views, pages and refusals."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

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
    UnitPatches,
    load_model,
    load_result,
    mine,
    neuron,
    receptive_field,
    technique,
)
from timmscope.cli import main
from timmscope.drawing import around_grey

TopPatches: Any = technique("top-patches")
MODEL = "random:resnet18?seed=0&img_size=64&num_classes=10"
LAYERS = ["layer1.0", "layer4", "fc"]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def store(model: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(14):
        low = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        place = folder / f"class{number % 2}" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(low).resize((90, 80)).save(place)
    return mine(
        model, folder, tmp_path_factory.mktemp("store") / "s.scope", layers=LAYERS, workers=0
    )


def kept(images: np.ndarray, folder: Path) -> Path:
    """Images (N, H, W, 3) as a file that a store can open again."""
    np.save(folder / "images.npy", images)
    return folder / "images.npy"


def every_cell(model: HookedModel, store: Store, layer: str) -> np.ndarray:
    """Maps of all images, (N, C, h, w)."""
    source = store.source(None)
    with torch.no_grad(), model.record(layer) as recording:
        model(torch.stack([model.preprocess(source.load(i)) for i in range(len(store))]))
        return model.layers[layer].spatial(recording[layer]).numpy()


@pytest.mark.parametrize(("k", "where"), [(5, None), (40, None), (6, "folder == 'class1'")])
def test_the_strongest_of_all_positions_are_found_exactly(
    model: HookedModel, store: Store, k: int, where: str | None
) -> None:
    maps = every_cell(model, store, "layer1.0")  # (14, 64, 16, 16)
    chosen = np.ones(14, bool) if where is None else store.images.where(where)
    found = TopPatches(units="3,60,7", k=k, per_image=False, view=None)(
        store, layer="layer1.0", model=model, where=where
    )
    for place, unit in enumerate((3, 60, 7)):
        flat = np.where(chosen[:, None, None], maps[:, unit], -np.inf).ravel()
        order = np.argsort(-flat, kind="stable")[:k]  # ties by image id, then by position
        images, rows, columns = np.unravel_index(order, maps[:, unit].shape)
        np.testing.assert_allclose(found.values[place], flat[order], rtol=1e-5)
        # The first one apart, whose image may tie with another's within rounding, cells agree.
        assert found.image_ids[place].tolist() == images.tolist()
        np.testing.assert_array_equal(found.positions[place], np.stack([rows, columns], 1))
    if k == 5:
        assert len(set(found.image_ids[0].tolist())) < 5  # several lie in one image


def test_equal_values_are_ranked_by_image_and_position(tmp_path: Path) -> None:
    class Stripes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = torch.nn.AvgPool2d(2)
            self.num_classes = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(x).mean((2, 3))

    images = np.zeros((3, 6, 6, 3), np.uint8)
    images[2], images[0, 2:4, 4:6], images[0, 0:2, 0:2] = 255, 255, 255
    model = HookedModel(Stripes(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 6, 6), crop_pct=1)
    store = mine(model, kept(images, tmp_path), tmp_path / "s.scope", layers=["pool"], workers=0)
    found = TopPatches(units=0, k=5, per_image=False, view="none")(store, model=model)
    assert found.image_ids.tolist() == [[0, 0, 2, 2, 2]]
    assert found.positions.tolist() == [[[0, 0], [1, 2], [0, 0], [0, 1], [0, 2]]]
    assert found.boxes[0, 1].tolist() == [4, 2, 6, 4]
    one = TopPatches(units=0, k=5, view="none")(store, model=model)
    assert one.image_ids.tolist() == [[0, 2, 1]]  # one an image, as the store has it


def test_each_unit_has_what_it_has_alone(model: HookedModel, store: Store) -> None:
    found = TopPatches(units="5-6,1", k=4)(store, layer="layer1.0", model=model)
    for place, unit in enumerate((5, 6, 1)):
        entries = store.layer("layer1.0").top(unit, 4)
        assert found.image_ids[place].tolist() == [entry.image_id for entry in entries]
        assert found.values[place].tolist() == [entry.value for entry in entries]
        alone = TopPatches(units=unit, k=4)(store, layer="layer1.0", model=model)
        assert torch.equal(found.boxes[place], alone.boxes[0])
        assert torch.equal(found.cells[place], alone.cells[0])
        assert found.names[place] == alone.names[0]


def test_pictures_are_patches_and_their_views(model: HookedModel, store: Store) -> None:
    found = TopPatches(units=9, k=3)(store, layer="layer1.0", model=model)
    height, width = receptive_field(model, "layer1.0").size
    explain, source = technique("guided-backprop")(), store.source(None)
    side, inner = found.patches.shape[-1], 0
    for rank, (left, upper, right, lower) in enumerate(found.boxes[0].tolist()):
        if (right - left, lower - upper) != (width, height):
            continue  # the border of the image cuts it short
        inner += 1
        image = model.preprocess(source.load(int(found.image_ids[0, rank])))
        goal = neuron("layer1.0", 9, *found.positions[0, rank].tolist())
        view = around_grey(explain(model, image[None], goal).pixels[0])
        for shown, kept in ((image, found.patches), (view, found.views)):
            pixels = (shown * 255).round().byte()[:, upper:lower, left:right].permute(1, 2, 0)
            expected = Image.fromarray(pixels.numpy()).resize(
                (side, side), Image.Resampling.NEAREST
            )
            got = kept[0, rank].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(got - np.asarray(expected).astype(int)).max() <= 1
    assert inner
    assert found.wholes is not None  # of one unit: where the patches are


def test_units_and_cells_are_explained_together_as_alone(model: HookedModel, store: Store) -> None:
    found = TopPatches(units="2,30", k=2)(store, layer="layer4", model=model)
    explain = technique("guided-backprop")()
    source = store.source(None)
    side = found.views.shape[-1]
    for place, unit in enumerate((2, 30)):
        for rank in range(2):
            image = model.preprocess(source.load(int(found.image_ids[place, rank])))
            goal = neuron("layer4", unit, *found.positions[place, rank].tolist())
            alone = around_grey(explain(model, image[None], goal).pixels[0])
            expected = Image.fromarray((alone * 255).round().byte().permute(1, 2, 0).numpy())
            expected = np.asarray(expected.resize((side, side), Image.Resampling.BICUBIC))
            got = found.views[place, rank].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(got - expected.astype(int)).max() <= 2


def test_at_the_ceiling_of_relu6_the_value_before_it_is_explained(lite0: HookedModel) -> None:
    from timmscope.patches.cell_attributions import CellAttributions

    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    layer = "blocks.1.0.bn1"
    with torch.no_grad(), lite0.record(layer, f"{layer}.drop") as recording:
        lite0(image)
        after, before = recording[layer][0], recording[f"{layer}.drop"][0]
    capped = (before > 6.5).nonzero()[0].tolist()
    silent = (before < -0.5).nonzero()[0].tolist()
    open_ = ((before > 1) & (before < 5)).nonzero()[0].tolist()
    assert float(after[tuple(capped)]) == 6
    views = CellAttributions(lite0, layer, "guided-backprop")
    cells = [(unit, (y, x)) for unit, y, x in (capped, silent, open_)]
    values = [float(after[tuple(at)]) for at in (capped, silent, open_)]
    seen = views.explain(image.expand(3, -1, -1, -1), cells, values)
    assert [bool((picture != 0.5).any()) for picture in seen] == [True, False, True]
    alone = technique("guided-backprop")()(lite0, image, neuron(layer, *open_)).pixels[0]
    torch.testing.assert_close(seen[2], around_grey(alone), atol=1e-3, rtol=1e-3)
    inner = technique("guided-backprop")()(lite0, image, neuron(f"{layer}.drop", *capped)).pixels[0]
    torch.testing.assert_close(seen[0], around_grey(inner), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("view", "rows"), [("occlusion patch_px=16", (0, 1)), ("smooth-grad samples=3", (0,))]
)
def test_views_of_many_forwards_explain_each_image_at_its_own_cell(
    model: HookedModel, store: Store, view: str, rows: tuple[int, ...]
) -> None:
    from timmscope.drawing import HeatScale, colourise
    from timmscope.patches.cell_attributions import CellAttributions
    from timmscope.techniques.lookup import attribution

    source, maps = store.source(None), every_cell(model, store, "layer1.0")
    images = torch.stack([model.preprocess(source.load(number)) for number in (2, 7)])
    cells = [
        (unit, tuple(map(int, np.unravel_index(maps[image, unit].argmax(), (16, 16)))))
        for image, unit in ((2, 3), (7, 60))
    ]
    seen = CellAttributions(model, "layer1.0", view).explain(images, cells, [0.0, 0.0])
    for row in rows:  # random numbers belong to an image's place in the batch
        goal = neuron("layer1.0", cells[row][0], *cells[row][1])
        result = attribution(view)(model, images[row : row + 1], goal)
        if result.pixels is not None:
            expected = around_grey(result.pixels[0])
        else:
            scale = HeatScale.of(result.maps[0], signed=result.signed)
            expected = colourise(result.maps[0], scale)
        assert (seen[row] - expected).abs().mean() < 1e-3


def test_a_view_that_does_not_fit_the_model_is_a_note(tmp_path: Path) -> None:
    model = load_model("random:vit_tiny_patch16_224?seed=0&img_size=32&depth=2")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    store = mine(
        model, kept(images, tmp_path), tmp_path / "s.scope", layers=["blocks.1"], workers=0
    )
    found = TopPatches(units="0-1", k=2)(store, model=model)
    assert found.views is None
    assert "without guided-backprop: " in found.note
    assert "GELU" in found.note
    gradient = TopPatches(units="0-1", k=2, view="saliency")(store, model=model)
    assert gradient.views is not None


def test_a_whole_layer_is_a_book_of_pages_within_a_budget(
    model: HookedModel, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[UnitPatches.__module__], "BUDGET", 3 << 20)
    TopPatches(units="0", k=1, view="none")(store, layer="layer1.0", model=model)  # keeps the field
    found = TopPatches(k=3, view="none")(store, layer="layer1.0", model=model)
    assert found.units.tolist() == list(range(64))
    assert found.patches.numel() <= 3 << 20
    again = load_result(found.save(tmp_path))
    assert isinstance(again, UnitPatches)
    assert torch.equal(again.patches, found.patches)
    pages = sorted(path.name for path in tmp_path.glob("page-*.png"))
    assert pages == [f"page-{number:03d}.png" for number in range(2, 6)]  # 64 units, 14 a page
    last = found.pictures()["page-005"]()
    texts = [text.get_text() for text in last.texts]
    assert "unit 63" in texts
    title = " ".join(texts[:2])  # in two lines, the model's name shortened
    assert title.startswith("layer1.0 of random:resnet1")
    assert title.endswith("=10: 64 units")
    assert found.provenance.model == store.manifest.model.id
    assert "55" not in texts
    rows = list(csv.DictReader(io.StringIO((tmp_path / "patches.csv").read_text())))
    assert len(rows) == 64 * 3
    row, column = found.positions[63, 2].tolist()
    assert (rows[-1]["unit"], rows[-1]["rank"]) == ("63", "3")
    assert (int(rows[-1]["row"]), int(rows[-1]["column"])) == (row, column)
    assert float(rows[-1]["value"]) == float(found.values[63, 2])


def test_captions_tell_value_cell_and_image(model: HookedModel, store: Store) -> None:
    found = TopPatches(units="4,8", k=2, view="none")(store, layer="layer1.0", model=model)
    row, column = found.positions[0, 0].tolist()
    texts = [text.get_text() for text in found.figure().texts]
    assert f"{float(found.values[0, 0]):.4g} at {row},{column}" in texts
    assert Path(found.names[0][0]).stem in texts
    vector = TopPatches(units="4,8", k=2, view="none")(store, layer="fc", model=model)
    texts = [text.get_text() for text in vector.figure().texts]
    assert f"{float(vector.values[0, 0]):.4g}" in texts
    assert vector.summary()[0]["position"] is None
    seen = TopPatches(units="4,8", k=2, view="saliency")(store, layer="fc", model=model)
    assert "at that cell" in TopPatches(units="4", k=1)(store, layer="layer1.0", model=model).note
    assert seen.note.endswith("saliency of the unit")


def test_more_patches_than_images_are_all_there_are(model: HookedModel, store: Store) -> None:
    found = TopPatches(units="0-1", k=50, view="none")(store, layer="fc", model=model)
    assert found.values.shape == (2, 14)
    few = TopPatches(units="0-1", k=50, view="none")(
        store, layer="fc", model=model, where="id in [3, 9]"
    )
    assert sorted(few.image_ids[0].tolist()) == [3, 9]


def test_wrong_input_is_one_clear_line(model: HookedModel, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="units 0 to 63, there is no unit 64"):
        TopPatches(units=64)(store, layer="layer1.0", model=model)
    with pytest.raises(LayerNotFound, match=r"no layer 'layer2'; .*it holds layer1\.0"):
        TopPatches(units=0)(store, layer="layer2", model=model)
    with pytest.raises(ParameterError, match="needs a store, an array is not enough"):
        TopPatches(units=0)(np.zeros((3, 4)))
    with pytest.raises(ParameterError, match="takes no query images"):
        TopPatches(units=0)(store, "cat.png", layer="fc", model=model)
    with pytest.raises(ParameterError, match="no image that meets the condition"):
        TopPatches(units=0)(store, layer="fc", model=model, where="width > 1000")
    with pytest.raises(ParameterError, match="pgd is of the family attack"):
        TopPatches(units=0, view="pgd")(store, layer="fc", model=model)


@pytest.mark.parametrize("field", ["spatial", "effective"])
def test_images_that_are_gone_are_grey_among_those_that_are_there(
    model: HookedModel, store: Store, tmp_path: Path, field: Literal["spatial", "effective"]
) -> None:
    location = store.manifest.images.location.removeprefix("folder:")
    images = shutil.copytree(location, tmp_path / "images")
    whole = TopPatches(units="3", k=4, field=field)(store, layer="layer1.0", model=model)
    (images / whole.names[0][1]).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 images of layer1.0 of .* can no longer be read"):
        part = TopPatches(units="3", k=4, field=field)(
            store, layer="layer1.0", model=model, location=images
        )
    assert torch.equal(part.values, whole.values)
    assert part.names == whole.names
    assert part.views is not None
    assert part.wholes is not None
    for pictures in (part.patches, part.views, part.wholes):
        assert (pictures[0, 1] == 128).all()
    assert part.boxes[0, 1].tolist() == [-1] * 4
    if field == "spatial":  # the effective one is measured on what is left
        for at in (0, 2, 3):
            assert torch.equal(part.patches[0, at], whole.patches[0, at])
            assert torch.equal(part.views[0, at], whole.views[0, at])
    assert "grey: 1 images that can no longer be read" in part.note
    assert part.documents()["patches.csv"].splitlines()[2].endswith(",,,,")
    part.figure()
    with pytest.raises(ImageError):  # the ranking of all positions would not be the true one
        TopPatches(units="3", k=4, field=field, per_image=False)(
            store, layer="layer1.0", model=model, location=images
        )
    for name in whole.names[0]:
        (images / name).write_bytes(b"no picture")
    with pytest.raises(ImageError, match="none of the 4 images of the store can be read any more"):
        TopPatches(units="3", k=4, field=field)(
            store, layer="layer1.0", model=model, location=images
        )
    shutil.rmtree(images)
    with pytest.raises(ImageError, match="images"):
        TopPatches(units=3)(store, layer="layer1.0", model=model, location=images)


def test_nothing_but_nan_has_no_patches(tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 1)
            torch.nn.init.constant_(self.conv.weight[:1].data, torch.nan)
            self.num_classes = 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean((2, 3))

    model = HookedModel(Broken(), mean=(0,) * 3, std=(1,) * 3, input_size=(3, 6, 6))
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    store = mine(model, kept(images, tmp_path), tmp_path / "s.scope", layers=["conv"], workers=0)
    for per_image in (True, False):
        both = TopPatches(k=2, view="none", per_image=per_image)(store, model=model)
        assert both.names[0] == []
        assert len(both.names[1]) == 2
        assert both.values[0].isnan().all()
        assert "1 units without a finite value are left out" in both.note
        both.figure()
        with pytest.raises(StoreError, match="no unit of conv has a finite value"):
            TopPatches(units=0, view="none", per_image=per_image)(store, model=model)


def test_the_command_writes_sheet_and_table(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "top-patches", str(store.path), "--layer", "layer1.0", "-o", str(tmp_path)]
    assert main([*run, "--units", "3,5", "-k", "2"]) in (0, 2)
    capsys.readouterr()
    assert main([*run, "--units", "3,5", "--k", "2", "--no-per-image"]) == 0
    assert "patches.csv" in capsys.readouterr().out
    assert main([*run, "--units", "70"]) == 2
    error = capsys.readouterr().err
    assert "there is no unit 70" in error
    assert error.count("\n") == 1
