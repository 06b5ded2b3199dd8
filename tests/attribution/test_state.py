"""Attribution leaves model and surroundings as they were, and costs its floor."""

from __future__ import annotations

import contextlib

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from timmscope import HookedModel, channel, class_logit, load_model, technique
from timmscope_registry.hooks import fingerprint

GradCAM = technique("grad-cam")
TECHNIQUES = [technique("saliency")(), GradCAM(relu=False)]
FIELDS = {
    "saliency": {},
    "input-x-gradient": {},
    "smooth-grad": {"samples": 3},
    "integrated-gradients": {"steps": 3, "baseline": "noise"},
    "guided-backprop": {},
    "deconvnet": {},
    "cam": {},
    "grad-cam": {"relu": False},
    "grad-cam++": {"relu": False},
    "xgrad-cam": {"relu": False},
    "layer-cam": {"relu": False},
    "eigen-cam": {"relu": False},
    "guided-grad-cam": {"relu": False},
    "score-cam": {"relu": False},
    "ablation-cam": {"relu": False},
    "occlusion": {"patch_px": 4, "stride_px": 2, "baseline": "noise"},
    "rise": {"masks": 9},
    "grabcut": {"saliency": "occlusion", "foreground": 0.6, "background": 0.5, "largest": False},
    "attention-rollout": {},
    "attention-map": {"head": 1},
}
ALL = pytest.mark.parametrize("name", FIELDS)


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


class Attentive(nn.Module):
    """A vision transformer of timm's in miniature, with dropout; breaks when told to."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.vit = VisionTransformer(
            img_size=8,
            patch_size=4,
            embed_dim=8,
            depth=2,
            num_heads=2,
            num_classes=3,
            drop_rate=0.5,
        )

    def forward(self, x):
        x = self.vit.forward_features(x)
        if self.broken:
            raise RuntimeError("lost in mid-forward")
        return self.vit.forward_head(x)


@pytest.fixture
def model() -> HookedModel:
    torch.manual_seed(0)
    return HookedModel(Fragile(), mean=(0.4,) * 3, std=(0.2,) * 3, input_size=(3, 8, 8))


@pytest.fixture
def model_for(model: HookedModel):
    """The fragile model, or a transformer for techniques that read attention."""

    def get(name: str) -> HookedModel:
        if not name.startswith("attention"):
            return model
        torch.manual_seed(0)
        module = Attentive()
        nn.init.normal_(module.vit.head.weight)
        return HookedModel(module, mean=(0.4,) * 3, std=(0.2,) * 3, input_size=(3, 8, 8))

    return get


@pytest.fixture
def images() -> torch.Tensor:
    """A brighter square on noise, so that there is something to cut out."""
    pixels = 0.4 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(42))
    pixels[..., 2:6, 2:6] += 0.5
    return pixels


GOAL = class_logit([0, 2, 1])


@ALL
@pytest.mark.parametrize("where", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_a_training_model_with_gradients_comes_back_untouched(name, where, model_for, images):
    attribution, model = technique(name)(**FIELDS[name]), model_for(name)
    model.module.eval()
    expected = attribution(model, images, GOAL).maps
    model.module.train()
    for weight in model.module.parameters():
        weight.grad = torch.ones_like(weight)
    next(model.module.parameters()).requires_grad_(False)
    with where():
        before = fingerprint(model.module)
        maps = attribution(model, images, GOAL).maps
        assert fingerprint(model.module).difference(before) == []
    assert torch.equal(maps, expected)
    model.module.requires_grad_(False)  # a frozen model
    assert torch.equal(attribution(model, images, GOAL).maps, expected)


@ALL
def test_a_failure_in_mid_forward_leaves_no_trace(name, model_for, images):
    attribution, model = technique(name)(**FIELDS[name]), model_for(name)
    attribution(model, images, GOAL)
    model.module.train()
    model.module.broken = True
    before = fingerprint(model.module)
    with pytest.raises(RuntimeError, match="lost in mid-forward"):
        attribution(model, images, GOAL)
    assert fingerprint(model.module).difference(before) == []
    assert not model.hooks.open_contexts


@ALL
def test_an_image_has_the_same_map_alone_as_in_a_batch(name, model_for, images):
    """In double precision: in single, another kernel may fall on another side of a kink."""
    attribution, model = technique(name)(**FIELDS[name]), model_for(name)
    model.module.double()
    whole = attribution(model, images.double(), GOAL, seed=3)
    for size in (1, 2):
        pieces = attribution(model, images.double(), GOAL, seed=3, batch_size=size)
        assert torch.allclose(pieces.raw, whole.raw, rtol=1e-9, atol=1e-12)
        assert torch.allclose(pieces.scores, whole.scores, rtol=1e-12)
    again = attribution(model, images.double(), GOAL, seed=3)
    assert torch.equal(again.raw, whole.raw)
    assert torch.equal(again.scores, whole.scores)


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "grabcut"])
def test_a_bfloat16_model_gives_nearly_the_same_map_in_float32(name, model_for, images):
    attribution, model = technique(name)(**FIELDS[name]), model_for(name)
    expected = attribution(model, images, GOAL).raw
    model.module.to(torch.bfloat16)
    found = attribution(model, images, GOAL).raw
    assert found.dtype == torch.float32
    likeness = torch.nn.functional.cosine_similarity(found.flatten(1), expected.flatten(1))
    assert float(likeness.min()) > 0.9


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
