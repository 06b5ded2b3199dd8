"""`file:FOLDER` loads what was trained, and refuses a card or weights that are something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.digits.images import write_digits
from tests.digits.load import register
from tests.training.conftest import Plain, forward, same_bytes, small

import timmscope.checked_json as checked_json
from timmscope import (
    ModelError,
    PluginError,
    TimmscopeError,
    load_model,
    load_result,
    load_trained,
    technique,
)
from timmscope.cli import main

PLUGIN = Path(__file__).parents[1] / "digits" / "plugin.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a short standard training on some digits."""
    register()
    folder = tmp_path_factory.mktemp("digits")
    images, held_out = write_digits(folder, trained=128, held_out=40)
    training: Any = technique("adversarial-training")(
        method="standard", epochs=2, batch_size=64, judge_steps=2, epsilon=0.1
    )
    training(
        load_model("digits:cnn?seed=0"), images, held_out=held_out, output=folder / "out",
        licence="CC BY 4.0",
    )  # fmt: skip
    return folder / "out"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def change(folder: Path, **values: Any) -> None:
    """Change a card as somebody would who knows how its digest is computed."""
    file = folder / "card.json"
    file.write_bytes(checked_json.dump({**checked_json.load(file.read_bytes()), **values}))


def test_a_folder_and_its_weights_load_the_same_network(trained):
    from_folder = load_model(f"file:{trained}")
    from_file = load_model(f"file:{trained / 'weights.safetensors'}")
    assert from_folder.weights_sha256 == from_file.weights_sha256
    state = load_file(trained / "weights.safetensors")
    assert all(torch.equal(from_folder.module.state_dict()[name], state[name]) for name in state)
    assert from_folder.weights_sha256 != load_model("digits:cnn?seed=0").weights_sha256
    assert list(from_folder.classes) == [str(digit) for digit in range(10)]
    assert from_folder.input_size == (1, 8, 8)
    assert from_folder.id == f"file:{trained}"
    assert not any(weight.requires_grad for weight in from_folder.module.parameters())


def test_the_card_says_how_the_network_was_trained(trained):
    card = checked_json.load((trained / "card.json").read_bytes())
    assert card["technique"] == "timmscope:adversarial-training"
    assert card["model"] == "digits:cnn?seed=0"
    assert card["data"]["images"] == 128
    assert card["data"]["licence"] == "CC BY 4.0"
    assert set(card["held_out"]) == {
        "loss", "error", "accuracy", "accuracy under PGD-2", "accuracy under margin PGD-2",
        "accuracy under PGD-2, linf 0.2", "accuracy under PGD-2, l2 0.342",
    }  # fmt: skip
    assert card["environment"][0]["versions"]["torch"]
    assert str(trained) not in json.dumps(card)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "attack"}, "it is of the kind 'attack', expected 'training'"),
        ({"technique": "timmscope:pgd"}, "names timmscope:pgd, which is no training"),
        ({"parameters": {"colour": 3}}, "does not fit .* of today: .*no parameter 'colour'"),
        ({"parameters": {"method": "magic"}}, "does not fit .*parameter 'method'"),
        ({"parameters": [1]}, "its parameters is of type list"),
        ({"classes": ["a", "b"]}, "2 class names"),
        ({"preprocessing": {"input_size": [1, 8, 8]}}, "another preprocessing"),
        ({"preprocessing": {}}, "another preprocessing"),
        ({"model": "random:resnet18?seed=0"}, "weights do not fit"),
        ({"model": "digits:cnn?seed=banana"}, "cannot be loaded .*has no network"),
        ({"model": "module:Small"}, r"a module in memory: load it with load_trained"),
        ({"weights_sha256": "0" * 64}, "weights were damaged, edited or belong to another card"),
        ({"impl": "os:system"}, "it has an unknown impl"),
    ],
)
def test_a_forged_card_is_refused_in_one_line(copy, values, message):
    change(copy, **values)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(f"file:{copy}")
    assert "\n" not in str(caught.value)


def test_a_technique_that_is_not_installed_is_named(copy):
    change(copy, technique="timmscope-other:some-training")
    with pytest.raises(PluginError, match="install timmscope-other"):
        load_model(f"file:{copy}")


def test_an_edited_card_and_other_weights_are_refused(copy, trained):
    card = copy / "card.json"
    sound = card.read_bytes()
    card.write_bytes(sound.replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(ModelError, match="differs from its digest"):
        load_model(f"file:{copy}")
    card.write_bytes(b"[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        load_model(f"file:{copy}")
    card.write_bytes(sound)
    state = load_file(copy / "weights.safetensors")
    state["0.weight"][0, 0, 0, 0] += 1e-6
    save_file(state, copy / "weights.safetensors")
    with pytest.raises(ModelError, match="belong to another card"):
        load_model(f"file:{copy}")
    (copy / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights.safetensors cannot be read"):
        load_model(f"file:{copy}")


def test_a_folder_without_a_card_or_with_an_unfinished_training_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no card.json"):
        load_model(f"file:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="has not finished: run it again"):
        load_model(f"file:{tmp_path / 'empty'}")
    with pytest.raises(ModelError, match=r"cannot be given .*: the card of a trained network"):
        load_model(f"file:{tmp_path / 'empty'}?num_classes=3")


def test_the_card_of_a_stranger_opens_no_model(copy, monkeypatch, tmp_path):
    change(copy, seed=5)  # a card that this user did not write
    monkeypatch.setenv("TIMMSCOPE_TRUST", "")
    with pytest.raises(ModelError, match=r"you have not trained this network, .*--trust"):
        load_model(f"file:{copy}")
    assert load_trained(copy, load_model("digits:cnn?seed=3")).num_classes == 10
    monkeypatch.setenv("TIMMSCOPE_TRUST", str(tmp_path))
    assert load_model(f"file:{copy}").num_classes == 10


def test_a_network_that_this_user_trained_needs_no_trust(trained, copy, monkeypatch):
    monkeypatch.setenv("TIMMSCOPE_TRUST", "")
    assert load_model(f"file:{copy}").num_classes == 10  # wherever it is


def test_a_technique_that_no_plugin_registers_is_passed(photos, tmp_path):
    result = Plain()(small(), photos, output=tmp_path / "out")
    with pytest.raises(PluginError, match="'Plain' is not a registered technique"):
        result.model(small())
    trained = result.model(small(), technique=Plain())
    assert (forward(trained) - forward(small())).abs().max() > 0.01


def test_the_command_trains_resumes_and_its_output_loads(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, held_out = write_digits(tmp_path, trained=128, held_out=40)
    words = [
        "--plugin", str(PLUGIN), "run", "adversarial-training", "digits:cnn?seed=0", str(images),
        "--held-out", str(held_out), "--method", "standard", "--epochs", "2", "--batch-size", "64",
        "--judge-steps", "2", "--epsilon", "0.1", "--licence", "CC BY 4.0", "-o", "out",
    ]  # fmt: skip
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "held out accuracy" in told
    assert "wrote figure.png" in told
    assert same_bytes(trained, tmp_path / "out")
    assert load_result(tmp_path / "out").terms == ["total", "error"]
    assert main([*words, "--json"]) == 0  # finished: nothing is trained again
    assert json.loads(capsys.readouterr().out)["summary"][0]["steps"] == 4
    more = ["3" if word == "2" and words[place - 1] == "--epochs" else word
            for place, word in enumerate(words)]  # fmt: skip
    assert main(more) == 2
    assert "epochs: 2 → 3" in capsys.readouterr().err
    np.savez(tmp_path / "bare.npz", images=np.zeros((4, 8, 8), np.uint8))
    unlabelled = [*words[:5], str(tmp_path / "bare.npz"), "-o", "other"]
    assert main(unlabelled) == 2
    error = capsys.readouterr().err
    assert "no image has a label" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_the_folder_of_a_command_has_a_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path, trained=64, held_out=40)
    words = ["--plugin", str(PLUGIN), "run", "adversarial-training", "digits:cnn", "trained.npz"]
    assert main([*words, "--method", "standard", "--epochs", "1", "--judge-steps", "1"]) == 0
    assert (tmp_path / "timmscope-out" / "adversarial-training-trained.npz" / "card.json").exists()


def test_errors_of_a_training_are_ours():
    assert issubclass(ModelError, TimmscopeError)
