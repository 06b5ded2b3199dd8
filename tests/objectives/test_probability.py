"""Probabilities and their logarithms equal a softmax by hand, in value, gradient and text."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from timmscope import (
    HookedModel,
    ObjectiveError,
    channel,
    class_logit,
    load_model,
    log_probability,
    parse_objective,
    probability,
    technique,
    top,
)

PIXELS = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.fixture
def images():
    return torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights(linear_model):
    return linear_model.module.fc.weight.detach().double()  # (3, 48)


@pytest.fixture
def shares(linear_model, images, weights):
    """The softmax by its definition, in float64, `(3, 3)`."""
    bias = linear_model.module.fc.bias.detach().double()
    raised = (images.flatten(1).double() @ weights.T + bias).exp()
    return raised / raised.sum(1, keepdim=True)


def test_values_are_the_softmax_and_its_logarithm(linear_model, images, shares):
    for unit in range(3):
        p = linear_model.score(images, probability(unit)).double()
        logp = linear_model.score(images, log_probability(unit)).double()
        assert torch.allclose(p, shares[:, unit], rtol=1e-5)
        assert torch.allclose(logp, shares[:, unit].log(), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_softmax_by_hand(linear_model, images, weights, shares):
    # With logits W x: ∇ log p_k = w_k − Σ_j p_j w_j, and ∇ p_k = p_k · ∇ log p_k.
    expected = weights[1] - shares @ weights  # (3, 48)
    _, gradient = linear_model.gradient(images, log_probability(1))
    assert torch.allclose(gradient.flatten(1).double(), expected, rtol=1e-4, atol=1e-5)
    _, gradient = linear_model.gradient(images, probability(1))
    assert torch.allclose(
        gradient.flatten(1).double(), shares[:, 1:2] * expected, rtol=1e-4, atol=1e-5
    )


def test_the_logarithm_is_finite_where_the_probability_is_zero(linear_model, images):
    with torch.no_grad():
        linear_model.module.fc.bias[0] = 200.0
    value, gradient = linear_model.gradient(images, log_probability(1))
    assert bool((value < -150).all())
    assert bool(gradient.abs().amax((1, 2, 3)).gt(0).all())
    assert torch.equal(linear_model.score(images, probability(1)), torch.zeros(3))


def test_they_combine_with_other_objectives(linear_model, images, shares):
    total = 2 * probability(0) - log_probability([1, 2, 0]) / 4 + class_logit(1)
    expected = 2 * shares[:, 0] - shares[[0, 1, 2], [1, 2, 0]].log() / 4
    expected += linear_model(images)[:, 1]
    assert torch.allclose(linear_model.score(images, total).double(), expected, atol=1e-4)
    again = parse_objective(str(total))
    assert again == total
    assert torch.equal(linear_model.score(images, again), linear_model.score(images, total))


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("p(class:282)", probability(282)),
        ("p(282)", probability(282)),
        ("logp(class:tiger cat)", log_probability("tiger cat")),
        ("p(tiger cat)", probability("tiger cat")),
        ("logp(top)", log_probability(top())),
        ("p(class:3|7|7)", probability([3, 7, 7])),
        ("p(class:road@12,40)", probability("road", 12, 40)),
        ('p(class:"a - b")', probability("a - b")),
    ],
)
def test_each_has_a_text(text, made):
    assert parse_objective(text) == made
    assert parse_objective(str(made)) == made


def test_names_and_the_prediction_are_resolved_when_bound(lite0, photos):
    share = lite0(photos).softmax(1)
    assert torch.allclose(lite0.score(photos, "p(top)"), share.amax(1), rtol=1e-5)
    assert torch.allclose(lite0.score(photos, "p(tiger cat)"), share[:, 282], rtol=1e-5)
    bound = parse_objective("p(top) - 2*logp(class:tiger cat)").bind(lite0, photos)
    assert str(bound).startswith("p(class:282|967|")
    assert str(bound).endswith(" - 2.0*logp(class:282)")
    assert str(bound.rows(1, 2)) == "p(class:967) - 2.0*logp(class:282)"


def test_class_names_may_hold_the_signs_of_the_text():
    names = ["Apple - scab", "p(class:1)", "logp(x)", "b (green)"]
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model = HookedModel(module, class_names=names, input_size=(3, 2, 2), **PIXELS)
    image = torch.rand(1, 3, 2, 2)

    def bound(text):
        return str(parse_objective(text).bind(model, image))

    assert bound("p(class:Apple - scab)") == "p(class:0)"
    assert bound("logp(Apple - scab) - p(b (green))") == "logp(class:0) - p(class:3)"
    assert bound("class:p(class:1)") == "class:1"
    assert bound('p("p(class:1)")') == "p(class:1)"
    with pytest.raises(ObjectiveError, match="several meanings"):
        bound("p(class:1)")


def test_at_a_place_of_a_dense_output_classes_share_the_softmax_there():
    module = nn.Conv2d(3, 5, 1)
    model = HookedModel(module, input_size=(3, 6, 6), **PIXELS)
    images = torch.rand(2, 3, 6, 6)
    with torch.no_grad():
        expected = module(images).softmax(1)[:, 3, 2, 4]
    assert torch.allclose(model.score(images, "p(class:3@2,4)"), expected, atol=1e-6)
    bound = parse_objective("p(class:3@2,4)").bind(model, images)
    assert str(bound) == "p(class:3@2,4)"
    assert parse_objective(str(bound)) == probability(3, 2, 4)


def test_maps_are_labelled_with_the_name_of_the_class(lite0, photos):
    result = technique("saliency")()(lite0, photos[:1], "logp(class:282)")
    assert result.labels == ["logp(tiger cat)"]
    assert result.scores[0] == pytest.approx(
        math.log(float(lite0(photos[:1]).softmax(1)[0, 282])), rel=1e-4
    )


def test_what_has_no_probability_is_refused_in_one_line(linear_model, images):
    single = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    one = HookedModel(single, input_size=(3, 2, 2), **PIXELS)
    for call, message in {
        lambda: probability(channel("fc", 1)): "only a class has a probability, not fc",
        lambda: parse_objective("p(class:)"): "names no class",
        lambda: linear_model.score(images, "p(class:9)"): "classes 0 to 2",
        lambda: linear_model.score(images, "p(class:1|2)"): "2 target classes for 3 image",
        lambda: one.score(images[..., :2, :2], "p(class:0)"): "one logit, so the softmax is 1",
        lambda: load_model("random:resnet18?num_classes=0&img_size=64").score(
            torch.rand(1, 3, 64, 64), "p(class:3)"
        ): "has no classes",
    }.items():
        with pytest.raises(ObjectiveError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
