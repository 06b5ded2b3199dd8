"""`timmscope robustness` prints what attacks leave, resumes, and refuses wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from timmscope import Robustness, load_result

Cli = Callable[..., Any]
MODEL = "random:resnet18?seed=0&img_size=32&num_classes=5"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    for number in range(3):
        (folder / str(number)).mkdir(parents=True)
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(number) / "picture.png")
    return folder


def test_attacks_and_defences_are_judged_and_a_second_run_resumes(
    cli: Cli, pictures: Path, tmp_path: Path
) -> None:
    command = [
        "robustness", MODEL, pictures, "--attack", "pgd steps=3", "--attack", "fgsm",
        "--defence", "jpeg quality=50", "--epsilon", "1/255,8/255", "--labels", "predictions",
        "-o", "judged",
    ]  # fmt: skip
    outcome = cli(*command)
    assert outcome.status == 0, outcome.err
    result = load_result(tmp_path / "judged", Robustness)
    assert result.epsilons == {"linf": [1 / 255, 8 / 255]}
    lines = outcome.out.splitlines()
    heads = next(line for line in lines if line.lstrip().startswith("attack"))
    for word in ("clean", "1/255", "8/255", "kept in 8 bits", "passes", "queries"):
        assert word in heads
    assert any(line.startswith("pgd steps=3") and "adaptive" in line for line in lines)
    assert any(line.startswith("pgd steps=3") and "oblivious" in line for line in lines)
    assert sum(line.startswith("worst case") for line in lines) == 2
    assert "the model's own predictions" in outcome.out
    records = tmp_path / "judged/records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole[: len(whole) // 2])
    printed = json.loads(cli(*command, "--json").out)
    assert records.read_bytes() == whole
    assert printed["accuracy"] == json.loads(json.dumps(result.summary()))
    assert (tmp_path / "judged/report.html").stat().st_size > 20_000


def test_labels_are_names_of_folders_or_come_from_a_file(
    cli: Cli, pictures: Path, tmp_path: Path
) -> None:
    command = ["robustness", MODEL, pictures, "--attack", "fgsm", "--epsilon", "1/255"]
    assert cli(*command, "-o", "folders").status == 0
    assert load_result(tmp_path / "folders", Robustness).labels.tolist() == [0, 1, 2]
    file = tmp_path / "truth.csv"
    file.write_text("path,label\n0/picture.png,4\n1/picture.png,3\n2/picture.png,2\n")
    assert cli(*command, "--labels", file, "-o", "file").status == 0
    assert load_result(tmp_path / "file", Robustness).labels.tolist() == [4, 3, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--attack"),
        (["--attack", "pgdd"], "did you mean 'pgd'"),
        (["--attack", "fgsm", "--epsilon", "8"], "for 8 of 255 grey levels write 8/255"),
        (["--attack", "fgsm", "--epsilon", "eight"], "'eight' is no radius"),
        (["--attack", "fgsm", "--labels", "gone.csv"], "no labels can be read from gone.csv"),
        (["--attack", "fgsm", "--defence", "jpg"], "did you mean 'jpeg'"),
        (["--attack", "fgsm", "--model", "random:resnet18?num_classes=4"], "has 4 classes"),
        (["--attack", "fgsm", "-o", "pictures"], "not a report on robustness, and not empty"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    cli: Cli, pictures: Path, arguments: list[str], words: str
) -> None:
    outcome = cli("robustness", MODEL, pictures, *arguments)
    assert outcome.status == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_labels_that_are_no_classes_are_one_line(cli: Cli, pictures: Path) -> None:
    (pictures / "2").rename(pictures / "cat")
    outcome = cli("robustness", MODEL, pictures, "--attack", "fgsm")
    assert outcome.status == 2
    assert "and random:resnet18" in outcome.err
    assert "--labels" in outcome.err or "labels='predictions'" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_an_epsilon_flag_takes_fractions(cli: Cli, pictures: Path, tmp_path: Path) -> None:
    image = pictures / "0/picture.png"
    outcome = cli("run", "fgsm", MODEL, image, "--epsilon", "8/255", "-o", "attacked")
    assert outcome.status == 0, outcome.err
    result = load_result(tmp_path / "attacked")
    assert result.provenance.parameters["epsilon"] == 8 / 255
    assert cli("run", "fgsm", MODEL, image, "--epsilon", "8/x").status == 2
