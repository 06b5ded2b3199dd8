"""Lists the benchmarks by name; each compares timmscope with a bare computation or with a peer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tests.bench.attacks import attacks
from tests.bench.gradients import eigen_cam, grad_cam, guided_grad_cam
from tests.bench.groups import clusters, near_duplicates
from tests.bench.map_page import map_page
from tests.bench.maps import pca, tsne
from tests.bench.mining import ARCHITECTURES, mining, spread
from tests.bench.nearest import nearest
from tests.bench.pairs import Pair, compare
from tests.bench.perturbation import ablation_cam, occlusion
from tests.bench.sets import cka, fid
from tests.bench.synthesis import synthesis

from timmscope import load_model


def start_up() -> Iterator[Pair]:
    """Time commands that only list, and the start of Python with the imports that they need."""

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
    """Time a forward that records ten layers, and a bare forward."""
    for name in ARCHITECTURES:
        model = load_model(name)
        images = torch.rand(8, *model.input_size)
        layers = spread(model, 10)

        def ours(model=model, images=images, layers=layers) -> None:
            with torch.inference_mode(), model.record(*layers, until_last=False):
                model(images)

        def bare(model=model, images=images) -> None:
            with torch.inference_mode():
                model.module(model.preprocessing.normalise(images))

        yield compare(f"record {model.id}", ("10 layers", ours), ("bare forward", bare))


CASES: dict[str, Callable[[], Iterator[Pair]]] = {
    "start-up": start_up,
    "record": recording,
    "grad-cam": grad_cam,
    "guided-grad-cam": guided_grad_cam,
    "eigen-cam": eigen_cam,
    "occlusion": occlusion,
    "ablation-cam": ablation_cam,
    "attacks": attacks,
    "synthesis": synthesis,
    "mine": mining,
    "index": nearest,
    "pca": pca,
    "t-sne": tsne,
    "map-page": map_page,
    "clusters": clusters,
    "near-duplicates": near_duplicates,
    "fid": fid,
    "cka": cka,
}
