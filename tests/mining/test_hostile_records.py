"""Names in a stranger's files are only looked up; no reader imports or calls what they name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.store.rewriting import rewrite_manifest

from timmscope import (
    HookedModel,
    Store,
    TimmscopeError,
    VectorIndex,
    checked_json,
    load_result,
    mine,
    technique,
)
from timmscope.cli import main

SETTINGS = {"layers": ["layer2"], "shard_size": 16, "batch_size": 8, "workers": 0}
NAMES = {
    "a function of the standard library": "subprocess:check_output",
    "a shell": "os:system",
    "a module beside the store": "beside:Beside",
    "a module in a package": "beside.deep:Beside",
    "a built-in of Python": "builtins:exec",
    "a class of timmscope that is no collector": "timmscope.models.sources:load_file",
    "a technique": "timmscope:pgd",
    "nothing": "",
    "text": "no id at all\nand a second line",
}


@pytest.fixture(scope="module")
def whole(
    small_model: HookedModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    store = mine(small_model, pictures, folder / "whole.scope", **SETTINGS)  # type: ignore[arg-type]
    VectorIndex.build(store.layer("layer2")).save()
    for part in (1, 2):
        mine(small_model, pictures, folder / f"{part}.scope", ranges=(part, 2), **SETTINGS)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a module into the working directory and on the path; importing it writes a file."""
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'a').write('imported')\nclass Beside: pass\n"
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "__init__.py").write_text(code)
    (tmp_path / "beside" / "deep.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return marker


def forge(folder: Path, target: Path, name: str, marker: Path) -> Path:
    """Copy a store and make its manifest name `name`, with parameters, for every collector."""
    shutil.copytree(folder, target)

    def change(manifest: dict[str, Any]) -> None:
        for collector in manifest["collectors"]:
            collector["id"] = name
            collector["parameters"] = {"args": f"touch {marker}", "command": f"touch {marker}"}

    rewrite_manifest(target, change)
    return target


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 2, words
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_no_reader_of_a_store_imports_or_runs_what_its_manifest_names(
    name: str,
    whole: Path,
    pictures: Path,
    trap: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = forge(whole / "whole.scope", tmp_path / "forged.scope", name, trap)
    part = forge(whole / "1.scope", tmp_path / "1.scope", name, trap)
    opened = Store.open(store)
    for read in (
        lambda: opened.collector("layer2", "statistics"),
        lambda: opened.layer("layer2").statistics(),
        lambda: opened.layer("layer2").statistics("pooled"),
    ):
        with pytest.raises(TimmscopeError) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1
    one_line(
        capsys, "mine", "random:test_resnet?seed=0&img_size=32", str(pictures), "-o", str(store)
    )
    (store / "reduced" / "merged.h5").unlink()
    one_line(capsys, "verify", str(store), "--repair")
    (store / "shards" / "00000.h5").unlink()
    one_line(capsys, "verify", str(store), "--repair")
    one_line(capsys, "merge", str(part), str(whole / "2.scope"), "-o", str(tmp_path / "m.scope"))
    for words in (
        ["verify", str(store)],
        ["stats", str(store), "layer2", "--figure", str(tmp_path / "s.png")],
        ["top", str(store), "layer2", "3", "--sheet", str(tmp_path / "t.png")],
        ["search", str(store), "--row", "20", "--sheet", str(tmp_path / "n.png")],
        ["search", str(store), "--objective", "layer2[3]", "--sheet", str(tmp_path / "o.png")],
        ["index", "info", str(store), "layer2"],
        ["index", "build", str(store), "layer2"],
        ["doctor", "-v", str(store)],
    ):
        assert main(words) in (0, 2), words
    assert "Traceback" not in capsys.readouterr().err
    assert not trap.exists()
    assert not {"beside", "beside.deep"} & sys.modules.keys()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_no_reader_of_an_index_imports_what_its_record_names(
    name: str, whole: Path, trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "whole.scope", store := tmp_path / "s.scope")
    record = store / "index" / "layer2.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"backend": name}))
    one_line(capsys, "index", "info", str(store), "layer2")
    with pytest.raises(TimmscopeError):
        VectorIndex.load(Store.open(store), "layer2")
    assert main(["verify", str(store)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not trap.exists()
    assert "beside" not in sys.modules


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_no_reader_of_a_result_imports_what_it_names(
    name: str, small_model: HookedModel, trap: Path, tmp_path: Path
) -> None:
    maps = technique("activation-maps")(layer="layer1", count=1)(small_model, _grey())  # type: ignore[operator]
    saved = checked_json.load((maps.save(tmp_path / "r") / "result.json").read_bytes())
    attempts: list[Callable[[], dict[str, object]]] = [
        lambda: saved | {"type": name},
        lambda: saved | {"type": "Thing", "provenance": saved["provenance"] | {"technique": name}},
        lambda: saved | {"type": name, "provenance": saved["provenance"] | {"technique": name}},
        lambda: saved | {"fields": saved["fields"] | {name or "x": "touch"}},
    ]
    for attempt in attempts:
        (tmp_path / "r" / "result.json").write_bytes(checked_json.dump(attempt()))
        with pytest.raises(TimmscopeError) as caught:
            load_result(tmp_path / "r")
        assert len(str(caught.value).splitlines()) == 1
    assert not trap.exists()
    assert "beside" not in sys.modules


def test_an_evaluation_resumes_only_if_its_record_names_the_same_techniques(
    pictures: Path, trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in (0, 3):
        shutil.copy(pictures / "class0" / f"{number}.png", few)
    words = [
        "evaluate",
        "random:test_resnet?seed=0&img_size=32",
        str(few),
        "-o",
        str(tmp_path / "e"),
    ]
    words += ["--technique", "saliency", "--metric", "deletion"]
    assert main(words) == 0
    settings = tmp_path / "e" / "evaluation.json"
    record = checked_json.load(settings.read_bytes())
    for each in record["techniques"].values():
        each["technique"] = "os:system"
    settings.write_bytes(checked_json.dump(record))
    told = one_line(capsys, *words)
    assert 'techniques.saliency.technique: "os:system" → "timmscope:saliency"' in told
    assert not trap.exists()


def test_a_missing_plugin_is_named_in_the_error(whole: Path, trap: Path, tmp_path: Path) -> None:
    store = forge(whole / "whole.scope", tmp_path / "s.scope", "timmscope-foo:brightest", trap)
    with pytest.raises(TimmscopeError, match=r"collector 'brightest' of timmscope-foo: install"):
        Store.open(store).collector("layer2", "statistics")


def test_commands_in_a_new_process_import_nothing_that_a_store_names(
    whole: Path, trap: Path, tmp_path: Path
) -> None:
    store = forge(whole / "whole.scope", tmp_path / "s.scope", "beside:Beside", trap)
    for words in (["stats", str(store), "layer2"], ["verify", str(store)]):
        command = [str(Path(sys.executable).with_name("timmscope")), *words]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=300)
    assert not trap.exists()


def _grey() -> object:
    import torch

    return torch.full((1, 3, 32, 32), 0.5) + torch.rand(1, 3, 32, 32) * 0.1
