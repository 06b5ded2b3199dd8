"""Filters are shown as they are: the right layer, the right numbers, any number of channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from timmscope import (
    HookedModel,
    LayerNotFound,
    ParameterError,
    Sheet,
    UnsupportedModel,
    load_model,
    load_result,
    technique,
)
from timmscope.cli import main

Filters: Any = technique("filters")


def model_of(weight: torch.Tensor) -> HookedModel:
    """A model that begins with a convolution of that weight `(n, c, h, w)`."""
    count, channels, height, width = weight.shape
    convolution = nn.Conv2d(channels, count, (height, width))
    convolution.weight.data = weight
    return HookedModel(
        nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(count, 2, 1), nn.AdaptiveAvgPool2d(1)),
        mean=[0.5] * channels,
        std=[0.5] * channels,
        input_size=(channels, 16, 16),
    )


def test_zero_is_mid_grey_and_the_largest_weight_black_or_white() -> None:
    weight = torch.zeros(3, 3, 1, 2)
    weight[0, 0, 0] = torch.tensor([2.0, -4.0])
    weight[1, 2, 0] = torch.tensor([1.0, 0.5])
    sheet = Filters()(model_of(weight))
    assert sheet.images[0, :, 0].tolist() == [[0.75, 0.0], [0.5, 0.5], [0.5, 0.5]]
    assert sheet.images[1, :, 0].tolist() == [[0.5, 0.5], [0.5, 0.5], [0.625, 0.5625]]
    assert sheet.images[2].unique().tolist() == [0.5]
    own = Filters(scale="per-filter")(model_of(weight))
    assert own.images[0, 0, 0].tolist() == [0.75, 0.0]
    assert own.images[1, 2, 0].tolist() == [1.0, 0.75]
    assert own.images[2].unique().tolist() == [0.5]  # an all-zero filter has no scale of its own


def test_the_strongest_filter_comes_first_when_asked_and_keeps_its_number() -> None:
    weight = torch.zeros(3, 3, 1, 1)
    weight[0, 0], weight[1, :2], weight[2, 1] = 3.0, torch.tensor([[[3.0]], [[4.0]]]), 4.0
    sheet = Filters(order="strength")(model_of(weight))
    assert [row["unit"] for row in sheet.rows] == [1, 2, 0]
    assert [row["norm"] for row in sheet.rows] == [5, 4, 3]
    assert sheet.titles == ["1", "2", "0"]
    assert sheet.images[0, :, 0, 0].tolist() == [0.875, 1.0, 0.5]


def test_one_input_channel_gives_one_grey_picture_a_filter() -> None:
    sheet = Filters()(model_of(torch.tensor([1.0, -0.5]).view(2, 1, 1, 1)))
    assert sheet.images[:, :, 0, 0].tolist() == [[1, 1, 1], [0.25, 0.25, 0.25]]


def test_other_input_channels_are_grey_pictures_of_their_own() -> None:
    weight = torch.arange(8.0).view(2, 4, 1, 1)
    sheet = Filters()(model_of(weight))
    expected = [0.5 + value / 14 for value in range(8)]
    np.testing.assert_allclose(sheet.images[:, 0, 0, 0], expected, rtol=1e-6)
    assert sheet.titles == ["0", "1", "2", "3", "0", "1", "2", "3"]
    assert (sheet.columns, sheet.row_labels) == (4, ["0", "1"])
    assert torch.equal(sheet.images[:, 0], sheet.images[:, 2])


def test_chosen_input_channels_are_red_green_and_blue() -> None:
    weight = torch.arange(8.0).view(2, 4, 1, 1)
    sheet = Filters(channels=(3, 1, 0))(model_of(weight))
    expected = [[0.5 + v / 14 for v in row] for row in ([3, 1, 0], [7, 5, 4])]
    np.testing.assert_allclose(sheet.images[:, :, 0, 0], expected, rtol=1e-6)
    assert sheet.note.endswith("red, green and blue are input channels 3, 1 and 0")
    with pytest.raises(ParameterError, match="input channels 0 to 3"):
        Filters(channels=(0, 1, 4))(model_of(weight))


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("resnet18", "conv1", (64, 3, 7, 7)),
        ("vit_tiny_patch16_224", "patch_embed.proj", (192, 3, 16, 16)),
        ("convnext_atto", "stem.0", (40, 3, 4, 4)),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj", (96, 3, 4, 4)),
    ],
)
def test_the_first_convolution_that_runs_is_found(
    name: str, layer: str, shape: tuple[int, ...]
) -> None:
    model = load_model(f"random:{name}?seed=0")
    sheet = Filters()(model)
    weight = model.module.get_submodule(layer).weight.detach()
    assert sheet.images.shape == shape
    assert layer in sheet.title
    torch.testing.assert_close(sheet.images, 0.5 + weight / (2 * weight.abs().max()))


def test_real_filters_of_lite0_survive_saving(lite0: HookedModel, tmp_path: Path) -> None:
    sheet = Filters(scale="per-filter")(lite0)
    again = load_result(sheet.save(tmp_path / "out"))
    assert isinstance(again, Sheet)
    assert torch.equal(again.images, sheet.images)
    assert (again.titles, again.rows, again.columns) == (sheet.titles, sheet.rows, sheet.columns)
    assert again.provenance.weights_sha256 == lite0.weights_sha256
    picture = np.asarray(Image.open(tmp_path / "out" / "figure.png").convert("RGB"))
    # Unit 23 of this network is a plain orange blob: the sheet shows its colour somewhere.
    orange = (sheet.images[23, :, 1, 1] * 255).round().numpy()
    assert (np.abs(picture.astype(int) - orange).max(2) <= 1).mean() > 0.001


def test_a_long_sheet_has_pages_and_says_so(tmp_path: Path) -> None:
    sheet = Filters()(model_of(torch.rand(300, 3, 2, 2)))
    assert len(sheet.images) == 300
    for number, page in enumerate([sheet.figure(), sheet.pictures()["page-002"]()]):
        texts = [text.get_text() for text in page.texts]
        span = ("1–256", "257–300")[number]
        assert any(f"page {number + 1} of 2: {span} of 300" in text for text in texts)
        assert str(299 if number else 255) in texts
        assert str(255 if number else 256) not in texts
    sheet.save(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure.png", "page-002.png"}


class Deep(nn.Module):
    """A stem over pixels, a plain, a grouped and a depthwise convolution, and one of 1×1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.mid = nn.Conv2d(4, 6, 2)
        self.grouped = nn.Conv2d(6, 4, 2, groups=2)
        self.depthwise = nn.Conv2d(4, 4, 2, groups=4)
        self.point = nn.Conv2d(4, 3, 1)
        self.late = nn.Conv2d(3, 2, 2)
        self.act = nn.ReLU()
        self.num_classes = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.grouped(self.act(self.mid(self.stem(x)))))
        return self.late(self.point(x)).mean((2, 3))


@pytest.fixture(scope="module")
def deep() -> HookedModel:
    torch.manual_seed(0)
    return HookedModel(Deep(), mean=(0.4, 0.5, 0.6), std=(0.2,) * 3, input_size=(3, 12, 12))


def test_deeper_kernels_are_grey_slices_a_unit_a_row(deep: HookedModel) -> None:
    weight = deep.module.mid.weight.detach()
    sheet = Filters(layer="mid", units="4,1", slices=2)(deep)
    assert (sheet.columns, sheet.row_labels) == (2, ["4", "1"])
    chosen = []
    for unit in (4, 1):
        norms = [float(weight[unit, channel].square().sum()) for channel in range(4)]
        channels = sorted(sorted(range(4), key=lambda c: -norms[c])[:2])
        chosen += [(unit, channel) for channel in channels]
    assert [(row["unit"], row["channel"]) for row in sheet.rows] == chosen
    assert sheet.titles == [str(channel) for _, channel in chosen]
    shown = torch.stack([weight[unit, channel] for unit, channel in chosen])
    expected = 0.5 + shown / (2 * shown.abs().max())
    for colour in range(3):
        torch.testing.assert_close(sheet.images[:, colour], expected)
    assert "the 2 strongest of 4 input channels of each unit" in sheet.note
    own = Filters(layer="mid", units=(4, 1), slices=2, scale="per-filter")(deep)
    torch.testing.assert_close(own.images[2:, 0], 0.5 + shown[2:] / (2 * shown[2:].abs().max()))
    strong = Filters(layer="mid", order="strength")(deep)
    norms = weight.flatten(1).norm(dim=1)
    assert strong.row_labels == [str(unit) for unit in norms.argsort(descending=True).tolist()]
    three = Filters(layer="mid", channels=(3, 0, 2))(deep)  # as red, green and blue
    picked = weight[:, [3, 0, 2]]
    torch.testing.assert_close(three.images, 0.5 + picked / (2 * picked.abs().max()))


def test_grouped_and_depthwise_kernels_name_their_own_input_channels(deep: HookedModel) -> None:
    grouped = Filters(layer="grouped")(deep)
    assert grouped.titles == ["0", "1", "2"] * 2 + ["3", "4", "5"] * 2
    assert "filters of 2×2×3 in 2 groups" in grouped.title
    weight = deep.module.grouped.weight.detach()
    torch.testing.assert_close(
        grouped.images[:, 0], 0.5 + weight.flatten(0, 1) / (2 * weight.abs().max())
    )
    depthwise = Filters(layer="depthwise", units="2-3")(deep)
    assert depthwise.row_labels is None
    assert [(row["unit"], row["channel"]) for row in depthwise.rows] == [(2, 2), (3, 3)]
    assert depthwise.titles == ["2", "3"]
    assert "4 depthwise filters of 2×2" in depthwise.title
    with pytest.raises(ParameterError, match="grouped do not share input channels"):
        Filters(layer="grouped", channels=(0, 1, 2))(deep)


def test_three_input_channels_deep_in_a_network_are_no_colours(deep: HookedModel) -> None:
    late = Filters(layer="late")(deep)
    assert late.images.shape == (6, 3, 2, 2)
    assert late.titles == ["0", "1", "2"] * 2
    stem = Filters(layer="stem")(deep)
    assert torch.equal(stem.images, Filters()(deep).images)
    assert stem.images.shape == (4, 3, 3, 3)


def test_a_layer_without_kernels_is_one_clear_line_with_the_nearest(deep: HookedModel) -> None:
    with pytest.raises(LayerNotFound, match=r"act of .* is a ReLU and has no kernels; nearest"):
        Filters(layer="act")(deep)
    with pytest.raises(LayerNotFound, match=r"no layer is called 'midd'; nearest: mid"):
        Filters(layer="midd")(deep)
    with pytest.raises(ParameterError, match=r"kernels of 1×1.*larger kernels: .*late"):
        Filters(layer="point")(deep)
    with pytest.raises(ParameterError, match="units 0 to 5, there is no unit 6"):
        Filters(layer="mid", units=6)(deep)
    with pytest.raises(ParameterError, match=r"parameter 'units'.*'x' is neither"):
        Filters(units="x")


class Patches(nn.Module):
    """A linear embedding of 2×3 patches, whose values lie as rows, columns, colours."""

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        self.whole = whole
        self.proj = nn.Linear(18 if whole else 12, 5)
        self.num_classes = 5

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 3))  # (B, c, rows, 2, columns, 3)
        x = x.permute(0, 2, 4, 3, 5, 1)
        if not self.whole:
            x = x[..., :2]  # without the last colour
        return self.proj(x.flatten(1, 2).flatten(2)).mean(1)


def test_linear_patch_embeddings_are_shown_where_their_geometry_is_certain() -> None:
    def model(whole: bool) -> HookedModel:
        return HookedModel(Patches(whole), mean=(0.1,) * 3, std=(0.5,) * 3, input_size=(3, 6, 6))

    patches = model(True)
    sheet = Filters()(patches)
    weight = patches.module.proj.weight.detach().view(5, 2, 3, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(sheet.images, 0.5 + weight / (2 * weight.abs().max()))
    assert "proj: 5 filters of 2×3×3" in sheet.title
    with pytest.raises(UnsupportedModel, match="nor a linear layer over patches"):
        Filters()(model(False))


def test_the_linear_patch_embedding_of_a_naflexvit_is_shown() -> None:
    model = load_model("random:naflexvit_base_patch16_gap?seed=0&depth=1")
    sheet = Filters(units="0-9")(model)
    weight = model.module.embeds.proj.weight.detach()[:10]
    expected = weight.view(10, 16, 16, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(sheet.images, 0.5 + expected / (2 * expected.abs().max()))


def test_the_command_shows_slices_and_refuses_a_layer_without_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "random:resnet18?seed=0&img_size=32"
    where = ["-o", str(tmp_path / "out"), "--layer"]
    assert main(["run", "filters", model, *where, "layer1.0.conv1", "--units", "3,7-8"]) == 0
    assert load_result(tmp_path / "out").row_labels == ["3", "7", "8"]
    capsys.readouterr()
    assert main(["run", "filters", model, "-o", str(tmp_path / "all")]) == 0
    assert "\nand 24 more rows; result.json has all under summary\n" in capsys.readouterr().out
    assert len(load_result(tmp_path / "all").summary()) == 64
    assert main(["run", "filters", model, *where, "layer1.0.bn1"]) == 2
    error = capsys.readouterr().err
    assert "layer1.0.bn1" in error
    assert "nearest convolutions: layer1.0.conv1" in error
    assert error.count("\n") == 1


def test_wrong_sources_are_one_clear_line(lite0: HookedModel) -> None:
    with pytest.raises(ParameterError, match="reads a model, not str"):
        Filters()("resnet18")
    with pytest.raises(ParameterError, match="takes no images"):
        Filters()(lite0, "cat.png")
    pooled = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 2))
    without = HookedModel(pooled, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 2, 2))
    with pytest.raises(UnsupportedModel, match=r"neither a 2-d convolution .* 0 \(AvgPool2d\)"):
        Filters()(without)
    weight = torch.ones(1, 3, 1, 1)
    weight[0, 0] = torch.nan
    with pytest.raises(UnsupportedModel, match="NaN or infinite weights"):
        Filters()(model_of(weight))
