"""An engine's further files are checked, replaced and removed together with its index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timmscope import PluginError, VectorIndex, VectorIndexError, checked_json
from timmscope.index.files import write_index
from timmscope.index.own_files import own_path
from timmscope.testing.backends import a_saved_index_loads_unchanged
from timmscope.testing.conformance import Case
from timmscope_registry import get_registry, set_registry

ROWS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
PLUGIN = '''
from timmscope.index.flat import FlatBackend
from timmscope_registry import IndexBackendSpec, hookimpl


class Split(FlatBackend):
    """Exact search whose ids are also in a file beside the index."""

    def save(self, path):
        super().save(path)
        path.with_name(path.name + ".ids").write_bytes(self.ids.tobytes())

    @classmethod
    def load(cls, path, dim, space, facts, *, mmap):
        engine = super().load(path, dim, space, facts, mmap=mmap)
        if path.with_name(path.name + ".ids").read_bytes() != engine.ids.tobytes():
            raise ValueError("its ids are those of another index")
        return engine


@hookimpl
def timmscope_index_backends():
    yield IndexBackendSpec(name="split", summary="In two files.", impl=f"{__name__}:Split")
'''


@pytest.fixture(autouse=True)
def split(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    get_registry().load_file(tmp_path / "plugin.py")
    yield
    set_registry(None)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    index = VectorIndex.from_array(ROWS, ids=np.arange(50) * 3, name="rows", backend="split")
    return index.save(tmp_path / "made" / "rows.faiss")


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def test_a_further_file_is_in_the_record_and_loads_with_the_index(saved: Path) -> None:
    assert names(saved) == ["rows.faiss", "rows.faiss.ids", "rows.json"]
    again = VectorIndex.load(saved)
    assert again.record.files["ids"].size == 50 * 8
    assert again.search(ROWS[7], 1).ids.tolist() == [[21]]
    again.tune(0.9)
    again.save()  # only the record changes
    assert VectorIndex.load(saved, verify=True).record.files == again.record.files


def test_the_conformance_suite_saves_such_an_engine_under_another_name(tmp_path: Path) -> None:
    entry = get_registry().index_backend("split")
    folder = tmp_path / "case"
    folder.mkdir()
    a_saved_index_loads_unchanged(Case(entry=entry, parameters={}, make=None, folder=folder))


def altered(path: Path) -> None:
    data = np.fromfile(path, np.int64)
    data[3] += 1
    data.tofile(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, r"the index .*rows\.faiss lacks its file rows\.faiss\.ids: build it again"),
        (lambda path: os.truncate(path, 9), r"rows\.faiss\.ids, a file of the index .* has 9 byte"),
        (altered, r"rows\.faiss\.ids, a file of the index .* was altered: its SHA-256 differs"),
    ],
    ids=["missing", "truncated", "altered"],
)
def test_a_forged_or_damaged_file_is_named_in_one_line(
    saved: Path, damage: Any, message: str
) -> None:
    damage(own_path(saved, "ids"))
    with pytest.raises(VectorIndexError, match=message) as caught:
        VectorIndex.load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["/../../secret", "json", "ids.next", "", "a" * 40])
def test_a_record_leads_to_no_other_file(saved: Path, suffix: str) -> None:
    file = saved.with_suffix(".json")
    values = checked_json.load(file.read_bytes())
    values["files"] = {suffix: values["files"]["ids"]}
    file.write_bytes(checked_json.dump(values))
    with pytest.raises(VectorIndexError, match=r"is no suffix of a file of an engine\): build"):
        VectorIndex.load(saved)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(1, 13))
def test_a_crash_while_saving_leaves_all_old_or_all_new_files(
    saved: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    old = VectorIndex.load(saved)
    new = VectorIndex.from_array(ROWS[::-1] * 2, metric="l2", backend="split")
    calls = 0

    def count(call: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return call(*arguments)

        return counted

    monkeypatch.setattr(os, "fsync", count(os.fsync))
    monkeypatch.setattr(Path, "replace", count(Path.replace))
    if moment < 12:
        with pytest.raises(Killed):
            new.save(saved)
    else:
        new.save(saved)
        assert calls == 11
    monkeypatch.undo()
    found = VectorIndex.load(saved, verify=True)
    source = {"cosine": old, "l2": new}[found.metric]
    np.testing.assert_array_equal(found.search(ROWS, 3).ids, source.search(ROWS, 3).ids)
    VectorIndex.from_array(ROWS[:9], backend="split").save(saved)
    assert names(saved) == ["rows.faiss", "rows.faiss.ids", "rows.json"]
    assert len(VectorIndex.load(saved, verify=True)) == 9


def test_the_files_of_an_engine_leave_with_its_index(saved: Path) -> None:
    own_path(saved, "backup").write_text("a user's own file")
    VectorIndex.from_array(ROWS, name="rows").save(saved)
    assert names(saved) == ["rows.faiss", "rows.faiss.backup", "rows.json"]
    assert VectorIndex.load(saved).record.files == {}


@pytest.mark.parametrize("kind", ["folder", "name", "link"])
def test_a_file_that_an_engine_cannot_have_is_named_with_the_engine(saved: Path, kind: str) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"index")
        if kind == "folder":
            own_path(path, "parts").mkdir()
            (own_path(path, "parts") / "one").write_text("")
        elif kind == "link":
            own_path(path, "parts").symlink_to(saved)
        else:
            own_path(path, "part.one").write_text("")

    record = VectorIndex.load(saved).record
    with pytest.raises(PluginError, match=r"index backend 'split' of .* wrote 'part.* beside its"):
        write_index(saved, record, write)
    assert names(saved) == ["rows.faiss", "rows.faiss.ids", "rows.json"]
    assert len(VectorIndex.load(saved)) == 50
