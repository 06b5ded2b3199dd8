"""A damaged store raises an error that names the file; damaged data is never returned."""

from __future__ import annotations

import errno
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.mining.synthetic import write_synthetic
from tests.store.rewriting import rewrite_manifest

from timmscope.mining import verify
from timmscope.store import SCHEMA, Store, files
from timmscope.store.checked_hdf5 import write_array
from timmscope_registry import StoreCorrupted, StoreError, TimmscopeError


def read_everything(path: Path) -> list[np.ndarray]:
    store = Store.open(path)
    images = store.images
    found = [images.status, images.sizes, np.array(list(images.paths)), np.array(images.reasons[:])]
    found.append(np.array([label or "" for label in images.labels[:]]))
    for name, record in store.layers.items():
        layer = store.layer(name)
        found += [layer.rows(kind)[:] for kind in record.kinds]
        found.append(np.array(layer.top(2, 10), dtype=object))
        found.append(layer.statistics().mean)
    return found


def test_flipped_bits_are_noticed_or_harmless_and_verify_names_them_all(known: Any) -> None:
    intact = read_everything(known.path)
    rng = np.random.default_rng(0)
    noticed = 0
    for name in ("shards/00001.h5", "reduced/merged.h5"):
        path = known.path / name
        original = path.read_bytes()
        for place in rng.integers(0, len(original), 12):
            damaged = bytearray(original)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            blamed = None
            try:
                got = read_everything(known.path)
            except StoreCorrupted as error:
                blamed = error.shard
                noticed += 1
            else:
                for one, other in zip(got, intact, strict=True):
                    np.testing.assert_array_equal(one, other)
            assert blamed in (None, name)
            report = verify(known.path)
            assert [item.file for item in report.damage] == [name]
            assert not report.ok
        path.write_bytes(original)
    assert noticed > 5
    assert verify(known.path).ok


@pytest.mark.parametrize("name", ["shards/00002.h5", "reduced/merged.h5"])
def test_missing_truncated_and_foreign_files_are_named(known: Any, name: str) -> None:
    path = known.path / name
    original = path.read_bytes()

    def use() -> None:
        read_everything(known.path)

    path.write_bytes(original[:-10])
    with pytest.raises(StoreCorrupted, match=f"{name}: .* bytes instead of {len(original)}"):
        use()
    path.write_bytes(b"x" * len(original))
    with pytest.raises(StoreCorrupted, match=name):
        use()
    path.unlink()
    with pytest.raises(StoreCorrupted, match=f"{name}: the file is missing; run timmscope verify"):
        use()
    assert [(d.file, d.reason) for d in verify(known.path).damage] == [
        (name, "the file is missing")
    ]


def test_a_damaged_shard_fails_only_the_reads_that_need_it(known: Any) -> None:
    (known.path / "shards/00002.h5").unlink()
    layer = known.open().layer("head")
    np.testing.assert_array_equal(layer.pooled[:32], known.rows["head", "pooled"][:32])
    assert layer.top(0, 3)
    with pytest.raises(StoreCorrupted) as caught:
        layer.pooled[32]
    assert caught.value.shard == "shards/00002.h5"


def swap(one: Path, two: Path) -> None:
    keep = one.with_name("keep")
    one.rename(keep)
    two.rename(one)
    keep.rename(two)


def test_swapped_shards_are_noticed_and_both_named(known: Any, tmp_path: Path) -> None:
    even = write_synthetic(tmp_path / "even", 30, shard_size=10, width=4, clusters=10).path
    sizes = {}
    for store in (known.path, even):
        one, two = store / "shards/00000.h5", store / "shards/00001.h5"
        sizes[store] = len({one.stat().st_size, two.stat().st_size})
        swap(one, two)
        assert {d.file: d.reason for d in verify(store).damage} == {
            "shards/00000.h5": "it holds the contents of shards/00001.h5",
            "shards/00001.h5": "it holds the contents of shards/00000.h5",
        }
    assert sizes == {known.path: 2, even: 1}
    with pytest.raises(StoreCorrupted, match=r"bytes instead of"):
        known.open().layer("head").pooled[0]
    with pytest.raises(StoreCorrupted, match=r"does not match its checksums"):
        Store.open(even).layer("features").pooled[0]


def test_an_older_schema_asks_to_mine_again(known: Any) -> None:
    rewrite_manifest(known.path, lambda manifest: manifest.update(schema=SCHEMA - 1))
    with pytest.raises(StoreError, match=f"schema {SCHEMA - 1}, .* reads {SCHEMA}; mine it again"):
        known.open()


def test_a_newer_schema_asks_for_an_upgrade(known: Any) -> None:
    rewrite_manifest(known.path, lambda manifest: manifest.update(schema=SCHEMA + 1, unheard_of=1))
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}, .* {SCHEMA}; upgrade timmscope"):
        Store.open(known.path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "x"}', '{"schema": 3}'])
def test_a_damaged_manifest_is_named(known: Any, content: str) -> None:
    (known.path / "manifest.json").write_text(content)
    with pytest.raises(StoreCorrupted, match=r"manifest\.json: the manifest is damaged"):
        Store.open(known.path)


def test_opening_a_folder_that_is_not_a_store_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StoreError, match="not a store"):
            Store.open(path)


class Failing(io.FileIO):
    """A disk with room for `room` bytes."""

    room = 0

    def write(self, data: Any) -> int:
        space = self.room - self.tell()
        if space <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(memoryview(data)[:space])

    def truncate(self, size: int | None = None) -> int:
        if (size or 0) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().truncate(size)


def fill(path: Path) -> None:
    with files.new_hdf5(path) as (file, _):
        for number in range(6):
            data = np.arange(number, number + 20_000, dtype=np.float64)
            write_array(file, f"d{number}", data, "here")
            np.testing.assert_array_equal(file[f"d{number}"][:], data)


@pytest.mark.parametrize("room", [0, 100, 5000, 100_000, 300_000, 900_000])
def test_a_full_disk_is_one_clear_error_at_any_moment(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "whole.h5")
    assert (tmp_path / "whole.h5").stat().st_size > 950_000
    monkeypatch.setattr(Failing, "room", room)
    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Failing(path, "w+"))
    with pytest.raises(StoreError, match=r"the disk is full .*what is finished is kept"):
        fill(tmp_path / "a.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.h5"]


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        files.write_bytes(tmp_path / "absent/a", b"")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    fill(path)
    before = path.read_bytes()

    def write() -> None:
        with files.new_hdf5(path) as (file, _):
            file["x"] = np.zeros(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_repair_that_cannot_start_deletes_nothing(known: Any) -> None:
    shutil.copy(known.path / "shards/00000.h5", known.path / "shards/00001.h5")
    before = sorted(known.path.rglob("*"))
    with pytest.raises(TimmscopeError):  # the manifest names a model that does not exist
        verify(known.path, repair=True)
    assert set(before) <= set(known.path.rglob("*"))
