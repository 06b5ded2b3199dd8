"""Maps that cannot be drawn say why, in one line that names what to do instead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from timmscope import (
    HookedModel,
    LayerNotFound,
    ObjectiveError,
    ParameterError,
    TechniqueError,
    channel,
    load_model,
    technique,
)

GradCAM = technique("grad-cam")
Saliency = technique("saliency")


@pytest.fixture(scope="module")
def vit() -> HookedModel:
    return load_model("random:vit_tiny_patch16_224?img_size=64&num_classes=10")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def message(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("layer", ["blocks.11", "blocks.11.attn", "blocks.11.norm2", "norm"])
def test_patch_tokens_that_lead_nowhere_are_refused_with_the_layer_to_use(vit, images, layer):
    with pytest.raises(TechniqueError) as caught:
        GradCAM(layer=layer)(vit, images, 3)
    text = message(caught)
    assert f"'{layer}': it gets a gradient only at its 1 prefix token(s)" in text
    assert text.endswith("use layer='blocks.11.norm1'")


def test_a_layer_after_the_objective_is_refused(vit, images):
    with pytest.raises(TechniqueError) as caught:
        GradCAM(layer="blocks.7")(vit, images, channel("blocks.3", 5))
    assert message(caught).endswith("it does not contribute to it; use layer='blocks.3'")


def test_a_layer_without_a_grid_is_refused(vit, images):
    with pytest.raises(TechniqueError) as caught:
        GradCAM(layer="fc_norm")(vit, images, 3)
    assert message(caught).endswith("it has no grid; use layer='blocks.11.norm1'")


def test_a_misspelt_layer_names_the_nearest(vit, images):
    with pytest.raises(LayerNotFound, match=r"'block\.11\.norm1'.*blocks.11.norm1"):
        GradCAM(layer="block.11.norm1")(vit, images, 3)


def test_evidence_that_is_all_negative_suggests_relu_false(pooled_linear, noise):
    module = pooled_linear.module
    module.features.weight.data.abs_()
    module.features.bias.data.abs_()
    module.fc.weight.data[1] = -1
    with pytest.raises(TechniqueError) as caught:
        GradCAM()(pooled_linear, noise, 1)
    assert "zero everywhere for image 0, 1, 2" in message(caught)
    assert "relu=False" in message(caught)
    assert bool((GradCAM(relu=False)(pooled_linear, noise, 1).raw < 0).all())


def test_an_untrained_classifier_of_zeros_is_named(pooled_linear, noise):
    nn.init.zeros_(pooled_linear.module.fc.weight)
    with pytest.raises(TechniqueError, match="is the classifier untrained"):
        GradCAM()(pooled_linear, noise, 1)
    with pytest.raises(TechniqueError, match="untrained classifier"):
        Saliency()(pooled_linear, noise, 1)


def test_a_model_without_any_grid_has_no_map(linear_model):
    with pytest.raises(TechniqueError, match=r"no layer of .* that has a grid"):
        GradCAM()(linear_model, torch.rand(1, 3, 4, 4), 1)


@pytest.mark.parametrize("goal", [10, -1, [3, 4, 5]])
def test_classes_that_do_not_fit_are_refused(vit, images, goal):
    from timmscope import class_logit

    with pytest.raises(ObjectiveError) as caught:
        Saliency()(vit, images, class_logit(goal))
    message(caught)


def test_a_batch_size_below_one_is_refused(vit, images):
    with pytest.raises(ParameterError, match="batch_size is 0: expected an int, 1 or more"):
        Saliency()(vit, images, 3, batch_size=0)


def test_an_activation_that_is_not_finite_has_no_eigen_cam(pooled_linear, noise):
    pooled_linear.module.features.weight.data[2] = float("nan")
    with pytest.raises(TechniqueError, match=r"'features' holds NaN or infinite values"):
        technique("eigen-cam")(layer="features")(pooled_linear, noise, 1)
