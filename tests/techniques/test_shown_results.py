"""Figures name files and probabilities; notebooks show short text and a small table."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import Attribution, HookedModel, compare, load_model, load_result, mine, technique


class Mean(torch.nn.Module):
    """The logits 2 × the mean, and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = 2 * self.features(images).mean((1, 2, 3))
        return torch.stack([mean, torch.zeros_like(mean)], 1)


@pytest.fixture
def model() -> HookedModel:
    return HookedModel(
        Mean(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 4, 4), class_names=["<b>", "dark"]
    )


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / folder / "012.png" for folder in ("cats", "dogs")]
    for path, grey in zip(paths, (255, 51), strict=True):
        path.parent.mkdir()
        Image.new("RGB", (4, 4), (grey,) * 3).save(path)
    return paths


def test_explanations_name_file_and_probability(
    model: HookedModel, files: list[Path], tmp_path: Path
) -> None:
    result = technique("saliency")()(model, files)
    assert isinstance(result, Attribution)
    assert result.names == ["cats/012", "dogs/012"]
    expected = torch.sigmoid(torch.tensor([2.0, 0.4]))  # 0.881 and 0.599
    torch.testing.assert_close(result.probabilities, expected)
    assert result._captions() == ["cats/012: <b> 88%", "dogs/012: <b> 60%"]
    assert [row["file"] for row in result.summary()] == result.names
    again = load_result(result.save(tmp_path / "out"), Attribution)
    assert again._captions() == result._captions()
    named = technique("saliency")()(model, files[0], "dark - <b>")
    assert (named.probabilities, named.names) == (None, ["012"])
    assert named._captions()[0].endswith(" -2")
    assert compare(["saliency"], model, files).files == result.names
    assert technique("saliency")()(model, result.images).names == []


def test_notebooks_show_a_small_escaped_table(
    model: HookedModel, files: list[Path], tmp_path: Path
) -> None:
    shown = technique("saliency")()(model, files)._repr_html_()
    table = re.sub(r'^<img [^>]*src="data:image/png;base64,[^"]*">', "", shown)
    assert table.startswith("<p>Attribution of timmscope:saliency</p><table>")
    assert table.count("<tr>") == 3
    assert "&lt;b&gt;" in table
    assert "<b>" not in table
    layers = load_model("random:resnet18?seed=0&img_size=32").layers
    assert repr(layers) == "<LayerCatalogue of 94 layers, conv1 to logits; print it for a table>"
    assert len(layers._repr_html_()) < 4000
    assert "the first 20 of 94 rows" in layers._repr_html_()
    store = mine(model, files[0].parents[1], tmp_path / "s.scope", layers=["logits"], workers=0)
    statistics = store.layer("logits").statistics("pooled")
    assert repr(statistics) == "<UnitStatistics of 2 units over up to 2 values each>"
    assert statistics._repr_html_().count("<tr>") == 3
    assert np.allclose(statistics.mean, [1.2, 0])
