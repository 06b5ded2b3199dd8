"""Diversity, alignment and pre-activation of activation maximisation."""

import pytest
import torch

from timmscope import ParameterError, channel, class_logit, interpolate, load_model
from timmscope_synthesis.activation_maximization import ActivationMaximization
from timmscope_synthesis.between_images import BetweenImages, similarity


@pytest.fixture(scope="module")
def model():
    return load_model("random:resnet18?seed=0&img_size=64")


def test_similarity_is_the_cosine_of_gram_matrices():
    features = torch.zeros(3, 2, 1, 2)
    features[0, :, 0] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # G = identity
    features[1, :, 0] = torch.tensor([[2.0, 0.0], [0.0, 0.0]])  # G = diag(4, 0)
    features[2, :, 0] = torch.tensor([[0.0, 0.0], [3.0, 0.0]])  # G = diag(0, 9)
    half = 1 / 2**0.5
    expected = torch.tensor([[1, half, half], [half, 1, 0], [half, 0, 1]])
    assert torch.allclose(similarity(features), expected, atol=1e-6)


def test_the_terms_between_images_are_the_hand_computed_ones(model):
    # Two images of target 0, one of target 1: −w Σ_j cos / 2 for the first two, 0 for the third.
    features = torch.rand(3, 64, 2, 2, generator=torch.Generator().manual_seed(1))
    apart = BetweenImages(model, "layer1", [0, 0, 1], diversity=3.0, alignment=0.0)
    cosine = similarity(features)[0, 1]
    value = apart({"layer1": features})
    assert torch.allclose(value, torch.stack([-1.5 * cosine, -1.5 * cosine, 0 * cosine]))
    assert torch.allclose(
        apart.mean_similarity({"layer1": features}), torch.stack([cosine, cosine, 0 * cosine])
    )
    near = BetweenImages(model, "layer1", [0, 0, 0], diversity=0.0, alignment=2.0)
    one, two = ((features[i + d] - features[i]).square().mean() for i, d in ((0, 1), (1, 1)))
    far = (features[2] - features[0]).square().mean()
    expected = torch.stack([-2 * (one / 2 + far / 4), -2 * two / 2, 0 * two])
    assert torch.allclose(near({"layer1": features}), expected, atol=1e-6)


def test_diversity_makes_the_images_of_a_unit_less_alike(model):
    def run(weight):
        technique = ActivationMaximization(
            steps=24, count=3, diversity=weight, batch_size=3, learning_rate=0.05
        )
        made = technique(model, channel("layer3", 5), seed=1)
        with torch.no_grad(), model.record("layer3") as recording:
            model(made.images)
            between = BetweenImages(model, "layer3", [0] * 3, 1.0, 0.0)
            return made, between.mean_similarity(recording)

    plain, before = run(0.0)
    diverse, after = run(30.0)
    assert after.mean() < before.mean()
    assert torch.allclose(torch.tensor(diverse.notes["similarity"]), after, atol=1e-4)
    assert "similarity" not in plain.notes


def test_images_that_depend_on_each_other_are_not_split(model):
    goal = class_logit([3, 7])
    settings = {"steps": 3, "count": 2, "diversity": 5.0}
    one = ActivationMaximization(**settings, batch_size=1)(model, goal)
    all_at_once = ActivationMaximization(**settings, batch_size=4)(model, goal)
    assert (one.images - all_at_once.images).abs().mean() < 1e-3
    # The images of a target do not depend on other targets.
    alone = ActivationMaximization(**settings, batch_size=1)(model, 3)
    assert torch.equal(one.images[:2], alone.images)


def test_aligned_images_of_an_interpolation_are_nearer_to_each_other(model):
    goal = interpolate(channel("layer2", 3), channel("layer2", 9), 3)

    def roughness(weight):
        technique = ActivationMaximization(
            steps=24, alignment=weight, between_layer="layer2", batch_size=3
        )
        images = technique(model, goal).images
        with torch.no_grad(), model.record("layer2") as recording:
            model(images)
            return recording["layer2"].diff(dim=0).square().mean()

    assert roughness(300.0) < 0.9 * roughness(0.0)


def test_pre_activation_climbs_what_the_relu_gets(model):
    technique = ActivationMaximization(steps=4, pre_activation=True)
    made = technique(model, channel("layer1.0.act1", 3))
    # The scores of the steps are of bn1, before the ReLU; the final score is of the ReLU.
    reference = ActivationMaximization(steps=4)(model, channel("layer1.0.bn1", 3))
    assert torch.equal(made.scores, reference.scores)
    with torch.no_grad():
        score = model.score(made.images, channel("layer1.0.act1", 3))
    assert torch.allclose(made.final_scores, score, atol=1e-5)


def test_a_layer_without_an_activation_has_no_pre_activation(model):
    technique = ActivationMaximization(steps=1, pre_activation=True)
    with pytest.raises(ParameterError, match="leave pre_activation unset"):
        technique(model, channel("layer1.0.bn1", 3))
