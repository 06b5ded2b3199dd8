"""Gradient techniques and class activation maps compute what the peers or their formulas say."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from captum.attr import (
    Deconvolution,
    GuidedBackprop,
    InputXGradient,
    LayerAttribution,
    LayerGradCam,
)
from captum.attr import IntegratedGradients as CaptumIntegrated
from pytorch_grad_cam import GradCAMPlusPlus, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch import Tensor

from timmscope import (
    HookedModel,
    TechniqueError,
    channel,
    class_logit,
    compare,
    direction,
    load_result,
    neuron,
    noise_like,
    technique,
)
from timmscope.techniques.session import session
from timmscope_attribution.eigen_cam import first_component

CLASSES = [3, 1, 7]
MODELS = {
    "resnet18": ("random:resnet18?img_size=64&num_classes=10", "layer4"),
    "vgg11": ("random:vgg11?img_size=64&num_classes=10&mlp_ratio=0.05", "features"),
    "densenet121": ("random:densenet121?img_size=64&num_classes=10", "features"),
    "lite0": ("", "bn2"),
}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


@pytest.fixture(params=MODELS)
def case(request, awake, lite0, photos):
    """A model in float64, three images, a class each, the layer of class activation maps."""
    where, layer = MODELS[request.param]
    model = awake(where) if where else lite0
    module = copy.deepcopy(model.module).double()
    size = model.input_size if where else (3, 96, 96)
    double = HookedModel(module, mean=model.mean, std=model.std, input_size=size)
    images = torch.nn.functional.interpolate(photos, size[1:], mode="area").double()
    return double, images, CLASSES if where else [282, 504, 650], layer


def plain_copy(model: HookedModel) -> torch.nn.Module:
    """For peers that leave the model changed: a copy whose ReLUs are not in place."""
    twin = copy.deepcopy(model.module).eval()
    for part in twin.modules():
        if isinstance(part, torch.nn.ReLU | torch.nn.ReLU6):
            part.inplace = False
    mean, std = torch.tensor(model.mean).view(3, 1, 1), torch.tensor(model.std).view(3, 1, 1)

    class Normalised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = twin

        def forward(self, images):
            return self.network((images - mean.to(images)) / std.to(images))

    return Normalised().eval()


def test_input_x_gradient_is_captums(case):
    model, images, classes, _ = case
    ours = technique("input-x-gradient")()(model, images, class_logit(classes))
    theirs = InputXGradient(model.as_module()).attribute(
        images.clone().requires_grad_(), target=classes
    )
    assert ours.maps.dtype == torch.float64
    assert relative(ours.pixels, theirs.detach()) <= 1e-5
    assert relative(ours.maps, theirs.detach().sum(1)) <= 1e-5


def test_integrated_gradients_are_captums(case):
    model, images, classes = case[0], case[1][:1], case[2][:1]
    ours = technique("integrated-gradients")(steps=9)(model, images, class_logit(classes))
    theirs = CaptumIntegrated(model.as_module()).attribute(
        images, target=classes, n_steps=9, method="gausslegendre", internal_batch_size=9
    )
    assert relative(ours.pixels, theirs) <= 1e-5
    assert relative(ours.maps, theirs.sum(1)) <= 1e-5


def test_smooth_grad_is_the_mean_signed_gradient_over_its_noise(case):
    model, images, classes, _ = case
    smooth = technique("smooth-grad")(samples=1, noise=0.2)
    ours = smooth(model, images, class_logit(classes), seed=5)
    with session(5, range(3)):
        noise = noise_like(images)
    spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
    leaf = (images + 0.2 * spread * noise).requires_grad_()
    scores = model(leaf).gather(1, torch.tensor(classes)[:, None])
    (expected,) = torch.autograd.grad(scores.sum(), leaf)
    assert relative(ours.pixels, expected) <= 1e-5


RECTIFIED = pytest.mark.parametrize(
    ("name", "peer"), [("guided-backprop", GuidedBackprop), ("deconvnet", Deconvolution)]
)


@RECTIFIED
def test_rectified_gradients_are_captums(name, peer, case):
    model, images, classes, layer = case
    if layer == "bn2":
        pytest.skip("captum's module hooks know no ReLU6")
    ours = technique(name)()(model, images, class_logit(classes))
    theirs = peer(plain_copy(model)).attribute(images.clone().requires_grad_(), target=classes)
    assert relative(ours.pixels, theirs.detach()) <= 1e-5
    assert relative(ours.maps, theirs.detach().abs().amax(1)) <= 1e-5


class ByDefinition(torch.autograd.Function):
    """ReLU or ReLU6 whose backward is one of the two papers'."""

    @staticmethod
    def forward(ctx, x, cap, only_active):
        ctx.save_for_backward((x > 0) & (x < cap) if only_active else torch.ones_like(x).bool())
        return x.clamp(0, cap)

    @staticmethod
    def backward(ctx, gradient):
        (passing,) = ctx.saved_tensors
        return torch.where(passing & (gradient > 0), gradient, 0), None, None


@RECTIFIED
def test_rectified_gradients_are_the_definitions_with_relu_and_relu6(name, peer, case):
    model, images, classes, _ = case
    twin = plain_copy(model)
    for part in list(twin.modules()):
        for key, child in part.named_children():
            if isinstance(child, torch.nn.ReLU | torch.nn.ReLU6):
                cap = 6.0 if isinstance(child, torch.nn.ReLU6) else float("inf")
                written = torch.nn.Module()
                written.forward = lambda x, cap=cap: ByDefinition.apply(
                    x, cap, name == "guided-backprop"
                )
                setattr(part, key, written)
    leaf = images.clone().requires_grad_()
    scores = twin(leaf).gather(1, torch.tensor(classes)[:, None])
    (expected,) = torch.autograd.grad(scores.sum(), leaf)
    ours = technique(name)(reduce="l2")(model, images, class_logit(classes))
    assert relative(ours.pixels, expected) <= 1e-5
    assert relative(ours.maps, expected.square().sum(1).sqrt()) <= 1e-5


def test_guided_grad_cam_is_captums_with_bilinear_maps(case):
    model, images, classes, name = case
    if name == "bn2":
        pytest.skip("captum's module hooks know no ReLU6")
    # Random networks may have no evidence for a class: without the ReLU, as captum's two halves.
    kind = technique("guided-grad-cam")(layer=name, relu=False)
    ours = kind(model, images, class_logit(classes))
    module = plain_copy(model)
    fine = GuidedBackprop(module).attribute(images.clone().requires_grad_(), target=classes)
    coarse = LayerGradCam(module, module.network.get_submodule(name)).attribute(
        images.clone().requires_grad_(), target=classes
    )
    coarse = LayerAttribution.interpolate(coarse, images.shape[2:], "bilinear")
    assert relative(ours.pixels, (fine * coarse).detach()) <= 1e-5


def pair(model, images, classes, name):
    """(A, g) by a plain hook."""
    kept = []
    layer = model.module.get_submodule(name)
    handle = layer.register_forward_hook(lambda m, a, out: kept.append(out))
    scores = model(images.clone().requires_grad_()).gather(1, torch.tensor(classes)[:, None])
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.sum(), kept[-1])
    return kept[-1].detach(), gradient


@pytest.mark.parametrize(
    ("name", "peer"),
    [("grad-cam++", GradCAMPlusPlus), ("xgrad-cam", XGradCAM), ("layer-cam", LayerCAM)],
)
def test_class_activation_maps_are_pytorch_grad_cams(name, peer, case):
    model, images, classes, layer = case
    # Its Grad-CAM++ adds 1e-6 to g², XGrad-CAM 1e-7 to ΣA: a larger objective makes that nothing.
    scale = 1e4 if name == "grad-cam++" else 1.0
    ours = technique(name)(layer=layer, relu=False)(model, images, scale * class_logit(classes)).raw
    activation, gradient = (t.numpy() for t in pair(model, images, classes, layer))
    formula = peer.__new__(peer)  # without its hooks on a model
    formula.activations_and_grads = SimpleNamespace(release=lambda: None)
    theirs = formula.get_cam_image(images, None, None, activation, gradient * scale, False)
    assert relative(ours, torch.from_numpy(np.asarray(theirs))) <= 1e-5


def test_the_sign_of_eigen_cam_is_stable_where_a_layer_norm_made_all_norms_alike():
    cells = torch.randn(4, 24, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    cells = cells - cells.mean(1, keepdim=True)
    cells = cells / cells.norm(dim=1, keepdim=True)
    noise = torch.randn(20, *cells.shape, generator=torch.Generator().manual_seed(1)).double()
    first = first_component(cells, centre=True)
    for each in noise:  # the rounding of another batch
        again = first_component(cells * (1 + 1e-7 * each), centre=True)
        assert torch.allclose(again, first, atol=1e-4)


def test_eigen_cam_is_pytorch_grad_cams_but_for_the_sign(case):
    model, images, classes, layer = case
    if model.layers[layer].grid[0] < 3:
        pytest.skip("two cells in a row have no clear first component")
    ours = technique("eigen-cam")(layer=layer, relu=False)(model, images, class_logit(classes)).raw
    activation = pair(model, images, classes, layer)[0].numpy()
    theirs = torch.from_numpy(get_2d_projection(activation)).double()
    signs = (ours * theirs).sum((1, 2)).sign()[:, None, None]
    assert relative(ours, signs * theirs) <= 1e-5


def test_cam_and_bias_average_to_the_logit(case):
    model, images, classes, layer = case
    cam = technique("cam")()
    if model.layers["features" if layer == "features" else layer].module_type == "Sequential" and (
        "vgg" in type(model.module).__name__.lower()
    ):
        with pytest.raises(TechniqueError, match="global average pooling and one linear layer"):
            cam(model, images, class_logit(classes))
        return
    result = cam(model, images, class_logit(classes))
    bias = model.module.get_classifier().bias.detach()[classes]
    assert torch.allclose(result.raw.mean((1, 2)) + bias, result.scores, rtol=1e-6)
    gradient = technique("grad-cam")(relu=False)(model, images, class_logit(classes)).raw
    cells = gradient[0].numel()
    assert relative(result.raw, gradient * cells) <= 1e-5
    with pytest.raises(TechniqueError, match="is none; use grad-cam"):
        cam(model, images, channel(layer, 0))


GRADIENT_CAMS = ["grad-cam", "grad-cam++", "xgrad-cam", "layer-cam", "eigen-cam"]
FINE = ["input-x-gradient", "guided-backprop", "deconvnet", "guided-grad-cam"]
SLOW = {"smooth-grad": {"samples": 3}, "integrated-gradients": {"steps": 3}}


@pytest.mark.parametrize("name", [*GRADIENT_CAMS, *FINE, *SLOW])
@pytest.mark.parametrize(
    "goal",
    [channel("layer3", 4), neuron("layer3", 4, 1, 2), direction("layer3", [1.0] * 256)],
    ids=["channel", "neuron", "direction"],
)
def test_units_and_directions_are_explained_too(name, goal, awake):
    model = awake(MODELS["resnet18"][0])
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    fields = SLOW.get(name, {})
    if name in GRADIENT_CAMS or name == "guided-grad-cam":
        fields = fields | {"relu": False}
    result = technique(name)(**fields)(model, images, goal)
    assert bool((result.raw.amax((1, 2)) > result.raw.amin((1, 2))).all())


@pytest.mark.parametrize("name", ["guided-backprop", "deconvnet", "guided-grad-cam"])
def test_models_without_relu_are_refused_with_their_activation(name, awake):
    model = awake("random:vit_tiny_patch16_224?img_size=64&num_classes=10")
    with pytest.raises(TechniqueError, match=r"GELU.*use saliency"):
        technique(name)()(model, torch.rand(1, 3, 64, 64), 3)


def test_a_constant_image_has_no_noise(awake):
    with pytest.raises(TechniqueError, match="use saliency"):
        technique("smooth-grad")()(awake(MODELS["resnet18"][0]), torch.full((1, 3, 64, 64), 0.5), 3)


def test_a_flat_image_that_is_blurred_is_its_own_baseline(awake):
    kind = technique("integrated-gradients")(steps=2, baseline="blur")
    with pytest.raises(TechniqueError, match="the image is its own baseline"):
        kind(awake(MODELS["resnet18"][0]), torch.full((1, 3, 64, 64), 0.35), 3)


def test_a_comparison_is_each_technique_by_itself_from_one_forward(awake):
    model = awake(MODELS["resnet18"][0])
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kinds = [technique(name)(relu=False) for name in GRADIENT_CAMS]
    expected = {
        f"{kind.title()} at {layer}": kind.model_copy(update={"layer": layer})(
            model, images, 3
        ).maps
        for kind in kinds
        for layer in ("layer2", "layer4")
    }
    with model.count_passes(2) as counter:
        found = compare(kinds, model, images, 3, layers=["layer4", "layer2"])
    assert counter.forwards.tolist() == [1, 1]
    assert set(found.names) == set(expected)
    for name, maps in expected.items():
        assert relative(found[name], maps) <= 1e-4
    found.figure()


class Ramp(torch.nn.Module):
    """A logit that is 0 up to a sum of 4 and then grows with the sum; and a logit of 0."""

    def forward(self, images):
        logit = (images.sum((1, 2, 3)) - 4).relu()
        return torch.stack([logit, torch.zeros_like(logit)], 1)


def test_integrated_gradients_report_what_their_sum_misses(tmp_path):
    model = HookedModel(Ramp(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 2, 2))
    images = torch.stack([torch.full((3, 2, 2), value) for value in (1, 0.75)])
    one = technique("integrated-gradients")(steps=1)(model, images, 0)
    # Halfway to the image the slope is 1, so the sum is that of the pixels, 12 and 9.
    torch.testing.assert_close(one.pixels.sum((1, 2, 3)), torch.tensor([12.0, 9.0]))
    # The logits are 8 and 5, and 0 for the baseline.
    assert one.notes["completeness_error"] == pytest.approx([0.5, 0.8])
    assert [round(row["completeness_error"], 6) for row in one.summary()] == [0.5, 0.8]
    captions = ["class 0 8, completeness error 0.5", "class 0 5, completeness error 0.8"]
    assert one._captions() == captions
    again = load_result(one.save(tmp_path))
    assert again.notes == one.notes
    exact = technique("integrated-gradients")(steps=1, tolerance=0.02)(model, images, 0)
    assert max(exact.notes["completeness_error"]) < 0.02
    assert technique("saliency")()(model, images, 0).notes == {}


def test_a_tolerance_that_1000_steps_do_not_reach_is_a_warning():
    model = HookedModel(Ramp(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 2, 2))
    kind = technique("integrated-gradients")(steps=900, tolerance=1e-9)
    with pytest.warns(UserWarning, match="1000 steps leave 1 of 1 images"):
        assert kind(model, torch.ones(1, 3, 2, 2), 0).notes["completeness_error"][0] < 0.01
