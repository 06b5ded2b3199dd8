"""A loaded index equals the saved one, or an error names the damage."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from timmscope import BuildHints, PluginError, VectorIndex, VectorIndexError, checked_json
from timmscope.index.files import write_index
from timmscope.index.ivf import IVFBackend

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
    """Change a record like a forger, with a digest that fits."""
    file = path.with_suffix(".json")
    file.write_bytes(checked_json.dump({**checked_json.load(file.read_bytes()), **changes}))


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
    r"rows\.json is not a record .*greater than or equal to 1": lambda path: edit(path, dim=-8),
    r"rows\.json is not a record .*less than or equal to 1099": lambda path: edit(
        path, count=10**18
    ),
    r"rows\.json is not a record .*valid dictionary": lambda path: edit(
        path, facts={"asked": {}, "recall": 3}
    ),
    r"rows\.json is not a record .*(recursion|nested too deeply)": lambda path: path.with_suffix(
        ".json"
    ).write_text('{"facts":' + '{"a":' * 100_000),
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
    assert str(caught.value).endswith(
        ("build it again", "build the index again", "build one with `timmscope index build`")
    )


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


def test_a_record_with_one_flipped_bit_is_refused(saved: Path) -> None:
    file = saved.with_suffix(".json")
    whole = file.read_bytes()
    values = json.loads(whole)
    for bit in range(0, 8 * len(whole), 37):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if found != values:  # a flip may turn one blank into another
            with pytest.raises(VectorIndexError, match=r"is not a record|newer timmscope"):
                VectorIndex.load(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
@pytest.mark.parametrize("suffix", [".faiss", ".json"])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(saved: Path, suffix: str) -> None:
    saved.with_suffix(suffix).unlink()
    os.mkfifo(saved.with_suffix(suffix))
    with pytest.raises(VectorIndexError, match="a pipe or a device, not a file"):
        VectorIndex.load(saved)


def forge(saved: Path, index: Any, tail: bytes = b"", **changes: Any) -> None:
    """Replace the index by another with a record that fits."""
    faiss.write_index(index, str(saved))
    with saved.open("ab") as file:
        file.write(tail)
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    edit(saved, size=saved.stat().st_size, sha256=digest, **changes)


@pytest.mark.parametrize(("ids", "message"), [([-3], "a row of id -3"), ([3], "holds id 3 twice")])
def test_ids_that_no_index_can_have_are_refused(saved: Path, ids: list[int], message: str) -> None:
    index = faiss.IndexIDMap(faiss.IndexFlatIP(8))
    index.add_with_ids(ROWS, np.array([*ids, *range(1, 50)]))
    forge(saved, index)
    with pytest.raises(VectorIndexError, match=message):
        VectorIndex.load(saved)


def test_ids_of_another_kind_of_index_are_refused(saved: Path) -> None:
    graph = faiss.IndexIDMap(faiss.IndexHNSWFlat(8, 4, faiss.METRIC_INNER_PRODUCT))
    graph.add_with_ids(ROWS, np.arange(50))
    forge(saved, graph)
    with pytest.raises(VectorIndexError, match="do not belong to a table of rows"):
        VectorIndex.load(saved)


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
@pytest.mark.parametrize("place", [50, 10**12, -1, 0])
def test_codes_of_foreign_rows_are_refused(tmp_path: Path, backend: str, place: int) -> None:
    path = VectorIndex.from_array(ROWS, backend=backend, metric="l2").save(tmp_path / "a.faiss")
    data = path.read_bytes()
    index = faiss.read_index(str(path))
    faiss.write_index(index, str(tmp_path / "again"))
    start = (tmp_path / "again").stat().st_size
    table = data[start + (-start % 4096) :]
    index.reset()
    places = np.arange(50)
    places[7] = place
    index.add_with_ids(ROWS, places)
    faiss.write_index(index, str(tmp_path / "again"))
    size = (tmp_path / "again").stat().st_size
    forge(path, index, bytes(-size % 4096) + table)
    with pytest.raises(VectorIndexError, match="does not hold each of the 50 rows once"):
        VectorIndex.load(path)


@pytest.mark.parametrize("facts", [{"effort": 10**12}, {"width": 0}])
def test_impossible_search_parameters_are_refused(tmp_path: Path, facts: dict[str, int]) -> None:
    index = VectorIndex.from_array(ROWS, backend="ivf")
    path = index.save(tmp_path / "a.faiss")
    edit(path, facts={**index.record.facts, **facts})
    with pytest.raises(VectorIndexError, match="search parameters"):
        VectorIndex.load(path)


def test_a_claimed_size_beyond_that_of_the_file_takes_no_memory(saved: Path) -> None:
    data = saved.read_bytes()
    at = data.index(struct.pack("<Q", ROWS.size))  # stands before the rows
    forged = data[:at] + struct.pack("<Q", 1 << 38) + data[at + 8 :]
    saved.write_bytes(forged)
    edit(saved, sha256=hashlib.sha256(forged).hexdigest())
    with pytest.raises(VectorIndexError, match="cannot be read"):
        VectorIndex.load(saved, mmap=False)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("missing", [1, 100, 1500])
def test_a_full_disk_keeps_the_saved_index(saved: Path, missing: int) -> None:
    size = saved.stat().st_size
    other = VectorIndex.from_array(ROWS[::-1], name="rows")
    with full_disk(size - missing), pytest.raises(VectorIndexError, match="cannot be written"):
        other.save(saved)
    np.testing.assert_array_equal(VectorIndex.load(saved).ids, np.arange(50) * 3)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["rows.faiss", "rows.json"]


def test_a_full_disk_while_rows_are_added_is_one_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine = IVFBackend(8, "l2", BuildHints(scratch=tmp_path))
    with full_disk(1000):
        with pytest.raises(VectorIndexError, match="cannot be kept on disk"):
            engine.add(ROWS, np.arange(50))
        del engine
        gc.collect()
    assert capsys.readouterr().err == ""


def test_an_engine_that_writes_nothing_is_named(saved: Path) -> None:
    index = VectorIndex.load(saved)
    with pytest.raises(PluginError, match=r"index backend 'flat' of .* wrote nothing; expected a"):
        write_index(saved, index.record, lambda path: None)
    assert len(VectorIndex.load(saved)) == 50
