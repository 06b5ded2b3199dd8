"""Attribution leaves model and surroundings as they were, and costs its floor."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from timmscope import HookedModel, channel, class_logit, load_model, technique
from timmscope_registry.hooks import fingerprint

GradCAM = technique("grad-cam")
TECHNIQUES = [technique("saliency")(), GradCAM(relu=False)]


class Fragile(nn.Module):
    """Batch norm, dropout, an in-place ReLU; breaks in mid-forward when told to."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.forwards = 0
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.deep = nn.Conv2d(6, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        self.forwards += len(x)
        x = self.act(self.norm(self.conv(x)))
        if self.broken:
            raise RuntimeError("lost in mid-forward")
        return self.fc(self.drop(self.deep(x)).mean((2, 3)))


@pytest.fixture
def model() -> HookedModel:
    torch.manual_seed(0)
    return HookedModel(Fragile(), mean=(0.4,) * 3, std=(0.2,) * 3, input_size=(3, 8, 8))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("attribution", TECHNIQUES, ids=lambda t: t.title())
@pytest.mark.parametrize("where", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_a_training_model_with_gradients_comes_back_untouched(attribution, where, model, images):
    model.module.eval()
    expected = attribution(model, images, class_logit([0, 2])).maps
    model.module.train()
    for weight in model.module.parameters():
        weight.grad = torch.ones_like(weight)
    model.module.conv.weight.requires_grad_(False)
    with where():
        before = fingerprint(model.module)
        maps = attribution(model, images, class_logit([0, 2])).maps
        assert fingerprint(model.module).difference(before) == []
    assert torch.equal(maps, expected)


@pytest.mark.parametrize("attribution", TECHNIQUES, ids=lambda t: t.title())
def test_a_failure_in_mid_forward_leaves_no_trace(attribution, model, images):
    attribution(model, images, 1)
    model.module.train()
    model.module.broken = True
    before = fingerprint(model.module)
    with pytest.raises(RuntimeError, match="lost in mid-forward"):
        attribution(model, images, 1)
    assert fingerprint(model.module).difference(before) == []


@pytest.mark.parametrize("attribution", TECHNIQUES, ids=lambda t: t.title())
def test_each_image_goes_forward_once(attribution, model, images):
    attribution(model, images, 1)  # finds the layer
    before = model.module.forwards
    attribution(model, images, 1)
    assert model.module.forwards - before == len(images)


def test_grad_cam_builds_no_graph_before_its_layer(model, images):
    seen = {}
    handles = [
        part.register_forward_hook(lambda m, a, out, n=name: seen.update({n: out.requires_grad}))
        for name, part in (("act", model.module.act), ("drop", model.module.drop))
    ]
    GradCAM(layer="deep", relu=False)(model, images, 1)
    for handle in handles:
        handle.remove()
    assert seen == {"act": False, "drop": True}


@pytest.mark.parametrize("attribution", TECHNIQUES, ids=lambda t: t.title())
@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_bfloat16_models_give_nearly_the_same_map(attribution, name):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    full, half = (load_model(f"random:{name}?img_size=64&num_classes=10") for _ in range(2))
    half.module.to(torch.bfloat16)
    expected = attribution(full, images, 3).maps
    maps = attribution(half, images, 3).maps
    assert maps.dtype == torch.float32
    likeness = torch.nn.functional.cosine_similarity(maps.flatten(1), expected.flatten(1))
    assert float(likeness.min()) > 0.95


@pytest.mark.parametrize("attribution", TECHNIQUES, ids=lambda t: t.title())
def test_an_early_objective_stops_the_forward_and_still_maps(attribution, model, images):
    ran = []
    handle = model.module.fc.register_forward_hook(lambda *_: ran.append(1))
    model.layers  # the catalogue needs one whole forward  # noqa: B018
    ran.clear()
    result = attribution(model, images, channel("conv", 2))
    handle.remove()
    assert ran == []
    assert float(result.raw.abs().max()) > 0
