"""`doctor -v` checks the machine, every implementation and stores."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import h5py
import pytest
import torch
from tests.cli.conftest import Cli

from timmscope import VectorIndex
from timmscope.cli.checkup import openmp_problems
from timmscope.testing import tiny_model, tiny_store

PLUGIN = """
from timmscope_registry import TechniqueSpec, hookimpl

@hookimpl
def timmscope_techniques():
    yield TechniqueSpec(
        name="hollow", family="attack", summary="Nothing behind it.", impl="no_such_module_here:X"
    )
"""


def test_verbose_doctor_shows_the_machine_and_imports_every_implementation(
    cli: Cli, tmp_path: Path
) -> None:
    printed = json.loads(cli("doctor", "-v", "--json").out)
    assert printed["problems"] == []
    assert printed["machine"]["HDF5"] == h5py.version.hdf5_version
    assert printed["machine"]["torch threads"] == str(torch.get_num_threads())
    ours = printed["plugins"]["timmscope:attack"]
    assert ours["version"] == version("timmscope")
    assert ours["status"] == "ok"
    # Zero is correct here, because this process may have imported the modules before.
    assert 0 <= ours["load_ms"] < 60_000
    assert 0 <= ours["import_ms"] < 60_000
    (tmp_path / "hollow.py").write_text(PLUGIN)
    assert "no problems" in cli("--plugin", "hollow.py", "doctor").out  # nothing is imported
    outcome = cli("--plugin", "hollow.py", "doctor", "-v")
    assert outcome.status == 2
    assert "hollow.py (implementation)" in outcome.out
    assert "No module named 'no_such_module_here'" in " ".join(outcome.out.split())


def test_a_slow_implementation_is_noted_with_its_time(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timmscope.cli.checkup.SLOW_S", 0.2)
    (tmp_path / "sleepy_implementation.py").write_text("import time\ntime.sleep(0.3)\nX = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "late.py").write_text(
        PLUGIN.replace("no_such_module_here", "sleepy_implementation")
    )
    outcome = cli("--plugin", "late.py", "doctor", "-v", "--json")
    assert outcome.status == 0
    printed = json.loads(outcome.out)
    (note,) = [note for note in printed["notes"] if "late.py" in note]
    assert note.startswith("technique 'hollow' of late.py takes ")
    assert note.endswith("ms to import at first use (sleepy_implementation:X)")
    assert printed["plugins"]["late.py"]["import_ms"] >= 300


def test_an_intact_store_is_listed_with_its_index(cli: Cli, tmp_path: Path) -> None:
    store = tiny_store(tiny_model(), tmp_path)
    layer = list(store.layers)[-1]
    VectorIndex.build(store.layer(layer)).save()
    printed = json.loads(cli("doctor", store.path, "--json").out)
    assert printed["problems"] == []
    (fact,) = printed["stores"]
    assert (fact["images"], fact["shards"], fact["model"]) == (24, "3/3", "tiny:cnn")
    assert fact["layers"] == list(store.layers)
    assert fact["indexes"] == [{"layer": layer, "backend": "timmscope:flat", "missing_rows": 0}]


def test_problems_of_a_store_or_its_index_come_with_a_hint(cli: Cli, tmp_path: Path) -> None:
    store = tiny_store(tiny_model(), tmp_path)
    layer = list(store.layers)[-1]
    VectorIndex.build(store.layer(layer)).save()
    (index,) = store.path.glob("index/*.faiss")
    damaged = bytearray(index.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    index.write_bytes(bytes(damaged))
    outcome = cli("doctor", store.path)
    assert outcome.status == 2
    printed = " ".join(outcome.out.split())
    assert "(index): index/" in printed
    assert "--repair" in printed

    outcome = cli("doctor", "nothing.scope")
    assert outcome.status == 2
    assert "not a store" in " ".join(outcome.out.split())

    manifest = store.path / "manifest.json"
    manifest.write_text(manifest.read_text()[:-40])
    outcome = cli("doctor", store.path, "--json")
    assert outcome.status == 2
    (problem,) = json.loads(outcome.out)["problems"]
    assert problem["stage"] == "store"


@pytest.mark.parametrize(
    ("libraries", "clash"),
    [
        (["/a/libgomp.so.1", "/b/libgomp-abc.so.1"], False),
        (["/a/libgomp.so.1", "/b/libiomp5.so"], False),
        (["/a/libomp.so", "/b/libiomp5.so"], True),
        (["/a/libiomp5.so", "/b/libiomp5.so"], True),
        ([], False),
    ],
)
def test_two_runtimes_of_intel_or_llvm_are_a_problem(libraries: list[str], clash: bool) -> None:
    found = openmp_problems(libraries)
    assert bool(found) is clash
    assert all("/b/libiomp5.so" in problem.message for problem in found)
    assert all(problem.hint for problem in found)


def test_truncated_and_missing_shards_are_reported_without_reading_them(
    cli: Cli, tmp_path: Path
) -> None:
    store = tiny_store(tiny_model(), tmp_path)
    first, second, _ = sorted(store.path.glob("shards/*.h5"))
    size = first.stat().st_size
    with first.open("r+b") as file:
        file.truncate(100)
    second.unlink()
    outcome = cli("doctor", store.path, "--json")
    assert outcome.status == 2
    printed = [problem["message"] for problem in json.loads(outcome.out)["problems"]]
    assert printed == [
        f"shards/{first.name}: it has 100 bytes and was written with {size}",
        f"shards/{second.name}: it is missing",
    ]
