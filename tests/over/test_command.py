"""`timmscope run … --over` runs, prints what it has done, resumes, and refuses wrong inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timmscope import ImageSetRun, load_result
from timmscope.cli.main import main
from timmscope.store.records import Journal

MODEL = "random:resnet18?seed=0&img_size=32"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no image")
    return folder


def run(*words: str) -> int:
    return main(["run", *words])


def test_a_command_runs_over_a_folder_and_says_what_it_did(photos, capsys):
    arguments = ("fgsm", MODEL, "--over", "photos", "--workers", "0", "--epsilon", "0.1")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "success" in printed
    assert "unreadable: 3.png: not an image that Pillow can read" in printed
    assert "4 of 5 images; images.npy (float32, one row per image), images.csv" in printed
    made = load_result("timmscope-out/fgsm-photos", ImageSetRun)
    assert made.count == 5
    assert made.kept == "images"
    picture = Image.open("timmscope-out/fgsm-photos/figure.png")
    assert picture.width > picture.height > 600
    assert run(*arguments, "--json") == 0  # finished: at once
    record = json.loads(capsys.readouterr().out)
    assert record["fields"]["made"] == 4
    assert run("fgsm", MODEL, "--over", "photos", "--epsilon", "0.2") == 2
    assert "epsilon: 0.1 → 0.2" in capsys.readouterr().err


def test_the_output_goes_on_to_the_next_command(photos, capsys):
    assert run("jpeg", MODEL, "--over", "photos", "-o", "behind", "--workers", "0") == 0
    assert run("saliency", MODEL, "--over", "behind", "-o", "maps", "--workers", "0") == 0
    printed = capsys.readouterr().out
    assert "unreadable: 3.png: unreadable in the run" in printed
    assert load_result("maps", ImageSetRun).maps()[0].shape == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/0.png", "--over", "photos"], "--over takes the place of images"),
        (["photos/0.png", "--workers", "2"], "--workers is for an image set"),
        (["photos/0.png", "--use-labels"], "--use-labels is for an image set"),
        (["--over", "nowhere"], "nowhere: no such file or folder"),
        (["--over", "photos", "--label", "1", "--label", "2"], "2 labels for 5 images"),
        ([], "no image given"),
    ],
)
def test_wrong_inputs_give_one_line(photos, capsys, arguments, message):
    assert run("fgsm", MODEL, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_ctrl_c_says_how_to_resume(photos, capsys, monkeypatch):
    add = Journal.add

    def stopping(self: Journal, record: object) -> None:
        add(self, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stopping)
    arguments = ("fgsm", MODEL, "--over", "photos", "--workers", "0", "--batch-size", "2")
    assert run(*arguments) == 130
    assert "with 2 of 5 images done: run the same command again to resume" in (
        capsys.readouterr().err
    )
