"""Maps that are known by hand: linear models, pooled linear models, every kind of objective."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from timmscope import (
    HookedModel,
    TechniqueError,
    channel,
    class_logit,
    direction,
    layer_energy,
    neuron,
    technique,
)

GradCAM = technique("grad-cam")
Saliency = technique("saliency")
SignedCAM = GradCAM(relu=False)


def close(ours, theirs):
    """Equal up to the float32 that results are kept in."""
    return torch.allclose(ours.double(), theirs.double(), rtol=1e-6, atol=1e-7)


def test_saliency_of_a_linear_model_is_its_largest_weight(linear_model):
    images = torch.rand(2, 3, 4, 4)
    weight = linear_model.module.fc.weight.detach().view(-1, 3, 4, 4)
    maps = Saliency()(linear_model, images, class_logit([0, 2])).maps
    assert torch.equal(maps, weight[[0, 2]].abs().amax(1))


def test_saliency_is_in_pixel_units_behind_a_normalisation(linear_model):
    std = (0.5, 0.25, 0.2)
    model = HookedModel(linear_model.module, mean=(0.4,) * 3, std=std, input_size=(3, 4, 4))
    weight = linear_model.module.fc.weight.detach().view(-1, 3, 4, 4)
    expected = (weight[1] / torch.tensor(std)[:, None, None]).abs().amax(0)
    assert close(Saliency()(model, torch.rand(1, 3, 4, 4), 1).maps[0], expected)


def test_saliency_is_the_slope_by_finite_differences(pooled_linear, noise):
    objective = layer_energy("features") - 0.5 * class_logit(2)
    maps = Saliency()(pooled_linear, noise[:1], objective).maps[0]
    step = 1e-6
    slopes = torch.zeros(3, 8, 8, dtype=torch.float64)
    for place in range(slopes.numel()):
        moved = noise[:1].repeat(2, 1, 1, 1)
        moved.view(2, -1)[:, place] += torch.tensor([step, -step])
        up, down = pooled_linear.score(moved, objective)
        slopes.view(-1)[place] = (up - down) / (2 * step)
    assert torch.allclose(maps.double(), slopes.abs().amax(0), rtol=1e-5, atol=1e-7)


def test_grad_cam_adds_up_to_the_logit_under_pooling_and_a_linear_layer(pooled_linear, noise):
    result = SignedCAM(pooled_linear, noise, class_logit([0, 3, 1]))
    bias = pooled_linear.module.fc.bias.detach()[[0, 3, 1]]
    assert close(result.raw.double().sum((1, 2)) + bias, result.scores)


def test_relu_keeps_the_evidence_for_the_class_alone(pooled_linear, noise):
    features = pooled_linear.module.features  # made to see contrasts: both signs in each image
    features.bias.data[:] = 0
    features.weight.data -= features.weight.data.mean((1, 2, 3), keepdim=True)
    signed = SignedCAM(pooled_linear, noise, 1).raw
    for image in signed:
        assert float(image.min()) < 0 < float(image.max())
    assert torch.equal(GradCAM()(pooled_linear, noise, 1).raw, signed.relu())


def features(model, images):
    return model.module.features(images).detach()


def test_grad_cam_of_a_channel_is_its_activation_over_the_cells(pooled_linear, noise):
    expected = features(pooled_linear, noise)[:, 2] / 16
    assert close(SignedCAM(pooled_linear, noise, channel("features", 2)).raw, expected)


def test_grad_cam_of_a_neuron_weighs_its_unit_alone(pooled_linear, noise):
    expected = features(pooled_linear, noise)[:, 1] / 16
    assert close(SignedCAM(pooled_linear, noise, neuron("features", 1, 3, 0)).raw, expected)


def test_grad_cam_of_a_direction_weighs_units_by_it(pooled_linear, noise):
    vector = torch.tensor([1.0, -2, 0, 0.5, 3], dtype=torch.float64)
    expected = torch.einsum("k,bkhw->bhw", vector, features(pooled_linear, noise)) / 16
    assert close(SignedCAM(pooled_linear, noise, direction("features", vector)).raw, expected)


def test_grad_cam_of_energy_weighs_units_by_their_mean(pooled_linear, noise):
    activation = features(pooled_linear, noise)
    weights = 2 * activation.mean((2, 3)) / (5 * 16)
    expected = torch.einsum("bk,bkhw->bhw", weights, activation)
    assert close(SignedCAM(pooled_linear, noise, layer_energy("features")).raw, expected)


def test_grad_cam_of_a_sum_is_the_sum(pooled_linear, noise):
    whole = SignedCAM(pooled_linear, noise, 3 * class_logit(1) - channel("features", 4) / 2).raw
    parts = [SignedCAM(pooled_linear, noise, goal).raw for goal in (1, channel("features", 4))]
    assert torch.allclose(whole, 3 * parts[0] - parts[1] / 2, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """One convolution used twice."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 2)
        nn.init.normal_(self.conv.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return self.fc(self.conv(self.conv(x).relu()).mean((2, 3)))


def test_an_earlier_call_of_a_reused_layer_has_its_own_map():
    module = Twice().double()
    model = HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 8, 8))
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    first = module.conv(image).detach().requires_grad_()
    second = module.conv(first.relu())
    logit = module.fc(second.mean((2, 3)))[0, 1]
    for name, place in (("conv#0", first), ("conv", second), ("conv#1", second)):
        (slope,) = torch.autograd.grad(logit, place, retain_graph=True)
        expected = (slope.mean((2, 3), keepdim=True) * place).sum(1).detach()
        assert close(GradCAM(layer=name, relu=False)(model, image, 1).raw, expected)
    assert close(SignedCAM(model, image, 1).raw, expected)


@pytest.mark.parametrize("name", ["saliency", "grad-cam"])
def test_a_batch_in_pieces_gives_the_same_maps(name, pooled_linear, noise):
    attribution = technique(name)() if name == "saliency" else SignedCAM
    goal = class_logit([0, 3, 1])
    whole = attribution(pooled_linear, noise, goal)
    pieces = attribution(pooled_linear, noise, goal, batch_size=1)
    assert close(whole.maps, pieces.maps)
    assert close(whole.scores, pieces.scores)
    again = attribution(pooled_linear, noise, goal)
    assert torch.equal(whole.maps, again.maps)


def test_a_layer_that_is_alike_in_all_cells_has_no_map(pooled_linear, noise):
    flat = torch.full((1, 3, 8, 8), 0.5)
    mixed = torch.cat([noise[:1].float(), flat])
    with pytest.raises(
        TechniqueError, match=r"same everywhere for image 1: .* has a single colour"
    ):
        SignedCAM(pooled_linear, mixed, 1)
    tiled = noise[:1, :, :2, :2].repeat(1, 1, 4, 4)  # each cell sees the same patch
    with pytest.raises(TechniqueError, match=r"all cells of the layer have the same value"):
        SignedCAM(pooled_linear, tiled, 1)
    with pytest.raises(TechniqueError, match=r"it has one cell; choose an earlier layer"):
        SignedCAM(pooled_linear, noise[:1, :, :2, :2], 1)


def test_a_constant_map_is_shown_without_nan(linear_model):
    linear_model.module.fc.weight.data[1] = 2
    result = Saliency()(linear_model, torch.full((1, 3, 4, 4), 0.5), 1)
    assert bool((result.maps == 2).all())
    assert bool((result.normalised() == 0).all())
    picture = result.pictures()["overlay-000"]
    assert bool(torch.isfinite(picture).all())
    result.figure()
