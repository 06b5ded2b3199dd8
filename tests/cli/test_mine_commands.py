"""`mine` and `merge` print results, log lines, unreadable images and how to resume."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.mining.contents import contents
from tests.processes import COMMAND, Running

MODEL = "random:resnet18?seed=0&img_size=32"
SIZES = ["--batch-size", 4, "--shard-size", 4, "--workers", 0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(14):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "5.png").write_bytes(b"")
    return folder


def test_merged_parts_equal_the_store_of_one_pass(cli: Any, photos: Path, tmp_path: Path) -> None:
    settings = ["--layers", "layer1,layer2", "--precision", "bf16", *SIZES]
    assert cli("mine", MODEL, photos, "-o", "whole.scope", *settings).status == 0
    for i in (1, 2):
        part = cli("mine", MODEL, photos, "-o", f"p{i}.scope", "--ranges", f"{i}/2", *settings)
        assert part.status == 0, part.err
        assert f"part {i} of 2" in part.out
        assert "next: timmscope merge PARTS" in part.out
    merged = cli("merge", "p2.scope", "p1.scope", "-o", "m.scope", "--json")
    assert (merged.status, merged.err) == (0, "")
    facts = json.loads(merged.out)
    assert (facts["images"], facts["part"], facts["layers"]) == (14, None, ["layer1", "layer2"])
    assert contents(tmp_path / "m.scope") == contents(tmp_path / "whole.scope")
    missing = cli("merge", "p2.scope", "-o", "n.scope")
    assert (missing.status, missing.err) == (2, "timmscope: error: part 1 of 2 is missing\n")


def test_an_automatic_batch_size_is_printed_with_its_reason(
    cli: Any, photos: Path, tmp_path: Path
) -> None:
    command = ["mine", MODEL, photos, "-l", "layer1", "--shard-size", 8, "--workers", 0]
    outcome = cli(*command, "-o", "a.scope", "--batch-size", "auto")
    assert outcome.status == 0
    assert "timmscope: batch size 8: a forward takes " in outcome.err
    assert outcome.err.count("\n") == 1
    facts = json.loads(cli(*command, "-o", "a.scope", "--json").out)
    assert facts["batch_size"] == 8
    assert json.loads((tmp_path / "a.scope" / "manifest.json").read_text())["batch_size"] == 8


@pytest.mark.parametrize("text", ["auto ", "Auto", "0", "-3", "1.5", ""])
def test_an_invalid_batch_size_gives_one_line(cli: Any, photos: Path, text: str) -> None:
    outcome = cli("mine", MODEL, photos, "-o", "a.scope", f"--batch-size={text}")
    wanted = f"timmscope: error: --batch-size {text!r}: expected a number of images, or auto\n"
    assert (outcome.status, outcome.err) == (2, wanted)


def test_the_error_of_bfloat16_is_printed_at_the_end_and_kept(
    cli: Any, photos: Path, tmp_path: Path
) -> None:
    command = ["mine", MODEL, photos, "-o", "b.scope", "-l", "layer1,layer4", *SIZES]
    outcome = cli(*command, "--precision", "bf16")
    assert outcome.status == 0, outcome.err
    table = outcome.out[outcome.out.index("bfloat16 error") :].splitlines()
    assert table[0].split() == ["bfloat16", "error", "pooled", "max"]
    kept = json.loads((tmp_path / "b.scope" / "manifest.json").read_text())["precision_error"]
    assert kept["images"] == 4
    for line, (layer, shares) in zip(table[2:4], kept["layers"].items(), strict=True):
        expected = [f"{100 * shares[kind]:.2g}" for kind in ("pooled", "max")]
        assert line.replace("%", "").split() == [layer, *expected]
    assert table[4].endswith("on the first 4 images")
    again = json.loads(cli(*command, "--json").out)
    assert again["precision"] == "bfloat16"
    assert again["precision_error"] == kept["layers"]


@pytest.mark.parametrize("ranges", ["3", "a/b", "1/", "/2", "1.5/2", "-1/2"])
def test_invalid_ranges_give_one_line(cli: Any, photos: Path, ranges: str) -> None:
    outcome = cli("mine", MODEL, photos, "-o", "s.scope", f"--ranges={ranges}")
    assert outcome.status == 2
    assert outcome.err == f"timmscope: error: --ranges {ranges}: expected i/n, as in 2/4\n"


def test_the_reason_does_not_repeat_the_name_of_the_image(cli: Any, photos: Path) -> None:
    outcome = cli("mine", MODEL, photos, "-o", "s.scope", "--layer", "layer1", *SIZES)
    assert outcome.err == ""
    (line,) = [line for line in outcome.out.splitlines() if "0 bytes" in line]
    assert line.split(maxsplit=1) == ["5.png", "the file is empty (0 bytes); replace or remove it"]


def test_the_size_of_maps_and_the_finished_shards_are_logged(cli: Any, photos: Path) -> None:
    command = ["mine", MODEL, photos, "-o", "s.scope", "--maps", "layer1", *SIZES]
    first = cli(*command)
    assert first.err.startswith("timmscope: s.scope: needs about ")
    assert first.err.endswith("for 14 images\n")
    Path("s.scope/shards/00002.h5").unlink()
    again = cli(*command)
    assert "mining 1 damaged shard(s) again" in again.err
    assert "s.scope: has 3 of 4 shards already" in again.err


def test_mining_without_a_readable_image_leaves_the_folder_usable(
    cli: Any, photos: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"x")
    outcome = cli("mine", MODEL, bad, "-o", "s.scope", "--layer", "layer1", "--workers", 0)
    assert outcome.status == 2
    assert "none of the 1 images can be read; the first is a.png: not an image" in outcome.err
    assert cli("mine", MODEL, photos, "-o", "s.scope", "--layer", "layer2", *SIZES).status == 0


def test_ctrl_c_gives_one_line_that_says_how_to_resume(photos: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "s.scope", tmp_path / "names.txt"
    names.write_text("photos/1.png\n" * 2000)  # enough that the signal comes before the end
    command = ["mine", MODEL, names, "-o", out, "-l", "layer1"]
    command += ["--batch-size", 1, "--shard-size", 1, "--workers", 2]
    process = Running(COMMAND, *command)
    while not (out / "shards/00001.h5").exists() and process.alive:
        time.sleep(0.002)
    process.signal(signal.SIGINT)
    done = process.done()
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert line.startswith("timmscope: interrupted with ")
    assert line.endswith(" of 2000 shards done: run the same command again to resume")
