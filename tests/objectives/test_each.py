"""Objectives with one goal per image, cosines and several units in a text."""

import math

import pytest
import torch

from timmscope import (
    LayerNotFound,
    ObjectiveError,
    as_objective,
    channel,
    class_logit,
    cosine,
    direction,
    each,
    interpolate,
    load_model,
    parse_objective,
)


@pytest.fixture(scope="module")
def model():
    return load_model("random:resnet18?seed=0&img_size=64")


def score(model, objective, images):
    with torch.no_grad():
        return model.score(images, as_objective(objective))


@pytest.fixture(scope="module")
def images(model):
    return torch.rand(3, *model.input_size, generator=torch.Generator().manual_seed(2))


def test_each_image_has_its_own_objective(model, images):
    goal = each(channel("layer2", 3), class_logit(7), channel("layer3", 1) - 2 * class_logit(0))
    values = score(model, goal, images)
    alone = [score(model, part, images)[row] for row, part in enumerate(goal.objectives)]
    assert torch.allclose(values, torch.stack(alone))
    taken = goal.bind(model, None).take([2, 0])
    assert torch.allclose(score(model, taken, images[[2, 0]]), values[[2, 0]])


def test_several_units_of_a_text_are_an_image_each(model, images):
    goal = parse_objective("layer2[3|7-8]").bind(model, None)
    assert goal.num_targets == 3
    expected = [
        score(model, channel("layer2", unit), images)[row] for row, unit in enumerate((3, 7, 8))
    ]
    assert torch.allclose(score(model, goal, images), torch.stack(expected))
    assert str(goal) == "each(layer2[3]; layer2[7]; layer2[8])"
    assert parse_objective(str(goal)).resolve(model) == parse_objective("layer2[3|7-8]").resolve(
        model
    )


def test_interpolation_goes_from_one_objective_to_the_other(model, images):
    goal = interpolate(channel("layer2", 3), class_logit(7), 3)
    first, last = score(model, channel("layer2", 3), images), score(model, class_logit(7), images)
    expected = torch.stack([first[0], (first[1] + last[1]) / 2, last[2]])
    assert torch.allclose(score(model, goal, images), expected, atol=1e-6)
    text = parse_objective("interpolate(layer2[3]; class:7; 3)")
    assert torch.allclose(score(model, text, images), expected, atol=1e-6)


def test_sums_with_each_are_sums_for_each_image(model, images):
    pair = each(channel("layer2", 3), channel("layer2", 4))
    for goal in (class_logit(7) + 2 * pair, 2 * pair + class_logit(7)):
        values = score(model, goal, images[:2])
        logits = score(model, class_logit(7), images[:2])
        assert torch.allclose(values, logits + 2 * score(model, pair, images[:2]), atol=1e-6)
        assert str(parse_objective(str(goal)).resolve(model)) == str(goal)
    with pytest.raises(ObjectiveError, match="targets for"):
        pair + each(channel("layer2", 1), channel("layer2", 2), channel("layer2", 3))


def test_a_sum_inside_each_is_read_as_one(model, images):
    goal = parse_objective("each(layer2[3] - 0.5*class:7; top)").bind(model, images[:2])
    values = score(model, goal, images[:2])
    own = score(model, "layer2[3] - 0.5*class:7", images)[0], model(images)[1].max()
    assert torch.allclose(values, torch.stack([part.detach() for part in own]), atol=1e-6)


def test_cosine_is_the_hand_computed_one(model, images):
    vector = torch.zeros(64)
    vector[5], vector[6] = 3.0, 4.0
    with torch.no_grad(), model.record("layer1") as recording:
        model(images)
        pooled = recording["layer1"].mean((2, 3))
    dots = 3 * pooled[:, 5] + 4 * pooled[:, 6]
    cosines = dots / (5 * pooled.norm(dim=1))
    assert torch.allclose(score(model, cosine("layer1", vector), images), cosines, atol=1e-5)
    weighted = dots * cosines.clamp(min=0.1) ** 2
    assert torch.allclose(score(model, cosine("layer1", vector, 2), images), weighted, atol=1e-4)
    text = str(cosine("layer1", vector, 2))
    assert torch.allclose(score(model, parse_objective(text), images), weighted, atol=1e-4)
    longer = score(model, cosine("layer1", 7 * vector), images)
    assert torch.allclose(longer, cosines, atol=1e-5)
    assert math.isclose(score(model, direction("layer1", vector), images)[0], dots[0], rel_tol=1e-5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("each(layer2[3]; )", "lacks an objective"),
        ("interpolate(layer2[3])", "expected interpolate"),
        ("interpolate(layer2[3]; layer2[4]; 1)", "2 or more"),
        ("cosine(layer1)", "names no direction"),
        ("cosine(layer1@[0, 0])", "must not be zero"),
        ("layer2[9-3]", "names 0 units"),
        ("each(layer2[900]; layer2[3])", "units 0 to 127"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(model, text, told):
    with pytest.raises((ObjectiveError, LayerNotFound), match=told):
        parse_objective(text).bind(model, None)
