"""`timmscope compare` shows techniques and layers side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from timmscope import load_model, load_result, technique

Cli = Callable[..., Any]
MODEL = "random:resnet18?seed=0&img_size=64&num_classes=10"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file in files:
        Image.fromarray(generator.integers(0, 256, (70, 64, 3), dtype=np.uint8)).save(file)
    return files


def test_techniques_and_layers_are_compared_side_by_side(cli: Cli, pictures: list[Path]) -> None:
    outcome = cli(
        "compare", MODEL, *pictures, "--technique", "grad-cam relu=no", "--technique", "saliency",
        "--technique", "occlusion patch-px=32 baseline=blur", "-l", "layer2", "--layer", "layer3",
        "--target", "class:3", "-o", "out",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    names = ["grad-cam at layer2", "grad-cam at layer3", "saliency", "occlusion"]
    header = outcome.out.splitlines()[0].split()
    assert header[:4] == ["image", "file", "objective", "technique"]
    for name in names:
        assert outcome.out.count(f" {name} ") == 2
    result = load_result("out")
    assert result.names == names
    assert result.objective == "class:3"
    model = load_model(MODEL)
    alone = technique("grad-cam")(layer="layer3", relu=False)(model, pictures, 3)
    scale = float(alone.maps.abs().max())
    assert torch.allclose(result["grad-cam at layer3"], alone.maps, atol=1e-4 * scale)
    covered = technique("occlusion")(patch_px=32, baseline="blur")(model, pictures, 3)
    assert torch.equal(result["occlusion"], covered.maps)
    written = {file.name for file in Path("out").iterdir()}
    assert {"figure.png", "000-grad-cam-at-layer2.png", "001-occlusion.png"} <= written


def test_a_technique_given_twice_is_named_with_its_settings(cli: Cli, pictures: list[Path]) -> None:
    outcome = cli(
        "compare", MODEL, pictures[0], "--technique", "integrated-gradients steps=2",
        "--technique", "integrated-gradients steps=2 baseline=grey", "--json",
    )  # fmt: skip
    record = json.loads(outcome.out)
    assert [row["technique"] for row in record["summary"]] == [
        "integrated-gradients steps=2",
        "integrated-gradients steps=2 baseline=grey",
    ]
    assert (Path("timmscope-out/compare-0") / record["files"][0]).is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--technique"),
        (["--technique", "grad-can"], "did you mean 'grad-cam'"),
        (
            ["--technique", "xyz"],
            "choose one of ablation-cam, attention-map, attention-rollout, cam",
        ),
        (
            ["--technique", "fgsn"],
            "choose one of ablation-cam, attention-map, attention-rollout, cam",
        ),
        (["--technique", "pgd"], "pgd is of the family attack: only attributions make maps"),
        (["--technique", "grad-cam relu"], "'relu' after grad-cam is not a parameter: write name="),
        (["--technique", "grad-cam relu=blue"], "parameter 'relu' of grad-cam is 'blue'"),
        (["--technique", "grad-cam rely=no"], "no parameter 'rely'; did you mean 'relu'?"),
        (["--technique", "'grad-cam"], "No closing quotation"),
        (["--technique", ""], "unknown technique ''"),
        (["--technique", "saliency", "--layer", "layer1"], "no technique has a layer to choose"),
        (["--technique", "grad-cam", "--layer", "lair1"], "layer1"),
        (["--technique", "saliency", "--technique", "saliency"], "saliency is given twice"),
        (["--technique", "grad-cam", "--layer", ""], "parameter 'layer' of grad-cam is ''"),
        (["--technique", "saliency", "--target", "class:10"], "there is no class 10"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    cli: Cli, pictures: list[Path], arguments: list[str], words: str
) -> None:
    outcome = cli("compare", MODEL, pictures[0], *arguments)
    assert outcome.status == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_compare_requires_an_image(cli: Cli) -> None:
    outcome = cli("compare", MODEL, "--technique", "saliency")
    assert outcome.status == 2
    assert "no image given: name at least one file" in outcome.err
