"""A loaded index equals the saved one, or an error names the damage."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from timmscope import VectorIndex, VectorIndexError

ROWS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return VectorIndex.from_array(ROWS, ids=np.arange(50) * 3, name="rows").save(
        tmp_path / "rows.faiss"
    )


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_a_loaded_index_gives_the_answers_of_the_saved_one(tmp_path: Path, metric: Any) -> None:
    index = VectorIndex.from_array(ROWS, ids=np.arange(50) * 3, metric=metric)
    again = VectorIndex.load(index.save(tmp_path / "new" / "rows.faiss"))
    for mine, theirs in zip(index.search(ROWS, 7), again.search(ROWS, 7), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.record == index.record
    assert again.search_row(147, 1).ids.tolist() == index.search_row(147, 1).ids.tolist()


def test_faiss_alone_can_read_the_file(saved: Path) -> None:
    index = faiss.read_index(str(saved))
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    _, ids = index.search(unit[:5], 1)
    assert ids[:, 0].tolist() == [0, 3, 6, 9, 12]


def test_the_record_describes_the_index(saved: Path) -> None:
    record = json.loads(saved.with_suffix(".json").read_text())
    assert (record["layer"], record["metric"]) == ("rows", "cosine")
    assert record["backend"] == "timmscope:flat"
    assert (record["dim"], record["count"], record["size"]) == (8, 50, saved.stat().st_size)
    assert record["facts"]["faiss"] == faiss.__version__
    assert sorted(path.name for path in saved.parent.iterdir()) == ["rows.faiss", "rows.json"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path, **changes: Any) -> None:
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**record, **changes}))


DAMAGE = {
    r"rows\.faiss has \d+ bytes, \d+ were written": truncate,
    r"rows\.faiss was altered": flip,
    r"there is no index .*rows\.faiss": Path.unlink,
    r"rows\.json is missing": lambda path: path.with_suffix(".json").unlink(),
    r"rows\.json is not a record": lambda path: path.with_suffix(".json").write_text("{"),
    r"rows\.json is not a record of an": lambda path: path.with_suffix(".json").write_text("[]"),
    r"rows\.json was made by a newer timmscope \(schema 99": lambda path: edit(
        path, schema_version=99
    ),
    r"holds 50 rows, its record says 51": lambda path: edit(path, count=51),
    r"rows\.faiss cannot be read": lambda path: edit(path, dim=9),
    r"index backends: flat": lambda path: edit(path, backend="gone"),
    r"index backend 'quick' of timmscope-foo: install": lambda path: edit(
        path, backend="timmscope-foo:quick"
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_index_is_named_in_one_line(saved: Path, message: str) -> None:
    DAMAGE[message](saved)
    with pytest.raises(VectorIndexError, match=message) as caught:
        VectorIndex.load(saved)
    assert "\n" not in str(caught.value)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_crash_while_saving_leaves_the_old_or_the_new_index(
    saved: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    old, new = VectorIndex.load(saved), VectorIndex.from_array(ROWS[::-1] * 2, metric="l2")
    calls = 0

    third = VectorIndex.from_array(ROWS[:9], metric="ip")

    def count(call: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return call(*arguments)

        return counted

    for latest, before in ((new, [old]), (third, [old, new])):  # the second time after a crash
        calls = 0
        monkeypatch.setattr(os, "fsync", count(os.fsync))
        monkeypatch.setattr(Path, "replace", count(Path.replace))
        with pytest.raises(Killed):
            latest.save(saved)
        monkeypatch.undo()
        found = VectorIndex.load(saved)
        (source,) = (item for item in (latest, *before) if item.metric == found.metric)
        for mine, theirs in zip(found.search(ROWS, 3), source.search(ROWS, 3), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_folder_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VectorIndexError, match="cannot be written"):
        VectorIndex.from_array(ROWS).save(tmp_path / "file" / "rows.faiss")


def test_drafts_of_a_killed_writer_are_deleted_by_the_next(saved: Path) -> None:
    other = saved.with_name(".rows2.faiss.123.tmp")
    for name in (".rows.faiss.123.tmp", ".rows.json.123.tmp", other.name):
        saved.with_name(name).write_text("half")
    VectorIndex.load(saved).save(saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == [
        other.name,  # a draft of another index
        "rows.faiss",
        "rows.json",
    ]


def test_concurrent_readers_never_see_an_index_with_the_record_of_another(saved: Path) -> None:
    indexes = [VectorIndex.from_array(ROWS[:n], backend="flat") for n in (20, 30)]
    done = threading.Event()
    seen: list[int] = []

    def write(index: VectorIndex) -> None:
        for number in range(40):
            index.save(saved.with_name("other.faiss") if number % 4 == 0 else saved)

    def read() -> None:
        while not done.is_set():
            index = VectorIndex.load(saved)
            assert len(index) == index.record.count == len(index.search(ROWS[0], 50).ids[0])
            seen.append(len(index))

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        writers = [pool.submit(write, index) for index in indexes]
        for job in writers:
            job.result(300)
        done.set()
        for job in readers:
            job.result(300)
    assert set(seen) <= {20, 30, 50}
    assert len(seen) > 2
