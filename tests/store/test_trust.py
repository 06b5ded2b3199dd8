"""A store opens the model and the images that it records only if its user made or trusts it."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.store.rewriting import rewrite_manifest

import timmscope.models
import timmscope.store.store
from timmscope import (
    HookedModel,
    ImageError,
    Rows,
    Store,
    StoreError,
    load_model,
    merge,
    mine,
    technique,
    verify,
)
from timmscope.cli import main
from timmscope.store import store_model
from timmscope.store.shards import rows_file
from timmscope.trust import asking, is_known, remember

MODEL = "random:resnet18?seed=0&img_size=32"
SETTINGS: dict[str, Any] = {"layers": ["layer2"], "shard_size": 4, "batch_size": 4, "workers": 0}


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, and no trusted folders."""
    monkeypatch.delenv("TIMMSCOPE_TRUST")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "timmscope" / "stores"


@pytest.fixture(scope="module")
def made(model: HookedModel, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("elsewhere")))
        return mine(model, photos, tmp_path_factory.mktemp("made") / "a.scope", **SETTINGS).path


@pytest.fixture
def foreign(made: Path, tmp_path: Path) -> Path:
    """A store that another user made."""
    return Path(shutil.copytree(made, tmp_path / "foreign.scope"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The models and images that are opened."""
    seen: list[object] = []

    def watched(function: Any) -> Any:
        return lambda what, **more: (seen.append(what), function(what, **more))[1]

    real = timmscope.store.store.open_images
    monkeypatch.setattr(timmscope.store.store, "open_images", watched(real))
    monkeypatch.setattr(timmscope.models, "load_model", watched(timmscope.models.load_model))
    return seen


def test_a_store_that_is_mined_here_is_trusted_wherever_it_lies(model, photos, state, tmp_path):
    store = mine(model, photos, tmp_path / "own.scope", **SETTINGS)
    assert len(state.read_text().split()) == 1
    copied = Store.open(shutil.copytree(store.path, tmp_path / "copy.scope"))
    for each in (store, copied, Store.open(store.path)):
        assert len(each.source()) == 8
        assert store_model(each).weights_sha256 == model.weights_sha256
    mine(model, photos, tmp_path / "own.scope", **SETTINGS)
    assert len(state.read_text().split()) == 1
    assert state.parent.stat().st_mode & 0o077 == 0


def test_a_foreign_store_opens_nothing_and_says_what_it_wants(foreign, photos, opened, model):
    store = Store.open(foreign)
    actions = [
        store.source,
        lambda: store_model(store),
        lambda: Rows(store.layer("layer2")).pictures,
        lambda: technique("top-patches")(units=0)(store, layer="layer2"),
        lambda: technique("nearest-neighbours")()(store, photos / "0.png", layer="layer2"),
        lambda: verify(_damaged(foreign), repair=True),
    ]
    for action in actions:
        with pytest.raises(StoreError, match="you have not made this store") as caught:
            action()
        message = str(caught.value)
        assert repr(MODEL) in message
        assert repr(f"folder:{photos}") in message
        assert len(message.splitlines()) == 1
    assert opened == []


def _damaged(path: Path) -> Path:
    (path / rows_file(0)).unlink(missing_ok=True)
    return path


def test_what_the_caller_passes_needs_no_trust(foreign, photos, opened, model):
    store = Store.open(foreign)
    assert len(store.source(photos)) == 8
    assert store_model(store, model) is model
    assert verify(_damaged(foreign), repair=True, model=model, images=photos).ok
    assert MODEL not in opened


def test_a_foreign_store_is_trusted_if_the_caller_says_so(foreign, photos, monkeypatch, tmp_path):
    trusted = Store.open(foreign, trust=True)
    assert len(trusted.source()) == 8
    assert len(pickle.loads(pickle.dumps(trusted)).source()) == 8
    (tmp_path / "more.csv").write_text("id,kind\n0,cat\n")
    assert len(trusted.with_metadata(tmp_path / "more.csv").source()) == 8
    assert store_model(trusted).id == MODEL
    assert verify(_damaged(foreign), repair=True, trust=True).ok
    with pytest.raises(StoreError, match="you have not made"):
        Store.open(foreign).source()
    monkeypatch.setenv("TIMMSCOPE_TRUST", os.pathsep.join([str(photos), "", str(tmp_path)]))
    assert len(Store.open(foreign).source()) == 8
    monkeypatch.setenv("TIMMSCOPE_TRUST", str(tmp_path / "foreign"))
    with pytest.raises(StoreError, match="you have not made"):
        Store.open(foreign).source()


def test_a_store_that_names_other_images_is_not_trusted(model, photos, tmp_path):
    store = mine(model, photos, tmp_path / "own.scope", **SETTINGS)
    for change in ({"location": "/etc"}, {"location": "file:\x1b[31m"}):
        rewrite_manifest(store.path, lambda manifest, new=change: manifest["images"].update(new))
        with pytest.raises(StoreError, match="it wants to open") as caught:
            Store.open(store.path).source()
        assert str(caught.value).isprintable()


def test_a_yes_is_remembered_and_a_no_is_not(foreign, photos):
    asked: list[str] = []

    def answer(yes: bool) -> Any:
        return lambda folder, wanted: (asked.append(wanted), yes)[1]

    store = Store.open(foreign)
    with asking(answer(False)), pytest.raises(StoreError, match="you have not made"):
        store.source()
    with asking(answer(True)):
        store.source()
        store_model(store)
    store.source()
    assert asked == [f"the model {MODEL!r} and images at {f'folder:{photos}'!r}"] * 2


def test_a_merged_store_is_trusted_if_its_parts_are(model, photos, made, tmp_path, monkeypatch):
    parts = [
        mine(model, photos, tmp_path / f"{i}.scope", ranges=(i, 2), **SETTINGS) for i in (1, 2)
    ]
    whole = merge(parts, tmp_path / "whole.scope")
    assert len(whole.source()) == 8
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    again = merge(parts, tmp_path / "again.scope")
    with pytest.raises(StoreError, match="you have not made"):
        again.source()


def test_the_command_line_asks_or_takes_a_flag(foreign, tmp_path, monkeypatch, capsys, state):
    monkeypatch.chdir(tmp_path)
    words = ["top", str(foreign), "layer2", "0", "--count", "2"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "you have not made this store" in error
    assert len(error.splitlines()) == 1
    answers: list[str] = []

    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return f"{answers.pop()}\n"

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", Terminal())
        patch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        answers += ["no"]
        assert main(words) == 2
        assert not state.exists()
        answers += ["yes"]
        assert main(words) == 0
    assert len(state.read_text().split()) == 1
    state.unlink()
    for command in (words, ["run", "top-patches", str(foreign), "--units", "0", "-l", "layer2"]):
        assert main([*command, "--trust"]) == 0
        state.unlink()


def test_a_list_that_cannot_be_read_or_written_trusts_nobody(foreign, state, model, photos):
    state.parent.parent.mkdir()
    state.parent.write_text("a file in the folder's place")
    store = mine(model, photos, foreign.with_name("new.scope"), **SETTINGS)
    assert not is_known(store.path, store.manifest.trust_digest())
    state.parent.unlink()
    state.parent.mkdir()
    os.mkfifo(state)
    with pytest.raises(StoreError, match="you have not made"):
        store.source()
    with pytest.raises(ImageError):
        store.source("/nowhere")


def test_a_folder_that_cannot_be_written_to_is_reported(monkeypatch, caplog):
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    with caplog.at_level("WARNING", logger="timmscope.trust"):
        remember("0" * 64)
    assert "cannot note that this store is yours" in caplog.text
    assert "TIMMSCOPE_TRUST" in caplog.text
