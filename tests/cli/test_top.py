"""`timmscope top` cuts out the chosen receptive field of the selected images and reports it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Cli = Callable[..., Any]
MODEL = "random:efficientnet_b0?seed=0&img_size=96"


@pytest.fixture
def store(cli: Cli, tmp_path: Path) -> Path:
    """Mine eight pictures in two folders, and write a CSV file of metadata."""
    generator = np.random.default_rng(0)
    for number in range(8):
        file = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (100, 90 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    rows = ["name,sharp", *[f"{number}.png,{number / 10}" for number in range(8)]]
    (tmp_path / "more.csv").write_text("\n".join(rows))
    outcome = cli(
        "mine", MODEL, tmp_path / "pictures", "-o", tmp_path / "s.scope", "-l", "blocks.1.0",
        "-l", "global_pool", "--workers", "0",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    return tmp_path / "s.scope"


def asked(cli: Cli, *arguments: object) -> dict[str, Any]:
    outcome = cli("top", *arguments, "--json")
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def test_top_reports_kind_and_size_of_the_receptive_field(cli: Cli, store: Path) -> None:
    spatial = asked(cli, store, "blocks.1.0", "3", "-k", "2")
    # Stem 3/2, then depthwise 3/1 and 3/2: 3 + 4 + 4 px.
    assert spatial["field"]["kind"] == "spatial"
    assert spatial["field"]["size_px"] == [11, 11]
    assert spatial["field"]["stride_px"] == [4, 4]
    for row in spatial["top"]:
        y, x = row["position"]
        left, upper, right, lower = row["box_px"]
        assert [left, upper] == [max(0, 4 * x - 5), max(0, 4 * y - 5)]
        assert [right, lower] == [min(96, 4 * x + 6), min(96, 4 * y + 6)]
        assert row["cell_px"] == [4 * x, 4 * y, 4 * x + 4, 4 * y + 4]
    exact = asked(cli, store, "blocks.1.0", "3", "-k", "2", "--field", "exact")
    assert exact["field"]["size_px"][0] >= 96  # squeeze-excite
    assert [row["box_px"] for row in exact["top"]] == [[0, 0, 96, 96]] * 2
    effective = asked(cli, store, "blocks.1.0", "3", "-k", "2", "--field", "effective")
    assert effective["field"]["kind"] == "effective"
    assert max(effective["field"]["size_px"]) < 96
    shown = cli("top", store, "blocks.1.0", "3", "-k", "2")
    assert "spatial receptive field: 11x11 px" in shown.out
    assert "the whole image" in cli("top", store, "global_pool", "3", "-k", "2").out


def test_top_with_a_condition_shows_only_matching_images(
    cli: Cli, store: Path, tmp_path: Path
) -> None:
    found = asked(cli, store, "blocks.1.0", "0", "--where", "folder == 'a' and width > 92")
    assert {Path(row["path"]).name for row in found["top"]} == {"4.png", "6.png"}
    assert found["where"] == "folder == 'a' and width > 92"
    more = asked(
        cli, store, "blocks.1.0", "0", "--metadata", tmp_path / "more.csv",
        "--where", "sharp >= 0.6",
    )  # fmt: skip
    assert {Path(row["path"]).name for row in more["top"]} == {"6.png", "7.png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--field", "best"], "best"),
        (["--where", "widht > 3"], "widht"),
        (["--where", "width > 3000"], "no image that meets the condition"),
        (["--metadata", "gone.csv"], "gone.csv"),
    ],
)
def test_wrong_input_to_top_gives_one_line(
    cli: Cli, store: Path, arguments: list[str], words: str
) -> None:
    outcome = cli("top", store, "blocks.1.0", "0", *arguments)
    assert outcome.status == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
