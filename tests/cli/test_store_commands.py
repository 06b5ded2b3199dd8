"""`mine`, `top`, `search` and `verify` work on one store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from timmscope import Store, load_model

Cli = Callable[..., Any]
MODEL = "random:resnet18?seed=0&img_size=64"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Write eleven pictures of noise, and one file that is not an image."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(11):
        pixels = generator.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "bad.png").write_text("no picture")
    return folder


@pytest.fixture
def store(cli: Cli, pictures: Path, tmp_path: Path) -> Path:
    outcome = cli(
        "mine", MODEL, pictures, "-o", tmp_path / "a store.scope", "--layer", "layer2", "-l",
        "global_pool", "--shard-size", "4", "--batch-size", "4", "--workers", "0",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert "12 images, 1 of them unreadable and skipped" in outcome.out
    assert "bad.png" in outcome.out
    assert f"timmscope top '{tmp_path / 'a store.scope'}' layer2 0" in outcome.out
    return tmp_path / "a store.scope"


def test_top_lists_the_strongest_images_and_writes_their_patches(
    cli: Cli, store: Path, pictures: Path, tmp_path: Path
) -> None:
    model = load_model(MODEL)
    files = sorted(pictures.glob("[0-9]*.png"))
    with model.record("layer2") as recording:
        model(model.images(files))
    maxima = recording["layer2"][:, 5].amax((1, 2))
    best = sorted(zip(maxima.tolist(), files, strict=True), reverse=True)[:3]
    listed = json.loads(cli("top", store, "layer2", "5", "-k", "3", "--json").out)
    assert [Path(row["path"]).name for row in listed["top"]] == [file.name for _, file in best]
    assert [row["value"] for row in listed["top"]] == pytest.approx([v for v, _ in best], rel=1e-4)
    with Image.open(tmp_path / listed["sheet"]) as sheet:
        assert sheet.format == "PNG"
    shown = cli("top", store, "layer2", "5", "-k", "3", "-o", tmp_path / "a" / "b.png")
    assert best[0][1].name in shown.out
    assert (tmp_path / "a" / "b.png").exists()


def test_search_finds_the_query_image_first_and_keeps_the_index(
    cli: Cli, store: Path, pictures: Path
) -> None:
    query = pictures / "7.png"
    first = cli("search", store, query, "-k", "4", "--json")
    assert first.status == 0, first.err
    found = json.loads(first.out)
    assert found["layer"] == "global_pool"
    assert Path(found["nearest"][0]["path"]).name == "7.png"
    assert found["nearest"][0]["score"] == pytest.approx(1.0, abs=1e-4)
    assert (store / "index").is_dir()
    again = json.loads(cli("search", store, query, "-k", "4", "--json").out)
    assert again == found
    assert "7.png" in cli("search", store, query, "--layer", "layer2").out


def test_verify_finds_and_repairs_damage(cli: Cli, store: Path, pictures: Path) -> None:
    assert cli("verify", store).status == 0
    shard = next(iter(sorted((store / "shards").glob("*.h5"))))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    damaged = cli("verify", store, "--json")
    assert damaged.status == 2
    assert [item["file"] for item in json.loads(damaged.out)["damage"]] == [f"shards/{shard.name}"]
    search = cli("search", store, pictures / "7.png")
    assert search.status == 2
    assert shard.name in search.err
    repaired = cli("verify", store, "--repair")
    assert repaired.status == 0, repaired.err
    assert "files checked: repaired" in repaired.out
    assert cli("verify", store).status == 0
    assert len(Store.open(store)) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["layer9", "0"], "no layer 'layer9'; did you mean 'layer2'"),
        (["layer2", "128"], "units 0 to 127"),
        (["layer2", "0", "-k", "0"], "--count is 0"),
        (["layer2", "0", "--images", "gone"], "gone: no such file or folder"),
    ],
)
def test_top_refuses_units_and_images_that_do_not_exist(
    cli: Cli, store: Path, arguments: list[str], words: str
) -> None:
    outcome = cli("top", store, *arguments)
    assert outcome.status == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_mining_into_a_store_of_another_model_changes_nothing(
    cli: Cli, store: Path, pictures: Path
) -> None:
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    outcome = cli("mine", "random:resnet18?seed=1&img_size=64", pictures, "-o", store)
    assert outcome.status == 2
    assert "made from something else" in outcome.err
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before
