"""Grad-CAM without a word about the layer, on every kind of network, against a map by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from timmscope import HookedModel, TechniqueError, class_logit, technique
from timmscope_registry.hooks import fingerprint

GradCAM = technique("grad-cam")
Saliency = technique("saliency")

# name, default layer, layout, prefix tokens
ARCHITECTURES = [
    ("resnet18?img_size=64", "layer4", "NCHW", 0),
    ("efficientnet_b0?img_size=64", "bn2", "NCHW", 0),
    ("tf_efficientnet_lite0?img_size=64", "bn2", "NCHW", 0),
    ("mobilenetv3_small_100?img_size=64", "blocks", "NCHW", 0),
    ("convnext_atto?img_size=64", "stages", "NCHW", 0),
    ("vgg11?img_size=64&num_classes=10&mlp_ratio=0.05", "features", "NCHW", 0),
    ("densenet121?img_size=64", "features", "NCHW", 0),
    ("regnety_002?img_size=64", "s4", "NCHW", 0),
    ("vit_tiny_patch16_224?img_size=64", "blocks.11.norm1", "tokens", 1),
    ("deit_tiny_distilled_patch16_224?img_size=64", "blocks.11.norm1", "tokens", 2),
    ("vit_small_patch14_reg4_dinov2?img_size=56&num_classes=10", "blocks.11.norm1", "tokens", 5),
    ("swin_tiny_patch4_window7_224?img_size=64", "norm", "NHWC", 0),
    ("mambaout_femto?img_size=64", "stages", "NHWC", 0),
    ("mixer_s32_224?img_size=96", "norm", "tokens", 0),
    ("hiera_tiny_224?img_size=64", "blocks.11", "tokens", 0),
    ("cait_xxs24_224?img_size=64", "blocks_token_only.1.norm1", "tokens", 1),
    ("levit_128s?img_size=128", "stages", "tokens", 0),
]
CLASSES = [3, 7]


def by_hand(
    model: HookedModel, image: Tensor, index: int, path: str, layout: str, prefix: int
) -> Tensor:
    """`Σ_k mean(g_k) A_k` of one image, from a plain forward hook and autograd."""
    kept: list[Tensor] = []
    handle = model.module.get_submodule(path).register_forward_hook(
        lambda module, args, output: kept.append(output)
    )
    try:
        logits = model(image[None].clone().requires_grad_())
    finally:
        handle.remove()
    activation = kept[-1]
    (gradient,) = torch.autograd.grad(logits[0, index], activation)
    a, g = activation[0].detach(), gradient[0]
    if layout == "NHWC":
        a, g = a.permute(2, 0, 1), g.permute(2, 0, 1)
    elif layout == "tokens":
        a, g = a[prefix:].T, g[prefix:].T
        side = int(a.shape[1] ** 0.5)
        a, g = a.reshape(-1, side, side), g.reshape(-1, side, side)
    total = torch.zeros_like(a[0])
    for unit in range(len(a)):
        total += g[unit].mean() * a[unit]
    return total


def with_ten_classes(name: str) -> str:
    return f"random:{name.replace('&num_classes=10', '')}&num_classes=10"


GRADIENT_CAMS = ["grad-cam", "grad-cam++", "xgrad-cam", "layer-cam", "eigen-cam"]
POOLED_AND_LINEAR = ("resnet18", "efficientnet", "tf_", "densenet", "regnety", "swin", "mixer",
                     "levit")  # fmt: skip
RECTIFIED = ("resnet18", "tf_", "vgg", "densenet", "regnety")


@pytest.mark.parametrize("name", [row[0] for row in ARCHITECTURES])
def test_every_class_activation_map_has_the_layers_grid_or_says_why_not(name, awake):
    model = awake(with_ten_classes(name))
    images = torch.rand(2, *model.input_size, generator=torch.Generator().manual_seed(0))
    grid = model.layers[{row[0]: row[1] for row in ARCHITECTURES}[name]].grid

    def found(kind: str) -> tuple[int, ...]:
        raw = technique(kind)(relu=False)(model, images, class_logit(CLASSES)).raw
        assert bool((raw.amax((1, 2)) > raw.amin((1, 2))).all())
        return tuple(raw.shape[1:])

    for kind in GRADIENT_CAMS:
        assert found(kind) == grid
    if name.startswith(POOLED_AND_LINEAR):
        assert found("cam") == grid
    else:
        with pytest.raises(TechniqueError, match=r"one linear layer to the classes.*use grad-cam"):
            found("cam")
    if name.startswith(RECTIFIED):
        assert found("guided-grad-cam") == model.input_size[1:]
    else:
        with pytest.raises(TechniqueError, match=r"has \d+ (GELU|SiLU|Hardswish) .*use saliency"):
            found("guided-grad-cam")


@pytest.mark.parametrize(
    ("name", "layer", "layout", "prefix"), ARCHITECTURES, ids=[row[0] for row in ARCHITECTURES]
)
def test_the_default_layer_gives_the_map_by_hand_and_leaves_no_trace(
    name, layer, layout, prefix, awake
):
    model = awake(with_ten_classes(name))
    images = torch.rand(2, *model.input_size, generator=torch.Generator().manual_seed(0))
    before = fingerprint(model.module)
    result = GradCAM(relu=False)(model, images, class_logit(CLASSES))
    gradient = Saliency()(model, images, class_logit(CLASSES)).maps
    assert fingerprint(model.module).difference(before) == []
    for row, index in enumerate(CLASSES):
        expected = by_hand(model, images[row], index, layer, layout, prefix)
        scale = float(expected.abs().max())
        assert float((result.raw[row] - expected).abs().max()) <= 1e-4 * scale
        alone = GradCAM(relu=False, layer=layer)(model, images[row : row + 1], index).raw[0]
        assert float((result.raw[row] - alone).abs().max()) <= 1e-4 * scale
    leaf = images.clone().requires_grad_()
    scores = model(leaf).gather(1, torch.tensor(CLASSES)[:, None])
    (slope,) = torch.autograd.grad(scores.sum(), leaf)
    assert torch.allclose(gradient, slope.abs().amax(1), rtol=1e-3, atol=1e-4 * float(slope.max()))
    assert torch.allclose(result.scores, scores[:, 0].detach(), rtol=1e-4, atol=1e-5)
