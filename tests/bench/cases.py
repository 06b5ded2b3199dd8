"""What is compared: recording, cutting, mining and attributing, beside the bare thing or a peer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tests.bench.pairs import Pair, compare
from tests.bench.perturbation import ablation_cam, occlusion

from timmscope import HookedModel, load_model, mine, technique

ARCHITECTURES = ("pip:efficientnet-lite0", "random:resnet18", "random:vit_tiny_patch16_224")


def start_up() -> Iterator[Pair]:
    """Commands that only list, beside starting Python and importing what they need."""

    def command(*arguments: str) -> Callable[[], object]:
        line = [Path(sys.executable).with_name("timmscope"), *arguments]
        return lambda: subprocess.run(line, check=True, capture_output=True)

    def bare() -> object:
        return subprocess.run([sys.executable, "-c", "import cyclopts, rich, pydantic"], check=True)

    for arguments in (("--help",), ("plugins",)):
        yield compare(
            "start-up",
            (f"timmscope {' '.join(arguments)}", command(*arguments)),
            ("import cyclopts, rich, pydantic", bare),
        )


def recording() -> Iterator[Pair]:
    """Ten layers recorded, beside the bare forward."""
    for name in ARCHITECTURES:
        model = load_model(name)
        images = torch.rand(8, *model.input_size)
        layers = _spread(model, 10)

        def ours(model=model, images=images, layers=layers) -> None:
            with torch.inference_mode(), model.record(*layers, until_last=False):
                model(images)

        def bare(model=model, images=images) -> None:
            with torch.inference_mode():
                model.module(model.preprocessing.normalise(images))

        yield compare(f"record {model.id}", ("10 layers", ours), ("bare forward", bare))


def grad_cam() -> Iterator[Pair]:
    """Grad-CAM beside captum and pytorch-grad-cam at one layer."""
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = load_model("random:resnet50?img_size=160")
    images = torch.rand(4, 3, 160, 160)
    # The peers raise on a frozen model unless the image itself requires grad.
    normal = model.preprocessing.normalise(images).requires_grad_()
    ours = technique("grad-cam")(layer="layer4", relu=False)
    captum = LayerGradCam(model.module, model.module.layer4)
    peer = GradCAM(model.module, [model.module.layer4])
    targets = [ClassifierOutputTarget(3)] * 4

    def run() -> object:
        return ours(model, images, "class:3")

    yield compare(
        "grad-cam resnet50", ("timmscope", run), ("captum", lambda: captum.attribute(normal, 3))
    )
    yield compare(
        "grad-cam resnet50",
        ("timmscope", run),
        ("pytorch-grad-cam", lambda: peer(normal, targets)),
    )


def mining() -> Iterator[Pair]:
    """A pass that keeps ten layers, beside the same decoding feeding the bare forward."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        noise = np.random.default_rng(0)
        for number in range(256):
            pixels = noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((400, 320))
            picture.save(root / "images" / f"{number:04d}.jpg", quality=90)
        for name in ARCHITECTURES:
            model = load_model(name)
            yield _mining_pair(model, root, runs=3)


def _mining_pair(model: HookedModel, root: Path, runs: int) -> Pair:
    from timmscope.images import open_images
    from timmscope.mining.loader import Batches, load_batches

    source = open_images(root / "images")
    ranges = [(start, start + 32) for start in range(0, len(source), 32)]
    layers = _spread(model, 10)
    count = iter(range(10_000))

    def ours() -> None:
        out = root / f"{model.id.partition(':')[2].partition('?')[0]}-{next(count)}.scope"
        mine(model, source, out, layers=layers, workers=2)

    def bare() -> None:
        batches = Batches(source, model.preprocessing, ranges)
        with torch.inference_mode():
            for batch in load_batches(batches, workers=2, start_method=None):
                model(batch.images)

    theirs = ("the same loader, bare forward", bare)
    return compare(f"mine {model.id}", ("10 layers kept", ours), theirs, runs=runs)


def _spread(model: HookedModel, count: int) -> list[str]:
    """Layers spread evenly over the depth of a model, the last one included."""
    names = [name for name, layer in model.layers.items() if layer.grid is not None]
    places = np.linspace(0, len(names) - 1, count).round().astype(int)
    return [names[place] for place in places]


CASES: dict[str, Callable[[], Iterator[Pair]]] = {
    "start-up": start_up,
    "record": recording,
    "grad-cam": grad_cam,
    "occlusion": occlusion,
    "ablation-cam": ablation_cam,
    "mine": mining,
}
