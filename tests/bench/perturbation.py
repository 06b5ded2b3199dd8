"""Benchmarks of techniques that run the model on many changed copies of an image, against peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from tests.bench.pairs import Pair, compare, seconds_of

from timmscope import HookedModel, load_model, technique


def occlusion() -> Iterator[Pair]:
    """Time occlusion, and captum's, which gets the normalised image and its fastest batch size."""
    from captum.attr import Occlusion

    for name, patch, stride in (
        ("random:resnet50?img_size=160", 40, 20),
        ("pip:efficientnet-lite0", 56, 28),
        ("random:vit_tiny_patch16_224", 56, 28),
    ):
        model = load_model(name)
        images = torch.rand(2, *model.input_size)
        normal = model.preprocessing.normalise(images)
        ours = technique("occlusion")(patch_px=patch, stride_px=stride, baseline="mean")
        peer = Occlusion(model.module)

        def run(model: HookedModel = model, images: torch.Tensor = images, ours=ours) -> object:
            return ours(model, images, "class:3")

        def captum(batch: int, normal: torch.Tensor = normal, peer=peer, p=patch, s=stride):
            def call() -> object:
                with torch.no_grad():
                    return peer.attribute(
                        normal,
                        sliding_window_shapes=(3, p, p),
                        strides=(3, s, s),
                        target=3,
                        perturbations_per_eval=batch,
                    )

            return call

        best = _fastest(captum, (1, 2, 4, 8, 16, 32))
        theirs = (f"captum, {best} at once", captum(best))
        yield compare(f"occlusion {model.id}", ("timmscope", run), theirs, runs=5)


def ablation_cam() -> Iterator[Pair]:
    """Time Ablation-CAM before pooling and a linear layer, and pytorch-grad-cam's forwards."""
    from pytorch_grad_cam import AblationCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = load_model("random:resnet18?img_size=64")
    images = torch.rand(2, 3, 64, 64)
    normal = model.preprocessing.normalise(images).requires_grad_()
    ours = technique("ablation-cam")(layer="layer4", relu=False)
    peer = AblationCAM(model.module, [model.module.layer4])
    targets = [ClassifierOutputTarget(3)] * 2
    yield compare(
        "ablation-cam resnet18",
        ("timmscope", lambda: ours(model, images, "class:3")),
        ("pytorch-grad-cam", lambda: peer(normal, targets)),
        runs=3,
    )


def _fastest(make: Callable[[int], Callable[[], object]], batches: tuple[int, ...]) -> int:
    """Return the batch size with which a peer is fastest; each runs twice after a warm-up."""
    seconds = {}
    for batch in batches:
        call = make(batch)
        call()
        seconds[batch] = min(seconds_of(call), seconds_of(call))
    return min(seconds, key=lambda batch: seconds[batch])
