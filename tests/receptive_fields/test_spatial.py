"""Spatial receptive fields equal the exact ones of the network without its gates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.receptive_fields.conftest import hooked, plain
from torch import Tensor, nn

from timmscope import receptive_field


def without(module: nn.Module, *names: str) -> nn.Module:
    """Replace all parts of those names by identities."""
    for parent in list(module.modules()):
        for name, part in list(parent.named_children()):
            if name in names and not isinstance(part, nn.Identity):
                setattr(parent, name, nn.Identity())
    return module


@pytest.mark.parametrize(
    ("name", "size", "gates", "layers"),
    [
        ("efficientnet_b0", (96, 128), ["se"], ["blocks.0.0", "blocks.3.0", "bn2"]),
        ("mobilenetv3_small_100", (96, 96), ["se"], ["blocks.1.1", "blocks.3.0"]),
        ("regnety_002", (64, 96), ["se"], ["s2.b1", "s3.b2"]),
        ("convnextv2_atto", (96, 128), ["grn"], ["stages.0", "stages.1", "stages.2"]),
        ("seresnet18", (96, 96), ["se"], ["layer1", "layer3"]),
        ("ecaresnet26t", (96, 96), ["se"], ["layer1", "layer2"]),
        ("gcresnet33ts", (96, 96), ["attn"], ["stages.0", "stages.1"]),
    ],
)
def test_gates_are_ignored(name, size, gates, layers):
    gated, ungated = hooked(name, size), hooked(name, size)
    without(ungated.module, *gates)
    for layer in layers:
        spatial = receptive_field(gated, layer)
        exact = receptive_field(ungated, layer, "exact")
        np.testing.assert_array_equal(spatial.boxes, exact.boxes)
        np.testing.assert_array_equal(spatial.unclipped, exact.unclipped)
        assert spatial.size == exact.size
        assert spatial.kind == "spatial"
        whole = receptive_field(gated, layer, "exact")
        assert whole.sees_all((0, 0))
        assert whole.unclipped is None


def test_group_norm_is_treated_like_batch_norm():
    grouped, batched = hooked("resnet50_gn", (96, 96)), hooked("resnet50", (96, 96))
    for layer in ("layer1", "layer2", "layer3"):
        spatial = receptive_field(grouped, layer, "spatial")
        exact = receptive_field(batched, layer, "exact")
        np.testing.assert_array_equal(spatial.boxes, exact.boxes)
        assert receptive_field(grouped, layer, "exact").sees_all((1, 1))


@pytest.mark.parametrize(
    ("name", "size", "options", "layer", "patch"),
    [
        ("vit_tiny_patch16_224", (64, 96), {"img_size": (64, 96)}, "blocks.11", 16),
        ("vit_small_patch14_reg4_dinov2", (56, 84), {"img_size": (56, 84)}, "norm", 14),
        ("deit_tiny_distilled_patch16_224", (64, 64), {"img_size": 64}, "blocks.11", 16),
        ("mixer_s32_224", (96, 96), {"img_size": 96}, "blocks.7", 32),
        ("cait_xxs24_224", (64, 64), {"img_size": 64}, "blocks.23", 16),
        ("resmlp_12_224", (224, 224), {}, "blocks.11", 16),
        ("gmixer_12_224", (224, 224), {}, "blocks.11", 16),
        ("naflexvit_base_patch16_gap", (64, 96), {}, "blocks.3", 16),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_token_sees_its_own_patch(name, size, options, layer, patch, fused):
    model = hooked(name, size, **options)
    for part in model.module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused
    field = receptive_field(model, layer)
    rows, columns = size[0] // patch, size[1] // patch
    assert field.size == (patch, patch)
    assert field.stride == (patch, patch)
    for row, column in [(0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)]:
        left, upper = column * patch, row * patch
        assert field.box((row, column)) == (left, upper, left + patch, upper + patch)
        assert field.box((row, column)) == field.cell((row, column))
    assert receptive_field(model, layer, "exact").sees_all((0, 0))


def test_windowed_attention_is_local_and_counts():
    options = {"img_size": 112}
    model = hooked("swin_tiny_patch4_window7_224", (112, 112), **options)
    field = receptive_field(model, "layers.0.blocks.0")  # four by four windows of 28 px
    assert field.box((0, 0)) == (0, 0, 28, 28)
    assert field.box((8, 20)) == (56, 28, 84, 56)
    assert field.unclipped is None
    shifted = receptive_field(model, "layers.0.blocks.1")
    assert shifted.box((0, 0)) == (0, 0, 28, 28)
    assert shifted.box((4, 4)) == (0, 0, 56, 56)  # its window spans four of the first
    assert shifted.box((27, 27)) == (84, 84, 112, 112)


def test_pooling_over_rows_is_global_vertically_and_local_horizontally():
    class Net(nn.Module):
        num_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            gate = torch.nn.functional.adaptive_avg_pool2d(x, (1, None)).sigmoid()
            return self.head(self.mix(x * gate).mean((2, 3)))

    model = plain(Net(), (10, 12))
    assert receptive_field(model, "mix", "exact").box((5, 6)) == (4, 0, 9, 10)
    assert receptive_field(model, "mix").box((5, 6)) == (4, 3, 9, 8)


def test_gates_themselves_see_the_whole_image():
    model = hooked("efficientnet_b0", (64, 96))
    field = receptive_field(model, "blocks.1.0.se.conv_reduce")
    assert field.grid == (1, 1)
    assert field.sees_all((0, 0))


def test_local_sums_by_unfold_and_matmul_are_not_taken_for_gates():
    class Net(nn.Module):
        num_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 27))
            self.last, self.head = nn.Identity(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            columns = nn.functional.unfold(x, 3, padding=1)  # (B, 27, n)
            maps = (self.weight @ columns).view(len(x), 4, *x.shape[2:])
            normed = nn.functional.layer_norm(maps.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)
            return self.head(self.last(normed.contiguous()).mean((2, 3)))

    model = plain(Net(), (9, 7))
    for kind in ("exact", "spatial"):
        field = receptive_field(model, "last", kind)
        assert field.box((4, 3)) == (2, 3, 5, 6)
        assert field.box((0, 0)) == (0, 0, 2, 2)
        assert field.box((8, 6)) == (5, 7, 7, 9)
