"""Score-CAM and Ablation-CAM against one forward a channel by hand, and pytorch-grad-cam."""

from __future__ import annotations

import functools

import pytest
import torch
from pytorch_grad_cam import AblationCAM as JacobGilAblation
from pytorch_grad_cam import ScoreCAM as JacobGilScore
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from timmscope import (
    HookedModel,
    TechniqueError,
    channel,
    class_logit,
    direction,
    layer_energy,
    load_model,
    neuron,
    technique,
)

ScoreCAM = technique("score-cam")
AblationCAM = technique("ablation-cam")

EARLY = [("resnet18", "layer1"), ("vgg11", "features.1"), ("densenet121", "features.pool0"),
         ("lite0", "bn1")]  # fmt: skip
"""Layers of 64 channels or fewer, behind a ReLU: a forward for each is soon done."""


def relative(ours, theirs):
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


class TwoLayers(nn.Module):
    """A convolution, another behind a ReLU, pooling and a linear layer."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 2, stride=2)
        self.second = nn.Conv2d(5, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)
        generator = torch.Generator().manual_seed(8)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)

    def forward(self, x):
        return self.fc(self.second(self.first(x).relu()).mean((2, 3)))


@pytest.fixture
def two_layers() -> HookedModel:
    return HookedModel(
        TwoLayers().double(), mean=(0.4, 0.5, 0.6), std=(0.2,) * 3, input_size=(3, 8, 8)
    )


def ablated_by_hand(model, image, path, score):
    """`(S − S_k) / |S|` of each channel, with a hook that sets one to zero."""
    module = model.module.get_submodule(path)
    whole = score(model(image[None]))
    weights = []
    for unit in range(module.out_channels):

        def silence(part, args, output, unit=unit):
            output = output.clone()
            output[:, unit] = 0
            return output

        handle = module.register_forward_hook(silence)
        weights.append((whole - score(model(image[None]))) / whole.abs())
        handle.remove()
    return torch.cat(weights).detach()


def activation(model, image, path):
    normal = model.preprocessing.normalise(image[None])
    kept = []
    handle = model.module.get_submodule(path).register_forward_hook(
        lambda module, args, output: kept.append(output)
    )
    model.module(normal)
    handle.remove()
    return kept[0][0].detach()


@pytest.mark.parametrize("layer", ["first", "second"])
def test_ablation_weighs_channels_by_what_is_lost_without_them(two_layers, noise, layer):
    ours = AblationCAM(layer=layer, relu=False)(two_layers, noise, class_logit([0, 3, 1])).raw
    for row, index in enumerate([0, 3, 1]):
        weights = ablated_by_hand(
            two_layers, noise[row], layer, lambda logits, index=index: logits[:, index]
        )
        expected = torch.einsum("k,khw->hw", weights, activation(two_layers, noise[row], layer))
        assert relative(ours[row], expected) <= 1e-6


def test_ablation_before_pooling_and_a_linear_layer_is_its_closed_form(two_layers, noise):
    seen = []
    handle = two_layers.module.first.register_forward_hook(lambda *_: seen.append(1))
    two_layers.layers  # traced once  # noqa: B018
    seen.clear()
    result = AblationCAM(layer="second", relu=False)(two_layers, noise, 2)
    handle.remove()
    assert len(seen) == 1, "one forward of the batch, and none a channel"
    weight = two_layers.module.fc.weight.detach()[2]
    for row in range(3):
        cells = activation(two_layers, noise[row], "second")
        losses = weight * cells.mean((1, 2))
        expected = torch.einsum("k,khw->hw", losses / abs(float(result.scores[row])), cells)
        assert relative(result.raw[row], expected) <= 1e-5


@pytest.mark.parametrize(
    ("goal", "value"),
    [
        (channel("second", 3), lambda model, a: a[3].mean()),
        (neuron("second", 3, 1, 2), lambda model, a: a[3, 1, 2]),
        (layer_energy("second"), lambda model, a: a.square().mean()),
        (direction("second", [1, -2, 0, 0.5, 3, 1.0]), lambda model, a: a.mean((1, 2))
         @ torch.tensor([1, -2, 0, 0.5, 3, 1.0], dtype=torch.float64)),
        (class_logit(1) - 0.5 * class_logit(2), lambda model, a: (model.module.fc(a.mean((1, 2)))
         @ torch.tensor([0, 1, -0.5, 0], dtype=torch.float64))),
    ],
    ids=["channel", "neuron", "energy", "direction", "sum"],
)  # fmt: skip
def test_every_objective_is_ablated(two_layers, noise, goal, value):
    """At the layer itself, where what is lost can be said without a forward."""
    ours = AblationCAM(layer="second", relu=False)(two_layers, noise, goal).raw
    for row in range(3):
        cells = activation(two_layers, noise[row], "second")
        whole = value(two_layers, cells).detach()
        losses = []
        for unit in range(6):
            without = cells.clone()
            without[unit] = 0
            losses.append((whole - value(two_layers, without).detach()) / whole.abs())
        expected = torch.einsum("k,khw->hw", torch.stack(losses), cells)
        assert relative(ours[row], expected) <= 1e-6


def test_ablation_keeps_its_sign_where_the_score_is_negative(two_layers, noise):
    up = AblationCAM(layer="first", relu=False)(two_layers, noise, class_logit(1))
    down = AblationCAM(layer="first", relu=False)(two_layers, noise, -1 * class_logit(1))
    assert torch.equal(up.scores, -down.scores)
    assert relative(up.raw, -down.raw) <= 1e-6


@pytest.mark.parametrize(("name", "layer"), EARLY)
def test_ablation_is_pytorch_grad_cams_where_it_sets_channels_to_zero(name, layer, small_case):
    """It does so after a ReLU alone; elsewhere it takes 1e7 less than the smallest value."""
    model, images, classes, _ = small_case(name)
    images = images[:, :, ::2, ::2].contiguous()
    ours = AblationCAM(layer=layer, relu=False)(model, images, class_logit(classes))
    targets = [ClassifierOutputTarget(index) for index in classes]
    module = model.module.get_submodule(layer)
    with JacobGilAblation(model=model.as_module(), target_layers=[module]) as peer:
        peer(images.clone().requires_grad_(), targets)
        cells = peer.activations_and_grads.activations[0]
        weights = peer.get_cam_weights(images, module, targets, cells, None)
    sign = ours.scores.sign()[:, None, None]
    theirs = torch.einsum("bk,bkhw->bhw", torch.from_numpy(weights).double(), cells.double())
    assert relative(ours.raw * sign, theirs) <= 2e-3  # the peer's scores are float32


def scored_by_hand(model, image, cells, index):
    """`softmax_k(S(I ⊙ H_k))`, one forward a channel, in normalised space."""
    normal = model.preprocessing.normalise(image[None])
    scores = []
    for unit in cells:
        mask = nn.functional.interpolate(
            unit[None, None], tuple(image.shape[1:]), mode="bilinear", align_corners=False
        )
        span = mask.max() - mask.min()
        mask = (mask - mask.min()) / span if float(span) else torch.zeros_like(mask)
        scores.append(model.module(normal * mask)[0, index])
    return torch.stack(scores).softmax(0).detach()


def test_score_cam_weighs_channels_by_the_image_behind_them(two_layers, noise):
    two_layers.module.first.weight.data[2] = 0  # a constant channel hides everything
    ours = ScoreCAM(layer="first", relu=False)(two_layers, noise, class_logit([0, 3, 1])).raw
    for row, index in enumerate([0, 3, 1]):
        cells = activation(two_layers, noise[row], "first")
        weights = scored_by_hand(two_layers, noise[row], cells, index)
        assert relative(ours[row], torch.einsum("k,khw->hw", weights, cells)) <= 1e-6


@pytest.mark.parametrize(("name", "layer"), EARLY)
def test_score_cam_is_pytorch_grad_cams_with_our_corners(name, layer, small_case, monkeypatch):
    """The paper does not say how corners align; the peer's masks do it otherwise."""
    model, images, classes, _ = small_case(name)
    images = images[:, :, ::2, ::2].contiguous()
    upsample = functools.partial(nn.Upsample, mode="bilinear", align_corners=False)
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: upsample(size=tuple(size)))
    ours = ScoreCAM(layer=layer, relu=False)(model, images, class_logit(classes)).raw
    targets = [ClassifierOutputTarget(index) for index in classes]
    module = model.module.get_submodule(layer)
    with JacobGilScore(model=model.as_module(), target_layers=[module]) as peer:
        peer(images.clone().requires_grad_(), targets)
        cells = peer.activations_and_grads.activations[0]
        normal = model.preprocessing.normalise(images)
        bare = JacobGilScore(model=model.module, target_layers=[module])
        weights = bare.get_cam_weights(normal, module, targets, cells.numpy(), None)
    theirs = torch.einsum("bk,bkhw->bhw", torch.from_numpy(weights).double(), cells.double())
    assert relative(ours, theirs) <= 1e-4  # the peer's scores are float32


def test_tokens_are_ablated_on_the_grid_alone():
    model = load_model("random:vit_tiny_patch16_224?img_size=64&num_classes=10&depth=2")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = AblationCAM(layer="blocks.0", relu=False)(model, image, 3)
    block = model.module.blocks[0]
    whole = float(model(image)[0, 3].detach())
    with model.record("blocks.0") as recording:
        model(image)
    cells = recording["blocks.0"][0, 1:].T.reshape(192, 4, 4).detach()
    expected = torch.zeros(4, 4)
    for unit in range(192):

        def silence(part, args, output, unit=unit):
            output = output.clone()
            output[:, 1:, unit] = 0
            return output

        handle = block.register_forward_hook(silence)
        expected += (whole - float(model(image)[0, 3].detach())) / abs(whole) * cells[unit]
        handle.remove()
    assert relative(ours.raw[0], expected) <= 1e-3


@pytest.mark.parametrize("kind", [ScoreCAM, AblationCAM])
def test_a_layer_that_cannot_be_mapped_is_refused_with_one_that_can(two_layers, noise, kind):
    with pytest.raises(TechniqueError, match=r"'fc': it has no grid.*use layer='second'"):
        kind(layer="fc")(two_layers, noise, 1)
    with pytest.raises(TechniqueError, match="it does not contribute to it; use layer='first'"):
        kind(layer="second")(two_layers, noise, channel("first", 2))
