"""The objective `guide`: the feature of another image that each position resembles most."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from timmscope import HookedModel, ObjectiveError, guide, match, parse_objective


@pytest.fixture
def model() -> HookedModel:
    """A layer that hands the pixels on."""
    module = nn.Sequential()
    module.pixels = nn.Identity()
    return HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 2, 2))


def test_the_value_is_the_mean_of_the_largest_products_by_hand(model):
    image = torch.tensor([[[1.0, 0], [0, 0.5]], [[0, 1], [0, 0.5]], [[0, 0], [1, 0.5]]])[None]
    other = torch.tensor([[[0.2, 0.9]], [[0.4, 0]], [[0.6, 0.1]]])  # two positions
    goal = guide("pixels", images=other).resolve(model).bind(model, image)
    # Positions (1,0,0), (0,1,0), (0,0,1), (.5,.5,.5) with (.2,.4,.6) and (.9,0,.1):
    expected = (0.9 + 0.4 + 0.6 + 0.6) / 4
    assert float(model.score(image, goal)) == pytest.approx(expected, abs=1e-6)
    leaf = image.clone().requires_grad_()
    with model.record("pixels") as recording:
        model(leaf)
        goal(recording).sum().backward()
    assert leaf.grad[0, :, 0, 0].tolist() == pytest.approx([0.225, 0, 0.025], abs=1e-6)
    assert leaf.grad[0, :, 1, 1].tolist() == pytest.approx([0.05, 0.1, 0.15], abs=1e-6)


def test_a_guide_per_image_and_a_text_that_says_which(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, level in (("a", 40), ("b", 200)):
        Image.fromarray(np.full((2, 2, 3), level, np.uint8)).save(f"{name}.png")
    goal = guide("pixels", images=["a.png", "b.png"])
    assert goal.num_targets == 2
    images = torch.ones(2, 3, 2, 2)
    scores = model.score(images, goal.resolve(model).bind(model, images))
    assert scores.tolist() == pytest.approx([3 * 40 / 255, 3 * 200 / 255], abs=1e-5)
    assert str(goal).startswith("guide(pixels@a.png#")
    assert goal.label == "guide(pixels@a.png|b.png)"
    with pytest.raises(
        ObjectiveError, match=r"opens no file in Python; use guide\('pixels', images="
    ):
        parse_objective("guide(pixels@a.png)").resolve(model)
    assert goal.resolve(model).bind(model, images).reference_images is None
    assert goal != match("pixels", images=["a.png", "b.png"])


def test_from_the_command_line_a_digest_is_compared(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((2, 2, 3), 9, np.uint8)).save("a.png")
    text = str(guide("pixels", images="a.png"))
    assert str(parse_objective(text, files=True)) == text
    Image.fromarray(np.full((2, 2, 3), 8, np.uint8)).save("a.png")
    with pytest.raises(ObjectiveError, match=r"a\.png is not the target"):
        parse_objective(text, files=True).resolve(model)
    with pytest.raises(
        ObjectiveError, match=r"guide\(pixels\) names no target: expected guide\(LAYER@"
    ):
        parse_objective("guide(pixels)", files=True).resolve(model)


def test_no_guide_is_refused(model):
    with pytest.raises(ObjectiveError, match="guide got no images"):
        guide("pixels", images=[])
