"""Multifaceted visualisation of a unit that two templates excite, with a store of both."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from timmscope import HookedModel, ParameterError, StoreMismatch, channel, mine
from timmscope_registry import ObjectiveError
from timmscope_synthesis.activation_maximization import ActivationMaximization
from timmscope_synthesis.multifaceted import Multifaceted

SIZE = 16
PLAIN = {"facets": 2, "top": 24, "nearest": 5, "components": 4, "robust": False}


class Detectors(nn.Module):
    """Unit 0 is the larger of two templates' dot products; features are both."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        coarse = torch.randn(2, 3, 4, 4, generator=generator).sign()
        templates = nn.functional.interpolate(coarse, (SIZE, SIZE))
        self.templates = nn.Parameter(
            templates / templates.flatten(1).norm(dim=1)[:, None, None, None]
        )
        self.features = nn.Identity()
        self.head = nn.Identity()
        self.num_classes = 1

    def forward(self, x):
        both = torch.einsum("bchw,kchw->bk", x - 0.5, self.templates)
        both = self.features(both)
        return self.head(both.amax(1, keepdim=True))


def planted():
    return HookedModel(
        Detectors(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, SIZE, SIZE), id="planted"
    )


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    """A store of 16 noisy images of each template, and 8 of noise."""
    folder = tmp_path_factory.mktemp("planted")
    generator = np.random.default_rng(0)
    templates = model.module.templates.detach().numpy()
    for number in range(40):
        share = templates[number % 2] * 4 if number < 32 else 0 * templates[0]
        pixels = 0.5 + share + 0.05 * generator.standard_normal((3, SIZE, SIZE))
        array = (pixels.clip(0, 1).transpose(1, 2, 0) * 255).round().astype(np.uint8)
        Image.fromarray(array).save(folder / f"{number:02d}.png")
    mine(model, folder, folder / "planted.scope", layers=["features", "head"], workers=0)
    return folder / "planted.scope"


def cosines(model, images):
    flat = nn.functional.normalize((images - 0.5).flatten(1), dim=1)
    return flat @ model.module.templates.detach().flatten(1).T


@pytest.mark.parametrize(("weight", "least"), [(0.0, 0.9), (0.5, 0.7)])
def test_both_facets_of_a_planted_unit_are_found(model, store, weight, least):
    # The term of a group leads away from the other template; the paper has no such term.
    technique = Multifaceted(
        store=str(store), layer="features", steps=32, facet_weight=weight, **PLAIN
    )
    made = technique(model, channel("head", 0))
    found = cosines(model, made.images)
    assert made.facets.tolist() == [0, 1]
    assert made.targets.tolist() == [0, 0]
    assert sorted(found.argmax(1).tolist()) == [0, 1]
    assert (found.amax(1) > least).all()
    assert sum(made.notes["images_of_facet"]) == 24


def test_plain_ascent_finds_one_template_for_every_seed_alike(model):
    # The templates compete from the first step on, and a mixture is never left for both.
    technique = ActivationMaximization(steps=64, robust=False, learning_rate=0.05)
    found = cosines(model, technique(model, channel("head", 0)).images)
    assert (found[0] > 0.9).sum() <= 1


def test_same_seed_gives_the_same_bytes(model, store):
    technique = Multifaceted(store=str(store), layer="features", steps=3, **PLAIN)
    first, again = (technique(model, channel("head", 0)).images for _ in range(2))
    assert torch.equal(first, again)


def test_bad_input_is_one_line(model, store):
    few = Multifaceted(store=str(store), layer="features", steps=1, facets=20, top=24)
    with pytest.raises(ParameterError, match="too few for 20 facets"):
        few(model, channel("head", 0))
    other = Multifaceted(store=str(store), layer="features", steps=1, **PLAIN)
    with pytest.raises(ParameterError, match="start from images of the store"):
        other(model, channel("head", 0), init=torch.rand(1, 3, SIZE, SIZE))
    with pytest.raises((ObjectiveError, StoreMismatch, ParameterError)):
        other(changed(), channel("head", 0))


def changed():
    model = planted()
    with torch.no_grad():
        model.module.templates.mul_(2)
    return model
