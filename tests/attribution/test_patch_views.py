"""What a unit answered to in its strongest patches, shown beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import (
    ParameterError,
    TechniqueError,
    attribute_patches,
    load_model,
    mine,
    neuron,
    technique,
    top_patches,
)
from timmscope.cli import main
from timmscope.drawing import around_grey
from timmscope.patches.figure import patch_figure

MODEL = "random:resnet18?seed=0&img_size=64&num_classes=10"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    model = load_model(MODEL)
    return folder, model, mine(model, folder, folder / "s.scope", layers=["layer1.0", "fc"])


def test_a_view_is_the_explanation_of_the_unit_at_the_cell_of_the_maximum(case):
    _, model, store = case
    patches = top_patches(store, model, "layer1.0", 5, 2)
    views = attribute_patches(patches, model, "layer1.0", 5)
    for patch, view in zip(patches, views, strict=True):
        pixels = torch.from_numpy(np.array(patch.whole)).permute(2, 0, 1) / 255
        goal = neuron("layer1.0", 5, *patch.entry.position)
        expected = technique("guided-backprop")()(model, pixels[None], goal)
        assert float(expected.scores) == pytest.approx(patch.entry.value, abs=0.02)
        grey = around_grey(expected.pixels[0]).permute(1, 2, 0).numpy()
        assert np.abs(np.array(view.whole) / 255 - grey).max() <= 0.51 / 255
        assert view.image.tobytes() == view.whole.crop(patch.box).tobytes()
        assert (view.box, view.entry, view.path) == (patch.box, patch.entry, patch.path)
        outside = np.array(view.whole)
        left, upper, right, lower = patch.box
        outside[upper:lower, left:right] = 128
        assert set(np.unique(outside)) <= {127, 128}  # nothing beyond the receptive field


def test_a_unit_without_a_grid_and_a_technique_without_colours_have_views(case):
    _, model, store = case
    patches = top_patches(store, model, "fc", 3, 2)
    for chosen in ("saliency", technique("grad-cam")(relu=False), "grad-cam relu=no"):
        views = attribute_patches(patches, model, "fc", 3, chosen)
        assert [view.whole.size for view in views] == [(64, 64)] * 2
        assert len(np.unique(np.array(views[0].whole))) > 10
    assert patch_figure(patches, "fc[3]", views) is not None


def test_a_technique_that_does_not_fit_says_so(case):
    _, model, store = case
    patches = top_patches(store, model, "layer1.0", 5, 2)
    with pytest.raises(ParameterError, match="pgd is of the family attack"):
        attribute_patches(patches, model, "layer1.0", 5, "pgd")
    with pytest.raises(TechniqueError, match="has no part in it"):
        attribute_patches(patches, model, "layer1.0", 5, "grad-cam layer=layer3")


def test_the_command_puts_views_beside_patches(case, tmp_path, capsys):
    folder, *_ = case
    for name, flags in (("plain", []), ("seen", ["--view", "guided-backprop"])):
        sheet = tmp_path / f"{name}.png"
        command = ["top", str(folder / "s.scope"), "layer1.0", "5", "-k", "2", "-o", str(sheet)]
        assert main([*command, *flags]) == 0, capsys.readouterr().err
    plain, seen = (
        (np.array(Image.open(tmp_path / f"{name}.png").convert("RGB")) == 128).all(2).mean()
        for name in ("plain", "seen")
    )
    assert seen > plain + 0.1  # grey, where nothing came back
    wrong = ["top", str(folder / "s.scope"), "layer1.0", "5", "--view", "guided-backprob"]
    capsys.readouterr()
    assert main(wrong) == 2
    assert "did you mean 'guided-backprop'" in capsys.readouterr().err
