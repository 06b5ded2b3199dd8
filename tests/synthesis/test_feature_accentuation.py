"""Feature accentuation: from a photograph, with its magnitudes, near its activation."""

import pytest
import torch

from timmscope import ParameterError, channel, load_model
from timmscope_synthesis.feature_accentuation import FeatureAccentuation

QUICK = {"steps": 12, "crops": 2, "layer": "layer1"}


@pytest.fixture(scope="module")
def model():
    return load_model("random:resnet18?seed=0&img_size=48")


@pytest.fixture(scope="module")
def photograph():
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (48, 48), mode="bicubic").clamp(0.05, 0.95)
    return (smooth + 0.02 * torch.rand(1, 3, 48, 48, generator=generator)).clamp(0.05, 0.95)


def test_the_objective_rises_from_that_of_the_photograph(model, photograph):
    goal = channel("layer3", 5)
    made = FeatureAccentuation(steps=24, crops=2, layer="layer1")(model, goal, init=photograph)
    with torch.no_grad():
        before = model.score(photograph, goal)
    assert made.final_scores[0] > before[0]


def test_regularisation_keeps_the_earlier_activation(model, photograph):
    def change(strength):
        technique = FeatureAccentuation(**QUICK, regularization=strength)
        made = technique(model, channel("layer3", 5), init=photograph)
        with torch.no_grad(), model.record("layer1") as recording:
            model(torch.cat([photograph, made.images]))
            own, other = recording["layer1"]
        measured = ((other - own).square().sum() / own.square().sum()).item()
        assert made.notes["feature_change"][0] == pytest.approx(measured, rel=1e-3)
        return measured

    free, kept = change(0.0), change(20.0)
    assert kept < 0.6 * free


def test_the_magnitudes_are_the_photographs(model, photograph):
    made = FeatureAccentuation(**QUICK, regularization=0.0)(
        model, channel("layer3", 5), init=photograph
    )
    first, last = (
        torch.fft.rfft2(x.logit(), norm="ortho").abs().square().sum(1)[..., 1:-1]
        for x in (photograph, made.images)
    )
    # Colours are mixed, which keeps the sum over uncorrelated colours only nearly.
    assert ((first - last).abs().sum() / first.sum()).item() < 0.35
    assert not torch.allclose(made.images, photograph, atol=1e-3)


def test_each_photograph_has_a_result_of_its_own(model, photograph):
    two = torch.cat([photograph, photograph.flip(3)])
    both = FeatureAccentuation(**QUICK)(model, channel("layer3", 5), init=two)
    alone = FeatureAccentuation(**QUICK)(model, channel("layer3", 5), init=photograph)
    assert torch.equal(both.images[:1], alone.images)


@pytest.mark.parametrize(
    ("settings", "init", "told"),
    [
        ({}, None, "starts from a photograph"),
        ({"smallest_crop": 0.9, "largest_crop": 0.5}, True, "smallest_crop of at most"),
    ],
)
def test_bad_input_is_one_line(model, photograph, settings, init, told):
    with pytest.raises(ParameterError, match=told):
        FeatureAccentuation(**settings)(
            model, channel("layer3", 5), init=photograph if init else None
        )
