"""The hooks work on every architecture that they promise to support, with random weights.

The expected layouts were derived by hand from the papers and the input size; values
and gradients are compared with plain PyTorch hooks on the whole graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from timmscope_registry.errors import LayerNotFound, UnsupportedModel
from timmscope_registry.hooks import ModelHooks, ensure_torchvision, fingerprint

ensure_torchvision()

import timm  # noqa: E402


@dataclass(frozen=True)
class Expected:
    """Expected layers as (layout, channels, grid, prefix tokens), and names that are no layers."""

    size: int | tuple[int, int]
    layers: dict[str, tuple[str, int, tuple[int, int] | None, int]]
    no_layers: tuple[str, ...] = ()
    options: dict[str, object] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size


ARCHITECTURES = {
    "resnet18": Expected(
        (64, 96),
        {
            "conv1": ("NCHW", 64, (32, 48), 0),
            "layer1.0.bn1": ("NCHW", 64, (16, 24), 0),
            "layer4": ("NCHW", 512, (2, 3), 0),
            "global_pool": ("vector", 512, None, 0),
            "logits": ("vector", 1000, None, 0),
        },
    ),
    "efficientnet_b0": Expected(
        64,
        {
            "conv_stem": ("NCHW", 32, (32, 32), 0),
            "blocks.1.0.se.conv_reduce": ("NCHW", 4, (1, 1), 0),
            "blocks.2.0": ("NCHW", 40, (8, 8), 0),
            "bn2": ("NCHW", 1280, (2, 2), 0),
        },
    ),
    "tf_efficientnet_lite0": Expected(
        65,  # "same" padding rounds up
        {
            "conv_stem": ("NCHW", 32, (33, 33), 0),
            "blocks.2.0": ("NCHW", 40, (9, 9), 0),
            "conv_head": ("NCHW", 1280, (3, 3), 0),
        },
    ),
    "mobilenetv3_small_100": Expected(
        64,
        {
            "bn1.act": ("NCHW", 16, (32, 32), 0),
            "blocks.5.0": ("NCHW", 576, (2, 2), 0),
            "act2": ("NCHW", 1024, (1, 1), 0),
            "flatten": ("vector", 1024, None, 0),
        },
    ),
    "convnext_atto": Expected(
        96,
        {
            "stem.1": ("NCHW", 40, (24, 24), 0),
            "stages.1.blocks.0.norm": ("NCHW", 80, (12, 12), 0),
            "stages.3": ("NCHW", 320, (3, 3), 0),
        },
    ),
    "vgg11": Expected(
        64,
        {
            "features.0": ("NCHW", 64, (64, 64), 0),
            "features": ("NCHW", 512, (2, 2), 0),
            "head.global_pool": ("vector", 4096, None, 0),
        },
    ),
    "densenet121": Expected(
        64,
        {
            "features.conv0": ("NCHW", 64, (32, 32), 0),
            "features.denseblock1.denselayer2": ("NCHW", 32, (16, 16), 0),
            "features.denseblock2": ("NCHW", 512, (8, 8), 0),
            "features.norm5": ("NCHW", 1024, (2, 2), 0),
        },
    ),
    "regnety_002": Expected(
        (96, 64),
        {
            "stem": ("NCHW", 32, (48, 32), 0),
            "s3.b4": ("NCHW", 152, (6, 4), 0),
            "s4.b7.act3": ("NCHW", 368, (3, 2), 0),
        },
    ),
    "vit_tiny_patch16_224": Expected(
        (96, 64),
        {
            "patch_embed.proj": ("NCHW", 192, (6, 4), 0),
            "patch_embed": ("tokens", 192, (6, 4), 0),
            "blocks.4": ("tokens", 192, (6, 4), 1),
            "blocks.4.attn.qkv": ("tokens", 576, (6, 4), 1),
            "fc_norm": ("vector", 192, None, 0),
        },
        ("blocks.4.attn.q_norm",),
        {"img_size": (96, 64)},
    ),
    "deit_tiny_distilled_patch16_224": Expected(
        64,
        {
            "patch_embed": ("tokens", 192, (4, 4), 0),
            "blocks.11": ("tokens", 192, (4, 4), 2),
            "head_dist": ("vector", 1000, None, 0),
        },
        (),
        {"img_size": 64},
    ),
    "vit_small_patch14_reg4_dinov2": Expected(
        56,
        {
            "patch_embed": ("tokens", 384, (4, 4), 0),
            "blocks.0.norm1": ("tokens", 384, (4, 4), 5),
            "norm": ("tokens", 384, (4, 4), 5),
        },
        (),
        {"img_size": 56},
    ),
    "swin_tiny_patch4_window7_224": Expected(
        112,
        {
            "patch_embed": ("NHWC", 96, (28, 28), 0),
            "layers.0.blocks.1": ("NHWC", 96, (28, 28), 0),
            "layers.0.blocks.1.mlp": ("tokens", 96, (28, 28), 0),
            "layers.1.downsample.norm": ("NHWC", 384, (14, 14), 0),
            "norm": ("NHWC", 768, (4, 4), 0),
        },
        ("layers.0.blocks.1.attn", "layers.0.blocks.1.attn.qkv"),
        {"img_size": 112},
    ),
    "mambaout_femto": Expected(
        96,
        {
            "stem.conv1": ("NCHW", 24, (48, 48), 0),
            "stem.norm1": ("NHWC", 24, (48, 48), 0),
            "stem.act": ("NCHW", 24, (48, 48), 0),
            "stages.1": ("NHWC", 96, (12, 12), 0),
            "stages.3.blocks.0": ("NHWC", 288, (3, 3), 0),
        },
    ),
    "mixer_s32_224": Expected(
        96,
        {
            "stem": ("tokens", 512, (3, 3), 0),
            "blocks.7": ("tokens", 512, (3, 3), 0),
            "norm": ("tokens", 512, (3, 3), 0),
        },
        ("blocks.0.mlp_tokens.fc1",),
        {"img_size": 96},
    ),
    "hiera_tiny_224": Expected(
        (96, 128),  # after the patches 24x32, two windows by three would not fit: 8x8 units
        {
            "patch_embed": ("tokens", 96, (24, 32), 0),
            "blocks.0": ("tokens", 96, (24, 32), 0),
            "blocks.1": ("tokens", 192, (12, 16), 0),
            "blocks.3": ("tokens", 384, (6, 8), 0),
            "blocks.11": ("tokens", 768, (3, 4), 0),
        },
        (),
        {"img_size": (96, 128)},
    ),
    "cait_xxs24_224": Expected(
        64,
        {
            "patch_embed": ("tokens", 192, (4, 4), 0),
            "blocks.23": ("tokens", 192, (4, 4), 0),
            "blocks_token_only.0": ("tokens", 192, None, 1),
            "norm": ("tokens", 192, (4, 4), 1),
        },
        ("blocks.0.attn.proj_l",),
        {"img_size": 64},
    ),
    "levit_128s": Expected(
        224,
        {
            "stem": ("NCHW", 128, (14, 14), 0),
            "stages.0": ("tokens", 128, (14, 14), 0),
            "stages.1.blocks.0": ("tokens", 256, (7, 7), 0),
            "stages.2": ("tokens", 384, (4, 4), 0),
        },
    ),
}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def case(request: pytest.FixtureRequest) -> tuple[str, Expected, nn.Module, ModelHooks, Tensor]:
    expected = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    model = timm.create_model(request.param, **expected.options)
    enliven(model)
    images = torch.randn(2, 3, *expected.shape, generator=torch.Generator().manual_seed(1))
    return request.param, expected, model, ModelHooks(model, images[:1]), images


def enliven(model: nn.Module) -> None:
    """Replace zero-initialised residual branches and layer scales, so that they have an effect."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.abs().max() <= 1e-3:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)


def test_catalogue_has_the_layout_grid_and_prefix_tokens(case) -> None:
    _, expected, _, hooks, _ = case
    for name, (layout, channels, grid, prefix) in expected.layers.items():
        layer = hooks.layers[name]
        found = (layer.layout, layer.channels, layer.grid, layer.prefix_tokens)
        assert found == (layout, channels, grid, prefix), name
        if grid is not None:
            height, width = expected.shape
            assert layer.stride == (height / grid[0], width / grid[1])
    for name in expected.no_layers:
        assert name not in hooks.layers
        with pytest.raises(LayerNotFound, match="is not a layer: its"):
            hooks.layers[name]


def test_values_and_gradients_equal_those_of_plain_hooks(case) -> None:
    _, expected, model, hooks, images = case
    names = [name for name in expected.layers if name != "logits"]
    modules = dict(model.named_modules())

    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str):
        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            kept[name] = (output, output.detach().clone())
            return output.clone()  # the model may overwrite the original

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    model.eval()
    reference = model(images)
    for handle in handles:
        handle.remove()
    weights = torch.randn(reference.shape[1], generator=torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad(
        (reference @ weights).sum(), [kept[n][0] for n in names], allow_unused=True
    )
    model.train()

    recorded = images.clone().requires_grad_()
    with hooks.record(*names, "logits", gradients=True) as recording:
        output = hooks(recorded)
        torch.autograd.grad((output @ weights).sum(), recorded)
    torch.testing.assert_close(output, reference, rtol=1e-5, atol=1e-5)
    assert recording["logits"] is output
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(recording[name], kept[name][1], rtol=1e-5, atol=1e-6)
        if gradient is None:
            assert name not in recording.gradients
        else:
            scale = float(gradient.abs().max())
            torch.testing.assert_close(
                recording.gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale
            )


def test_every_layer_keeps_its_value_if_all_are_recorded_at_once(case) -> None:
    _, _, model, hooks, images = case
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            kept[module] = output.clone()

    handles = [part.register_forward_hook(keep) for part in model.modules()]
    model.eval()
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    model.train()
    with torch.no_grad(), hooks.record(*hooks.layers) as recording:
        hooks(images)
    modules = {**dict(model.named_modules()), "logits": model}
    assert len(recording) == len(hooks.layers)
    for name in hooks.layers:
        if "#" not in name:
            torch.testing.assert_close(recording[name], kept[modules[name]], rtol=1e-5, atol=1e-6)


def test_maps_agree_with_timms_own_intermediates(case) -> None:
    """timm's `forward_intermediates` converts each block's output to NCHW."""
    name, _, model, hooks, images = case
    if not hasattr(model, "forward_intermediates"):
        pytest.skip(f"{name} has no forward_intermediates")
    model.eval()
    with torch.no_grad():
        theirs = model.forward_intermediates(images, intermediates_only=True)
        with hooks.record(*hooks.layers) as recording:
            hooks(images)
    model.train()
    ours = [
        layer.spatial(recording[name])
        for name, layer in hooks.layers.items()
        if layer.grid is not None
    ]
    for intermediate in theirs:
        assert any(
            each.shape == intermediate.shape
            and torch.allclose(each, intermediate, rtol=1e-4, atol=1e-5)
            for each in ours
        ), intermediate.shape


def test_model_is_unchanged_after_success_and_after_an_exception(case) -> None:
    _, expected, model, hooks, images = case
    first, *_, last = [name for name in expected.layers if name != "logits"]
    before = fingerprint(model)
    assert model.training
    with hooks.record(first, last), hooks.plain_attention(), hooks.cut(first):
        hooks(images)
    assert before.difference(fingerprint(model)) == []

    modules = dict(model.named_modules())
    victim = modules[last]
    forward = victim.forward

    def fail(*args: object, **kwargs: object) -> Tensor:
        raise ZeroDivisionError("in mid-forward")

    victim.forward = fail
    broken = fingerprint(model)
    with (
        pytest.raises(ZeroDivisionError),
        hooks.record(first, "logits"),
        hooks.plain_attention(),
        hooks.cut(first),
    ):
        hooks(images)
    assert broken.difference(fingerprint(model)) == []
    victim.forward = forward
    del victim.forward
    assert before.difference(fingerprint(model)) == []


def test_each_of_several_tensors_that_a_module_returns_is_a_layer() -> None:
    ensure_torchvision()
    model = timm.create_model("crossvit_tiny_240")
    hooks = ModelHooks(model, torch.zeros(1, 3, 240, 240))
    assert [hooks.layers[f"blocks.0[{branch}]"].grid for branch in (0, 1)] == [(20, 20), (14, 14)]
    with pytest.raises(LayerNotFound, match=r"blocks\.0 is not a layer: it returns a list of bl"):
        hooks.layers["blocks.0"]
    with pytest.raises(UnsupportedModel, match=r"returns a list of blocks\.0\[0\], .* name one"):
        hooks.record("blocks.0")
    # CrossViT's second branch sees the image at 224 px.
    assert hooks.layers["patch_embed.1"].grid == (14, 14)
    assert hooks.layers["blocks.2.blocks.0.0"].grid == (20, 20)
    assert hooks.layers["blocks.2.blocks.1.0"].prefix_tokens == 1
