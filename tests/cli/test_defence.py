"""`--defence` puts defences before the model of each command that takes one."""

from __future__ import annotations

import inspect
import json
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from timmscope import Store, load_result
from timmscope.cli.main import COMMANDS
from timmscope_registry import get_registry

MODEL = "random:test_resnet?seed=0&img_size=32"
DEFENCES = ("--defence", "jpeg quality=50", "--defence", "randomized-resize")
ID = f"{MODEL} + timmscope:jpeg quality=50 + timmscope:randomized-resize smallest=0.9"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_every_command_with_a_model_takes_defences():
    for name, _, _ in COMMANDS:
        if name not in ("run", "index", "plugins"):
            function = getattr(import_module(f"timmscope.cli.{name}"), name)
            taken = inspect.signature(function).parameters
            assert ("model" in taken) == ("defence" in taken), name


def test_every_technique_with_a_model_takes_defences():
    from timmscope.cli.technique_command import command
    from timmscope.techniques import technique

    for entry in get_registry().techniques():
        taken = inspect.signature(command(technique(entry.id), "x")).parameters
        assert ("model" in taken) == ("defence" in taken), entry.id


def test_each_command_runs_behind_the_defences_in_order(cli, pictures, tmp_path):
    picture = pictures / "0.png"
    for arguments in (
        ("run", "saliency", MODEL, picture, "-o", "saliency"),
        ("run", "pgd", MODEL, picture, "--steps", "2", "--draws", "2", "-o", "pgd"),
        ("run", "jpeg", MODEL, picture, "-o", "jpeg"),
        ("compare", MODEL, picture, "--technique", "saliency", "-o", "compare"),
        ("evaluate", MODEL, pictures, "--technique", "saliency", "--metric", "deletion", "-o", "e"),
        ("mine", MODEL, pictures, "-o", "a.scope", "-l", "layer2"),
    ):
        outcome = cli(*arguments, *DEFENCES)
        assert outcome.status == 0, (arguments, outcome.err)
    for folder in ("saliency", "pgd", "jpeg", "compare", "e"):
        assert load_result(tmp_path / folder).provenance.model == ID
    assert Store.open(tmp_path / "a.scope").manifest.model.id == ID
    listed = json.loads(cli("layers", MODEL, *DEFENCES, "--json").out)
    assert listed["model"] == ID
    refused = cli("mine", MODEL, pictures, "-o", "a.scope", "-l", "layer2")
    assert refused.status == 2
    assert "defences: the store has ['timmscope:jpeg quality=50'" in refused.err


@pytest.mark.parametrize(
    ("defence", "reason"),
    [
        ("jpg", "unknown technique 'jpg': did you mean 'jpeg'"),
        ("pgd", "pgd is of the family attack: only techniques of the base defence"),
        ("jpeg quality=101", "parameter 'quality' of jpeg is '101': Input should be less than"),
        ("jpeg 50", "'50' after jpeg is not a parameter: write name=value"),
    ],
)
def test_what_is_no_defence_is_one_line_and_status_2(defence, reason, cli, pictures):
    for command in (("run", "saliency", MODEL, pictures / "0.png"), ("layers", MODEL)):
        outcome = cli(*command, "--defence", defence)
        assert outcome.status == 2
        assert reason in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
