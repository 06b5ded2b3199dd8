"""What activated a unit in its strongest patches, shown beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import ParameterError, load_model, mine, neuron, technique
from timmscope.cli import main
from timmscope.drawing import around_grey
from timmscope.patches.cell_attributions import CellAttributions

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


def top(case, layer, unit, view):
    _, model, store = case
    return technique("top-patches")(units=unit, k=2, view=view)(store, layer=layer, model=model)


def test_a_view_is_the_explanation_of_the_unit_at_the_cell_of_the_maximum(case):
    _, model, store = case
    found = top(case, "layer1.0", 5, None)
    source = store.source(None)
    images = torch.stack([model.preprocess(source.load(i)) for i in found.image_ids[0].tolist()])
    cells = [(5, (row, column)) for row, column in found.positions[0].tolist()]
    views = CellAttributions(model, "layer1.0", "guided-backprop")
    seen = views.explain(images, cells, found.values[0].tolist())
    for rank, view in enumerate(seen):
        goal = neuron("layer1.0", 5, *cells[rank][1])
        expected = technique("guided-backprop")()(model, images[rank : rank + 1], goal)
        assert float(expected.scores) == pytest.approx(float(found.values[0, rank]), abs=1e-4)
        grey = around_grey(expected.pixels[0])
        assert (view - grey).abs().max() <= 0.51 / 255
        left, upper, right, lower = found.boxes[0, rank].tolist()
        outside = view.clone()
        outside[:, upper:lower, left:right] = 0.5
        assert (outside - 0.5).abs().max() < 0.51 / 255  # nothing beyond the receptive field


def test_a_unit_without_a_grid_and_a_technique_without_colours_have_views(case):
    for view in ("saliency", "grad-cam relu=no"):
        found = top(case, "fc", 3, view)
        assert found.views.shape == found.patches.shape
        assert len(np.unique(found.views[0, 0])) > 10
        assert f"beside each patch: {view.split()[0]} of the unit" in found.note


def test_a_technique_that_does_not_fit_says_so(case):
    with pytest.raises(ParameterError, match="pgd is of the family attack"):
        top(case, "layer1.0", 5, "pgd")
    found = top(case, "layer1.0", 5, "grad-cam layer=layer3")
    assert found.views is None
    assert "without grad-cam: " in found.note
    assert "does not contribute to it" in found.note


def test_the_command_puts_views_beside_patches(case, tmp_path, capsys):
    folder, *_ = case
    for name, flags in (("plain", []), ("seen", ["--view", "guided-backprop"])):
        sheet = tmp_path / f"{name}.png"
        command = ["top", str(folder / "s.scope"), "layer1.0", "5", "-k", "2", "-o", str(sheet)]
        assert main([*command, *flags]) == 0, capsys.readouterr().err
    assert "beside each patch: guided-backprop" in capsys.readouterr().out
    plain, seen = (
        (np.array(Image.open(tmp_path / f"{name}.png").convert("RGB")) == 128).all(2).mean()
        for name in ("plain", "seen")
    )
    assert seen > plain + 0.1  # grey, where nothing came back
    wrong = ["top", str(folder / "s.scope"), "layer1.0", "5", "--view", "guided-backprob"]
    capsys.readouterr()
    assert main(wrong) == 2
    assert "did you mean 'guided-backprop'" in capsys.readouterr().err
