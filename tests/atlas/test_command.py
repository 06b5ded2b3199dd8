"""`timmscope atlas` writes beside the store, says what it did, and refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import cli  # noqa: F401  (a fixture)

import timmscope.atlas
from timmscope import Store, atlas_folder

QUICK = "activation-maximization steps=2"


def test_the_command_writes_beside_the_store(cli: Any, resnet_store: Store) -> None:  # noqa: F811
    command = ["atlas", resnet_store.path, "layer1", "--units", "0,2-3", "--technique", QUICK,
               "-k", "2", "--per-page", "2"]  # fmt: skip
    first = cli(*command)
    assert first.status == 0, first.err
    folder = atlas_folder(resnet_store, "layer1")
    assert folder == resnet_store.path.parent / "resnet.scope.atlas" / "layer1"
    assert "3 of 3 units of layer1 have a synthesised image" in first.out
    assert f"page-000.png to page-001.png, figure.png, units.csv and units/ are in {folder}" in (
        first.out
    )
    again = cli(*command, "--json")
    found = json.loads(again.out)
    assert [row["unit"] for row in found["units"]] == [0, 2, 3]
    assert found["sheets"] == ["page-000.png", "page-001.png"]
    for name in (*found["sheets"], *found["files"]):
        assert (folder / name).stat().st_size > 100
    changed = cli(*command, "--seed", "4")
    assert changed.status == 2
    assert "other settings (seed: 0 → 4)" in changed.err
    assert changed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["layer9"], "has no layer 'layer9'; did you mean 'layer1'?"),
        (["layer1", "--units", "64"], "units 0 to 63, there is no unit 64"),
        (["layer1", "--units", "first"], "'first' is neither a number nor a range"),
        (["layer1", "--technique", "pgd"], "pgd is of the family attack: only syntheses"),
        (["layer1", "--technique", "activation-maximisation"], "did you mean"),
        (["layer1", "--technique", f"{QUICK} stops=3"], "did you mean 'steps'?"),
        (["layer1", "-k", "-1"], "--count is -1, expected 0 to 100"),
        (["layer1", "--per-page", "0"], "--per-page is 0, expected at least 1"),
        (["layer1", "--images", "nowhere"], "nowhere"),
        (["layer1", "--model", "random:resnet18?seed=1&img_size=32"], "has other weights than"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    cli: Any,  # noqa: F811
    resnet_store: Store,
    tmp_path: Path,
    arguments: list[str],
    words: str,
) -> None:
    outcome = cli("atlas", resnet_store.path, *arguments, "-o", tmp_path / "out")
    assert outcome.status == 2, outcome.out
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_interrupted_command_says_how_to_resume(
    cli: Any,  # noqa: F811
    resnet_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(timmscope.atlas, "make_atlas", stopped)
    outcome = cli("atlas", resnet_store.path, "fc")
    assert outcome.status == 130
    assert "run the same command again to resume; units so far are in" in outcome.err


def test_the_name_of_no_layer_leads_out_of_the_folder() -> None:
    def folder(layer: str) -> Path:
        named = SimpleNamespace(
            path=Path("a/s.scope"), layer=lambda name: SimpleNamespace(name=name)
        )
        return atlas_folder(named, layer)  # type: ignore[arg-type]

    top = Path("a/s.scope.atlas")
    assert folder("blocks.4#1") == top / "blocks.4#1"
    assert folder("..") == top / "%2E."
    assert folder("../../x") == top / "%2E.%2F..%2Fx"
    assert folder("stage4[0]") == top / "stage4%5B0%5D"
