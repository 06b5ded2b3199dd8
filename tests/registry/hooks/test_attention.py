"""`plain_attention` makes attention matrices visible, which fused kernels never store."""

from __future__ import annotations

import pytest
import torch

from timmscope_registry.errors import UnsupportedModel
from timmscope_registry.hooks import ModelHooks, ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402


def test_attention_matrices_are_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).double()
    images = torch.randn(2, 3, 64, 64).double()
    hooks = ModelHooks(model, images)
    plain = hooks(images)
    point = "blocks.1.attn.attn_drop"
    with (
        pytest.raises(UnsupportedModel, match=r"never ran .*_drop.*plain_attention"),
        hooks.record(point),
    ):
        hooks(images)
    with hooks.plain_attention() as names, hooks.record(point, "blocks.1.attn.qkv") as recording:
        hooks(images)
    assert names == ("blocks.0.attn", "blocks.1.attn")
    qkv = recording["blocks.1.attn.qkv"].reshape(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
    expected = (qkv[0] @ qkv[1].mT / 8).softmax(-1)
    torch.testing.assert_close(recording[point], expected)
    with hooks.plain_attention():
        torch.testing.assert_close(hooks(images), plain)
