"""Channels, sizes and heads are those of the module and of the images, not of timm's tables."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from timmscope import (
    HookedModel,
    ModelError,
    ObjectiveError,
    UnsupportedModel,
    load_model,
    neuron,
    technique,
)

SETTINGS = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 32, 32)}


@pytest.mark.parametrize(
    ("arch", "made", "size"),
    [
        ("resnet10t", {"in_chans": 1}, (1, 176, 176)),
        ("vit_tiny_patch16_224", {"in_chans": 5, "depth": 1}, (5, 224, 224)),
        ("tresnet_m", {"in_chans": 2}, (2, 224, 224)),
        ("tresnet_m", {}, (3, 224, 224)),
        ("vit_tiny_patch16_224", {"img_size": (64, 96), "depth": 1}, (3, 64, 96)),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4}, (3, 64, 64)),
    ],
)
def test_channels_and_size_are_those_with_which_the_module_was_made(arch, made, size):
    with torch.device("meta"):
        module = timm.create_model(arch, **made)
    assert HookedModel(module).input_size == size


def test_a_greyscale_picture_is_normalised_with_the_mean_of_the_statistics():
    torch.manual_seed(0)
    module = timm.create_model("resnet10t", in_chans=1, num_classes=4).eval()
    model = HookedModel(module, input_size=(1, 32, 32))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    mean, std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    assert (model.mean[0], model.std[0]) == pytest.approx((mean, std))
    images = model.images(Image.fromarray(pixels))
    inputs = (images - mean) / std
    with torch.no_grad():
        assert torch.allclose(model(images), module(inputs), atol=1e-5)


@pytest.fixture(scope="module", params=[1, 4])
def channels(request) -> HookedModel:
    return load_model(f"random:resnet10t?in_chans={request.param}&img_size=32&num_classes=5")


def _images(model: HookedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = 0.3 * torch.rand(2, *model.input_size, generator=generator)
    images[:, :, 8:22, 10:26] += 0.6
    return images


@pytest.mark.parametrize(
    "name",
    ["saliency", "integrated-gradients", "smooth-grad", "grad-cam", "occlusion", "rise"],
)
def test_attributions_take_any_number_of_channels(channels, name, tmp_path):
    parameters = {
        "rise": {"masks": 16},
        "grad-cam": {"relu": False},
        "smooth-grad": {"samples": 2},
        "occlusion": {"patch_px": 8, "stride_px": 8},
    }
    images = _images(channels)
    made = technique(name)(**parameters.get(name, {}))(channels, images, "class:3")
    assert torch.allclose(made.scores, channels(images)[:, 3].detach(), atol=1e-5)
    made.save(tmp_path / "out")
    if name == "saliency":
        leaf = images.clone().requires_grad_()
        inputs = channels.preprocessing.normalise(leaf)
        (gradient,) = torch.autograd.grad(channels.module(inputs)[:, 3].sum(), leaf)
        assert torch.allclose(made.raw, gradient.abs().amax(1), rtol=1e-3, atol=1e-6)


def test_grabcut_cuts_out_an_object_of_any_number_of_channels(channels):
    images = _images(channels)
    masks = technique("grabcut")().segment(images, images.mean(1))
    expected = torch.zeros(2, 32, 32)
    expected[:, 8:22, 10:26] = 1
    assert torch.equal(masks, expected)


def test_attacks_synthesis_and_style_take_any_number_of_channels(channels, tmp_path):
    images = _images(channels)
    attacked = technique("fgsm")()(channels, images)
    assert attacked.images.shape == images.shape
    assert float((attacked.images - images).abs().max()) == pytest.approx(attacked.linf.max())
    made = technique("activation-maximization")(steps=8, robust=False)(channels, "class:3")
    assert made.images.shape == (1, *channels.input_size)
    assert made.final_scores[0] > made.scores[0, 0]
    styled = technique("neural-style")(steps=3)(channels, images[:1], images[1:])
    assert styled.images.shape == (1, *channels.input_size)
    assert styled.losses[0, -1] < styled.losses[0, 0]
    for number, result in enumerate((attacked, made, styled)):
        result.save(tmp_path / str(number))


def test_after_reset_classifier_logits_layers_and_hash_are_the_new_ones():
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=10).train()
    model = HookedModel(net, **SETTINGS)
    images = torch.rand(2, 3, 32, 32)
    before = model.weights_sha256
    assert model.layers["logits"].channels == model.num_classes == 10
    net.reset_classifier(5)
    assert model.layers["logits"].channels == model.num_classes == 5
    assert model.weights_sha256 != before
    with pytest.raises(ObjectiveError, match="classes 0 to 4, there is no class 7"):
        model.score(images, "class:7")
    with model.record("fc") as seen:
        model(images)
    expected = net.eval()((images - 0.5) / 0.5)
    assert torch.allclose(seen["fc"], expected, atol=1e-5)
    last = model.weights_sha256
    net.reset_classifier(0)
    assert model.num_classes == 0
    assert model.weights_sha256 != last


def test_imagenet_names_are_not_those_of_another_number_of_classes():
    net = timm.create_model("resnet10t")
    model = HookedModel(net)
    assert model.classes.find("tiger cat") == 282
    net.reset_classifier(5)
    assert model.classes is None
    assert model.class_name(3) == "class 3"


def test_a_part_replaced_in_train_mode_still_runs_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(192, 2)).train()
    model = HookedModel(net, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 8, 8))
    images = torch.rand(4, 3, 8, 8)
    first = model(images)
    net[1] = nn.Dropout(0.9)
    assert torch.equal(model(images), first)
    assert net[1].training


@pytest.fixture(scope="module")
def dynamic() -> HookedModel:
    query = "num_classes=5&dynamic_img_size=true&depth=2&img_size=64&reg_tokens=2"
    return load_model(f"random:vit_tiny_patch16_224?{query}")


def test_tokens_of_images_of_another_size_lie_on_their_own_grid(dynamic):
    images = torch.rand(2, 3, 48, 96, generator=torch.Generator().manual_seed(0))
    assert dynamic.layers["blocks.0"].grid == (4, 4)
    sized = dynamic.for_images(images)
    assert (sized.layers["blocks.0"].grid, sized.layers["blocks.0"].prefix_tokens) == ((3, 6), 3)
    assert sized is dynamic.for_images(images)
    assert dynamic.for_images(torch.zeros(1, 3, 64, 64)) is dynamic
    with dynamic.record("blocks.0") as seen, torch.no_grad():
        dynamic(images)
    tokens = seen["blocks.0"]  # (2, 3 + 3 * 6, 192)
    for objective, expected in {
        "blocks.0[7]": tokens[:, 3:, 7].mean(1),
        "blocks.0[7,2,5]": tokens[:, 3 + 2 * 6 + 5, 7],
        neuron("blocks.0", 7): tokens[:, 3 + 1 * 6 + 3, 7],
    }.items():
        assert torch.allclose(dynamic.score(images, objective), expected, atol=1e-6)
    with pytest.raises(ObjectiveError, match=r"grid of 3×6 cells, there is no cell \(3, 0\)"):
        dynamic.score(images, "blocks.0[7,3,0]")


def test_grad_cam_on_tokens_of_another_size_is_its_formula(dynamic):
    images = torch.rand(2, 3, 48, 96, generator=torch.Generator().manual_seed(0))
    made = technique("grad-cam")(layer="blocks.0", relu=False)(dynamic, images, "class:3")
    _, activation, gradient = dynamic.layer_gradient(images, "class:3", "blocks.0")
    expected = (gradient[:, 3:].mean(1, keepdim=True) * activation[:, 3:]).sum(2).view(2, 3, 6)
    assert torch.allclose(made.raw, expected, atol=1e-7)
    default = technique("grad-cam")(relu=False)(dynamic, images, "class:3")
    assert default.raw.shape == (2, 3, 6)
    assert default.provenance.weights_sha256 == dynamic.weights_sha256
    rolled = technique("attention-rollout")()(dynamic, images, "class:3")
    assert rolled.raw.shape == (2, 3, 6)


def test_a_swin_of_another_size_has_the_values_of_its_own_grid():
    query = "num_classes=3&img_size=64&depths=(1,1)&num_heads=(3,6)&window_size=4"
    model = load_model(f"random:swin_tiny_patch4_window7_224?{query}&strict_img_size=false")
    images = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    with model.record("layers.0") as seen, torch.no_grad():
        model(images)
    cells = seen["layers.0"]  # (1, 16, 32, 96)
    assert torch.allclose(model.score(images, "layers.0[5]"), cells[..., 5].mean((1, 2)), atol=1e-6)
    assert torch.equal(model.score(images, "layers.0[5,15,31]"), cells[:, 15, 31, 5])
    made = technique("grad-cam")(layer="layers.0", relu=False)(model, images, "class:1")
    assert made.raw.shape == (1, 16, 32)


def test_contexts_act_on_images_of_every_size(dynamic):
    images = torch.rand(1, 3, 48, 96)
    with dynamic.edit({"blocks.1": torch.zeros_like}):
        silenced = dynamic.score(images, "blocks.1[7]")
    assert silenced.tolist() == [0]


def test_the_centre_of_a_convolutional_layer_is_that_of_the_image():
    model = load_model("random:resnet10t?img_size=64&num_classes=5")
    images = torch.rand(1, 3, 96, 160)
    with model.record("layer2") as seen, torch.no_grad():
        model(images)
    maps = seen["layer2"]  # (1, 128, 12, 20); of 64 px images (8, 8)
    assert torch.equal(model.score(images, "layer2[3,centre]"), maps[:, 3, 6, 10])
    assert torch.equal(model.score(images, "layer2[3,11,19]"), maps[:, 3, 11, 19])
    with pytest.raises(ObjectiveError, match=r"grid of 12×20 cells, there is no cell \(12, 0\)"):
        model.score(images, "layer2[3,12,0]")


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_size_that_the_model_does_not_take_is_one_typed_line(arch):
    depth = "depth=1" if arch.startswith("vit") else "depths=(1,1)&num_heads=(3,6)&window_size=4"
    model = load_model(f"random:{arch}?num_classes=3&img_size=64&{depth}")
    images = torch.rand(1, 3, 70, 80)
    for ask in (
        lambda: model(images),
        lambda: model.score(images, "class:1"),
        lambda: technique("saliency")()(model, images),
        lambda: technique("pgd")()(model, images),
    ):
        with pytest.raises(
            UnsupportedModel, match=r"does not take images of 70×80 px .*64×64 px"
        ) as e:
            ask()
        assert re.search("load it with (dynamic_img_size=true|strict_img_size=false)", str(e.value))
        assert "\n" not in str(e.value)


def test_an_error_of_a_callback_is_not_blamed_on_the_size(dynamic):
    def fail(_: torch.Tensor) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), dynamic.watch({"blocks.0": fail}):
        dynamic(torch.rand(1, 3, 48, 96))


def test_technique_and_model_of_another_kind_are_refused_in_one_line():
    with pytest.raises(ModelError, match="a technique takes a HookedModel, not Linear"):
        technique("saliency")()(nn.Linear(2, 2), torch.rand(1, 3, 8, 8))
