"""`timmscope evaluate` compares techniques, resumes, and refuses wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from timmscope import load_result

Cli = Callable[..., Any]
MODEL = "random:resnet18?seed=0&img_size=32&num_classes=5"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_techniques_are_evaluated_side_by_side_and_a_second_run_resumes(
    cli: Cli, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "bad.png").write_text("no picture")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("path,left,upper,right,lower\n0.png,0,0,48,40\n1.png,0,0,48,40\n")
    command = [
        "evaluate", MODEL, pictures, "--technique", "saliency", "--technique", "input-x-gradient",
        "--metric", "deletion", "--metric", "pointing-game", "--boxes", boxes, "-o", "judged",
    ]  # fmt: skip
    outcome = cli(*command)
    assert outcome.status == 0, outcome.err
    head, _, *rows = outcome.out.splitlines()
    assert head.split() == ["technique", "maps", "deletion", "↓", "pointing-game", "↑"]
    assert rows[0].split()[:2] == ["saliency", "3"]
    assert rows[1].split()[:2] == ["input-x-gradient", "3"]
    assert "unreadable: bad.png" in outcome.out
    assert "judged" in outcome.out
    result = load_result(tmp_path / "judged")
    assert f"{float(result.mean[0, 0]):.3g} [" in rows[0]
    assert result.values[0, 1].tolist()[:2] == [1, 1]
    with Image.open(tmp_path / "judged/figure.png") as figure:
        assert figure.format == "PNG"
    records = tmp_path / "judged/records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole[: len(whole) // 2])
    printed = json.loads(cli(*command, "--json").out)
    assert records.read_bytes() == whole
    assert [row["technique"] for row in printed["techniques"]] == ["saliency", "input-x-gradient"]
    assert printed["techniques"][0]["deletion"] == float(result.mean[0, 0])
    assert printed["unreadable"][0]["image"] == "bad.png"


def test_one_technique_is_evaluated_with_two_settings(cli: Cli, pictures: Path) -> None:
    outcome = cli(
        "evaluate", MODEL, pictures, "--technique", "rise masks=4", "--technique",
        "rise masks=6 keep=0.3", "--metric", "deletion", "-o", "judged", "--json",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    rows = json.loads(outcome.out)["techniques"]
    assert [row["technique"] for row in rows] == ["rise masks=4", "rise masks=6 keep=0.3"]
    result = load_result(Path("judged"))
    printed = result.provenance.parameters["techniques"]["rise masks=6 keep=0.3"]
    assert printed["parameters"]["masks"] == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--technique"),
        (["--technique", "rise", "--technique", "rise masks=4000"], "rise is given twice"),
        (["--technique", "rise masks=0"], "parameter 'masks' of rise"),
        (["--technique", "grad-can"], "did you mean 'grad-cam'"),
        (["--technique", "pgd"], "only attributions make maps"),
        (["--technique", "saliency", "--metric", "pointing"], "did you mean 'pointing-game'"),
        (["--technique", "saliency", "--metric", "pointing-game"], "needs the boxes"),
        (["--technique", "saliency", "--boxes", "gone.csv"], "no boxes can be read from gone.csv"),
        (["--technique", "saliency", "--target", "class:5"], "there is no class 5"),
        (["--technique", "attention-rollout"], "use grad-cam, layer-cam or occlusion"),
        (["--technique", "saliency", "-o", "pictures"], "not an evaluation, and not empty"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    cli: Cli, pictures: Path, arguments: list[str], words: str
) -> None:
    outcome = cli("evaluate", MODEL, pictures, *arguments)
    assert outcome.status == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_occlusion_refuses_patches_and_strides_that_do_not_fit(cli: Cli, pictures: Path) -> None:
    image = pictures / "0.png"
    for flags, words in [
        (["--patch-px", "33"], "patch_px is 33, and the image has 32×32 px"),
        (["--stride-px", "0"], "'stride_px' of occlusion is 0"),
        (["--patch-px", "4", "--stride-px", "5"], "patches would leave gaps"),
    ]:
        outcome = cli("run", "occlusion", MODEL, image, *flags)
        assert outcome.status == 2
        assert words in outcome.err
        assert len(outcome.err.splitlines()) == 1
