"""Rollout and raw attention against matrices computed from queries and keys by hand."""

from __future__ import annotations

import pytest
import torch

from timmscope import (
    ParameterError,
    TechniqueError,
    UnsupportedModel,
    channel,
    class_logit,
    load_model,
    technique,
)
from timmscope_registry.hooks import fingerprint

Rollout = technique("attention-rollout")
AttentionMap = technique("attention-map")

# name, prefix tokens, the tokens that the classifier reads
MODELS = [
    ("vit_tiny_patch16_224?img_size=64&num_classes=10&depth=4", 1, [0]),
    ("deit_tiny_distilled_patch16_224?img_size=64&num_classes=10&depth=3", 2, [0, 1]),
    ("vit_small_patch14_reg4_dinov2?img_size=56&num_classes=10&depth=3", 5, [0]),
    ("vit_tiny_patch16_224?img_size=64&num_classes=10&depth=3&global_pool=avg", 1, None),
]


def matrices(model, image):
    """softmax(Q Kᵀ / √d) of each block, from its own weights and what goes into it."""
    found = []
    for block in model.module.blocks:
        part = block.attn
        kept = []
        handle = part.register_forward_pre_hook(lambda module, args, k=kept: k.append(args[0]))
        model(image[None])
        handle.remove()
        (tokens,) = kept[0]
        heads = part.num_heads
        both = tokens @ part.qkv.weight.T + part.qkv.bias
        q, k, _ = both.reshape(len(tokens), 3, heads, -1).permute(1, 2, 0, 3)
        found.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1).detach())
    return found


def row_of(matrix, read, prefix):
    rows = list(range(prefix, len(matrix))) if read is None else read
    side = int((len(matrix) - prefix) ** 0.5)
    return matrix[rows].mean(0)[prefix:].reshape(side, side)


@pytest.fixture(scope="module", params=MODELS, ids=[row[0].partition("?")[0] for row in MODELS])
def case(request):
    name, prefix, read = request.param
    model = load_model(f"random:{name}")
    images = torch.rand(2, *model.input_size, generator=torch.Generator().manual_seed(0))
    return model, images, prefix, read


def test_rollout_is_the_product_of_row_normalised_attention(case):
    model, images, prefix, read = case
    before = fingerprint(model.module)
    ours = Rollout()(model, images, class_logit([3, 7]))
    assert fingerprint(model.module).difference(before) == []
    assert all(block.attn.fused_attn for block in model.module.blocks)
    for row in range(2):
        product = torch.eye(ours.raw[row].numel() + prefix)
        for matrix in matrices(model, images[row]):
            both = matrix.mean(0) + torch.eye(len(product))
            product = (both / both.sum(1, keepdim=True)) @ product
        assert torch.allclose(ours.raw[row], row_of(product, read, prefix), rtol=1e-4, atol=1e-7)
    logits = model(images)
    assert torch.allclose(ours.scores, logits[[0, 1], [3, 7]].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("block", "head"), [(-1, None), (0, None), (1, 2), (2, 0)])
def test_raw_attention_is_the_softmax_of_queries_and_keys(case, block, head):
    model, images, prefix, read = case
    ours = AttentionMap(block_index=block, head=head)(model, images, 3).raw
    for row in range(2):
        matrix = matrices(model, images[row])[block]
        matrix = matrix.mean(0) if head is None else matrix[head]
        assert torch.allclose(ours[row], row_of(matrix, read, prefix), rtol=1e-4, atol=1e-7)


def test_fused_attention_is_back_after_a_failure(case):
    model, images, *_ = case
    before = fingerprint(model.module)
    with pytest.raises(ParameterError, match=r"heads 0 to \d, there is no head 12"):
        AttentionMap(head=12)(model, images, 3)
    assert fingerprint(model.module).difference(before) == []
    with pytest.raises(ParameterError, match=r"blocks 0 to \d, there is no block 99"):
        AttentionMap(block_index=99)(model, images, 3)


@pytest.mark.parametrize("kind", [Rollout, AttentionMap])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18?img_size=64", "has no attention"),
        ("convnext_atto?img_size=64", "has no attention"),
        ("mixer_s32_224?img_size=96", "has no attention"),
        ("swin_tiny_patch4_window7_224?img_size=64", "WindowAttention at layers.0.blocks.0.attn"),
        ("cait_xxs24_224?img_size=64", "not one matrix over all tokens"),
        ("xcit_nano_12_p16_224?img_size=64", "use grad-cam, layer-cam or occlusion"),
        ("pvt_v2_b0?img_size=64", "changes between blocks"),
    ],
)
def test_models_without_one_attention_are_refused_with_what_to_use(kind, name, words):
    model = load_model(f"random:{name}&num_classes=10")
    with pytest.raises(UnsupportedModel) as caught:
        kind()(model, torch.rand(1, *model.input_size), 3)
    assert words in str(caught.value)
    assert "use grad-cam, layer-cam or occlusion" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Rollout, AttentionMap])
def test_an_objective_inside_the_model_is_refused(case, kind):
    model, images, *_ = case
    with pytest.raises(TechniqueError, match=r"no map for blocks.1\[3\]; explain a class"):
        kind()(model, images, channel("blocks.1", 3))
    both = class_logit(1) - class_logit(2)
    assert torch.equal(kind()(model, images, both).raw, kind()(model, images, 5).raw)


def test_an_untrained_classifier_of_zeros_is_named(case):
    model, images, *_ = case
    heads = [part for name, part in model.module.named_modules() if name.startswith("head")]
    kept = {weight: weight.data.clone() for part in heads for weight in part.parameters()}
    try:
        for weight in kept:
            weight.data.zero_()
        with pytest.raises(TechniqueError, match="is the classifier untrained"):
            Rollout()(model, images, 3)
    finally:
        for weight, values in kept.items():
            weight.data.copy_(values)
