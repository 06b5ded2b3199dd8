"""`plugins`, `doctor` and `layers` print tables for people and JSON for programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from timmscope import load_model
from timmscope.cli.doctor import packages_advice

Cli = Callable[..., Any]
MODEL = "random:vit_tiny_patch16_224?seed=0&img_size=64"


def test_plugins_lists_everything_with_its_family(cli: Cli) -> None:
    outcome = cli("plugins")
    assert outcome.status == 0
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines() if line}
    assert rows["timmscope:grad-cam"][1:5] == ["attribution", "0.1.0", "1.1", "ok"]
    assert rows["timmscope:flat"][1:3] == ["index", "backend"]
    assert outcome.err == ""


@pytest.mark.parametrize("columns", ["80", "120"])
def test_tables_fit_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in (["plugins"], ["doctor"], ["run"]):
        lines = cli(*command).out.splitlines()
        assert max(map(len, lines)) <= int(columns)


def test_plugins_json_names_kind_and_implementation(cli: Cli, plugin: Path) -> None:
    listed = json.loads(cli("--plugin", plugin, "plugins", "--json").out)
    entries = {entry["id"]: entry for entry in listed["entries"]}
    assert entries["contrast.py:contrast"]["family"] == "attribution"
    assert entries["timmscope:filters"]["base"] == "model"
    assert entries["timmscope:clusters"]["base"] == "store"
    assert entries["timmscope:top-k"]["kind"] == "collector"
    assert entries["timmscope:pgd"]["impl"] == "timmscope_attack.pgd:PGD"
    assert listed["problems"] == []


def test_a_blocked_plugin_is_shown_as_blocked(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMMSCOPE_BLOCK", "style")
    listed = json.loads(cli("plugins", "--json", "--block", "attack,synthesis").out)
    blocked = {p["name"] for p in listed["plugins"] if p["status"] == "blocked"}
    assert blocked == {"style", "attack", "synthesis"}


def test_doctor_finds_no_problem_in_a_healthy_installation(cli: Cli) -> None:
    outcome = cli("doctor")
    assert outcome.status == 0
    assert "no problems" in outcome.out
    report = json.loads(cli("doctor", "--json").out)
    assert report["problems"] == []
    assert report["versions"]["torch"].startswith("2.")


def test_doctor_says_what_to_do_and_exits_with_2(cli: Cli) -> None:
    outcome = cli("--block", "no-such-plugin", "doctor")
    assert outcome.status == 2
    assert "no-such-plugin (block)" in outcome.out
    assert "what to do: correct --block" in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("torch", "vision", "problem", "note"),
    [
        ("2.5.1", "0.20.1", None, False),
        ("2.13.0+cpu", "0.28.0+cpu", None, False),
        ("2.13.0+cpu", "0.28.0+cu130", None, True),
        ("2.6.0", "0.20.1", "torchvision==0.21.*", False),
        ("2.6.0", None, "pip install torchvision", False),
    ],
)
def test_doctor_reports_a_torchvision_that_does_not_match_torch(
    torch: str, vision: str | None, problem: str | None, note: bool
) -> None:
    notes, problems = packages_advice({"torch": torch, "torchvision": vision})
    assert bool(notes) is note
    assert (problem in problems[0].hint) if problem else not problems


def test_layers_json_lists_the_models_layers(cli: Cli) -> None:
    listed = json.loads(cli("layers", MODEL, "--json").out)
    catalogue = load_model(MODEL).layers
    assert [layer["name"] for layer in listed["layers"]] == list(catalogue)
    block = next(layer for layer in listed["layers"] if layer["name"] == "blocks.4")
    assert block == {
        "name": "blocks.4",
        "type": "Block",
        "layout": "tokens",
        "shape": [17, 192],
        "channels": 192,
        "grid": [4, 4],
        "prefix_tokens": 1,
        "stride_px": [16.0, 16.0],
    }


def test_layers_shows_blocks_and_the_number_of_hidden_layers(cli: Cli) -> None:
    short = cli("layers", MODEL).out
    assert "blocks.4 " in short
    assert "blocks.4.attn" not in short
    assert "more with --all" in short
    assert "blocks.4.attn" in cli("layers", MODEL, "--all").out
