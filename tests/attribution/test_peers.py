"""Saliency and Grad-CAM compute what captum, pytorch-grad-cam and torchcam compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam
from captum.attr import Saliency as CaptumSaliency
from pytorch_grad_cam import GradCAM as JacobGilCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor
from torchcam.methods import GradCAM as TorchCAM

from timmscope import HookedModel, class_logit, technique

GradCAM = technique("grad-cam")
Saliency = technique("saliency")

CLASSES = [3, 1, 7]
REAL_CLASSES = [282, 504, 650]  # tiger cat, coffee mug, microphone
MODELS = {
    "resnet18": ("random:resnet18?img_size=96&num_classes=10", "layer4"),
    "vgg11": ("random:vgg11?img_size=64&num_classes=10&mlp_ratio=0.05", "features"),
    "densenet121": ("random:densenet121?img_size=64&num_classes=10", "features"),
}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


@pytest.fixture(scope="session")
def in_double() -> Callable[[HookedModel], HookedModel]:
    """The same model with float64 weights, made once."""
    known: dict[HookedModel, HookedModel] = {}

    def get(model: HookedModel) -> HookedModel:
        if model not in known:
            known[model] = HookedModel(
                copy.deepcopy(model.module).double(),
                mean=model.mean,
                std=model.std,
                input_size=model.input_size,
            )
        return known[model]

    return get


@pytest.fixture
def case_of(awake, lite0: HookedModel, photo_paths: dict[str, Path]):
    """A model, photographs in its size, a class each, the layer and whether to keep evidence only.

    A random network often has no evidence for a class, which Grad-CAM refuses to draw.
    """

    def get(name: str):
        if name == "lite0":
            model, layer, classes, relu = lite0, "bn2", REAL_CLASSES, True
        else:
            where, layer = MODELS[name]
            model, classes, relu = awake(where), CLASSES, False
        paths = [photo_paths[photo] for photo in ("chelsea", "coffee", "astronaut")]
        return model, model.images(paths), classes, layer, relu

    return get


@pytest.fixture(params=[*MODELS, "lite0"])
def case(request, case_of):
    return case_of(request.param)


@pytest.fixture(
    params=[
        (name, dtype) for dtype in (torch.float32, torch.float64) for name in (*MODELS, "lite0")
    ],
    ids=lambda param: f"{param[0]}-{str(param[1]).removeprefix('torch.')}",
)
def typed_case(request, case_of, in_double):
    name, dtype = request.param
    model, images, classes, layer, relu = case_of(name)
    model = in_double(model) if dtype == torch.float64 else model
    return model, images.to(dtype), classes, layer, relu, TOLERANCE[dtype]


def test_saliency_is_captums(typed_case):
    model, images, classes, _, _, tolerance = typed_case
    ours = Saliency()(model, images, class_logit(classes)).maps
    leaf = images.clone().requires_grad_()
    theirs = CaptumSaliency(model.as_module()).attribute(leaf, target=classes, abs=True)
    assert relative(ours, theirs.amax(1)) <= tolerance


def test_grad_cam_is_captums(typed_case):
    model, images, classes, name, relu, tolerance = typed_case
    ours = GradCAM(relu=relu)(model, images, class_logit(classes)).raw
    layer = model.module.get_submodule(name)
    theirs = LayerGradCam(model.as_module(), layer).attribute(
        images.clone().requires_grad_(), target=classes, relu_attributions=relu
    )
    assert relative(ours, theirs[:, 0].detach()) <= tolerance


def test_grad_cam_is_torchcams(typed_case):
    model, images, classes, name, relu, tolerance = typed_case
    ours = GradCAM(relu=relu)(model, images, class_logit(classes)).raw.relu()
    module = model.as_module()
    with TorchCAM(module, target_layer=model.module.get_submodule(name)) as extractor:
        scores = module(images.clone().requires_grad_())
        theirs = extractor(classes, scores, normalized=False)[0]
    assert relative(ours, theirs) <= tolerance


def test_grad_cam_is_pytorch_grad_cams_raw_and_displayed(case):
    model, images, classes, name, relu = case
    ours = GradCAM(relu=False)(model, images, class_logit(classes))
    layer = model.module.get_submodule(name)
    targets = [ClassifierOutputTarget(index) for index in classes]
    with JacobGilCAM(model=model.as_module(), target_layers=[layer]) as peer:
        displayed = torch.from_numpy(peer(images.clone().requires_grad_(), targets))
        raw = peer.get_cam_image(
            images,
            layer,
            targets,
            peer.activations_and_grads.activations[0].numpy(),
            peer.activations_and_grads.gradients[0].numpy(),
        )
    assert relative(ours.raw, torch.from_numpy(raw)) <= 1e-4
    if relu:
        shown = GradCAM()(model, images, class_logit(classes)).normalised()
        assert float((shown - displayed).abs().max()) <= 1e-4


def test_tokens_give_pytorch_grad_cams_map_through_its_reshape(awake):
    model = awake("random:vit_tiny_patch16_224?img_size=64&num_classes=10")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = GradCAM(relu=False)(model, images, class_logit(CLASSES)).raw
    targets = [ClassifierOutputTarget(index) for index in CLASSES]

    def reshape(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].reshape(len(tokens), 4, 4, -1).permute(0, 3, 1, 2)

    layer = model.module.blocks[-1].norm1
    with JacobGilCAM(
        model=model.as_module(), target_layers=[layer], reshape_transform=reshape
    ) as peer:
        peer(images.clone().requires_grad_(), targets)
        raw = peer.get_cam_image(
            images,
            layer,
            targets,
            peer.activations_and_grads.activations[0].numpy(),
            peer.activations_and_grads.gradients[0].numpy(),
        )
    assert relative(ours, torch.from_numpy(raw)) <= 1e-4
