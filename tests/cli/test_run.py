"""`timmscope run` makes flags from a technique's fields and saves its result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from PIL import Image
from pydantic import BaseModel, Field, PositiveInt

from timmscope import AttributionTechnique, PluginError, load_model, technique
from timmscope.cli.flags import GLOBAL_FLAGS, bounds
from timmscope.cli.technique_command import command
from timmscope.cli.text import plain_text
from timmscope_registry import get_registry

Cli = Callable[..., Any]
MODEL = "random:resnet18?seed=0&img_size=64"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
    file = tmp_path / "noise.png"
    Image.fromarray(pixels.numpy()).save(file)
    return file


def test_help_shows_fields_with_docstrings_ranges_and_defaults(cli: Cli, plugin: Path) -> None:
    text = " ".join(cli("--plugin", plugin, "run", "contrast", "--help").out.split())
    assert "Usage: timmscope run contrast MODEL [IMAGES...] [OPTIONS]" in text
    assert "Looks at no model, and never did." in text
    assert "Exponent of the distance. [above 0, at most 4] [default: 1.0]" in text
    assert "--centre --no-centre Subtract the mean first. [default: True]" in text
    assert "--squared Square the result." in text
    assert "[choices: l1, l2] [default: l2]" in text
    assert "How often. [at least 1]" in text
    assert "Sizes to average. [default: 1.0 0.5]" in text
    assert "Source: Somebody, 2020" in text


def test_every_first_party_technique_has_help(cli: Cli) -> None:
    for entry in json.loads(cli("plugins", "--json").out)["entries"]:
        if entry["family"]:
            outcome = cli("run", entry["id"], "--help")
            assert outcome.status == 0, outcome.err
            assert "Usage: timmscope run" in outcome.out


def test_run_without_a_technique_lists_them(cli: Cli) -> None:
    outcome = cli("run")
    assert outcome.status == 0
    assert "grad-cam" in outcome.out
    assert "Channels of a layer weighted by their mean gradient." in outcome.out


def test_flags_reach_the_technique_and_the_result_is_saved(
    cli: Cli, plugin: Path, picture: Path, tmp_path: Path
) -> None:
    outcome = cli(
        "--plugin", plugin, "run", "contrast", MODEL, picture,
        "--target", "class:3", "--power", "2", "--no-centre", "--squared", "--norm", "l1",
        "--scales", "0.25", "-o", tmp_path / "out",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["provenance"]["parameters"] == {
        "power": 2.0,
        "centre": False,
        "squared": True,
        "norm": "l1",
        "steps": None,
        "scales": [0.25],
    }
    expected = load_model(MODEL).images(picture).sum(1) ** 4
    with h5py.File(tmp_path / "out" / "arrays.h5") as file:
        assert torch.allclose(torch.from_numpy(file["maps"][()]), expected, rtol=1e-5)
    assert "tiger shark" in outcome.out
    assert "wrote figure.png" in outcome.out


def test_json_prints_what_was_saved(cli: Cli, plugin: Path, picture: Path, tmp_path: Path) -> None:
    outcome = cli("--plugin", plugin, "run", "contrast", MODEL, picture, "--json")
    saved = tmp_path / "timmscope-out" / "contrast-noise" / "result.json"
    assert json.loads(outcome.out) == json.loads(saved.read_text())


@pytest.mark.parametrize("deed", ["print('found it')", "import sys; sys.stdout.close()"])
def test_json_is_readable_if_a_technique_prints_or_closes_stdout(
    cli: Cli, plugin: Path, picture: Path, deed: str
) -> None:
    method = "        mean = images.mean("
    plugin.write_text(plugin.read_text().replace(method, f"        {deed}\n{method}"))
    outcome = cli("--plugin", plugin, "run", "contrast", MODEL, picture, "--json")
    assert outcome.status == 0
    assert json.loads(outcome.out)["provenance"]["technique"] == "contrast.py:contrast"
    assert outcome.err == ("found it\n" if "found" in deed else "")


NOISY_SOURCE = """
from timmscope import load_model
from timmscope_registry import ModelSourceSpec, hookimpl

def load(rest):
    print("found it")
    return load_model(f"random:{rest}")

@hookimpl
def timmscope_model_sources():
    yield ModelSourceSpec(scheme="noisy", summary="Prints.", impl=f"{__name__}:load")
"""


@pytest.mark.parametrize(
    "command",
    [
        ["compare", MODEL, "noise.png", "--technique", "contrast"],
        ["evaluate", MODEL, "noise.png", "--technique", "contrast", "--metric", "deletion"],
        ["layers", MODEL.replace("random:", "noisy:")],
        ["mine", MODEL.replace("random:", "noisy:"), ".", "-o", "s.scope"],
    ],
    ids=lambda command: command[0],
)
def test_json_of_every_command_is_readable_if_plugins_print(
    cli: Cli, plugin: Path, picture: Path, tmp_path: Path, command: list[str]
) -> None:
    method = "        mean = images.mean("
    plugin.write_text(plugin.read_text().replace(method, f"        print('found it')\n{method}"))
    (tmp_path / "noisy.py").write_text(NOISY_SOURCE)
    outcome = cli("--plugin", plugin, "--plugin", "noisy.py", *command, "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)
    assert "found it\n" in outcome.err


@pytest.mark.parametrize("joined", [True, False])
def test_global_flags_are_accepted_after_the_technique(
    cli: Cli, plugin: Path, joined: bool
) -> None:
    flag = [f"--plugin={plugin}"] if joined else ["--plugin", plugin]
    outcome = cli("run", "contrast", MODEL, "none.png", "--power", "2", *flag)
    assert outcome.status == 2
    assert "none.png" in outcome.err
    assert "unknown technique" in cli("run", "pgd", "m", "--block", "attack").err
    assert "--block" in cli("run", "pgd", "m", "--block").err


def test_no_first_party_field_is_named_like_a_global_flag() -> None:
    for entry in get_registry().techniques():
        assert not {*GLOBAL_FLAGS} & {*technique(entry.id).model_fields}, entry.id


def test_a_field_named_like_a_global_flag_is_refused() -> None:
    class Blocked(AttributionTechnique):
        block: int = 0

        def attribute(self, model, images, objective):
            return images[:, 0]

    with pytest.raises(PluginError, match="fields named like --block"):
        command(Blocked, "blocked")


def test_a_value_out_of_range_is_refused_with_the_parameters_name(
    cli: Cli, plugin: Path, picture: Path
) -> None:
    outcome = cli("--plugin", plugin, "run", "contrast", MODEL, picture, "--power", "9")
    assert outcome.status == 2
    assert "'power' of contrast is 9.0" in outcome.err


def test_each_family_runs_from_the_command_line(cli: Cli, picture: Path, tmp_path: Path) -> None:
    commands = {
        "saliency": [MODEL, picture],
        "grad-cam": [MODEL, picture, "--target", "layer3[5]", "--layer", "layer2"],
        "fgsm": [MODEL, picture, "--epsilon", "0.03"],
        "pgd": [MODEL, picture, "--target", "7", "--steps", "2"],
        "filters": [MODEL],
        "activation-maximization": [MODEL, "--target", "class:3", "--steps", "2"],
        "deep-dream": [MODEL, "-t", f'guide(layer2@"{picture}")', "--steps", "1"],
        "feature-inversion": [MODEL, "-t", f'match(layer2@"{picture}")', "--steps", "2"],
        "neural-style": [MODEL, picture, "--style", picture, "--weight", "1", "--steps", "2"],
    }
    for name, arguments in commands.items():
        outcome = cli("run", name, *arguments, "--json", "-o", tmp_path / name)
        assert outcome.status == 0, outcome.err
        record = json.loads(outcome.out)
        assert record["provenance"]["technique"] == f"timmscope:{name}"
        assert (tmp_path / name / "figure.png").stat().st_size > 1000


def test_bounds_are_described_in_words() -> None:
    class Fields(BaseModel):
        a: int = Field(ge=0, le=1)
        b: float = Field(gt=0)
        c: int = Field(multiple_of=8, lt=100)
        d: PositiveInt | None = None
        e: str = ""

    found = {name: bounds(info) for name, info in Fields.model_fields.items()}
    assert found == {
        "a": "0 to 1",
        "b": "above 0",
        "c": "below 100, a multiple of 8",
        "d": "above 0",
        "e": "",
    }


def test_docstrings_become_paragraphs_without_markup() -> None:
    text = (
        "One `line`\nand more.\n\n- first\n  and long\n- second\n\n"
        "Parameters\n----------\na\n    b\n    c"
    )
    assert plain_text(text) == (
        "One line and more.\n\n- first and long\n- second\n\nParameters\n----------\na\n    b c"
    )


@pytest.mark.parametrize(
    "words",
    ["top", "search", "verify", "run top-patches", "run embedding-map", "run compare-datasets"],
)
def test_the_help_of_a_command_over_stores_says_what_trust_is_for(cli: Cli, words: str) -> None:
    text = " ".join(cli(*words.split(), "--help").out.replace("│", " ").split())
    assert "--trust lets one that you have not made open the model and the images" in text


def test_help_shows_the_formula_without_the_docstrings_sections(cli: Cli) -> None:
    text = cli("run", "grad-cam", "--help").out
    assert "weighs each channel" in text
    assert "ReLU(Σ_k mean_ij(g_kij) · A_k)" in text
    assert text.count("Source: Selvaraju et al., ICCV 2017") == 1
    for section in ("Paper:", "Inherited parameters:", "Raises:", "TechniqueError"):
        assert section not in text
