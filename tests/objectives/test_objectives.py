"""Objectives have hand-computed values and a text form, and are refused if they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timmscope import (
    LayerNotFound,
    ObjectiveError,
    channel,
    class_logit,
    direction,
    layer_energy,
    load_model,
    neuron,
    parse_objective,
    technique,
    top,
)
from timmscope.objectives import as_objective


@pytest.fixture(scope="module")
def activation(lite0, photos):
    with lite0.record("blocks.4") as recording, torch.no_grad():
        lite0(photos)
    return recording["blocks.4"]


def test_channel_is_the_spatial_mean(lite0, photos, activation):
    assert torch.allclose(
        lite0.score(photos, channel("blocks.4", 17)), activation[:, 17].mean((1, 2))
    )


def test_neuron_is_one_cell_and_the_centre_by_default(lite0, photos, activation):
    assert torch.equal(lite0.score(photos, neuron("blocks.4", 5, 3, 9)), activation[:, 5, 3, 9])
    assert torch.equal(lite0.score(photos, neuron("blocks.4", 5)), activation[:, 5, 7, 7])


def test_layer_energy_is_the_mean_square(lite0, photos, activation):
    expected = (activation**2).flatten(1).mean(1)
    assert torch.allclose(lite0.score(photos, layer_energy("blocks.4")), expected)


def test_direction_is_a_dot_product_and_an_axis_is_a_channel(lite0, photos, activation):
    vector = np.random.default_rng(0).normal(size=112)
    expected = activation.double().mean((2, 3)) @ torch.from_numpy(vector)
    actual = lite0.score(photos, direction("blocks.4", vector))
    assert torch.allclose(actual.double(), expected, rtol=1e-5)
    axis = lite0.score(photos, direction("blocks.4", np.eye(112)[17]))
    assert torch.allclose(axis, lite0.score(photos, channel("blocks.4", 17)), atol=1e-6)


def test_each_image_may_have_its_own_class(lite0, photos):
    logits = lite0(photos)
    scores = lite0.score(photos, class_logit([282, "espresso", 3]))
    assert torch.equal(scores, logits[[0, 1, 2], [282, 967, 3]])


def test_top_is_the_prediction_of_each_image(lite0, photos):
    assert torch.equal(lite0.score(photos, top()), lite0(photos).amax(1))
    assert str(top().bind(lite0, photos)).startswith("class:282|967|")


def test_sums_and_multiples_combine_values(lite0, photos, activation):
    objective = 2 * channel("blocks.4", 1) - neuron("blocks.4", 2, 0, 0) / 4 + class_logit(7)
    expected = 2 * activation[:, 1].mean((1, 2)) - activation[:, 2, 0, 0] / 4 + lite0(photos)[:, 7]
    assert torch.allclose(lite0.score(photos, objective), expected, atol=1e-5)
    summed = sum([channel("blocks.4", 1), channel("blocks.4", 2)])
    expected = activation[:, 1:3].mean((2, 3)).sum(1)
    assert torch.allclose(lite0.score(photos, summed), expected, atol=1e-6)


def test_token_layers_leave_out_prefix_tokens():
    model = load_model("random:vit_tiny_patch16_224?img_size=64")
    images = torch.rand(2, 3, 64, 64)
    with model.record("blocks.3") as recording, torch.no_grad():
        model(images)
    tokens = recording["blocks.3"]  # (2, 1 + 16, 192)
    assert torch.allclose(
        model.score(images, channel("blocks.3", 9)), tokens[:, 1:, 9].mean(1), atol=1e-6
    )
    assert torch.equal(
        model.score(images, neuron("blocks.3", 9, 2, 1)), tokens[:, 1 + 2 * 4 + 1, 9]
    )


layers = st.sampled_from(["blocks.4", "stages.0.blocks.1#2", "layer1.0.conv1"])
weights = st.floats(-9, 9).filter(lambda value: abs(value) > 1e-3)
singles = st.one_of(
    st.builds(channel, layers, st.integers(0, 999)),
    st.builds(neuron, layers, st.integers(0, 99), st.integers(0, 9), st.integers(0, 9)),
    st.builds(neuron, layers, st.integers(0, 99)),
    st.builds(class_logit, st.integers(0, 999)),
    st.builds(class_logit, st.lists(st.integers(0, 999), min_size=1, max_size=4)),
    st.builds(class_logit, st.sampled_from(["tiger cat", "black-and-tan coonhound", "jack-o'-l"])),
    st.builds(direction, layers, st.lists(st.floats(-5, 5), min_size=1, max_size=4)),
    st.builds(top),
)


@given(st.lists(st.tuples(weights, singles), min_size=1, max_size=4))
def test_the_text_form_parses_back(terms):
    objective = sum(weight * single for weight, single in terms)
    assert parse_objective(str(objective)) == objective


def test_a_direction_can_come_from_a_file(lite0, photos, tmp_path):
    np.save(tmp_path / "vector.npy", np.eye(112)[17])
    text = f"blocks.4@{tmp_path}/vector.npy"
    parsed = parse_objective(text, files=True)
    assert parsed == direction("blocks.4", np.eye(112)[17])
    assert parsed.bind(lite0, photos) == direction("blocks.4", np.eye(112)[17])


def test_a_text_opens_a_file_only_where_a_user_types_it(lite0, photos, tmp_path):
    np.save(tmp_path / "vector.npy", np.eye(112)[17])
    single = f"blocks.4@{tmp_path}/vector.npy"
    for read in (parse_objective, as_objective):
        for text in (single, f"0.5*{single} - top", f"top + {single}"):
            with pytest.raises(ObjectiveError, match="text opens no file in Python"):
                read(text).bind(lite0, photos)
    with pytest.raises(ObjectiveError, match="text opens no file in Python"):
        technique("saliency")()(lite0, photos, single)


def test_a_bare_name_is_a_layer_or_a_class(lite0, photos):
    assert parse_objective("blocks.4").bind(lite0, photos) == layer_energy("blocks.4")
    assert parse_objective("tiger cat").bind(lite0, photos) == class_logit(282)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class:tigre cat", "did you mean 'tiger cat'"),
        ("class:1000", "classes 0 to 999"),
        ("blocks.4[112]", "units 0 to 111"),
        ("blocks.4[3,14,0]", "grid of 14×14 cells"),
        ("global_pool[3,1,0]", "there is no cell"),
        ("blocks.4@[1.0, 2.0]", "2 numbers"),
        ("blocks.4[x]", "names no unit"),
        ("blocks.4[1,2]", "names no unit"),
        ("blocks.4@nowhere.npy", "text opens no file"),
        ("class:1|2", "2 target classes for 3 image"),
        ("blocks.4o", "is not a layer .nearest: 'blocks.4'"),
    ],
)
def test_an_objective_that_does_not_fit_the_model_is_refused_in_one_line(
    lite0, photos, text, message
):
    with pytest.raises(ObjectiveError, match=message) as caught:
        parse_objective(text).bind(lite0, photos)
    assert "\n" not in str(caught.value)


def test_the_error_for_a_misspelt_layer_suggests_the_nearest(lite0, photos):
    with pytest.raises(LayerNotFound) as caught:
        parse_objective("blocks.44[1]").bind(lite0, photos)
    assert caught.value.nearest[0] == "blocks.4"


@pytest.mark.parametrize(
    "text", ["", "class:", "class:a||b", "blocks.4[", "blocks.4@[1,", "2* + top"]
)
def test_malformed_text_is_refused(text):
    with pytest.raises(ObjectiveError):
        parse_objective(text)


def test_the_error_for_a_model_without_classes_suggests_a_unit():
    model = load_model("random:resnet18?num_classes=0&img_size=64")
    for text in ("class:3", "top"):
        with pytest.raises(ObjectiveError, match=r"has no classes: choose a unit instead"):
            model.score(torch.rand(1, 3, 64, 64), text)


def test_objectives_cannot_be_multiplied_by_each_other():
    with pytest.raises(ObjectiveError):
        _ = top() * top()
    with pytest.raises(ObjectiveError):
        _ = top() + 3


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: top() / 0, "divided only by a number other than 0"),
        (lambda: top() * float("nan"), "finite number, not nan"),
        (lambda: 3 - top(), "cannot subtract an objective from 3"),
        (lambda: parse_objective("1e999*top"), "finite number, not inf"),
        (lambda: class_logit(2.7), "a class must be a whole number, not 2.7"),
        (lambda: class_logit(torch.tensor([1.5, 2.0])), "a class must be a whole number, not 1.5"),
        (lambda: class_logit(None), "a class must be a whole number, not None"),
        (lambda: class_logit([]), "no classes"),
        (lambda: channel("blocks.4", 1.5), "a unit must be a whole number, not 1.5"),
        (lambda: neuron("blocks.4", 1, 0.5, 0), "a row must be a whole number, not 0.5"),
        (lambda: direction("blocks.4", "abc"), "one row of finite numbers"),
        (lambda: as_objective(3.5), "3.5 is not an objective"),
        (lambda: as_objective(None), "None is not an objective"),
        (lambda: as_objective([1, 2]), "is not an objective"),
    ],
)
def test_an_invalid_objective_is_refused_in_one_line_when_it_is_made(make, reason):
    with pytest.raises(ObjectiveError, match=reason) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_classes_may_be_any_kind_of_integer():
    kinds = [3, np.int64(3), torch.tensor(3), np.array(3), [3], (3,), np.array([3]), range(3, 4)]
    assert {str(class_logit(kind)) for kind in kinds} == {"class:3"}
    assert str(class_logit(torch.tensor([3, 5]))) == "class:3|5"
