"""Filters are shown as they are: the right layer, the right numbers, any number of channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from timmscope import (
    HookedModel,
    ParameterError,
    Sheet,
    UnsupportedModel,
    load_model,
    load_result,
    technique,
)

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
    assert sheet.titles == ["0:0", "0:1", "0:2", "0:3", "1:0", "1:1", "1:2", "1:3"]
    assert sheet.columns == 4
    assert torch.equal(sheet.images[:, 0], sheet.images[:, 2])


def test_chosen_input_channels_are_red_green_and_blue() -> None:
    weight = torch.arange(8.0).view(2, 4, 1, 1)
    sheet = Filters(channels=(3, 1, 0))(model_of(weight))
    expected = [[0.5 + v / 14 for v in row] for row in ([3, 1, 0], [7, 5, 4])]
    np.testing.assert_allclose(sheet.images[:, :, 0, 0], expected, rtol=1e-6)
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


def test_a_long_sheet_shows_its_beginning_and_says_so() -> None:
    sheet = Filters()(model_of(torch.rand(300, 3, 2, 2)))
    texts = [text.get_text() for text in sheet.figure().texts]
    assert any("of 300" in text for text in texts)
    assert len(sheet.images) == 300


def test_wrong_sources_are_one_clear_line(lite0: HookedModel) -> None:
    with pytest.raises(ParameterError, match="reads a model, not str"):
        Filters()("resnet18")
    with pytest.raises(ParameterError, match="takes no images"):
        Filters()(lite0, "cat.png")
    linear = HookedModel(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        input_size=(3, 2, 2),
    )
    with pytest.raises(UnsupportedModel, match=r"no 2-d convolution .* 0 \(Flatten\)"):
        Filters()(linear)
    weight = torch.ones(1, 3, 1, 1)
    weight[0, 0] = torch.nan
    with pytest.raises(UnsupportedModel, match="NaN or infinite weights"):
        Filters()(model_of(weight))
