"""Benchmarks of class activation maps and guided gradients against peers at their best settings.

Peers get the normalised image, a frozen model whose weights need no gradient, and the memory format
with which they are faster. pytorch-grad-cam still runs backward through the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from tests.bench.pairs import Pair, compare, seconds_of

from timmscope import HookedModel, load_model, technique

CLASS = 3


def grad_cam() -> Iterator[Pair]:
    """Time Grad-CAM, and captum, torchcam and pytorch-grad-cam at the same layer."""
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import GradCAM as TorchCAM

    model, images = _frozen_resnet50()
    targets = [ClassifierOutputTarget(CLASS)] * len(images)
    layer = model.module.get_submodule("layer4")

    def torchcam(normal: torch.Tensor) -> object:
        with TorchCAM(model.module, target_layer=layer) as extractor:
            return extractor([CLASS] * len(normal), model.module(normal), normalized=False)

    ours, fused = technique("grad-cam")(layer="layer4", relu=False), model.fused()
    captum, peer = LayerGradCam(model.module, layer), GradCAM(model.module, [layer])
    for name, call in (
        ("captum", lambda normal: captum.attribute(normal, CLASS)),
        ("torchcam", torchcam),
        ("pytorch-grad-cam", lambda normal: peer(normal, targets)),
    ):
        beside = (name, _faster_order(call, model, images))
        for how, subject in (("timmscope, fused copy", fused), ("timmscope", model)):
            work = partial(ours, subject, images, CLASS)
            yield compare("grad-cam resnet50", (how, work), beside)
    normal = model.preprocessing.normalise(images).to(memory_format=torch.channels_last)

    def bare() -> object:
        with torch.inference_mode():
            return model.module(normal)

    yield compare(
        "grad-cam resnet50",
        ("timmscope", lambda: ours(model, images, CLASS)),
        ("bare forward, channels last", bare),
    )


def guided_grad_cam() -> Iterator[Pair]:
    """Time Guided Grad-CAM, and captum's, which hooks ReLU modules and runs both halves apart."""
    from captum.attr import GuidedGradCam

    model, images = _frozen_resnet50()
    for part in model.module.modules():
        if isinstance(part, torch.nn.ReLU):
            part.inplace = False  # captum's hooks need it
    ours = technique("guided-grad-cam")(layer="layer4", relu=False)
    captum = GuidedGradCam(model.module, model.module.get_submodule("layer4"))
    yield compare(
        "guided-grad-cam resnet50",
        ("timmscope", lambda: ours(model, images, CLASS)),
        (
            "captum",
            _faster_order(
                lambda normal: captum.attribute(normal, CLASS, interpolate_mode="bilinear"),
                model,
                images,
            ),
        ),
        runs=5,
    )


def eigen_cam() -> Iterator[Pair]:
    """Time the first component of an activation of 2048×7×7, and pytorch-grad-cam's full SVD."""
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    ours = technique("eigen-cam")()
    cells = torch.rand(1, 2048, 7, 7, generator=torch.Generator().manual_seed(0))
    array = cells.numpy()
    yield compare(
        "eigen-cam 2048×7×7",
        ("timmscope", lambda: ours.weigh(cells, cells)),
        ("pytorch-grad-cam", lambda: get_2d_projection(array)),
    )


def _frozen_resnet50() -> tuple[HookedModel, torch.Tensor]:
    model = load_model("random:resnet50?img_size=160")
    model.module.requires_grad_(False)
    return model, torch.rand(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def _faster_order(
    call: Callable[[torch.Tensor], object], model: HookedModel, images: torch.Tensor
) -> Callable[[], object]:
    """Return the call on normalised images in the memory format in which it takes less time."""
    best: tuple[float, torch.Tensor] | None = None
    for order in (torch.contiguous_format, torch.channels_last):
        # The peers raise on a frozen model unless the image itself requires a gradient.
        normal = model.preprocessing.normalise(images).to(memory_format=order).requires_grad_()
        call(normal)
        seconds = min(seconds_of(lambda normal=normal: call(normal)) for _ in range(3))  # type: ignore[misc]
        if best is None or seconds < best[0]:
            best = seconds, normal
    assert best is not None
    chosen = best[1]
    return lambda: call(chosen)
