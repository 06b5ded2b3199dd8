"""Activation maps: raw values, ranges, order, place on the image, and what activations discard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from timmscope import (
    HookedModel,
    LayerNotFound,
    ParameterError,
    TechniqueError,
    load_model,
    load_result,
    technique,
)
from timmscope.cli import main
from timmscope_representation.units.map_pictures import coloured, laid_over, min_max, placed

ActivationMaps: Any = technique("activation-maps")


class Net(nn.Module):
    """Units are known by hand: a strided stem, and an in-place ReLU over a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, stride=2, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 2)
        self.num_classes = 2
        with torch.no_grad():
            self.stem.weight.zero_()
            for unit, factor in enumerate((1.0, -2.0, 0.5)):
                self.stem.weight[unit, 0, 1, 1] = factor  # the middle pixel's red

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y += 0.25
        return self.head(self.act(y).mean((2, 3)))


@pytest.fixture
def model() -> HookedModel:
    return HookedModel(Net(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 9, 9))


@pytest.fixture
def image() -> Tensor:
    return torch.linspace(0, 1, 3 * 81).view(1, 3, 9, 9)


def test_maps_are_the_layers_own_values_strongest_first(model: HookedModel, image: Tensor) -> None:
    result = ActivationMaps(layer="stem", count=2)(model, image)
    red = image[0, 0, 1:8:2, 1:8:2]  # (4, 4), the middle pixels of the cells
    assert result.units.tolist() == [[1, 0]]
    torch.testing.assert_close(result.maps[0], torch.stack([-2 * red, red]))
    energies = [float((factor * red).square().sum().sqrt()) for factor in (1, -2, 0.5)]
    np.testing.assert_allclose(result.energies[0], energies, rtol=1e-6)
    by_number = ActivationMaps(layer="stem", units="2,0", order="unit")(model, image)
    assert by_number.units.tolist() == [[2, 0]]
    assert result.before is None
    assert result.activation is None  # the sum is in between


def test_levels_span_each_map_or_all(model: HookedModel, image: Tensor) -> None:
    own = ActivationMaps(layer="stem")(model, image)
    assert own.levels.dtype == torch.uint8
    assert own.levels.amin((2, 3)).tolist() == [[0, 0, 0]]
    assert own.levels.amax((2, 3)).tolist() == [[255, 255, 255]]
    common = ActivationMaps(layer="stem", scale="common")(model, image)
    low, high = float(common.maps.min()), float(common.maps.max())
    expected = ((common.maps - low) / (high - low) * 255).round()
    assert torch.equal(common.levels.float(), expected)
    maps = torch.tensor([[[[1.0, 3.0], [2.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]]])
    assert min_max(maps, common=False).tolist() == [[[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]]
    assert min_max(maps, common=True)[0, 1].unique().tolist() == [1]


def test_both_sides_of_an_activation_and_what_it_takes(model: HookedModel, image: Tensor) -> None:
    result = ActivationMaps(layer="act", units="1", order="unit")(model, image)
    before = 0.25 - 2 * image[0, 0, 1:8:2, 1:8:2]
    torch.testing.assert_close(result.before[0, 0], before)
    torch.testing.assert_close(result.after[0, 0], before.clamp(min=0))
    torch.testing.assert_close(result.maps, result.after)
    below = before < 0
    assert float(result.below_zero) == pytest.approx(float(below.float().mean()))
    lost = float(before[below].square().sum() / before.square().sum())
    assert float(result.energy_lost) == pytest.approx(lost, rel=1e-5)
    assert result.activation == "act (ReLU)"
    (row,) = result.summary()
    assert row["below_zero"] == pytest.approx(float(below.float().mean()))


def test_a_layer_before_its_activation_shows_what_comes_after(photos: Tensor) -> None:
    model = load_model("random:resnet18?seed=3&img_size=64")
    images = torch.nn.functional.interpolate(photos[:1], (64, 64))
    given = ActivationMaps(layer="layer1.0.bn1", count=3)(model, images)
    assert given.activation == "layer1.0.act1 (ReLU)"
    torch.testing.assert_close(given.maps, given.before)
    torch.testing.assert_close(given.after, given.before.clamp(min=0))
    assert 0 < float(given.below_zero.mean()) < 1
    block = ActivationMaps(layer="layer2.0", count=3)(model, images)  # ends with its second ReLU
    assert block.activation == "layer2.0.act2 (ReLU)"
    torch.testing.assert_close(block.after, block.before.clamp(min=0))


def test_values_stand_at_the_centres_of_receptive_fields(model: HookedModel, image: Tensor) -> None:
    result = ActivationMaps(layer="stem")(model, image)
    assert result.centres == [1.5, 1.5, 2, 2]  # 3x3 without padding: cells look at 0-3, 2-5, …
    values = torch.tensor([[0.0, 4.0]])
    at = placed(values, (1, 6), (0.5, 1.5, 1.0, 2.0))
    assert at.tolist() == [[0, 0, 2, 4, 4, 4]]  # pixels lie at 0.5, 1.5, …
    stretched = placed(values, (2, 4), None)
    assert stretched.tolist() == [[0, 1, 3, 4]] * 2
    assert placed(torch.tensor([[3.0]]), (2, 2), (0.5, 0.5, 1, 1)).unique().tolist() == [3]


def test_stretched_maps_agree_with_torch(photos: Tensor) -> None:
    values = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(values[None, None], (40, 33), mode="bilinear")[0, 0]
    torch.testing.assert_close(placed(values, (40, 33), None), expected)


def test_heat_is_black_at_zero_and_blue_below() -> None:
    values = torch.tensor([[-2.0, -1.0, 0.0, 4.0]])
    picture = coloured(values, (-2.0, 4.0), "heat")[:, 0].T
    torch.testing.assert_close(picture[0], torch.tensor([0.337, 0.706, 0.914]))
    torch.testing.assert_close(picture[1], picture[0] / 2)
    assert float(picture[2].max()) < 0.02
    assert float(picture[3].min()) > 0.6
    grey = coloured(values, (-2.0, 4.0), "grey")
    torch.testing.assert_close(grey[0, 0], torch.tensor([0, 1 / 6, 1 / 3, 1]))
    ground = torch.full((3, 1, 4), 0.5)
    over = laid_over(ground, values, (-2.0, 4.0), "heat")
    torch.testing.assert_close(over[:, 0, 2], ground[:, 0, 2])  # zero covers nothing
    lit = laid_over(ground, values, (-2.0, 4.0), "grey")
    torch.testing.assert_close(lit[0, 0], 0.5 * (0.1 + 0.9 * grey[0, 0]))


@pytest.mark.parametrize(
    ("name", "layer", "grid", "centred"),
    [
        ("vit_tiny_patch16_224", "blocks.1.mlp.fc1", (14, 14), [8, 8, 16, 16]),
        ("convnext_atto", "stages.0.blocks.0", (56, 56), [2, 2, 4, 4]),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0", (56, 56), None),
    ],
)
def test_tokens_and_channels_last_have_maps_too(
    photos: Tensor, name: str, layer: str, grid: tuple[int, int], centred: list[float] | None
) -> None:
    model = load_model(f"random:{name}?seed=0")
    result = ActivationMaps(layer=layer, count=2, order="unit")(model, photos[:1])
    with torch.no_grad(), model.record(layer) as recording:
        model(photos[:1])
        expected = model.layers[layer].spatial(recording[layer])
    assert expected.shape[2:] == grid
    torch.testing.assert_close(result.maps, expected[:, :2])
    assert result.centres == centred
    figure = " ".join(text.get_text() for text in result.figure().texts)
    assert ("stretched over the image" in figure) == (centred is None)


def test_several_images_have_a_page_each_and_survive_saving(
    lite0: HookedModel, photo_paths: dict[str, Path], tmp_path: Path
) -> None:
    paths = [photo_paths["chelsea"], photo_paths["coffee"]]
    result = ActivationMaps(layer="blocks.2.0.bn1", count=3)(lite0, paths)
    again = load_result(result.save(tmp_path))
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure.png", "image-002.png"}
    for name in ("maps", "before", "after", "levels", "energies", "below_zero"):
        assert torch.equal(getattr(again, name), getattr(result, name))
    assert again.image_names == ["chelsea", "coffee"]
    assert len(again.summary()) == 6
    texts = [text.get_text() for text in again.figure().texts]
    unit = int(result.units[0, 0])
    assert f"{unit} before" in texts
    assert f"{unit} on the image" in texts
    assert any("before and after blocks.2.0.bn1.act (ReLU6)" in text for text in texts)


def test_wrong_input_is_one_clear_line(model: HookedModel, image: Tensor) -> None:
    with pytest.raises(ParameterError, match="needs images"):
        ActivationMaps(layer="stem")(model)
    with pytest.raises(ParameterError, match=r"head have one value per image, not a map; .*: act"):
        ActivationMaps(layer="head")(model, image)
    with pytest.raises(LayerNotFound, match="no layer is called 'stemm'; nearest: stem"):
        ActivationMaps(layer="stemm")(model, image)
    with pytest.raises(ParameterError, match="stem has units 0 to 2, there is no unit 3"):
        ActivationMaps(layer="stem", units="1-3")(model, image)
    with pytest.raises(ParameterError, match="'layer'"):
        ActivationMaps()
    with torch.no_grad():
        model.module.stem.weight[1] = torch.nan
    with pytest.raises(TechniqueError, match="unit 1 of stem is NaN or infinite on image 0"):
        ActivationMaps(layer="stem")(model, image)


def test_the_command_needs_images_and_a_layer_with_a_grid(
    photo_paths: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cat, out = str(photo_paths["chelsea"]), str(tmp_path / "out")
    run = ["run", "activation-maps", "random:resnet18?seed=0&img_size=32"]
    assert main([*run, cat, "--layer", "layer1", "--units", "0-4", "-o", out]) == 0
    assert "energy" in capsys.readouterr().out
    for wrong, words in (
        ([cat, "--layer", "fc"], "one value per image"),
        (["--layer", "layer1"], "needs images"),
        ([cat], "layer"),
        ([cat, "--layer", "layer1", "--units", "64"], "units 0 to 63"),
        ([str(tmp_path / "none.png"), "--layer", "layer1"], "none.png"),
    ):
        assert main([*run, *wrong, "-o", out]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
